// On a page with tables of cells: choices by which their rows are shown or hidden. The address of the page keeps them.

"use strict";

const FILTERED = ["data", "environment", "method", "verdict"]; // columns, as far as a table has them
const NONE = "not run"; // what an empty entry is called

function filtersOfCells(place) {
  const rows = [];
  for (const table of document.querySelectorAll(".cells table")) {
    const header = [...table.querySelectorAll("thead th")].map((entry) => entry.textContent.trim());
    for (const row of table.querySelectorAll("tbody tr")) {
      const entries = [...row.cells].map((entry) => entry.textContent.trim() || NONE);
      rows.push({ row, of: Object.fromEntries(header.map((name, column) => [name, entries[column]])) });
    }
  }
  const asked = new URLSearchParams(location.search);
  const choices = [];
  for (const name of FILTERED) {
    const values = [...new Set(rows.map(({ of }) => of[name]).filter((value) => value !== undefined))].sort();
    if (values.length < 2) continue;
    const select = document.createElement("select");
    select.append(new Option("all", ""), ...values.map((value) => new Option(value, value)));
    if (values.includes(asked.get(name))) select.value = asked.get(name);
    const label = document.createElement("label");
    label.append(`${name} `, select);
    place.append(label);
    choices.push({ name, select });
  }
  const count = document.createElement("output");
  place.append(count);

  function apply() {
    let shown = 0;
    for (const { row, of } of rows) {
      row.hidden = choices.some(({ name, select }) => select.value && of[name] !== select.value);
      shown += !row.hidden;
    }
    for (const table of document.querySelectorAll(".cells table")) {
      const section = table.closest("section");
      section.hidden = ![...section.querySelectorAll(".cells tbody tr")].some((row) => !row.hidden);
    }
    count.textContent = `${shown} of ${rows.length} cells`;
    for (const { name, select } of choices) {
      if (select.value) asked.set(name, select.value);
      else asked.delete(name);
    }
    const query = asked.toString();
    history.replaceState(null, "", location.pathname + (query ? `?${query}` : "") + location.hash);
  }

  place.addEventListener("change", apply);
  apply();
}

const firstCells = document.querySelector(".cells");
if (firstCells) {
  const place = document.createElement("div");
  place.className = "filters";
  firstCells.closest("section").before(place);
  filtersOfCells(place);
}

"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const make = (tag, attributes = {}, ...children) => {
  const svg = ["svg", "path", "line", "circle", "text", "g", "title"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children.filter((child) => child !== null));
  return node;
};
const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#767676"];
const runs = data.runs;
const scaled = (run, value) => (run.metric === "accuracy" ? 100 * value : value);
const shown = (run, value, ci95) => {
  if (value === null || value === undefined) return "not finite";
  const unit = run.metric === "accuracy" ? "%" : "";
  const number = run.metric === "accuracy" ? scaled(run, value).toFixed(2) : Number(value.toPrecision(4)).toString();
  return number + unit + (ci95 ? " ± " + Number(scaled(run, ci95).toPrecision(2)) + unit : "");
};

const several = (run) => run.members.length > 1;
// How the values of replicates are distributed: in a line, and unfolded that of each.
const distribution = (row) => {
  const values = row.members.map((run) => run.value);
  const [low, high] = [Math.min(...values), Math.max(...values)].map((value) => shown(row, value));
  const unit = row.metric === "accuracy" ? "%" : "";
  const each = row.members.map((run) => make("li", { title: run.name }, `seed ${run.seed}: ${shown(run, run.value, run.ci95)}`,
    run.checks.startsWith("FAILED") ? make("div", { class: "bad" }, run.checks) : null));
  return make("details", { class: "seeds" }, make("summary", {}, `${values.length} seeds, from `, make("span", {}, `${low} to ${high}`)),
    make("ul", {}, make("li", {}, `standard deviation ${Number(scaled(row, row.sd).toPrecision(2))}${unit}`), ...each));
};

// ---- The table: what a column shows and what it is sorted by.
const COLUMNS = [
  { name: "method", of: (run) => run.method },
  { name: "setting", of: (run) => run.setting },
  { name: "result", number: true, of: (run) => run.value, show: (run) => (run.finished ? shown(run, run.value, run.ci95) : run.state) },
  { name: "published", number: true, of: (run) => (run.published.length ? run.published[0].value : null),
    show: (run) => run.published.map((figure) => `${shown(run, figure.value, figure.ci95)} (${figure.source})`).join("; ") },
  { name: "difference", number: true, of: (run) => (run.published.length && run.value !== null ? run.value - run.published[0].value : null),
    show: (run, value) => (value === null ? "" : (value > 0 ? "+" : "") + scaled(run, value).toFixed(2)) },
  { name: "seed", number: true, of: (run) => run.seed, show: (run, value) => run.seeds ?? String(value ?? "") },
  { name: "tasks", number: true, of: (run) => run.tasks },
  { name: "checks", of: (run) => run.checks },
  { name: "steps", number: true, of: (run) => run.steps },
  { name: "seconds", number: true, of: (run) => run.seconds, show: (run, value) => (value === null ? "" : value.toFixed(0)) },
  { name: "device", of: (run) => run.device },
  { name: "protocol", of: (run) => run.protocol },
  { name: "run", of: (run) => run.name },
  { name: "command", of: (run) => run.command },
];
const sorting = { column: null, ascending: true };
const rows = () => ($("rows").value === "together" ? groups : runs);
// A row of replicates is found by what any of them is found by.
const chosen = () => {
  const words = $("text").value.toLowerCase().split(/\s+/).filter(Boolean);
  return rows().filter((row) => ["method", "setting", "kind"].every((key) => !$(key).value || row[key] === $(key).value)
    && row.members.some((run) => words.every((word) => run.searched.includes(word))));
};
const sorted = (list) => {
  const column = COLUMNS.find((each) => each.name === sorting.column);
  if (!column) return list;
  const sign = sorting.ascending ? 1 : -1;
  const empty = (value) => value === null || value === undefined || value === "";
  return [...list].sort((a, b) => {
    const [x, y] = [column.of(a), column.of(b)];
    if (empty(x) || empty(y)) return empty(x) - empty(y);
    return sign * (column.number ? x - y : String(x).localeCompare(String(y), undefined, { numeric: true }));
  });
};
const cell = (run, column) => {
  const value = column.of(run) ?? null;
  const text = column.show ? column.show(run, value) : value === null ? "" : String(value);
  if (column.name === "command") {
    if (!text) return make("td");
    const title = `Copy this command${several(run) ? `, that of seed ${run.seed}` : ""}`;
    const copy = make("button", { type: "button", title }, "copy");
    copy.addEventListener("click", () => navigator.clipboard?.writeText(text).then(() => { copy.textContent = "copied"; }));
    return make("td", {}, copy, " ", make("code", {}, text));
  }
  // On a narrow screen it wraps, between words and not at their hyphens.
  if (column.name === "setting") return make("td", {}, ...text.split(" ").flatMap((word) => [make("span", {}, word), " "]));
  if (column.name === "protocol") {
    return make("td", {}, ...run.marks.map((mark) => make("span", { class: "mark" }, mark)), make("code", {}, text));
  }
  if (column.name === "result" && several(run)) return make("td", { class: "number" }, text, distribution(run));
  if (column.name === "seconds" && several(run)) return make("td", { class: "number", title: "of all seeds" }, text);
  const classes = [column.number ? "number" : "", text.startsWith("FAILED") || text.startsWith("diverged") || text === "not finite" ? "bad" : "",
    /^passed(;|$)/.test(text) ? "good" : ""];
  return make("td", { class: classes.join(" ").trim() }, text);
};
const fill = () => {
  const list = sorted(chosen());
  $("body").replaceChildren(...list.map((run) => make("tr", {}, ...COLUMNS.map((column) => cell(run, column)))));
  $("count").textContent = `${list.length} of ${rows().length}`;
  for (const head of document.querySelectorAll("#heads th")) {
    const own = head.dataset.column === sorting.column;
    head.setAttribute("aria-sort", own ? (sorting.ascending ? "ascending" : "descending") : "none");
  }
  draw(list);
};

// ---- Charts.
const ticks = (low, high) => {
  const step = 10 ** Math.floor(Math.log10((high - low) / 4 || 1));
  const size = [1, 2, 5, 10].map((k) => k * step).find((k) => (high - low) / k <= 5) || step;
  const found = [];
  for (let value = Math.ceil(low / size) * size; value <= high + size / 1e6; value += size) found.push(Number(value.toPrecision(10)));
  return found;
};
const chart = (holder, title, across, series) => {
  const box = { width: 460, height: 260, left: 48, right: 10, top: 10, bottom: 34 };
  const points = series.flatMap((each) => each.points);
  if (!points.length) return;
  const range = (values) => {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const pad = (high - low) * 0.04 || Math.abs(high) * 0.1 || 1;
    return [low - pad, high + pad];
  };
  const [x0, x1] = range(points.map((point) => point[0]));
  const ends = (each) => each.points.flatMap(([, value, half]) => [value - (half || 0), Math.min(value + (half || 0), each.most ?? Infinity)]);
  const [y0, y1] = range(series.flatMap(ends));
  const x = (value) => box.left + ((value - x0) / (x1 - x0)) * (box.width - box.left - box.right);
  const y = (value) => box.height - box.bottom - ((value - y0) / (y1 - y0)) * (box.height - box.top - box.bottom);
  const svg = make("svg", { viewBox: `0 0 ${box.width} ${box.height}`, role: "img", "aria-label": title });
  for (const value of ticks(y0, y1)) {
    svg.append(make("line", { class: "axis", x1: box.left, x2: box.width - box.right, y1: y(value), y2: y(value) }));
    svg.append(make("text", { x: box.left - 5, y: y(value) + 4, "text-anchor": "end" }, String(value)));
  }
  for (const value of ticks(x0, x1)) svg.append(make("text", { x: x(value), y: box.height - 18, "text-anchor": "middle" }, value.toLocaleString("en")));
  svg.append(make("text", { x: (box.left + box.width) / 2, y: box.height - 3, "text-anchor": "middle" }, across));
  series.forEach((each) => {
    const group = make("g", { stroke: each.colour, fill: "none", "stroke-width": 1.5 }, make("title", {}, each.name));
    if (each.band && each.points.some((point) => point[2])) {
      const edge = (sign, points) => points.map(([a, b, half]) => `${x(a).toFixed(1)} ${y(Math.min(b + sign * (half || 0), each.most ?? Infinity)).toFixed(1)}`);
      const outline = [...edge(1, each.points), ...edge(-1, [...each.points].reverse())];
      group.append(make("path", { d: `M${outline.join("L")}Z`, fill: each.colour, "fill-opacity": Math.max(0.06, Math.min(0.18, 0.5 / series.length)), stroke: "none" }));
    }
    const line = each.points.map((point, k) => `${k ? "L" : "M"}${x(point[0]).toFixed(1)} ${y(point[1]).toFixed(1)}`).join("");
    group.append(make("path", { d: line, "stroke-opacity": each.dots ? 0.5 : 0.85 }));
    if (each.dots) for (const [a, b, half] of each.points) {
      group.append(make("circle", { cx: x(a), cy: y(b), r: 2.5, fill: each.colour }));
      if (half) group.append(make("line", { x1: x(a), x2: x(a), y1: y(b - half), y2: y(b + half) }));
    }
    svg.append(group);
  });
  const names = new Map(series.map((each) => [each.legend, each.colour]));
  const key = [...names].slice(0, 16).map(([name, colour]) => {
    const bar = make("i");
    bar.style.background = colour;
    return make("span", {}, bar, name);
  });
  holder.append(make("figure", {}, make("h3", {}, title), svg, make("div", { class: "key" }, ...key)));
};
const coloured = (names) => new Map([...new Set(names)].map((name, k) => [name, COLOURS[k % COLOURS.length]]));
// The lines of one chart, in colours that can be told apart: of too many, those of the best results.
const MOST = COLOURS.length;
const best = (metric, lines) => {
  if (lines.length <= MOST) return lines;
  const sign = metric === "accuracy" || metric === "reward" ? -1 : 1; // of errors the least
  const value = (line) => line.value ?? sign * Infinity;
  return [...lines].sort((a, b) => sign * (value(a) - value(b)) || 0).slice(0, MOST);
};
const draw_lines = (holder, title, across, metric, lines, colours) => {
  const kept = best(metric, lines);
  const own = kept.every((line) => colours.has(line.legend)) ? colours : coloured(kept.map((line) => line.legend));
  const said = kept.length < lines.length ? ` (the best ${kept.length} of ${lines.length})` : "";
  chart(holder, title + said, across, kept.map((line) => ({ ...line, colour: own.get(line.legend) })));
};
// All charts of a kind: `lines_of(row)` gives what a row has to be drawn, in the chart that is named `chart`.
const draw_charts = (holder, rows, colours, lines_of) => {
  const charts = new Map();
  for (const line of rows.flatMap(lines_of)) {
    if (!charts.has(line.chart)) charts.set(line.chart, []);
    charts.get(line.chart).push(line);
  }
  for (const [title, lines] of charts) draw_lines(holder, title, lines[0].across, lines[0].metric, lines, colours);
};
const against = (list, key, title, across) => {
  const groups = new Map();
  for (const run of list) {
    const where = run[key];
    if (where === null || where === undefined || run.value === null || !run.finished) continue;
    const group = `${run.method}\n${run.setting_but(key)}\n${run.alike[key]}`;
    if (!groups.has(group)) groups.set(group, { chart: `${title}: ${run.setting_but(key)}`, across, metric: run.metric,
      name: `${run.method}, ${run.setting_but(key)}`, legend: run.method, value: run.value, dots: true, points: [] });
    groups.get(group).points.push([where, scaled(run, run.value), scaled(run, run.ci95 || 0)]);
  }
  const several = [...groups.values()].filter((line) => new Set(line.points.map((point) => point[0])).size > 1);
  for (const line of several) line.points.sort((a, b) => a[0] - b[0]);
  return several;
};
const CHARTS = 24; // settings
const draw = (list) => {
  const holder = $("charts");
  holder.replaceChildren();
  const settings = [...new Set(list.map((row) => row.setting))];
  const drawn = list.filter((row) => settings.indexOf(row.setting) < CHARTS);
  const names = [...new Set(list.map((row) => row.legend))];
  const colours = names.length <= MOST ? coloured(names) : new Map();
  for (const setting of settings.slice(0, CHARTS)) {
    const rows = drawn.filter((row) => row.setting === setting);
    for (const part of ["val", "train"]) {
      draw_charts(holder, rows, colours, (row) => (row.curve[part]?.length > 1 ? [{
        chart: `${part === "val" ? "Validation" : "Training"} ${row.metric}${row.metric === "accuracy" ? ", %" : ""}: ${setting || "unknown"}`,
        across: "outer step", metric: row.metric, name: `${row.legend}: ${row.name}`, legend: row.legend, value: row.value, band: true,
        most: row.metric === "accuracy" ? 100 : null,
        points: row.curve[part].map(([step, value, half]) => [step, scaled(row, value), scaled(row, half || 0)]) }] : []));
    }
    draw_charts(holder, rows, colours, (row) => (row.within.length > 1 ? [{
      chart: `Reward by ${row.within_over}: ${setting}`, across: row.within_over, metric: row.metric, name: `${row.legend}: ${row.name}`,
      legend: row.legend, value: row.value, band: true,
      points: row.within.map(([value, half], k) => [k + row.within_from, value, half || 0]) }] : []));
  }
  for (const [key, title] of [["inner_steps", "inner steps"], ["way", "way"], ["shot", "shot"]]) {
    const lines = against(list, key, `Result against ${title}`, title);
    draw_charts(holder, lines, coloured(lines.map((line) => line.legend)), (line) => [line]);
  }
  if (settings.length > CHARTS) holder.append(make("p", {}, `Of ${settings.length} settings, the first ${CHARTS}: the filter leaves others.`));
  if (!holder.children.length) holder.append(make("p", {}, "Nothing to draw of these."));
};

// ---- Once.
for (const run of runs) {
  run.kind = run.evaluation ? "evaluation" : "run";
  run.searched = [run.method, run.setting, run.state, run.name, run.command, run.checks, run.protocol, ...run.marks].join(" ").toLowerCase();
  run.setting_but = (key) => (key === "way" ? run.setting.replace(/[\d–]+-way /, "") : key === "shot" ? run.setting.replace(/,? ?[\d–]+-shot/, "") : run.setting);
}
for (const run of runs) run.members = [run];
// Lines of charts are named by the method and what else tells a row from others of its setting.
const named = (run, label) => (run.finished ? label : `${label}, ${run.state}`);
// A row of replicates is the first of them, with what is of all of them in its place.
const groups = data.groups.map(({ members, label, ...of_all }) => {
  const own = members.map((number) => runs[number]);
  for (const run of own) run.legend = named(run, own.length > 1 ? `${label}, seed ${run.seed}` : label);
  if (own.length === 1) return own[0];
  return { ...own[0], ...of_all, legend: label, members: own, name: `${own[0].name} and ${own.length - 1} more`,
    device: [...new Set(own.map((run) => run.device))].join("; "),
    seconds: own.some((run) => run.seconds === null) ? null : own.reduce((sum, run) => sum + run.seconds, 0) };
});
$("rows").parentElement.hidden = groups.length === runs.length;
for (const key of ["method", "setting", "kind"]) {
  const values = [...new Set(runs.map((run) => run[key]))].filter(Boolean).sort((a, b) => a.localeCompare(b, undefined, { numeric: true }));
  $(key).append(...values.map((value) => make("option", { value }, value)));
}
$("heads").append(...COLUMNS.map((column) => {
  const button = make("button", { type: "button" }, column.name);
  button.addEventListener("click", () => {
    sorting.ascending = sorting.column === column.name ? !sorting.ascending : !column.number;
    sorting.column = column.name;
    fill();
  });
  return make("th", { scope: "col", class: column.number ? "number" : "", "data-column": column.name, "aria-sort": "none" }, button);
}));
$("filter").addEventListener("input", fill);
$("filter").addEventListener("submit", (event) => event.preventDefault());
$("filter").addEventListener("reset", () => setTimeout(fill));
for (const [name, type] of [["md", "text/markdown"], ["csv", "text/csv"], ["tex", "application/x-tex"],
  ["pmd", "text/markdown"], ["ptex", "application/x-tex"]]) {
  $(name)?.addEventListener("click", () => {
    const link = make("a", { href: URL.createObjectURL(new Blob([data.tables[name]], { type })), download: name.startsWith("p") ? `pivot.${name.slice(1)}` : `report.${name}` });
    link.click();
    URL.revokeObjectURL(link.href);
  });
}
fill();
document.documentElement.dataset.ready = "yes";

"""A report as one HTML page that needs no network: records in, text out. What moves in it is `page.js`."""

import base64
import hashlib
import html
import io
import json
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metarun.data.decoding import PictureError, in_words, opened
from metarun.data.pictures import MAX_BYTES
from metarun.errors import some
from metarun.report import pivot_tables, tables
from metarun.report.collection import Record, differing_keys, setting_of
from metarun.report.pivot import Pivot, pivot
from metarun.report.replicates import Replicates, replicates_of
from metarun.report.seed_curves import Band, curve_of, curve_over_seeds, over_seeds
from metarun.report.traits import TASKS, told_apart
from metarun.system.files import plain
from metarun.system.reading import is_number
from metarun.training.result import PARTS
from metarun.trust.protocol import flattened

PICTURE_BYTES = 5_000_000  # of all pictures together, so that a page of many runs stays light
# What a chart has across -> its key in a protocol.
_VARIED = {"inner_steps": "method.eval_inner_steps", "way": "way", "shot": "shot"}
_WIDE_ROWS = 24  # with pictures, up to which these are drawn wide
_PARTS = ("val", "train")  # of a run that have curves
_WITHIN = {"inner step": 0}  # where a curve within a trial begins; an episode is the first


def page(records: Sequence[Record], faults: Sequence[str]) -> str:
    """The page over some runs.

    Args:
      records: from `collection.collect`.
      faults: what could not be read, a sentence each.
    """
    keys = differing_keys(records)
    here = Path(__file__).parent
    script = (here / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    place = {id(record): number for number, record in enumerate(records)}
    groups = replicates_of(records)
    labels = [row.label(["method"]) for row in told_apart(groups, ["method"], [*TASKS, "metric"])]
    data: dict[str, Any] = {
        "runs": [_plain(record, keys) for record in records],
        "groups": [
            {"members": [place[id(each)] for each in group.records], "label": label, **_of_all(group)}
            for group, label in zip(groups, labels, strict=True)
        ],
        "tables": {
            "md": tables.markdown(records),
            "csv": tables.comma_separated(records),
            "tex": tables.latex(records),
        },
    }
    compared = pivot(records) if any(record.result for record in records) else None
    if compared:
        data["tables"] |= {"pmd": pivot_tables.markdown(compared), "ptex": pivot_tables.latex(compared)}
    runs = sum(not record.evaluation for record in records)
    count = f"{runs} run{'s' * (runs != 1)}"
    if len(records) > runs:
        count += f", {len(records) - runs} evaluation{'s' * (len(records) - runs != 1)}"
    return string.Template((here / "page.html").read_text(encoding="utf-8")).substitute(
        HASH=f"sha256-{digest}",
        CSS=(here / "page.css").read_text(encoding="utf-8"),
        COUNT=count,
        WARNINGS="".join(f'<p class="warning">{html.escape(fault)}</p>' for fault in faults),
        PIVOT=_pivot(compared) if compared and len(compared.cells) > 1 else "",
        DIFFERENCES=_differences(keys),
        PARTS=_in_parts(records),
        GALLERY=_gallery(groups),
        DATA=_script(data),
        SCRIPT=script,
    )


def _script(data: Mapping[str, Any]) -> str:
    """Data as JSON that every browser reads: without NaN, and with no text in it that could end the script."""
    return json.dumps(plain(data), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _plain(record: Record, keys: Mapping[str, Any]) -> dict[str, Any]:
    result = record.result or {}
    protocol = dict(flattened(result.get("protocol", {})))
    within = result.get("curves", {})
    return {
        "name": record.name,
        "command": record.command,
        "evaluation": record.evaluation,
        "finished": record.result is not None,
        "state": record.unfinished.state if record.unfinished else "",
        "method": record.unfinished.method if record.unfinished else result.get("method", ""),
        "setting": record.unfinished.setting if record.unfinished else setting_of(result),
        "metric": result.get("metric") or ("reward" if any("reward" in name for name in record.curve) else "accuracy"),
        **{key: result.get(key) for key in ("value", "ci95", "seed", "steps", "seconds")},
        # What results are drawn against; a range is no point of it.
        **{key: size if isinstance(size := result.get(key), int) else None for key in ("way", "shot")},
        "device": result.get("device", ""),
        "tasks": result.get("num_tasks"),
        "published": tables.figures_of(record),
        "checks": tables.checks_of([record]) if record.result else "",
        "protocol": result.get("protocol_id", ""),
        "marks": [f"{key.removeprefix('method.')}={protocol[key]}" for key in keys if key in protocol],
        "inner_steps": steps if is_number(steps := protocol.get("method.eval_inner_steps")) else None,
        "alike": {name: _alike(protocol, key) for name, key in _VARIED.items()},
        "curve": {part: curve_of(record, part) for part in _PARTS},
        "within": [[value] for value in _within(record)],
        "within_over": within.get("over"),
        "within_from": _WITHIN.get(within.get("over", ""), 1),
    }


def _of_all(group: Replicates) -> dict[str, Any]:
    """What a row of replicates says of all of them, in the place of what each says of itself; of a single one nothing."""
    if len(group.records) == 1:
        return {}
    within = [list(enumerate(_within(record))) for record in group.records if _within(record)]
    curves = {part: curve_over_seeds(group, part) for part in _PARTS}
    return {
        "value": group.value,
        "ci95": group.ci95,
        "sd": group.sd,
        "seeds": tables.seeds_of(group.records),
        "checks": tables.checks_of(group.records),
        "curve": {part: _points(band) for part, band in curves.items()},
        "within": [point[1:] for point in _points(over_seeds(within))] if within else [],
    }


def _points(band: Band | None) -> list[list[float]]:
    """`[[step, mean, half the width of the interval], ...]`, as many digits as a chart has room for."""
    if band is None:
        return []
    half = np.zeros(len(band.mean)) if band.half is None else band.half
    rows = zip(band.steps, band.mean, half, strict=True)
    return [[float(f"{value:.5g}") if place else float(value) for place, value in enumerate(row)] for row in rows]


def _within(record: Record) -> list[float]:
    """The rewards of a learner within a trial."""
    return [value for value in record.ended.get("curves", {}).get("learner", []) if value is not None][:500]


def _alike(protocol: Mapping[str, Any], key: str) -> str:
    """Equal for protocols that differ in `key` alone, whose results make one line of a chart."""
    rest = sorted((name, str(value)) for name, value in protocol.items() if name != key)
    return hashlib.sha256(repr(rest).encode()).hexdigest()[:8]


def _pivot(table: Pivot) -> str:
    buttons = '<button type="button" id="pmd">Markdown</button> <button type="button" id="ptex">LaTeX</button>'
    return f"<h2>Compared</h2>{pivot_tables.hypertext(table)}<p>This table as {buttons}</p>"


def _differences(keys: Mapping[str, Sequence[Any]]) -> str:
    if not keys:
        return "<h2>Protocols</h2><p>Results of the same data, way and shot are of one protocol.</p>"
    rows = "".join(
        f"<tr><td><code>{html.escape(key)}</code></td><td>{html.escape(', '.join(map(str, values)))}</td></tr>"
        for key, values in keys.items()
    )
    return (
        "<h2>Protocols differ</h2><p>Results of the same data, way and shot differ in these keys, which the table marks: "
        f'their numbers do not compare.</p><div class="scroll"><table><tbody>{rows}</tbody></table></div>'
    )


def _in_parts(records: Sequence[Record]) -> str:
    """What each result is on the tasks of each domain, way and shot, where it says so; of many, all but the first are folded away."""
    found: list[str] = []
    for record in records:
        tables_of = [
            _part(name, record.ended[field], record) for field, name in PARTS.items() if record.ended.get(field)
        ]
        if tables_of:
            opened_at_first = " open" if not found else ""
            summary = f"<summary>{html.escape(record.name)}</summary>"
            found.append(
                f'<details{opened_at_first} class="parts">{summary}<div class="scroll">{"".join(tables_of)}</div></details>'
            )
    return f"<h2>By domain, way and shot</h2>{''.join(found)}" if found else ""


def _part(name: str, parts: Mapping[str, Mapping[str, Any]], record: Record) -> str:
    is_accuracy = record.ended["metric"] == "accuracy"
    rows = "".join(
        f"<tr><td>{html.escape(part)}</td><td>{tables.value_in_words(its['value'], its['ci95'], is_accuracy)}</td>"
        f"<td>{its['num_tasks']}</td></tr>"
        for part, its in parts.items()
    )
    heads = "".join(f"<th>{html.escape(head)}</th>" for head in (name, record.ended["metric"], "tasks"))
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"


def _gallery(groups: Sequence[Replicates]) -> str:
    """The pictures of tasks, each in a row of its own; of replicates those of the first, and the others folded away."""
    rows = [its for group in groups if (its := [record for record in group.records if record.pictures])]
    if not rows:
        return ""
    width = 900 if len(rows) <= _WIDE_ROWS else 640
    drawn: dict[int, list[str]] = {id(record): [] for its in rows for record in its}
    spent, left_out, broken = 0, 0, []
    # Those that are folded away take what room the others leave.
    for record in [its[0] for its in rows] + [record for its in rows for record in its[1:]]:
        for path in record.pictures:
            name = f"{record.name}, {path.stem}"
            try:
                image = _encoded(path, record.directory, width)
            except PictureError as error:
                broken.append(f"{name} ({error})")
                continue
            if spent + len(image) > PICTURE_BYTES:
                left_out += 1
                continue
            spent += len(image)
            name = html.escape(name)
            source = f"data:image/webp;base64,{image}"
            drawn[id(record)].append(
                f'<figure><img loading="lazy" alt="{name}" src="{source}"><figcaption>{name}</figcaption></figure>'
            )
    figures = []
    for its in rows:
        figures += drawn[id(its[0])]
        if others := [each for record in its[1:] for each in drawn[id(record)]]:
            said = f"{len(others)} more of other seeds than that of {html.escape(its[0].name)}"
            figures.append(f"<details><summary>{said}</summary>{''.join(others)}</details>")
    said = f"<p>{left_out} more are left out, to keep the page light.</p>" if left_out else ""
    if broken:
        said += f'<p class="warning">Left out, as no PNG that can be shown: {html.escape(some(broken))}.</p>'
    return f'<h2>Tasks</h2>{said}<div class="gallery">{"".join(figures)}</div>'


def _encoded(path: Path, directory: Path, width: int) -> str:
    """A PNG of a run, no wider than `width` pixels, as WebP in base 64: pixels alone go from a run into the page.

    Raises:
      PictureError: by its content it is no PNG, or a broken one, or too large; or it is a link out of the run.
    """
    if not path.resolve().is_relative_to(directory.resolve()):
        raise PictureError("a link that leads out of the run")
    with in_words():
        if path.stat().st_size > MAX_BYTES:
            raise PictureError(f"larger than {MAX_BYTES:,} bytes")
        data = path.read_bytes()
        opened(data, ("PNG",)).verify()
        image = opened(data, ("PNG",)).convert("RGB")
        image.thumbnail((width, 10 * width))
        stream = io.BytesIO()
        image.save(stream, "WEBP", quality=60)
    return base64.b64encode(stream.getvalue()).decode()

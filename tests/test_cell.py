"""The node `cell`: what it says, what of it is refused, and that the experiments' figures are those of the papers."""

import datetime
import re
from functools import cache

import pytest

from metarun.commands.reproduce import cells
from metarun.config import experiments
from metarun.config.composing import composed
from metarun.config.schema import FEW_SHOT, RL
from metarun.config.search_path import conf_dir
from metarun.errors import ConfigError
from metarun.trust.cell import Cell, Figure, cell_of, stated
from metarun.trust.measured import table

FIGURE = {"paper": "finn2017", "value": 0.987, "ci95": 0.004, "source": "table 1"}
MEASURED = {"value": 0.97, "ci95": 0.003, "minutes": 4, "machine": "two cores"}
NODE = {"published": [FIGURE], "margin": 0.01}
# Omniglot 5-way 1-shot, 5-shot, 20-way 1-shot, 5-shot; miniImageNet 5-way 1-shot, 5-shot: as the papers' tables have them.
COLUMNS = (
    "omniglot_5w1s",
    "omniglot_5w5s",
    "omniglot_20w1s",
    "omniglot_20w5s",
    "mini_imagenet_5w1s",
    "mini_imagenet_5w5s",
)
TABLE = {
    "finn2017/maml": "98.7±0.4 99.9±0.1 95.8±0.3 98.9±0.2 48.70±1.84 63.11±0.92",
    "raghu2020/maml": "- - 93.7±0.7 96.4±0.1 46.9±0.2 63.1±0.4",
    "nichol2018/fomaml": "98.3 99.2 89.4 97.9 - -",
    "finn2017/fomaml": "- - - - 48.07±1.75 63.15±0.91",
    "nichol2018/reptile": "95.39 98.90 88.14 96.65 47.07±0.26 62.74±0.37",
    "nichol2018/reptile, transductive": "97.68 99.48 89.43 97.12 49.97±0.32 65.99±0.58",
    "raghu2020/anil": "- - 96.2±0.5 98.0±0.3 46.7±0.4 61.5±0.5",
    "oh2021/boil": "- - - - 49.61±0.16 66.45±0.37",
    "li2017/meta_sgd": "99.53±0.26 99.93±0.09 95.93±0.38 98.97±0.19 50.47±1.87 64.03±0.94",
    "antoniou2019/maml_plus_plus": "99.47 99.93 97.65±0.05 99.33 52.15±0.26 68.32±0.44",
    "zintgraf2019/cavia": "- - - - 47.24 59.05",
    "zintgraf2019/cavia, 128": "- - - - 49.84 64.63",
    "zintgraf2019/cavia, 512": "- - - - 51.82 65.85",
    "rajeswaran2019/imaml": "99.16 99.67 94.46 98.69 49.30±1.88 -",
    "snell2017/protonet": "98.8 99.7 96.0 98.9 49.42±0.78 68.20±0.66",
    "snell2017/protonet, same_way": "98.4 99.6 94.9 98.6 46.61±0.78 65.77±0.70",
    "vinyals2016/matching": "98.1 98.9 93.8 98.5 - -",
    "ravi2017/matching": "- - - - 43.56±0.84 55.31±0.73",
    "sung2018/relation": "99.6 99.8 97.6 99.1 50.44±0.82 65.32±0.70",
    "bertinetto2019/r2d2": "- - - - 51.2±0.6 68.8±0.1",
    "mishra2018/snail": "99.07±0.16 99.78±0.09 97.64±0.30 99.36±0.18 55.71±0.99 68.88±0.92",
    "santoro2016/mann": "82.8 94.9 - - - -",
    "finn2017/conditional": "94.9±0.9 97.7±0.3 - - - -",
}
# Mean squared error on sinusoids after one, five and ten inner steps.
SINUSOID = {
    "maml_sinusoid_1_step": 0.67,
    "maml_sinusoid_5_steps": 0.38,
    "maml_sinusoid": 0.35,
    "maml_sinusoid_pretrained_1_step": 2.41,
    "maml_sinusoid_pretrained_5_steps": 2.23,
    "maml_sinusoid_pretrained": 2.19,
}


@cache
def known():
    """All cells, for reading them takes a second."""
    return list(cells())


def test_it_is_read_as_it_stands():
    figure = Figure(0.987, 0.004, "table 1")
    assert cell_of(NODE) == Cell({"finn2017": figure}, 0.01)
    whole = {**NODE, "differs": ["words"], "quick_of": "finn2017/maml"}
    assert cell_of(whole) == Cell({"finn2017": figure}, 0.01, ("words",), "finn2017/maml")
    assert cell_of({**whole, "measured": MEASURED}) == cell_of(whole)  # which runs of former versions have saved
    assert stated(NODE) == {"published": {"finn2017": figure._asdict()}} and stated(None) == {}


@pytest.mark.parametrize(
    "node, key",
    [
        ("finn2017", "cell=finn2017"),
        ({"margin": 0.01}, "cell.published=None"),
        ({**NODE, "margin": -1}, "cell.margin=-1: expected a positive number"),
        ({**NODE, "margin": True}, "cell.margin=True"),
        ({**NODE, "margn": 1}, "cell.margn=1: expected published, margin, differs, quick_of as keys"),
        ({**NODE, "published": []}, "cell.published="),
        ({**NODE, "published": {"finn2017": FIGURE}}, "cell.published="),
        ({**NODE, "published": [{"value": 1}]}, "cell.published[0]="),
        ({**NODE, "published": [{"paper": "x", "value": 1}]}, "cell.published[0].source=None"),
        ({**NODE, "published": [{**FIGURE, "value": "98%"}]}, "cell.published[0].value=98%: expected a number"),
        ({**NODE, "published": [{**FIGURE, "ci95": 0}]}, "cell.published[0].ci95=0"),
    ],
)
def test_what_cannot_be_meant_is_refused(node, key):
    with pytest.raises(ConfigError) as raised:
        cell_of(node)
    assert key in str(raised.value)


@pytest.mark.parametrize("row", TABLE)
def test_the_figures_are_those_of_the_papers(row):
    paper, method, *variant = re.split("/|, ", row)
    figures = {named.name: named.cell.published[paper] for named in known() if named.name.startswith(f"{paper}/")}
    for column, entry in zip(COLUMNS, TABLE[row].split(), strict=True):
        name = "_".join([f"{paper}/{method}_{column}", *variant])
        assert (entry != "-") == (name in figures), name
        if entry != "-":
            value, _, ci95 = entry.partition("±")
            assert figures[name].value == pytest.approx(float(value) / 100), name
            assert figures[name].ci95 == (pytest.approx(float(ci95) / 100) if ci95 else None), name


def test_the_errors_on_sinusoids_are_those_of_the_paper():
    found = {named.name: named.cell.published["finn2017"].value for named in known() if "sinusoid" in named.name}
    expected = {**SINUSOID, "maml_sinusoid_quick": SINUSOID["maml_sinusoid"]}
    assert found == {f"finn2017/{name}": value for name, value in expected.items()}


def test_every_experiment_has_a_cell_and_a_quick_one_that_of_the_whole():
    every = [name for part in (FEW_SHOT, RL) for name in experiments.names(conf_dir(part) / "experiment")]
    named = {each.name: each for each in known()}
    assert len(every) == len(set(every)) and all(each.startswith("unpublished/") for each in set(every) - named.keys())
    for name, (_, part, cell) in named.items():
        assert list(cell.published) == [name.partition("/")[0]]
        assert name.endswith("_quick") == (cell.quick_of is not None), name
        if cell.quick_of is not None:
            whole = named[cell.quick_of].cell
            assert part == RL or cell.published == whole.published  # of RL: rl/test_rl_cells.py
            assert cell.margin == whole.margin
            assert name == f"{cell.quick_of}_quick" and named[name].measured is not None


@pytest.mark.slow
def test_what_was_measured_is_of_cells_that_there_are_and_of_their_settings():
    part_of = {name: part for part in (FEW_SHOT, RL) for name in experiments.names(conf_dir(part) / "experiment")}
    for name, line in table().items():
        config, _ = composed([f"experiment={name}"], part_of[name])
        assert (line.steps, line.tasks) == (config.steps, config.eval_tasks), name
        assert line.seeds >= 1 and line.minutes > 0 and line.device and line.note == line.note.strip()
        assert re.fullmatch(r"[0-9a-f]{7,40}", line.commit) and datetime.date.fromisoformat(line.date)


@pytest.mark.parametrize("name", ["protonet_omniglot_20w1s_same_way_quick", "protonet_omniglot_20w5s_same_way_quick"])
def test_a_cell_whose_command_is_anothers_has_no_line_of_its_own(name):
    (cell,) = [each for each in known() if each.name.endswith(f"/{name}")]
    other = cell.name.replace("_same_way", "")
    assert cell.name not in table() and cell.measured == table()[other]
    assert composed([f"experiment={cell.name}"])[0].method == composed([f"experiment={other}"])[0].method


def test_no_file_of_experiments_says_what_was_measured():
    for part in (FEW_SHOT, RL):
        for file in (conf_dir(part) / "experiment").rglob("*.yaml"):
            assert not re.search(r"measured|\bOurs?\b|Published:|Held against|±", file.read_text()), file

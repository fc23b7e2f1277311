"""The documentation says what is so: its commands run, and what it names is there."""

import json
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
import small_omniglot
from documented import DOCS, PAGES, ROOT, TUTORIALS, blocks, commands, inline_code, name_of
from generate import PARTS, architecture, keys, parts_of, result_json, results
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from small_run import call, draw, draw_classes

from metarun.commands.reproduce import cells, find
from metarun.config.composing import composed
from metarun.config.experiments import names
from metarun.config.schema import COMMANDS, FEW_SHOT, RL
from metarun.config.search_path import conf_dir
from metarun.data.cache import cache_dir
from metarun.training import result

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ENTRIES = {name: pkgutil.resolve_name(entry) for name, entry in PROJECT["scripts"].items()}
PART = {command: part for part, command in COMMANDS.items()}
# Keys that belong to a command and to no configuration, as its --help says.
OWN_KEYS = {
    "metarun": {"seeds"},
    "metarun-rl": set(),
    "metarun-eval": {"run", "protocol"},
    "metarun-compare": {"run", "with", "protocol"},
    "metarun-replay": {"run"},
    "metarun-reproduce": {"seeds", "output"},
    "metarun-predict": {"run", "support", "query", "invert", "links", "range", "output", "query_statistics"},
    "metarun-export": {"run", "output", "way", "shot", "query_statistics"},
    "metarun-data": set(),
}
# The launchers and the sweeper that pages name; some are of packages that need not be installed.
PLUGINS = {"basic", "joblib", "submitit_slurm", "optuna", "together"}
SHOWN = [command for page in PAGES for command in commands(page)]
OURS = [command for command in SHOWN if command.name in ENTRIES]


def test_the_readme_can_be_read_at_a_sitting():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 200
    first = commands(ROOT / "README.md")[:3]
    assert [command.name for command in first] == ["python3", "pip", "metarun"]
    assert first[2].arguments == ["method=maml", "way=5", "shot=1"]
    assert any(line.endswith("-m pytest") for line in readme.splitlines())  # which .ci/run looks for


def first_of(settings):
    """`KEY=VALUE` settings, of a sweep its first point, without those of Hydra, which are returned by themselves."""
    own, of_hydra = [], {}
    for override in OverridesParser.create().parse_overrides(settings):
        if override.key_or_group.startswith("hydra"):
            of_hydra[override.key_or_group] = override.value()
        elif override.is_sweep_override() and not override.is_choice_sweep():
            continue  # of a search, which draws its values itself
        elif override.is_sweep_override():
            own.append(f"{override.get_key_element()}={next(override.sweep_string_iterator())}")
        else:
            own.append(override.input_line)
    return own, of_hydra


def settings_of(command):
    """What a command sets, without its options."""
    return [word for word in command.arguments if "=" in word and not word.startswith("-")]


# One with --config-dir has a choice that its tutorial makes, and runs with that.
@pytest.mark.parametrize("command", [c for c in OURS if c.name in PART and "--config-dir" not in c.arguments], ids=str)
def test_what_is_shown_to_be_trained_composes(command):
    settings, of_hydra = first_of(settings_of(command))
    composed([setting for setting in settings if not setting.startswith("seeds=")], PART[command.name])
    for key in {"hydra/launcher", "hydra/sweeper"} & {*of_hydra}:
        assert of_hydra[key] in PLUGINS


@pytest.mark.parametrize("command", [c for c in OURS if c.name not in PART], ids=str)
def test_what_is_shown_to_be_asked_of_a_run_has_keys_that_there_are(command):
    own = OWN_KEYS.get(command.name, set())
    others = [setting for setting in settings_of(command) if setting.partition("=")[0] not in own]
    others = [setting for setting in others if "._target_=" not in setting]  # see `metarun-eval --help`
    if command.name == "metarun-reproduce" and "--list" not in command.arguments:
        assert find(command.arguments[0]).name == command.arguments[0]
        others.append(f"experiment={command.arguments[0]}")
    if command.name == "metarun-data" and command.arguments[0] in ("show", "prepare"):
        others.append(f"dataset={command.arguments[1]}")
    part = RL if any(setting.startswith("env") for setting in others) else FEW_SHOT
    if others:
        composed(others, part)


@pytest.mark.parametrize("command", [c for c in SHOWN if c.name not in ENTRIES], ids=str)
def test_other_programs_are_given_what_there_is(command):
    words = [word for word in command.arguments if not word.startswith("-")]
    if command.name == "pip":
        assert words[0] == "install"
        for extra in re.findall(r"[\w]+", "".join(re.findall(r"\[(.*?)\]", words[1]))):
            assert extra in PROJECT["optional-dependencies"]
    elif command.name == "sbatch":  # a Slurm would run it; here, that the script is there and its run composes
        script, *settings = words
        assert subprocess.run(["bash", "-n", ROOT / script], check=False).returncode == 0
        composed(settings)
    elif command.name == "sphinx-build":
        assert (ROOT / words[0] / "conf.py").exists()
    else:
        assert command.name in ("python3", "python", ".", "git", "cd")


@cache
def known_keys():
    """Every key of every choice, as on the command line."""
    found = set().union(*OWN_KEYS.values())
    for part in (FEW_SHOT, RL, "common"):
        for file in (keys.CONF / part).glob("*.yaml"):
            found |= {key.name for key in keys.read(file).keys}
        for file in (keys.CONF / part).glob("*/*.yaml"):
            found |= {key.name for key in keys.read(file, file.parent.name).keys}
    return found


@cache
def choices(group):
    return {file.stem for part in (FEW_SHOT, RL, "common") for file in (keys.CONF / part / group).glob("*.yaml")}


@cache
def experiments():
    """The names of all experiments, those without a published figure too."""
    return {name for part in (FEW_SHOT, RL) for name in names(conf_dir(part) / "experiment")}


# What a page has its reader make, and words that stand for any choice.
MADE = {"method": {"tempered", "mine"}, "experiment": {"mine/x"}}
# Keys of which a page says what they would be, were they somebody's own.
EXPLAINED = {"key", "group", "method.temperature"}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_names_nothing_that_is_not_there(page):
    """CAPITALS stand for a name of the reader's, and `conf/` without a part of ours for a folder of the reader's."""
    for code in inline_code(page):
        for path in re.findall(
            r"(?:(?<=\s)|^)((?:src|scripts|tests|conf/(?:few_shot|rl|common)|docs|\.ci)/[\w./-]*)", code
        ):
            assert (ROOT / path).exists() or re.search(r"[A-Z]{2}", path), f"{code}: there is no {path}"
        for command in re.findall(r"(?<![\w/.-])metarun-[\w-]+", code):
            assert command in ENTRIES, f"{code}: there is no {command}"
        for name in re.findall(r"(?<![\w/])(?:[a-z]+\d{4}|unpublished)/\w+", code):
            assert name in experiments(), f"{code}: there is no experiment {name}"
        for key, value in re.findall(r"(?<![\w./-])([a-z]\w*(?:\.[a-z]\w*)*)=(\S*)", code):
            if key in keys._GROUPS:
                assert value in choices(key) | MADE.get(key, set()) or not value.islower(), f"{code}: no {key}={value}"
            elif key not in EXPLAINED | {"experiment"} and not key.startswith("hydra"):
                assert key in known_keys(), f"{code}: there is no key {key}"
        for key in re.findall(rf"^(?:{'|'.join(keys._GROUPS)}|memory|distributed)\.[a-z]\w*$", code):
            assert key in known_keys() | EXPLAINED, f"{code}: there is no key {key}"


def test_the_table_of_the_readme_is_that_of_the_results():
    shown = re.findall(
        r"^\| `(\w+/\w+)` \| ([^|]*) \| ([^|]*) \|", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE
    )
    assert shown
    for name, published, ours in shown:
        named = next(named for named in cells() if named.name == name)
        assert (published, ours) == tuple(
            results.with_interval(named, figure.value, figure.ci95) for figure in (named.published, named.measured)
        )


@pytest.mark.parametrize("part", [FEW_SHOT, RL])
def test_the_page_of_results_has_a_row_of_every_cell_and_counts_the_verdicts(part):
    page = results.page(part)
    whole = [named for named in cells() if named.part == part and not named.is_short]
    rows = {row[0].strip("`"): row for row in (line[2:-2].split(" | ") for line in page.splitlines() if "| `" in line)}
    assert [*rows] == [named.name for named in sorted(whole, key=lambda named: named.name.partition("/")[0])]
    run = [row for row in rows.values() if row[5]]
    assert page.startswith(f"Of {len(whole)} figures, {len(run)} have been measured: ")
    better = [name for name, row in rows.items() if row[5] == "not reproduced: better"]
    assert f"{len(better)} not reproduced: better" in page.partition("\n")[0] and better
    for name in better:
        named = find(name)
        assert (named.measured.value > named.published.value) != ("sinusoid" in name)


def test_pages_link_to_files_that_are_there():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{name_of(page)}: {target}"


def test_every_page_of_the_site_knows_the_parts_that_it_shows():
    used = {part for page in PAGES for part in parts_of(page.read_text(encoding="utf-8"))}
    assert used == {*PARTS}


def test_every_key_has_a_comment_and_every_choice_a_heading():
    for part in (FEW_SHOT, RL, "common"):
        for group in keys._GROUPS:
            for file in (keys.CONF / part / group).glob("*.yaml"):
                found = keys.read(file, group)
                assert found.heading, file
                assert all(key.comment for key in found.keys if key.default), file
    assert "memory.limit" in {key.name for key in keys.read(keys.CONF / FEW_SHOT / "config.yaml").keys}


def test_every_field_of_a_result_is_explained():
    schema = result._RESULT
    assert {*result_json.MEANINGS} == {*schema.required, *schema.optional}


def test_the_picture_of_the_folders_has_them_all():
    folders = {path.parent.name for path in architecture.SOURCE.glob("*/__init__.py")}
    drawn = [room for floor in architecture.rooms() for room in floor]
    assert folders <= {*drawn}
    for room in drawn:
        assert f"<code>{room}</code>" in architecture.picture()


def test_the_methods_data_sets_and_environments_are_all_described():
    for page, group in (("methods", "method"), ("data_sets", "dataset"), ("environments", "env")):
        said = {*inline_code(DOCS / "reference" / f"{page}.md")}
        part = RL if group == "env" else FEW_SHOT
        assert said >= {file.stem for file in (keys.CONF / part / group).glob("*.yaml")}
    assert {*inline_code(DOCS / "reference" / "environments.md")} >= {
        f.stem for f in (keys.CONF / RL / "method").glob("*")
    }
    assert {*inline_code(DOCS / "results" / "glyphs.md")} >= {
        f.stem for f in (keys.CONF / FEW_SHOT / "method").glob("*")
    }


# What makes a run short, where the configuration has the key.
SHORT = {
    "steps": 2,
    "steps_per_dispatch": 2,
    "log_every": 1,
    "eval_every": 2,
    "eval_tasks": 4,
    "val_tasks": 4,
    "meta_batch_size": 2,
    "model.filters": 4,
    "method.hidden": 4,
    "method.rollouts": 2,
}
EVALUATES = ("metarun-eval", "metarun-compare")


def shortened(command):
    """The arguments of a command with what makes it short in the place of what it says of it."""
    arguments = list(command.arguments)
    if command.name in EVALUATES:
        return [word for word in arguments if not word.startswith("eval_tasks=")] + ["eval_tasks=4"]
    if command.name not in PART:
        return arguments
    settings, _ = first_of(settings_of(command))
    if "--config-dir" in arguments:
        settings = []
    config, _ = composed([s for s in settings if not s.startswith("seeds=")], PART[command.name])
    short = {key: value for key, value in SHORT.items() if OmegaConf.select(config, key) is not None}
    for key in ("method.hidden", "model.filters"):
        if key in short and not isinstance(OmegaConf.select(config, key), int):
            short[key] = f"[{short[key]}]"
    if PART[command.name] == RL:
        short["meta_batch_size"] = 8
    if command.arguments[:1] == ["dataset=omniglot"] or "omniglot" in " ".join(arguments):
        short["dataset.split"] = "lake"  # the other split is of all characters
    kept = [fewer_seeds(word) for word in arguments if word.partition("=")[0] not in short]
    return kept + [f"{key}={value}" for key, value in short.items()]


def fewer_seeds(word):
    """Two seeds in the place of more."""
    key, _, value = word.partition("=")
    if key == "seed":
        return f"{key}={','.join(value.split(',')[:2])}"
    return "seeds=2" if key == "seeds" else word


# Commands that are not run, and why. They compose, see above.
NOT_RUN = {
    "hydra/launcher=submitit_slurm": "needs a Slurm",
    "dataset=omniglot": "downloads, without dataset.source",
}


def runs(command):
    return command.name in ENTRIES and not any(
        word in NOT_RUN and not any(other.startswith("dataset.source=") for other in command.arguments)
        for word in command.arguments
    )


@pytest.fixture
def at_work(tmp_path, monkeypatch):
    """A working directory that has what the pages ask their reader to have, where DIR stands for each kind of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    draw_classes(tmp_path / "pictures", num_classes=15, count=7)
    for name in ("fox", "owl"):
        draw(tmp_path / "support" / name, name, 2)
        draw(tmp_path / "query", name, 1, first=ord(name[0]))
    monkeypatch.setattr(
        small_omniglot,
        "ALPHABETS",
        {"images_background": {"Alpha": 6, "Beta": 6}, "images_evaluation": {"Delta": 6}},
    )
    (tmp_path / "omniglot").mkdir()
    small_omniglot.write_archives(tmp_path / "omniglot", 17)
    return tmp_path


def in_place(command, at_work):
    """The arguments with a stand-in for each DIR."""
    stand_in = {
        "dataset.source": "omniglot",
        "support": "support",
        "query": "query",
        "run": "finished",
        "with": "finished",
    }
    words = []
    for word in shortened(command):
        key, _, value = word.partition("=")
        words.append(f"{key}={stand_in[key]}" if value == "DIR" else word)
    if "run=finished" in words and not (at_work / "finished").exists():
        # The first run, or one whose learner answers for any number of classes: the stand-ins have two.
        results = sorted(at_work.rglob("result.json"), key=lambda path: path.stat().st_mtime)
        any_way = [path for path in results if json.loads(path.read_text())["method"] == "protonet"]
        shutil.copytree([*any_way, *results][0].parent, at_work / "finished")
    return words


def run_all(page, at_work):
    """Runs the commands of a page, one after the other in processes of their own, as its reader does."""
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache_dir() / "compiled")}
    for command in filter(runs, commands(page)):
        program = Path(sys.executable).with_name(command.name)
        done = subprocess.run(
            [program, *in_place(command, at_work)],
            check=False,
            cwd=at_work,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.mark.slow
def test_the_first_command_runs(at_work, capsys, monkeypatch):
    first = next(command for command in commands(ROOT / "README.md") if command.name == "metarun")
    code, out, err = call(ENTRIES["metarun"], capsys, monkeypatch, *shortened(first))
    assert code == 0 and "test accuracy" in out, err
    (said,) = blocks(ROOT / "README.md", "")
    checks = [line.split("  ")[0] for line in said.splitlines()[3:]]
    assert len(checks) == 9
    for check in checks:
        assert check in out


@pytest.mark.slow
@pytest.mark.parametrize("page", [ROOT / "README.md", *TUTORIALS], ids=name_of)
def test_the_commands_run(page, at_work):
    if page.stem == "extending":
        (python, interface, test), (yaml,) = blocks(page, "python"), blocks(page, "yaml")
        (at_work / "own_method.py").write_text(python)
        (at_work / "test_own_method.py").write_text(test)
        (at_work / "conf" / "method").mkdir(parents=True)
        (at_work / "conf" / "method" / "tempered.yaml").write_text(yaml)
    run_all(page, at_work)
    if page.stem == "extending":
        first = next(command for command in commands(page) if command.name == "metarun")
        short = [word for word in shortened(first) if "=" in word and not word.startswith("hydra.")]
        script = interface.replace('"method=tempered"', ", ".join(map(repr, short)))
        assert "steps=" in script
        subprocess.run([sys.executable, "-c", script], cwd=at_work, check=True)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_own_method.py"]
        subprocess.run(command, cwd=at_work, check=True)


def test_the_method_of_the_tutorial_is_that_of_the_example_package():
    (python, *_), (yaml,) = (blocks(ROOT / "docs" / "tutorials" / "extending.md", kind) for kind in ("python", "yaml"))
    example = ROOT / "docs" / "example_package" / "src" / "metarun_example"
    assert python == (example / "tempered.py").read_text()
    file = example / "conf" / "few_shot" / "method" / "tempered.yaml"
    assert yaml.replace("own_method.", "metarun_example.tempered.").replace("2.0", "1.0") == file.read_text()


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_asks_for_nothing_remote(tmp_path):
    pytest.importorskip("sphinx_book_theme")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "sphinx",
            "-W",
            "--keep-going",
            "-q",
            "-E",
            "-d",
            tmp_path / "doctrees",
            DOCS,
            tmp_path / "site",
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert "<!-- generated" not in text
        remote = re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"'](?:https?:)?//[^\"']*", text)
        assert remote == [], page
    for sheet in (tmp_path / "site").rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:https?:)?//|@import[^;]*//", sheet.read_text(encoding="utf-8")), sheet

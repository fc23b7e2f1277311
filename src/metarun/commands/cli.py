"""The console entry points. A user's mistake ends in one message and a non-zero exit, and `--help` does not load JAX."""

import argparse
import os
import sys
import time

from metarun.api.jax_set_up import set_up
from metarun.commands import train, usage
from metarun.commands.console import FAILED, Parser, of_settings, pairs, parsed, told, whole
from metarun.config import search_path
from metarun.config.composing import composed
from metarun.config.named_code import CODE, TARGET
from metarun.config.schema import FEW_SHOT, RL
from metarun.errors import ConfigError, MetarunError, one_of

_EXPORT = ("run", "output", "way", "shot", "query_statistics")
_PREDICT = ("run", "support", "query", "invert", "range", "links", "query_statistics", "output")


def main() -> None:
    """`metarun`: trains and evaluates a meta-learner, as the command line composes it."""
    train.of_hydra(train.train_few_shot, FEW_SHOT)


def rl_main() -> None:
    """`metarun-rl`: trains and evaluates a learner that reinforcement learns."""
    train.of_hydra(train.train_rl, RL)


def data_main() -> None:
    """`metarun-data`: lists, prepares, verifies and shows data sets."""
    parser = Parser(
        prog="metarun-data",
        description="Data sets: what there is, what is prepared and whether it is whole, and what it looks like.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="the data sets, and what of them is in the cache")
    commands.add_parser("verify", help="reads everything in the cache and compares it with its checksums")
    for name, said in (("prepare", "puts a data set into the cache"), ("show", "draws some classes of each split")):
        command = commands.add_parser(name, help=said)
        command.add_argument("name", metavar="NAME", help="the data set, as in `metarun dataset=NAME`")
        command.add_argument(
            "settings", nargs="*", metavar="KEY=VALUE", help="its settings, such as dataset.source=DIR"
        )
        if name == "show":
            command.add_argument("--output", metavar="FILE", help="the picture to write; else NAME.png here")
    arguments = parsed(parser)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing here computes on a device
    sys.exit(told(lambda: _data(arguments)))


def eval_main() -> None:
    """`metarun-eval`: tests a trained learner on its own tasks or on others."""
    of_settings(
        _evaluate,
        "metarun-eval",
        "run=DIR [dataset=OTHER | env=OTHER] [KEY=VALUE ...]",
        "Tests the parameters that a run of metarun or metarun-rl has selected, with the checks, on test tasks.",
        usage.EVAL,
    )


def predict_main() -> None:
    """`metarun-predict`: a trained learner is shown pictures of some classes and answers for others."""
    of_settings(
        _predict,
        "metarun-predict",
        "run=DIR support=DIR query=DIR [KEY=VALUE ...]",
        "Shows the learner of a run a few pictures of each class, and has it say of which class others are.",
        usage.PREDICT,
    )


def export_main() -> None:
    """`metarun-export`: writes a trained learner to files that need JAX alone."""
    of_settings(
        _export,
        "metarun-export",
        "run=DIR output=DIR [KEY=VALUE ...]",
        "Writes the learner of a run as two compiled functions, adapt and predict, with a loader that needs JAX alone.",
        usage.EXPORT,
    )


def replay_main() -> None:
    """`metarun-replay`: computes again the step in which a run has diverged, and says which tasks did it."""
    of_settings(
        _replay,
        "metarun-replay",
        "run=DIR [KEY=VALUE ...]",
        "Computes again the outer step in which a run's loss or parameters stopped being finite, task by task.",
        usage.REPLAY,
    )


def reproduce_main() -> None:
    """`metarun-reproduce`: runs a cell of a paper's table, and says whether its figure is reproduced."""
    parser = Parser(
        prog="metarun-reproduce",
        usage="metarun-reproduce (--list | PAPER/CELL [seeds=N] [output=DIR] [KEY=VALUE ...])",
        description="Runs, or resumes, a published experiment, and says by a test of equivalence whether it reproduces.",
        epilog=usage.REPRODUCE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--list", action="store_true", help="the cells, with their published figures and ours")
    parser.add_argument("cell", nargs="?", metavar="PAPER/CELL", help="as --list names it")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help=argparse.SUPPRESS)
    arguments = parsed(parser)
    sys.exit(told(lambda: _reproduce(arguments)))


def compare_main() -> None:
    """`metarun-compare`: two trained learners on the same test tasks."""
    of_settings(
        _compare,
        "metarun-compare",
        "run=DIR with=DIR [protocol=any] [KEY=VALUE ...]",
        "Tests two runs on the same tasks, where a small difference shows that two separate tests would not tell apart.",
        usage.COMPARE,
    )


def report_main() -> None:
    """`metarun-report`: one page over any set of runs."""
    parser = Parser(
        prog="metarun-report",
        description="Writes one HTML page over all runs at or below some directories, those of sweeps and job arrays too. "
        "Runs that differ in nothing but their seed are a row, the mean over them with how much they differ.",
    )
    parser.add_argument("directories", nargs="+", metavar="DIR", help="of runs, such as outputs")
    parser.add_argument("--output", default="report.html", metavar="FILE", help="the page (default: report.html)")
    for name in ("markdown", "csv", "latex"):
        parser.add_argument(f"--{name}", metavar="FILE", help=f"the table besides, as {name}")
    for name in ("markdown", "latex"):
        parser.add_argument(f"--pivot-{name}", metavar="FILE", help=f"methods by settings, for a paper, as {name}")
    parser.add_argument("--figures", metavar="DIR", help="figures of results and learning curves, as PDF and SVG")
    for name, default in (("rows", "method"), ("columns", "dataset,way,shot,episodes, as far as they are known")):
        parser.add_argument(
            f"--{name}", metavar="KEYS", help=f"what the pivot and the figures have as {name} (default: {default})"
        )
    arguments = parsed(parser)
    sys.exit(told(lambda: _report(arguments)))


def _evaluate(settings: list[str]) -> None:
    given = pairs(settings)
    protocol = one_of("protocol", given.get("protocol", "own"), ("own", "sweep"))
    set_up()

    from rich.console import Console

    overrides = [setting for setting in settings if setting.split("=", 1)[0] not in ("run", "protocol")]
    if protocol == "sweep":
        from metarun.commands.protocol_sweep import sweep

        sweep(given.get("run"), overrides, Console())
    else:
        from metarun.commands.evaluation import evaluate

        evaluate(given.get("run"), overrides, Console())


def _replay(settings: list[str]) -> None:
    directory = pairs(settings).get("run")
    set_up()

    from rich.console import Console

    from metarun.commands.replay import replay

    if not replay(directory, [setting for setting in settings if not setting.startswith("run=")], Console()):
        sys.exit(FAILED)


def _compare(settings: list[str]) -> None:
    given = pairs(settings)
    protocol = one_of("protocol", given.get("protocol", "same"), ("same", "any"))
    set_up()

    from rich.console import Console

    from metarun.commands.comparison import compare

    own = ("run", "with", "protocol")
    overrides = [setting for setting in settings if setting.split("=", 1)[0] not in own]
    compare(given.get("run"), given.get("with"), overrides, protocol == "any", Console())


def _report(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from metarun.report import pivot_tables, tables
    from metarun.report.collection import collect
    from metarun.report.page import page
    from metarun.report.pivot import pivot
    from metarun.system.files import write_bytes

    forms = {"markdown": tables.markdown, "csv": tables.comma_separated, "latex": tables.latex}
    pivots = {"pivot_markdown": pivot_tables.markdown, "pivot_latex": pivot_tables.latex}
    given = {name: value for name in ("output", *forms, *pivots) if (value := getattr(arguments, name)) is not None}
    paths = {name: Path(value).expanduser() for name, value in given.items()}
    for name, path in paths.items():  # before the first of them is written
        if not path.name or path.is_dir():
            raise ConfigError(f"--{name.replace('_', '-')}", path, "the name of a file, and this is a directory")
    figures = None if arguments.figures is None else Path(arguments.figures).expanduser()
    if figures is not None and figures.exists() and not figures.is_dir():
        raise ConfigError("--figures", figures, "a directory, and this is a file")
    compared = figures is not None or not pivots.keys().isdisjoint(paths)
    for name in ("rows", "columns"):
        if getattr(arguments, name) is not None and not compared:
            raise ConfigError(
                f"--{name}", getattr(arguments, name), "--pivot-markdown, --pivot-latex or --figures besides"
            )
    records, faults = collect(arguments.directories)
    for fault in faults:
        print(f"metarun: {fault}", file=sys.stderr)
    table = pivot(records, arguments.rows, arguments.columns) if compared else None
    contents: dict[Path, bytes] = {}  # all of them, before the first is written
    for name, path in paths.items():
        if name in pivots:
            assert table is not None
            text = pivots[name](table)
        else:
            text = page(records, faults) if name == "output" else forms[name](records)
        contents[path] = text.encode("utf-8", "backslashreplace")  # of a directory in bytes that are no UTF-8
    if figures is not None and table is not None:
        from metarun.report import comparison_figures, figure

        for stem, drawn in comparison_figures.figures(records, table).items():
            contents |= {figures / f"{stem}.pdf": figure.pdf(drawn), figures / f"{stem}.svg": figure.svg(drawn)}
    for path, data in contents.items():
        write_bytes(path, data)
        print(f"{len(records)} results in {path}")


def _reproduce(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from metarun.commands import reproduce

    if arguments.list:
        return reproduce.listed(Console())
    code = reproduce.reproduce(arguments.cell, pairs(arguments.settings), Console())
    if code:
        sys.exit(code)


def _predict(settings: list[str]) -> None:
    own, code = _own_and_code(settings, _PREDICT)
    set_up()

    from rich.console import Console

    from metarun.commands import array_prediction, prediction

    if array_prediction.of_arrays(own):
        array_prediction.predict(Console(), **own, code=code)
    else:
        prediction.predict(Console(), **own, code=code)


def _export(settings: list[str]) -> None:
    own, code = _own_and_code(settings, _EXPORT)
    if not own.get("output"):
        raise ConfigError("output", own.get("output"), "a folder to write to, such as output=exported")
    sizes = {key: whole(key, own[key]) for key in ("way", "shot") if key in own}
    set_up()

    from metarun.api.export import export
    from metarun.api.run import Run
    from metarun.assembly import saved_run

    run = Run(saved_run.read(own.get("run"), print, overrides=code))
    about = export(run, own["output"], **sizes, query_statistics=own.get("query_statistics", "auto"))
    number = "any number of" if about["examples"] is None else about["examples"]
    print(
        f"{about['method']} trained on {about['trained_on']}: adapts to {number} examples, answers any number of queries."
    )
    print(
        f"For {', '.join(about['platforms'])}. Its answers are metarun's own within {about['largest_difference']:.1e}."
    )
    print(f"load.py, export.json and what they read in {own['output']}")


def _own_and_code(settings: list[str], known: tuple[str, ...]) -> tuple[dict[str, str], list[str]]:
    """A command's own settings; and those that say which code of a user's may be called for a run, see `saved_run.read`."""
    own = {key: value for key, value in pairs(settings).items() if not _is_of_code(key)}
    for key in own:
        if key not in known:
            raise MetarunError(f"{key}: there is no such key; there are {', '.join(known)}.")
    return own, [setting for setting in settings if _is_of_code(setting.partition("=")[0])]


def _is_of_code(key: str) -> bool:
    return key == CODE or key.endswith(f".{TARGET}")


def _data(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from metarun.commands import data_sets

    if arguments.command == "list":
        return data_sets.list_all([file for group, file in search_path.files(FEW_SHOT) if group == "dataset"])
    if arguments.command == "verify":
        return data_sets.verify()

    from metarun.assembly.few_shot_run import classes

    config, choices = composed([f"dataset={arguments.name}", *arguments.settings])
    began = time.monotonic()
    loaded = classes(config, choices)
    data_sets.describe(loaded, time.monotonic() - began)
    if arguments.command == "show":
        data_sets.show(loaded, Path(arguments.output or f"{arguments.name}.png"))

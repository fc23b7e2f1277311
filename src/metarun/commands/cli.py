"""Console entry points. A user's mistake ends in one message and a non-zero exit, and `--help` does not load JAX."""

import argparse
import errno
import io
import os
import re
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from metarun.commands import mistakes
from metarun.config import directories
from metarun.config.factories import CODE, TARGET
from metarun.config.schema import COMMANDS, FEW_SHOT, RL, composed, conf_dir, register
from metarun.errors import ConfigError, MetarunError, one_of, positive_int, seed_of
from metarun.system.machine import versions

_FAILED = 1
_MISTAKE = 2
_PREDICT = ("run", "support", "query", "invert", "range", "links", "query_statistics", "output")
# What the system says of a directory in which a run cannot write.
_REFUSED_WRITING = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENOSPC,
    errno.ENAMETOOLONG,
)
_UNWRITABLE = "Name a directory that can be written in with hydra.run.dir=DIR."


def main() -> None:
    """`metarun`: trains and evaluates a meta-learner, as the command line composes it."""
    _of_hydra(_few_shot, FEW_SHOT)


def rl_main() -> None:
    """`metarun-rl`: trains and evaluates a learner that reinforcement learns."""
    _of_hydra(_rl, RL)


def data_main() -> None:
    """`metarun-data`: lists, prepares, verifies and shows data sets."""
    parser = _Parser(
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
    arguments = _parsed(parser)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing here computes on a device
    sys.exit(_told(lambda: _data(arguments)))


def eval_main() -> None:
    """`metarun-eval`: tests a trained learner on its own tasks or on others."""
    _of_settings(
        _evaluate,
        "metarun-eval",
        "run=DIR [dataset=OTHER | env=OTHER] [KEY=VALUE ...]",
        "Tests the parameters that a run of metarun or metarun-rl has selected, with the checks, on test tasks.",
        _EVAL_KEYS,
    )


def predict_main() -> None:
    """`metarun-predict`: a trained learner is shown pictures of some classes and answers for others."""
    _of_settings(
        _predict,
        "metarun-predict",
        "run=DIR support=DIR query=DIR [KEY=VALUE ...]",
        "Shows the learner of a run a few pictures of each class, and has it say of which class others are.",
        _PREDICT_KEYS,
    )


def replay_main() -> None:
    """`metarun-replay`: computes again the step in which a run has diverged, and says which tasks did it."""
    _of_settings(
        _replay,
        "metarun-replay",
        "run=DIR [KEY=VALUE ...]",
        "Computes again the outer step in which a run's loss or parameters stopped being finite, task by task.",
        _REPLAY_KEYS,
    )


def reproduce_main() -> None:
    """`metarun-reproduce`: runs a cell of a paper's table, and says whether its figure is reproduced."""
    parser = _Parser(
        prog="metarun-reproduce",
        usage="metarun-reproduce (--list | PAPER/CELL [seeds=N] [output=DIR] [KEY=VALUE ...])",
        description="Runs, or resumes, a published experiment, and says by a test of equivalence whether it reproduces.",
        epilog=_REPRODUCE_KEYS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--list", action="store_true", help="the cells, with their published figures and ours")
    parser.add_argument("cell", nargs="?", metavar="PAPER/CELL", help="as --list names it")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help=argparse.SUPPRESS)
    arguments = _parsed(parser)
    sys.exit(_told(lambda: _reproduce(arguments)))


_REPRODUCE_KEYS = """\
keys:
  seeds      how many, from seed 0 on (default: 1); the verdict then covers how much seeds differ
  output     directory that holds one for each seed (default: outputs/reproduce/CELL)
  KEY        any key of the run, such as dataset.source=DIR or eval_tasks=5000

The same command resumes, and adds seeds. A cell that ends in _quick is a short version for two CPU cores.

verdict, by exit code: the difference from the published value, with its 95% interval over test tasks and seeds, lies
  0  reproduced: within the margin that the experiment states
  3  not reproduced: beyond it
  4  undecided: across it; or a check has failed
Other codes are those of the run: 1 the system refused something, 2 a mistake in a setting, 75 stopped, to be continued.
"""


def compare_main() -> None:
    """`metarun-compare`: two trained learners on the same test tasks."""
    _of_settings(
        _compare,
        "metarun-compare",
        "run=DIR with=DIR [protocol=any] [KEY=VALUE ...]",
        "Tests two runs on the same tasks, where a small difference shows that two separate tests would not tell apart.",
        _COMPARE_KEYS,
    )


def report_main() -> None:
    """`metarun-report`: one page over any set of runs."""
    parser = _Parser(
        prog="metarun-report",
        description="Writes one HTML page over all runs at or below some directories, those of sweeps and job arrays too. "
        "Runs that differ in nothing but their seed are a row, the mean over them with how much they differ.",
    )
    parser.add_argument("directories", nargs="+", metavar="DIR", help="of runs, such as outputs")
    parser.add_argument("--output", default="report.html", metavar="FILE", help="the page (default: report.html)")
    for name in ("markdown", "csv", "latex"):
        parser.add_argument(f"--{name}", metavar="FILE", help=f"the table besides, as {name}")
    arguments = _parsed(parser)
    sys.exit(_told(lambda: _report(arguments)))


_COMPARE_KEYS = """\
keys:
  run, with  directories of the two runs, finished or interrupted
  protocol   same (the default): different protocols are refused, naming the keys; any: compared all the same
  KEY        what is to be another than in the runs' own tests, in both, as `metarun-eval --help` lists it: eval_tasks, ...

Prints both values and their difference, second less first, with its 95% interval over the same tasks, and writes it to
evaluations/ in the directory of the first. A convention that only one of the two methods knows is no difference.
"""

_REPLAY_KEYS = """\
keys:
  run        directory of a run that has ended because a number was not finite
  KEY        a key of the run, to see what another value would have done: outer_lr, method.inner_lr, precision, ...

Prints loss and gradient norm of the step's tasks, those that are not finite first, and what the step leaves behind; the
tasks themselves go to DIR/diverged/tasks.npz. Exits with 0 if the step is finite now, and with 1 if it is not.
"""

_EVAL_KEYS = """\
keys:
  run                        directory of the run, finished or interrupted
  dataset                    another data set, as in `metarun dataset=OTHER`; images are resized to those of the run
  dataset.KEY                a setting of the data set, such as dataset.source=DIR
  way, shot                  classes of a task, support examples of each class; not every method can have another way
  eval_query_shot            query examples of each class
  eval_tasks, eval_seed      number of the test tasks, and what they are drawn by
  ensemble                   how many of the parameters that the run has kept are tested together, the best ones
  method.eval_inner_steps    inner steps, where the method has them; likewise other method.eval_KEY
  method.query_statistics    whose statistics normalise the queries: query (transductive), support, or each
                             (the support set and that one query)
  method.inner_reduction     how the inner loss is summed, where the method has one: mean, sum or class_sum
  memory.KEY                 how tasks are computed on a device, such as memory.stream=true
  GROUP._target_             of a run of code of your own: its function, as when it was trained. What is called never comes
                             from the run's directory
  code                       any: test it though the source of that code has changed
  protocol                   sweep: what the same parameters score under every convention of the literature, one at a
                             time, with the difference to the run's own test; the other keys are those of all rows

of a run of metarun-rl, besides eval_tasks, eval_seed, method.eval_KEY and memory.KEY:
  env                        another environment, whose observations and actions are of the same sizes
  env.KEY                    a setting of the environment, such as env.episodes=100

The result is printed, and written into DIR/evaluations. What is not given is as in the run.
"""

_PREDICT_KEYS = """\
keys:
  run        directory of the run, finished or interrupted; its data are not needed
  support    a folder with a folder of pictures for each class; their numbers may differ
  query      a folder of pictures, in folders or not
  invert     whether light and dark change places: true, false, or auto (the default), which does so with pictures that
             are dark on light where the run's data are light on dark
  links      which links to folders are followed: inside (the default; others are refused by name), or follow (all)
  range      of grey pictures of more than 8 bits, what is black and what is white: [BLACK,WHITE], or file, the least and
             the greatest value of each; the default is that of the run's data
  query_statistics
             whose statistics normalise the pictures: support, each (the support set and that picture), query (all of the
             query together: an answer then depends on the others), or auto (the default), the run's own but never query
  output     the folder to write in; the default is predictions/NAME/ID in that of the run, NAME being
             that of the query and ID another for other pictures
  GROUP._target_, code   for code of your own, as `metarun-eval --help` says

Prints the likeliest class of each picture, and writes probabilities.csv and predictions.png.
"""


class _Parser(argparse.ArgumentParser):
    """One whose errors are messages like all others."""

    def error(self, message: str) -> NoReturn:
        sys.exit(_said(f"{message}. `{self.prog} --help` says what there is.", _MISTAKE))


class _Ended(BaseException):
    """Carries what ended a run past Hydra, which would print a line of its own before it."""


def _of_hydra(entry: Callable[[DictConfig], float | None], part: str) -> NoReturn:
    """Ends in what `entry` does with the configuration that the command line composes from a part of `conf/`."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come here, where they become messages
    register()
    directories.register()

    def run(config: DictConfig) -> float | None:
        try:
            return entry(config)
        except Exception as error:
            if HydraConfig.get().mode == RunMode.RUN:
                raise _Ended from error
            raise

    def command() -> None:
        if "--version" in sys.argv[1:]:
            return print(_version())
        sys.argv[1:] = _seeds_as_points(_options_first(sys.argv[1:], COMMANDS[part]))
        for argument in sys.argv[1:]:
            if argument.lstrip("+~").startswith("hydra.output_subdir"):
                raise MetarunError(f"{argument}: leave it out. metarun writes .hydra itself, once a run is accepted.")
        try:
            hydra.main(version_base="1.3", config_path=str(conf_dir(part)), config_name="config")(run)()
        except _Ended as ended:
            raise ended.__cause__ from ended.__cause__.__cause__

    sys.exit(_told(command, part=part))


def _version() -> str:
    """metarun's own version, and those of what it computes with."""
    of = versions()
    return ", ".join([f"metarun {of.pop('metarun')}", *(f"{name} {number}" for name, number in of.items())])


def _options_first(arguments: list[str], command: str) -> list[str]:
    """Has options such as `-m` stand anywhere; raises `MetarunError` for one that Hydra does not have."""

    def refuse(message: str) -> NoReturn:
        raise MetarunError(f"{message}. `{command} --help` lists the settings, `{command} --hydra-help` the options.")

    parser = get_args_parser()
    parser.error = refuse
    options, settings = list(arguments), parser.parse_intermixed_args(arguments).overrides
    for setting in settings:
        options.remove(setting)
    return [*options, *settings]


def _seeds_as_points(arguments: list[str]) -> list[str]:
    """Has `seeds=N` be what it is short for: a sweep of N seeds, from `seed` on, that are trained together.

    Raises:
      ConfigError: `seeds` or, beside it, `seed` is no whole number.
    """
    given: dict[str, str] = {}
    others = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key in ("seeds", "seed"):
            given[key] = value
        else:
            others.append(argument)
    if "seeds" not in given:
        return arguments
    numbers = {key: int(value) if value.isdecimal() and len(value) < 20 else value for key, value in given.items()}
    count, first = positive_int("seeds", numbers["seeds"]), seed_of("seed", numbers.get("seed", 0))
    seeds = ",".join(str(seed_of("seed", first + number)) for number in range(count))
    others = [re.sub("^hydra.run.dir=", "hydra.sweep.dir=", argument) for argument in others]
    launcher = [] if any(argument.startswith("hydra/launcher=") for argument in others) else ["hydra/launcher=together"]
    return [*([] if {"-m", "--multirun"} & {*others} else ["-m"]), *others, f"seed={seeds}", *launcher]


def _of_settings(entry: Callable[[list[str]], None], prog: str, usage: str, description: str, epilog: str) -> NoReturn:
    """Ends in what `entry` does with the arguments of a command that takes KEY=VALUE alone, or in its `--help`."""
    parser = _Parser(
        prog=prog,
        usage=f"{prog} {usage}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help=argparse.SUPPRESS)
    settings = _parsed(parser).settings
    sys.exit(_told(lambda: entry(settings)))


def _parsed(parser: "_Parser") -> argparse.Namespace:
    """The arguments of a command; after `--version`, which every command has, it ends."""
    parser.add_argument("--version", action="version", version=_version(), help="the versions of what computes")
    return parser.parse_args()


def _pairs(settings: list[str]) -> dict[str, str]:
    """`KEY=VALUE` as a dict; raises `MetarunError` for what is not of this form."""
    for setting in settings:
        if "=" not in setting:
            raise MetarunError(f"{setting}: expected KEY=VALUE, such as run={setting}.")
    return dict(setting.split("=", 1) for setting in settings)


def _evaluate(settings: list[str]) -> None:
    given = _pairs(settings)
    protocol = one_of("protocol", given.get("protocol", "own"), ("own", "sweep"))
    _set_up()

    from rich.console import Console

    overrides = [setting for setting in settings if setting.split("=", 1)[0] not in ("run", "protocol")]
    if protocol == "sweep":
        from metarun.commands.protocol_sweep import sweep

        sweep(given.get("run"), overrides, Console())
    else:
        from metarun.commands.evaluation import evaluate

        evaluate(given.get("run"), overrides, Console())


def _replay(settings: list[str]) -> None:
    directory = _pairs(settings).get("run")
    _set_up()

    from rich.console import Console

    from metarun.commands.replay import replay

    if not replay(directory, [setting for setting in settings if not setting.startswith("run=")], Console()):
        sys.exit(_FAILED)


def _compare(settings: list[str]) -> None:
    given = _pairs(settings)
    protocol = one_of("protocol", given.get("protocol", "same"), ("same", "any"))
    _set_up()

    from rich.console import Console

    from metarun.commands.comparison import compare

    own = ("run", "with", "protocol")
    overrides = [setting for setting in settings if setting.split("=", 1)[0] not in own]
    compare(given.get("run"), given.get("with"), overrides, protocol == "any", Console())


def _report(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from metarun.report import tables
    from metarun.report.collection import collect
    from metarun.report.page import page
    from metarun.system.files import write_bytes

    forms = {"markdown": tables.markdown, "csv": tables.comma_separated, "latex": tables.latex}
    given = {name: getattr(arguments, name) for name in ("output", *forms) if getattr(arguments, name) is not None}
    paths = {name: Path(value).expanduser() for name, value in given.items()}
    for name, path in paths.items():  # before the first of them is written
        if not path.name or path.is_dir():
            raise ConfigError(f"--{name}", path, "the name of a file, and this is a directory")
    records, faults = collect(arguments.directories)
    for fault in faults:
        print(f"metarun: {fault}", file=sys.stderr)
    for name, path in paths.items():
        text = page(records, faults) if name == "output" else forms[name](records)
        write_bytes(path, text.encode("utf-8", "backslashreplace"))  # of a directory in bytes that are no UTF-8
        print(f"{len(records)} results in {path}")


def _reproduce(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from metarun.commands import reproduce

    if arguments.list:
        return reproduce.listed(Console())
    code = reproduce.reproduce(arguments.cell, _pairs(arguments.settings), Console())
    if code:
        sys.exit(code)


def _predict(settings: list[str]) -> None:
    given = _pairs(settings)
    code = [setting for setting in settings if _is_of_code(setting.partition("=")[0])]
    own = {key: value for key, value in given.items() if not _is_of_code(key)}
    for key in own:
        if key not in _PREDICT:
            raise MetarunError(f"{key}: there is no such key; there are {', '.join(_PREDICT)}.")
    _set_up()

    from rich.console import Console

    from metarun.commands.prediction import predict

    predict(Console(), **own, code=code)


def _is_of_code(key: str) -> bool:
    """Whether a key says which code of a user's may be called for a run, see `saved_run.read`."""
    return key == CODE or key.endswith(f".{TARGET}")


def _data(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from metarun.commands import data_sets

    if arguments.command == "list":
        return data_sets.list_all(conf_dir() / "dataset")
    if arguments.command == "verify":
        return data_sets.verify()

    from metarun.assembly.few_shot_run import classes

    config, choices = composed([f"dataset={arguments.name}", *arguments.settings])
    began = time.monotonic()
    loaded = classes(config, choices)
    data_sets.describe(loaded, time.monotonic() - began)
    if arguments.command == "show":
        data_sets.show(loaded, Path(arguments.output or f"{arguments.name}.png"))


def _told(entry: Callable[[], object], part: str = FEW_SHOT) -> int:
    """Runs `entry` and returns its exit code, having told the user in one message what went wrong.

    Args:
      entry: what to run.
      part: of `conf/`, whose keys are meant where an error does not say.
    """
    # A folder may be called by bytes that no terminal can show, and a terminal may show ASCII alone.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    code = _FAILED
    try:
        entry()
        code = 0
    except MetarunError as error:
        code = _said(error, _MISTAKE)
    except (HydraException, OmegaConfBaseException, ValueError, TypeError) as error:
        message = mistakes.explained(error, getattr(error, "part", part), sys.argv[1:])
        if message is None:
            raise
        code = _said(message, _MISTAKE)
    except KeyboardInterrupt:
        code = _said("interrupted; nothing was lost.", 130)
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        hint = f" {_UNWRITABLE}" if error.errno in _REFUSED_WRITING else ""
        code = _said(f"{where}{error.strerror or error}.{hint}", _FAILED)
    finally:
        directories.remove_unused(refused=code == _MISTAKE)
    return code


def _said(message: object, code: int) -> int:
    """Prints a message of metarun's and returns `code`."""
    print(f"metarun: {message}".encode("utf-8", "backslashreplace").decode(), file=sys.stderr)
    return code


def _set_up() -> None:
    """Sets JAX up, before anything imports it."""
    from metarun.data.cache import cache_dir
    from metarun.system import backend

    backend.set_up(cache_dir() / "compiled")


def _few_shot(config: DictConfig) -> float | None:
    _set_up()

    from metarun.assembly.few_shot_run import build

    run = build(config, _choices())
    from metarun.report import run_pictures  # a second, for its pictures, that a mistake does not wait for

    return _train(config, run, run_pictures)


def _rl(config: DictConfig) -> float | None:
    _set_up()

    from metarun.assembly.rl_run import build

    run = build(config, _choices())
    from metarun.report import rl_pictures

    return _train(config, run, rl_pictures)


def _choices() -> dict[str, Any]:
    """What is chosen of each group."""
    return dict(HydraConfig.get().runtime.choices)


def _train(config: DictConfig, run: Any, report: ModuleType) -> Any:
    """Trains and tests what `build` has made; `report` has `heading`, `pictures` and `summary`, what a person sees of it.

    Returns:
      What a search for settings goes by: the best validation, never the test; None where nothing was validated. Under a
      launcher that trains several points together: the `sweep.Point`, for it to train.
    """
    from pathlib import Path

    from rich.console import Console

    from metarun.commands.sweep import Point
    from metarun.system import processes
    from metarun.training import runner

    console, aside = Console(), Console(stderr=True)
    node = HydraConfig.get()
    if node.mode == RunMode.RUN and not node.run.dir:
        raise ConfigError("hydra.run.dir", node.run.dir, "a directory; . is this one")
    directory = Path(node.runtime.output_dir)
    record = directories.recorder(directory, config)
    if not processes.is_first():
        console = aside = Console(quiet=True)
    if node.mode == RunMode.MULTIRUN and node.runtime.choices["hydra/sweeper"] == "optuna":
        _check_search(run, str(getattr(node.sweeper.direction, "name", node.sweeper.direction)))
    console.print(report.heading(run.facts, directory), highlight=False, soft_wrap=True)
    if node.mode == RunMode.MULTIRUN and node.runtime.choices["hydra/launcher"] == "together":
        return Point(run, directory, report, record)
    result = runner.run(
        run.experiment,
        run.settings,
        directory,
        facts=run.facts,
        identity=run.identity,
        logger=run.logger,
        pictures=report.pictures(run.experiment),
        console=aside,
        record=record,
    )
    console.print(report.summary(result))
    console.print(f"result.json and plots/ in {directory}", markup=False, highlight=False, soft_wrap=True)
    return result["val"]


def _check_search(run: Any, direction: str) -> None:
    """Raises `ConfigError` where a search would have nothing to go by, or would look for the worst."""
    if not run.settings.eval_every:
        raise ConfigError(
            "eval_every", run.settings.eval_every, "1 or more: a search goes by validation, not by the test"
        )
    wanted = "maximize" if run.experiment.maximize else "minimize"
    if direction != wanted:
        raise ConfigError("hydra.sweeper.direction", direction, f"{wanted}, as {run.experiment.metric} asks for")

"""Console entry points. A user's mistake ends in one message and a non-zero exit, and `--help` does not load JAX."""

import argparse
import difflib
import os
import re
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metarun.config import COMMANDS, COMMON, FEW_SHOT, RL, SCHEMAS, composed, conf_dir, register
from metarun.errors import ConfigError, MetarunError, one_of, positive_int, seed_of, some

_FAILED = 1
_MISTAKE = 2
_PREDICT = ("run", "support", "query", "invert", "output")


def main() -> None:
    """`metarun`: trains and evaluates a meta-learner, as the command line composes it."""
    _of_hydra(_few_shot, FEW_SHOT)


def rl_main() -> None:
    """`metarun-rl`: trains and evaluates a learner that reinforcement learns."""
    _of_hydra(_rl, RL)


def data_main() -> None:
    """`metarun-data`: lists, prepares, verifies and shows data sets."""
    parser = argparse.ArgumentParser(
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
    arguments = parser.parse_args()
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
    parser = argparse.ArgumentParser(
        prog="metarun-reproduce",
        usage="metarun-reproduce (--list | PAPER/CELL [seeds=N] [output=DIR] [KEY=VALUE ...])",
        description="Runs, or resumes, a published experiment, and says by a test of equivalence whether it reproduces.",
        epilog=_REPRODUCE_KEYS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--list", action="store_true", help="the cells, with their published figures and ours")
    parser.add_argument("cell", nargs="?", metavar="PAPER/CELL", help="as --list names it")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
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
    parser = argparse.ArgumentParser(
        prog="metarun-report",
        description="Writes one HTML page over all runs at or below some directories, those of sweeps and job arrays too. "
        "Runs that differ in nothing but their seed are a row, the mean over them with how much they differ.",
    )
    parser.add_argument("directories", nargs="+", metavar="DIR", help="of runs, such as outputs")
    parser.add_argument("--output", default="report.html", metavar="FILE", help="the page (default: report.html)")
    for name in ("markdown", "csv", "latex"):
        parser.add_argument(f"--{name}", metavar="FILE", help=f"the table besides, as {name}")
    arguments = parser.parse_args()
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
  output     the folder to write in; the default is predictions/NAME in that of the run, NAME being that of the query

Prints the likeliest class of each picture, and writes probabilities.csv and predictions.png.
"""


def _of_hydra(entry: Callable[[DictConfig], float | None], part: str) -> NoReturn:
    """Ends in what `entry` does with the configuration that the command line composes from a part of `conf/`."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come here, where they become messages
    register()

    def command() -> None:
        sys.argv[1:] = _seeds_as_points(sys.argv[1:])
        hydra.main(version_base="1.3", config_path=str(conf_dir(part)), config_name="config")(entry)()

    sys.exit(_told(command, hint="Is hydra.run.dir writable?", part=part))


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
    numbers = {key: int(value) if value.isdecimal() else value for key, value in given.items()}
    count, first = positive_int("seeds", numbers["seeds"]), seed_of("seed", numbers.get("seed", 0))
    seeds = ",".join(str(seed_of("seed", first + number)) for number in range(count))
    others = [re.sub("^hydra.run.dir=", "hydra.sweep.dir=", argument) for argument in others]
    launcher = [] if any(argument.startswith("hydra/launcher=") for argument in others) else ["hydra/launcher=together"]
    return [*([] if {"-m", "--multirun"} & {*others} else ["-m"]), *others, f"seed={seeds}", *launcher]


def _of_settings(entry: Callable[[list[str]], None], prog: str, usage: str, description: str, epilog: str) -> NoReturn:
    """Ends in what `entry` does with the arguments of a command that takes KEY=VALUE alone, or in its `--help`."""
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} {usage}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help=argparse.SUPPRESS)
    settings = parser.parse_args().settings
    sys.exit(_told(lambda: entry(settings)))


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
        from metarun.protocol_sweep import sweep

        sweep(given.get("run"), overrides, Console())
    else:
        from metarun.evaluation import evaluate

        evaluate(given.get("run"), overrides, Console())


def _replay(settings: list[str]) -> None:
    directory = _pairs(settings).get("run")
    _set_up()

    from rich.console import Console

    from metarun.replay import replay

    if not replay(directory, [setting for setting in settings if not setting.startswith("run=")], Console()):
        sys.exit(_FAILED)


def _compare(settings: list[str]) -> None:
    given = _pairs(settings)
    protocol = one_of("protocol", given.get("protocol", "same"), ("same", "any"))
    _set_up()

    from rich.console import Console

    from metarun.comparison import compare

    own = ("run", "with", "protocol")
    overrides = [setting for setting in settings if setting.split("=", 1)[0] not in own]
    compare(given.get("run"), given.get("with"), overrides, protocol == "any", Console())


def _report(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from metarun.files import write_bytes
    from metarun.report import tables
    from metarun.report.collection import collect
    from metarun.report.page import page

    records, faults = collect(arguments.directories)
    for fault in faults:
        print(f"metarun: {fault}", file=sys.stderr)
    forms = {"markdown": tables.markdown, "csv": tables.comma_separated, "latex": tables.latex}
    texts = {name: form(records) for name, form in forms.items() if getattr(arguments, name) is not None}
    for name, text in {"output": page(records, faults), **texts}.items():
        path = Path(getattr(arguments, name)).expanduser()
        write_bytes(path, text.encode())
        print(f"{len(records)} results in {path}")


def _reproduce(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from metarun import reproduce

    if arguments.list:
        return reproduce.listed(Console())
    code = reproduce.reproduce(arguments.cell, _pairs(arguments.settings), Console())
    if code:
        sys.exit(code)


def _predict(settings: list[str]) -> None:
    given = _pairs(settings)
    for key in given:
        if key not in _PREDICT:
            raise MetarunError(f"{key}: there is no such key; there are {', '.join(_PREDICT)}.")
    _set_up()

    from rich.console import Console

    from metarun.prediction import predict

    predict(Console(), **given)


def _data(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from metarun import data_sets

    if arguments.command == "list":
        return data_sets.list_all(conf_dir() / "dataset")
    if arguments.command == "verify":
        return data_sets.verify()

    from metarun.build import classes

    config, choices = composed([f"dataset={arguments.name}", *arguments.settings])
    began = time.monotonic()
    loaded = classes(config, choices)
    data_sets.describe(loaded, time.monotonic() - began)
    if arguments.command == "show":
        data_sets.show(loaded, Path(arguments.output or f"{arguments.name}.png"))


def _told(entry: Callable[[], object], hint: str = "", part: str = FEW_SHOT) -> int:
    """Runs `entry` and returns its exit code, having told the user in one message what went wrong.

    Args:
      entry: what to run.
      hint: what to look at where the system refuses something.
      part: of `conf/`, whose keys are meant where an error does not say.
    """
    try:
        entry()
    except MetarunError as error:
        print(f"metarun: {error}", file=sys.stderr)
        return _MISTAKE
    except (HydraException, OmegaConfBaseException) as error:
        print(f"metarun: {_explained(error, getattr(error, 'part', part))}", file=sys.stderr)
        return _MISTAKE
    except ValueError as error:  # those of Hydra's own code and of its plugins that are a user's mistake
        message = _mistaken(str(error), getattr(error, "part", part))
        if message is None:
            raise
        print(f"metarun: {message}", file=sys.stderr)
        return _MISTAKE
    except KeyboardInterrupt:
        print("metarun: interrupted; nothing was lost.", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"metarun: {error.filename or ''}: {error.strerror or error}. {hint}".rstrip(), file=sys.stderr)
        return _FAILED
    return 0


def _explained(error: Exception, part: str) -> str:
    """Hydra's message; for a key that does not exist, the one that was probably meant."""
    causes = [error]
    while isinstance(causes[-1].__cause__, (HydraException, OmegaConfBaseException)):
        causes.append(causes[-1].__cause__)
    message = "\n".join(dict.fromkeys(line for cause in causes for line in str(cause).splitlines()))
    unknown = re.search(r"Could not override '([\w./]+)'", message)
    if unknown and ("not in" in message or "No match" in message):
        key = unknown.group(1)
        if key in _groups(part):
            return _no_option(part)
        known = _known_keys(part)
        if options := known.get(key):
            meant = f"; there is with {some(sorted(options))}."
        elif near := difflib.get_close_matches(key, known, n=3):
            meant = f". Did you mean {' or '.join(near)}?"
        else:
            meant = "."
        ways_out = f"`{COMMANDS[part]} --help` lists the main keys and `--cfg job` all."
        return f"{key}: there is no such key for this choice{meant} {ways_out}"
    return message


def _mistaken(message: str, part: str) -> str | None:
    """What to tell a user of a `ValueError` by its message; None of one that is no mistake of theirs."""
    if "Config group override must be" in message:
        return _no_option(part)
    if "study direction" in message:
        return (
            f"hydra.sweeper.direction: the study in hydra.sweeper.storage was begun with another ({message}) "
            "Leave it as it was, or give hydra.sweeper.study_name another name."
        )
    return None


def _groups(part: str) -> set[str]:
    return {folder.name for folder in [*conf_dir(part).iterdir(), *conf_dir(COMMON).iterdir()] if folder.is_dir()}


def _no_option(part: str) -> str:
    """What is said of a value for a group that no option could be called."""
    given = [argument for argument in sys.argv[1:] if argument.partition("=")[0].lstrip("+") in _groups(part)]
    return f"{' '.join(given)}: expected the name of an option for each, as `{COMMANDS[part]} --help` lists them."


def _known_keys(part: str) -> dict[str, list[str]]:
    """Every key of the schema and of the groups' YAML files, and the options that have it where not every run does."""
    schema = OmegaConf.structured(SCHEMAS[part])
    keys: dict[str, list[str]] = {key: [] for key in [*schema, *(f"memory.{key}" for key in schema.memory)]}
    for file in [*conf_dir(part).glob("*/*.yaml"), *conf_dir(COMMON).glob("*/*.yaml")]:
        group = file.parent.name
        if group == "experiment":  # whose keys are the run's
            continue
        node = OmegaConf.load(file)
        node = node.get(group, node)  # one that sets keys of the run as well has its own under its name
        for key in node:
            if key != "defaults" and not str(key).startswith("_"):
                keys.setdefault(f"{group}.{key}", []).append(f"{group}={file.stem}")
    return keys


def _set_up() -> None:
    """Sets JAX up, before anything imports it."""
    from metarun import backend
    from metarun.data.cache import cache_dir

    backend.set_up(cache_dir() / "compiled")


def _few_shot(config: DictConfig) -> float | None:
    _set_up()

    from metarun.build import build

    run = build(config, _choices())
    from metarun.report import outcome  # a second, for its pictures, that a mistake does not wait for

    return _train(run, outcome)


def _rl(config: DictConfig) -> float | None:
    _set_up()

    from metarun.build_rl import build

    run = build(config, _choices())
    from metarun.report import rl_outcome

    return _train(run, rl_outcome)


def _choices() -> dict[str, Any]:
    """What is chosen of each group."""
    return dict(HydraConfig.get().runtime.choices)


def _train(run: Any, report: ModuleType) -> Any:
    """Trains and tests what `build` has made; `report` has `heading`, `pictures` and `summary`, what a person sees of it.

    Returns:
      What a search for settings goes by: the best validation, never the test; None where nothing was validated. Under a
      launcher that trains several points together: the `sweep.Point`, for it to train.
    """
    from pathlib import Path

    from rich.console import Console

    from metarun import processes, runner
    from metarun.sweep import Point

    console, aside = Console(), Console(stderr=True)
    node = HydraConfig.get()
    directory = Path(node.runtime.output_dir)
    if not processes.is_first():
        console = aside = Console(quiet=True)
    if node.mode == RunMode.MULTIRUN and node.runtime.choices["hydra/sweeper"] == "optuna":
        _check_search(run, str(getattr(node.sweeper.direction, "name", node.sweeper.direction)))
    console.print(report.heading(run.facts, directory), highlight=False, soft_wrap=True)
    if node.mode == RunMode.MULTIRUN and node.runtime.choices["hydra/launcher"] == "together":
        return Point(run, directory, report)
    result = runner.run(
        run.experiment,
        run.settings,
        directory,
        facts=run.facts,
        identity=run.identity,
        logger=run.logger,
        draw=report.pictures(run.experiment),
        console=aside,
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

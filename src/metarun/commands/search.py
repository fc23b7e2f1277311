"""A search for settings by Optuna: which points are tried, what comes of each, and what is found in the end.

How it works: Optuna is asked for a point when there is room for one, and told of its best validation when it has ended. So no
point waits for others, but for those that are trained together, `hydra.sweeper.n_jobs` at a time. Each point tells the storage
of every validation, from whatever process it runs in, and is pruned there. Any number of commands may share a storage.
"""

import contextlib
import importlib
import importlib.util
import math
import queue
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, Transformer
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from metarun.commands.sweep import PointOutcome, Points, is_refused, told
from metarun.commands.sweep_table import watched
from metarun.errors import ConfigError, MetarunError, Pruned, one_of, positive_int
from metarun.system.files import write_bytes

# In the directory of a search: what was found, and its picture.
FOUND, PICTURE = "optimization_results.yaml", "search.png"
# What tells a point which trial it is, "NUMBER NAME": the sweeper's own keys are the same for every point.
TRIAL = "METARUN_TRIAL"
_OPTUNA = 4, 9  # the oldest that will do
# What a sampler needs that does not come with Optuna.
_NEEDS = {"CmaEsSampler": "cmaes", "GPSampler": "torch"}
_ATTEMPTS = 5  # to open a database
_BUSY_SECONDS = 60  # that a trial waits for another process to be done with a database


class Space(NamedTuple):
    """What a search varies and what it does not.

    Attributes:
      parameters: key -> its distribution.
      fixed: the settings that every point has, as they were typed.
    """

    parameters: Mapping[str, Any]
    fixed: Sequence[str]


def search(config: DictConfig, launcher: Launcher, arguments: Sequence[str]) -> None:
    """Tries `n_trials` points, by a launcher that has been set up, and says what was found.

    Args:
      config: with the node `hydra.sweeper`.
      launcher: which starts the points.
      arguments: the settings of the command line.

    Raises:
      ConfigError: a key of the search cannot be used.
      SystemExit: a point has no result for another reason than that it was pruned or has diverged; or no point has one.
    """
    optuna, node, directory = _optuna(), config.hydra.sweeper, Path(config.hydra.sweep.dir)
    n_trials, n_jobs = (positive_int(f"hydra.sweeper.{key}", node[key]) for key in ("n_trials", "n_jobs"))
    one_of("hydra.sweeper.direction", str(node.direction), ("maximize", "minimize"))
    space = space_of([f"{key}={value}" for key, value in (node.params or {}).items()], arguments)
    sampler, points_of_grid = _sampler(node.sampler, space, n_jobs)
    pruner, file = _made("pruner", node.pruner), _file_of(node)
    was_there = file is None or file.exists()
    storage = storage_of(node, directory)
    began = node.study_name is not None and node.study_name in optuna.get_all_study_names(storage)
    study = optuna.create_study(
        study_name=node.study_name,
        storage=storage,
        sampler=sampler,
        pruner=pruner,
        direction=str(node.direction),
        load_if_exists=True,
    )
    if study.direction.name.lower() != node.direction:
        raise ConfigError(
            "hydra.sweeper.direction",
            node.direction,
            f"{study.direction.name.lower()}, with which the study in hydra.sweeper.storage was begun; or give "
            "hydra.sweeper.study_name another name",
        )
    n_trials = min(n_trials, points_of_grid or n_trials)
    points = Points(launcher)

    def forget() -> None:
        """Has a command that is refused leave nothing."""
        if not began:
            optuna.delete_study(study_name=study.study_name, storage=storage)
        if file is not None and not was_there:
            file.unlink(missing_ok=True)

    trials = _Trials(study, space, points, n_trials, forget)

    def closing(say: Callable[[str], object]) -> None:
        _tell_found(study, directory, say)

    choice = str(config.hydra.runtime.choices["hydra/launcher"])
    with told(points, directory, search=True, closing=closing), watched(points, directory, n_trials):
        if choice == "together":
            trials.take_turns(n_jobs)
        elif n_jobs == 1 or _is_here(choice, launcher):
            trials.take_turns(1)
        else:
            trials.take_at_once(n_jobs)


def judge_of(node: DictConfig, directory: Path, trial_of_study: str) -> Callable[[int, float], bool]:
    """What a point of a search tells its validations to, which says whether it is pruned.

    Args:
      node: `hydra.sweeper`.
      directory: of the sweep.
      trial_of_study: what the point has been told in `TRIAL`.
    """
    optuna, (number, _, name) = _optuna(), trial_of_study.partition(" ")
    study = optuna.load_study(
        study_name=node.study_name or name,
        storage=storage_of(node, directory),
        sampler=optuna.samplers.RandomSampler(),  # which nobody asks
        pruner=_made("pruner", node.pruner),
    )
    of_study = study.get_trials(deepcopy=False)
    number = next(each._trial_id for each in of_study if each.number == int(number))
    trial = optuna.trial.Trial(study, number)

    def judge(step: int, value: float) -> bool:
        if not math.isfinite(value):
            return False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a run that continues reports a step again
            trial.report(value, step)
        return trial.should_prune()

    return judge


class _Trials:
    """The trials of one command: asked for, launched, and told of.

    Args:
      study: of Optuna.
      space: from which its points are.
      points: around the launcher.
      count: how many.
      forget: called where the first of them are refused.
    """

    def __init__(self, study: Any, space: Space, points: Points, count: int, forget: Callable[[], None]):
        self._study, self._space, self._points, self._forget = study, space, points, forget
        self._left, self._first = count, True
        # The name that Optuna has made up, which a point cannot know otherwise.
        self._unnamed = study.study_name if study.study_name.startswith("no-name-") else ""

    def take_turns(self, size: int) -> None:
        """Launches so many at a time, from this thread."""
        while self._left:
            trials = self._asked(min(size, self._left))
            with self._kept_if_interrupted(trials):
                self._tell(trials, self._launch(trials))

    def take_at_once(self, number: int) -> None:
        """Keeps so many running: where one ends, the next begins."""
        ended: queue.Queue[tuple[list[Any], Any]] = queue.Queue()
        running: dict[int, list[Any]] = {}

        def run(trials: list[Any]) -> None:
            try:
                ended.put((trials, self._launch(trials)))
            except BaseException as error:
                ended.put((trials, error))

        with contextlib.ExitStack() as kept:
            while self._left or running:
                while self._left and len(running) < number:
                    trials = self._asked(1)
                    running[trials[0].number] = trials
                    kept.enter_context(self._kept_if_interrupted(trials))
                    threading.Thread(target=run, args=(trials,), daemon=True).start()
                trials, found = ended.get()
                del running[trials[0].number]
                if isinstance(found, BaseException):
                    raise found
                self._tell(trials, found)

    def _asked(self, number: int) -> list[Any]:
        self._left -= number
        try:
            return [self._study.ask(dict(self._space.parameters)) for _ in range(number)]
        except ValueError as error:  # how Optuna says that a parameter was another
            raise _other_study(self._study.study_name, error) from error

    def _launch(self, trials: Sequence[Any]) -> list[PointOutcome]:
        first = trials[0].number
        overrides = []
        for place, trial in enumerate(trials):
            own = [f'+hydra.job.env_set.{TRIAL}="{trial.number} {self._unnamed}"']
            if trial.number != first + place:  # another command has asked in between
                own.append(f"hydra.sweep.subdir={trial.number}")
            # In the order in which they were given: what Optuna has kept may have another.
            varied = [f"{key}={_typed(trial.params[key])}" for key in self._space.parameters]
            overrides.append([*varied, *self._space.fixed, *own])
        return self._points.launched(overrides, first)

    def _tell(self, trials: Sequence[Any], outcomes: Sequence[PointOutcome]) -> None:
        from optuna.trial import TrialState

        refused = self._first and all(map(is_refused, outcomes))
        for trial, outcome in zip(trials, outcomes, strict=True):
            trial.set_user_attr("directory", str(outcome.directory))
            if outcome.error is None and math.isfinite(outcome.value):
                self._tell_one(trial, values=float(outcome.value))
            else:
                self._tell_one(trial, state=TrialState.PRUNED if isinstance(outcome.error, Pruned) else TrialState.FAIL)
        if refused:  # the mistake is the search's
            self._forget()
            error: Any = outcomes[0].error
            raise error
        self._first = False

    def _tell_one(self, trial: Any, **what: Any) -> None:
        try:
            self._study.tell(trial, **what)
        except RuntimeError as error:  # how a grid says that this was its last point
            if "Study.stop" not in str(error):
                raise

    @contextlib.contextmanager
    def _kept_if_interrupted(self, trials: Sequence[Any]) -> Iterator[None]:
        """Where the search ends early: has no trial be left as one that runs, and one that was interrupted be tried again."""
        from optuna.trial import TrialState

        try:
            yield
        except BaseException as error:
            with contextlib.suppress(KeyError):  # where the study is no more
                states = [each.state for each in self._study.get_trials(deepcopy=False)]
                for trial in trials:
                    if states[trial.number] == TrialState.RUNNING:
                        params = trial.params
                        self._tell_one(trial, state=TrialState.FAIL)
                        if not isinstance(error, Exception):
                            self._study.enqueue_trial(params)
            raise


# ---- What a search is given.


def _optuna() -> Any:
    """The module; it says nothing by itself, for what it would say is in the table."""
    try:
        import optuna
    except ImportError as error:
        needed = "basic: a search needs Optuna, which comes with `pip install 'metarun[tune]'`"
        raise ConfigError("hydra/sweeper", "optuna", needed) from error
    version = tuple(int(number) for number in optuna.__version__.split(".")[:2])
    if version < _OPTUNA:
        needed = f"basic: Optuna {optuna.__version__} is too old. `pip install 'metarun[tune]'` brings a newer one"
        raise ConfigError("hydra/sweeper", "optuna", needed)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


def storage_of(node: DictConfig, directory: Path) -> Any:
    """The storage of a search: a database by its URL, or a journal by the name of its file, by default one in `directory`.

    Raises:
      ConfigError: it cannot be opened, or is of another version of Optuna.
    """
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    from metarun.config.directories import JOURNAL

    key, given = "hydra.sweeper.storage", node.storage
    if given is None:
        directory.mkdir(parents=True, exist_ok=True)
    if given is None or "://" not in str(given):
        path = directory / JOURNAL if given is None else Path(str(given)).expanduser()
        if path.suffix in (".db", ".sqlite", ".sqlite3"):
            raise ConfigError(
                key, given, f"sqlite:///{given} for a database, or the name of another file for a journal"
            )
        try:
            return JournalStorage(JournalFileBackend(str(path)))
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(key, given, f"a file that can be written in, as a journal of Optuna ({error})") from error
    busy = {"connect_args": {"timeout": _BUSY_SECONDS}} if str(given).startswith("sqlite") else {}
    for attempt in range(_ATTEMPTS):
        try:
            return RDBStorage(str(given), engine_kwargs=busy)
        except ImportError as error:
            raise ConfigError(key, given, f"a database whose driver is installed ({error})") from error
        except RuntimeError as error:  # how Optuna says that the tables are another version's
            way_out = f"`optuna storage upgrade --storage {given}` brings it up to date; keep a copy"
            raise ConfigError(key, given, f"a storage of this version of Optuna. {way_out}") from error
        except Exception as error:
            if type(error).__module__.partition(".")[0] not in ("sqlalchemy", "sqlite3"):
                raise
            reason = str(error).splitlines()[0]
            # Several that begin at once make the tables at once, and all but one of them in vain.
            if attempt + 1 < _ATTEMPTS and any(word in reason for word in ("already exists", "locked", "UNIQUE")):
                time.sleep(0.2 * 2**attempt)
                continue
            raise ConfigError(key, given, f"the URL of a database, such as sqlite:///search.db ({reason})") from error


def space_of(params: Sequence[str], arguments: Sequence[str]) -> Space:
    """What is varied and what is not, of the overrides of `hydra.sweeper.params` and of a command line, which counts.

    Raises:
      ConfigError: nothing is varied, or something in no way that can be searched.
    """
    parser = OverridesParser.create()
    parsed = {each.get_key_element(): each for each in parser.parse_overrides([*params, *arguments])}
    varied = {key: each for key, each in parsed.items() if each.is_sweep_override()}
    if not varied:
        raise ConfigError(
            "hydra.sweeper.params",
            "null",
            "something to search for, such as 'outer_lr=tag(log,interval(1e-4,1e-2))' on the command line",
        )
    fixed = [str(each.input_line) for key, each in parsed.items() if key not in varied]
    return Space({key: _distribution(key, each) for key, each in varied.items()}, fixed)


def _distribution(key: str, override: Override) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value: Any = override.value()
    try:
        if isinstance(value, IntervalSweep):
            low, high, log = value.start or 0, value.end or 0, "log" in value.tags
            if isinstance(low, int) and isinstance(high, int):
                return IntDistribution(low, high, log=log)
            return FloatDistribution(low, high, log=log)
        values = [_plain(each) for each in override.sweep_iterator(transformer=Transformer.identity)]
        if override.is_range_sweep() and not value.shuffle and len(values) > 1 and isinstance(values[0], int):
            # By its limits, so that a sampler knows of their order. Hydra's end is no part of it.
            return IntDistribution(min(values), max(values), step=abs(values[1] - values[0]))
        return CategoricalDistribution(values)
    except ValueError as error:
        given = str(override.input_line).partition("=")[2]
        raise ConfigError(key, given, f"values to search among ({error})") from error


def _plain(value: Any) -> Any:
    """A value of a choice as Optuna keeps it: a number, true, false or null as such, and else the text that is typed."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return Transformer.str(value)


def _typed(value: Any) -> str:
    """A value of Optuna's as it is typed in an override."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value)


def _sampler(node: DictConfig, space: Space, n_jobs: int) -> tuple[Any, int | None]:
    """The sampler, and how many points there are where it goes through all."""
    own: dict[str, Any] = {}
    if "constant_liar" in node and node.constant_liar is None:
        own["constant_liar"] = n_jobs > 1
    if str(node.get("_target_", "")).rpartition(".")[2] != "GridSampler":
        return _made("sampler", node, **own), None
    values = {key: _all_of(key, each) for key, each in space.parameters.items()}
    return _made("sampler", node, search_space=values), math.prod(map(len, values.values()))


def _all_of(key: str, distribution: Any) -> list[Any]:
    if hasattr(distribution, "choices"):
        return list(distribution.choices)
    if isinstance(distribution.low, int) and not distribution.log:
        return list(range(distribution.low, distribution.high + 1, distribution.step))
    raise ConfigError(
        "hydra/sweeper/sampler", "grid", f"single values of {key}, such as choice(0.1,0.2), and no interval"
    )


def _made(what: str, node: DictConfig, **own: Any) -> Any:
    """The sampler or the pruner that a node describes; a key that is null is left to Optuna."""
    group = f"hydra/sweeper/{what}"
    given: Any = {**OmegaConf.to_container(node, resolve=True), **own}  # type: ignore[dict-item]
    keys = {key: value for key, value in given.items() if not key.startswith("_") and value is not None}
    module, _, name = str(given.get("_target_", "")).rpartition(".")
    package = _NEEDS.get(name)
    if package is not None and importlib.util.find_spec(package) is None:  # which Optuna misses at the second trial
        raise ConfigError(group, name, f"another {what}, or the package {package}, which it needs, to be installed")
    try:
        return getattr(importlib.import_module(module), name)(**keys)
    except (ImportError, AttributeError) as error:
        raise ConfigError(group, name, f"a {what} that can be made here ({error})") from error
    except (TypeError, ValueError) as error:
        words = ", ".join(f"hydra.sweeper.{what}.{key}={value}" for key, value in keys.items() if key != "search_space")
        raise ConfigError(group, name, f"keys that it takes ({error}); it got {words or 'none'}") from error


def _is_here(choice: str, launcher: Any) -> bool:
    """Whether a launcher runs a single point in this process, one after the other."""
    if choice != "joblib":
        return choice == "basic"
    import joblib

    return joblib.effective_n_jobs(int(launcher.joblib["n_jobs"])) == 1


def _file_of(node: DictConfig) -> Path | None:
    """The file of a storage that is one; None of a server's, and of the journal in the directory of the sweep."""
    given = str(node.storage or "")
    if given.startswith("sqlite:///"):
        return Path(given.removeprefix("sqlite:///"))
    return Path(given).expanduser() if given and "://" not in given else None


def _other_study(name: Any, error: Exception) -> MetarunError:
    allowed = f"a study of the same parameters, or a new name ({' '.join(str(error).split())})"
    return ConfigError("hydra.sweeper.study_name", name, allowed)


# ---- What it has found.


def _tell_found(study: Any, directory: Path, say: Callable[[str], object]) -> None:
    """Says what all trials of a study have found, with the importance of its parameters, and draws it."""
    from optuna.trial import TrialState

    from metarun.report.search import Trial, picture

    trials = study.get_trials(deepcopy=False)
    ended = [each for each in trials if each.state == TrialState.COMPLETE]
    if not ended:
        return
    best, importance = study.best_trial, _importance(study, len(ended))
    found: dict[str, Any] = {"name": "optuna", "best_params": best.params, "best_value": best.value}
    found |= {"best_trial": best.number, "importance": importance, "trials": _counted(trials)}
    write_bytes(directory / FOUND, OmegaConf.to_yaml(OmegaConf.create(found)).encode())
    say(f"Best of {found['trials']}: {best.value:.4g} in validation, trial {best.number}")
    say("  " + " ".join(f"{key}={_typed(value)}" for key, value in best.params.items()))
    if len(importance) > 1:
        said = ", ".join(f"{key} {share:.0%}" for key, share in importance.items())
        say(f"Importance for the validation, by PED-ANOVA: {said}")
    rows = [Trial(each.number, each.value, each.state.name.lower(), dict(each.params)) for each in trials]
    picture(rows, importance, directory / PICTURE, maximize=study.direction.name == "MAXIMIZE")
    say(f"{FOUND} and {PICTURE} in {directory}")


def _counted(trials: Sequence[Any]) -> str:
    words = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
    counts = {said: sum(each.state.name == name for each in trials) for name, said in words.items()}
    return ", ".join(f"{count} {said}" for said, count in counts.items() if count)


def _importance(study: Any, ended: int) -> dict[str, float]:
    """Parameter -> its share, the largest first; empty where too little is known."""
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator

    if ended < 4:  # the best of so few are one
        return {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = optuna.importance.get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    except (ValueError, RuntimeError):  # all values are the same, or no parameter is in all trials
        return {}
    return {key: float(share) for key, share in found.items() if math.isfinite(share)}

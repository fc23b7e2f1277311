"""A run read back from its directory: its result, its parameters, its metrics, and what its learner says."""

import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike
from omegaconf import OmegaConf

from metarun.api.calls import as_overrides, explained
from metarun.api.evaluation import asked, tested
from metarun.api.jax_set_up import set_up_within
from metarun.api.learner import Functions, Learner, inputs, support_of
from metarun.assembly import rl_run, saved_run
from metarun.assembly.few_shot_run import (
    DataFacts,
    build_learner,
    recorded,
    recorded_standard,
    shapes_of,
    takes_way,
)
from metarun.config.schema import COMMANDS, FEW_SHOT, RL
from metarun.data.standardizing import Standard
from metarun.errors import ConfigError, MetarunError, one_of
from metarun.few_shot.learner import STATISTICS, of_fewer_classes
from metarun.training.ensemble import Ensemble
from metarun.training.result import METRICS, RESULT, read_metrics, read_result
from metarun.training.run_state import load_selected
from metarun.types import Method, Params

# Instead of the queries' own statistics, by which an answer depends on the others. MAML on glyphs, 300 steps, answers 49.8%
# of single queries rightly with their own, 63.1% with those of the support set, and 62.1% with "each".
APART = "support"


def load(directory: str | Path, *code: str) -> "Run":
    """Returns the run in a directory, finished or interrupted.

    A run's directory is data: nothing in it is called. What is called for its choices is what this installation has.

    Args:
      directory: of the run.
      *code: names functions of your own again, which the run calls and nothing installed has, as
        `"method._target_=my_method.maml"`; `"code=any"` takes their source though it has changed.

    Raises:
      metarun.errors.MetarunError: it is no run, has no checkpoint that can be read, or is of code that is not here.
    """
    set_up_within()
    with explained(FEW_SHOT, code):
        saved = saved_run.read(str(directory), warned, overrides=as_overrides(code, {}))
    # Wherever the program goes from here.
    found = saved.checkpoint._replace(path=saved.checkpoint.path.absolute())
    return Run(saved._replace(directory=saved.directory.absolute(), checkpoint=found))


def warned(text: str) -> None:
    """Gives a warning of something that is not as it should be, and can be lived with."""
    warnings.warn(text, stacklevel=3)


class Run:
    """A run of `metarun` or `metarun-rl`; `load` and `train` return it.

    It is what was in the directory when it was loaded. Compiled functions are kept with it: the first `adapt` takes seconds,
    the next milliseconds.
    """

    def __init__(self, saved: saved_run.SavedRun):
        self._saved = saved
        self._functions: dict[tuple[int, str], Functions] = {}

    def __repr__(self) -> str:
        chosen = ", ".join(self.choices[group] for group in ("method", saved_run.TASKS[self._saved.part]))
        return f"<metarun.Run {self.directory}: {chosen}, {self._saved.checkpoint.step} steps>"

    @property
    def saved(self) -> saved_run.SavedRun:
        """What was read."""
        return self._saved

    @property
    def directory(self) -> Path:
        """Of the run."""
        return self._saved.directory

    @property
    def config(self) -> dict[str, Any]:
        """The configuration that the run was begun with, as plain values."""
        values: Any = OmegaConf.to_container(self._saved.config, resolve=True)
        return values

    @property
    def choices(self) -> Mapping[str, str]:
        """The option chosen in each group, such as "maml" of "method"."""
        return self._saved.choices

    @property
    def result(self) -> dict[str, Any] | None:
        """What `result.json` says; None of a run that is not finished.

        Raises:
          DataError: it cannot be read, or is no result.
        """
        path = self.directory / RESULT
        return read_result(path) if path.exists() else None

    @property
    def metrics(self) -> dict[str, np.ndarray]:
        """The columns of `metrics.jsonl` by their names, `[num_lines]` each.

        `step` is int64, the others float64, NaN where a line has no value.
        `pandas.DataFrame(run.metrics)` and `polars.DataFrame(run.metrics)` are tables of it.

        Raises:
          DataError: the file cannot be read.
        """
        lines, sentences = read_metrics(self.directory / METRICS)
        for sentence in sentences:
            warned(sentence)
        names = dict.fromkeys(name for line in lines.values() for name in line)
        columns = {
            name: np.array([np.nan if line.get(name) is None else line[name] for line in lines.values()], np.float64)
            for name in names
            if name != "step"
        }
        return {"step": np.array([*lines], np.int64), **columns}

    @cached_property
    def params(self) -> Params | Ensemble:
        """The parameters that the run has selected, a nested dict of JAX arrays, or an `Ensemble` of several such."""
        if self._saved.part == RL:
            experiment = rl_run.build(self._saved.config, self.choices, begun=self._identity).experiment
            shapes = jax.eval_shape(experiment.init).params
        else:
            shapes = shapes_of(build_learner(self._saved.config, self.choices, self.data), self.data)
        return jax.device_put(load_selected(self._saved.checkpoint, shapes))

    @cached_property
    def data(self) -> DataFacts:
        """What the learner was trained on; has `objective`, `input_shape` and `num_outputs`.

        Raises:
          MetarunError: the run is one of reinforcement learning.
        """
        if self._saved.part == RL:
            raise MetarunError(
                f"{self.directory} is a run of {COMMANDS[RL]}: its learner acts in an environment, and has no examples to "
                "adapt to. run.evaluate(...) tests it."
            )
        return recorded(self._identity)

    @property
    def method(self) -> Method:
        """The pure functions beneath, of one task, as they test, for `jax.jit`, `jax.vmap` and `jax.grad` of your own."""
        return build_learner(self._saved.config, self.choices, self.data)

    def functions(self, way: int | None = None, query_statistics: str = "auto") -> Functions:
        """Returns the method for tasks of `way` classes, with compiled functions, which are kept.

        Args:
          way: classes of a task; None: as the run was trained.
          query_statistics: as in `adapt`.

        Raises:
          ConfigError: the method has no such setting.
          MetarunError: the method has an output for each class of its training tasks, and these are of another number.
        """
        statistics = self._statistics(query_statistics)
        way = self.data.num_outputs if way is None else way
        if (way, statistics) not in self._functions:
            data, config = self.data._replace(num_outputs=way), self._saved.config
            of_range = way < self.data.num_outputs and OmegaConf.is_list(config.get("way"))
            if not takes_way(config, self.choices, self.data, way) and not of_range:
                raise MetarunError(
                    f"The support set has {way} classes: expected {self.data.num_outputs}, for method="
                    f"{self.choices['method']} was trained with an output for each class of a task."
                )
            if statistics != (self._trained_statistics or ""):
                config = saved_run.with_keys(self._saved, [f"method.query_statistics={statistics}"])
            if of_range:  # of its outputs, as in training, those for classes that there are serve
                method = of_fewer_classes(build_learner(config, self.choices, self.data), way)
            else:
                method = build_learner(config, self.choices, data)
            self._functions[way, statistics] = Functions.of(method, data, self._standard)
        return self._functions[way, statistics]

    def adapt(
        self,
        x: ArrayLike,
        y: ArrayLike,
        *,
        classes: Sequence[Any] | None = None,
        query_statistics: str = "auto",
    ) -> Learner:
        """Returns the learner after it has seen a support set.

        For the same pictures it is the one of `metarun-predict`, to the bit, if JAX had not computed before metarun was first
        called. Light and dark are not inverted here.

        Args:
          x: `[n, *feature]`, a NumPy or JAX array of the shape of the run's inputs (`run.data.input_shape`). Pictures are
            `[n, height, width, channel]`, uint8 from black 0 to white 255, or floats in [0, 1]; other inputs any real numbers,
            which are standardised as those of the run were.
          y: `[n]`, a class for each row, as whole numbers or names; of a regression `[n, num_outputs]`, numbers. Classes may
            have different numbers of rows.
          classes: their order; None: sorted.
          query_statistics: whose statistics normalise the queries: "query", "support" or "each"; "auto": as in the run, but
            where they are those of the queries, by which an answer would depend on the other queries, "support".

        Raises:
          metarun.errors.MetarunError: shapes or values are others; the method cannot have so many classes; or the run is
            one of reinforcement learning.
        """
        support, known = support_of(inputs("x", x, self.data, self._standard), y, self.data, classes)
        way = len(known) if self.data.objective == "classification" else self.data.num_outputs
        return Learner(self.functions(way, query_statistics), self.params, support, known)

    def evaluate(self, *overrides: str, **settings: Any) -> dict[str, Any]:
        """Tests the selected parameters, with the checks, as `metarun-eval` does, and returns the result.

        It is written below the run's directory, to `evaluations/`.

        Args:
          *overrides: what differs from the run's own test, such as `"dataset=omniglot"`.
          **settings: more of them by key, such as `shot=5`.

        Raises:
          metarun.errors.MetarunError: a setting cannot be used, or would make another learner.
        """
        given = as_overrides(overrides, settings)
        with explained(self._saved.part, given):
            return tested(self._saved, asked(self._saved, given))[0]

    @property
    def _identity(self) -> Mapping[str, Any]:
        return self._saved.checkpoint.metadata["identity"]

    @property
    def _standard(self) -> Standard | None:
        return recorded_standard(self._identity)

    @property
    def _trained_statistics(self) -> str | None:
        return self._saved.config.method.get("query_statistics")

    def _statistics(self, asked: str) -> str:
        """Whose statistics normalise queries, of whatever method has them; "" of one that has no such setting."""
        one_of("query_statistics", asked, ("auto", *STATISTICS))
        trained = self._trained_statistics
        if trained is None and asked != "auto":
            raise ConfigError("query_statistics", asked, f"auto: method={self.choices['method']} has no such setting")
        if asked == "auto":
            return APART if trained == "query" else trained or ""
        return asked

"""Runs that differ in their numbers alone, as one program: each is a run like any other, but their steps are one.

How it works: every run is driven by `runner.run` in a thread of its own, in its own directory. Where it asks for outer steps it
waits until the others have asked for theirs. Then one compiled program takes the steps of all. What differs between the runs is
an input of it: the state and the key of each seed, which are arguments of a step anyway, and the numbers that `unify` finds,
such as learning rates.

When it refuses: the runs have no single program, because images are streamed; their parameters have other shapes; or their
programs differ in more than numbers. `groups` says which of them have one.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from metarun.compiled.memory import fastest_that_fits
from metarun.compiled.outer_loop import plan_of, shapes_on
from metarun.compiled.task_map import placed
from metarun.compiled.unify import NotTheSame, compare, numbers_of, same_numbers, traced, unified
from metarun.errors import MetarunError
from metarun.types import Experiment, Metrics, Plan, TrainState


class Apart(MetarunError):
    """Runs that no single program can train; the message says why."""


class Steps:
    """The outer steps of several experiments, taken together.

    Args:
      experiments: which differ in numbers alone.

    Raises:
      Apart: they differ in more, or have no program that could be shared.
      MetarunError: no form of it fits in memory.
    """

    def __init__(self, experiments: Sequence[Experiment]):
        self._number = len(experiments)
        programs = [experiment.program for experiment in experiments if experiment.program is not None]
        if len(programs) < len(experiments):
            raise Apart("images that are streamed from the host come step by step: give memory.stream=false")
        first = programs[0]
        shapes = [jax.eval_shape(experiment.init) for experiment in experiments]
        if any(shape != shapes[0] for shape in shapes):
            raise Apart("their parameters have different shapes")
        state, count = shapes_on(first.layout, (shapes[0], jnp.int32(0)))
        stacked = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((self._number, *x.shape), x.dtype, sharding=x.sharding), state
        )
        if any(jax.tree.structure(program.given) != jax.tree.structure(first.given) for program in programs):
            raise Apart("their steps are given other things")
        leaves = list(zip(*(jax.tree.leaves(program.given) for program in programs), strict=True))
        try:
            own = [place for place, values in enumerate(leaves) if not same_numbers(values)]
        except NotTheSame as error:
            raise Apart(f"their data have different shapes ({error})") from error
        shared = [values[0] for values in leaves]
        given = [placed(numbers_of(leaves[place]), first.layout.replicated) for place in own]
        structure = jax.tree.structure(first.given)

        def given_of(mine: Sequence[Any], shared: Sequence[Any]) -> tuple[Any, ...]:
            """What the steps of one run are given: its own leaves among those that all share."""
            of_place = dict(zip(own, mine, strict=True))
            return jax.tree.unflatten(structure, [of_place.get(place, leaf) for place, leaf in enumerate(shared)])

        self._numbers: Any = None
        one_by_one = first.layout.chunk == 1

        def compile_fn(variant: str, chunk: int) -> Any:
            functions = [program.steps(variant, chunk) for program in programs]
            steps, numbers = unified(functions, state, *shapes_on(first.layout, first.given), count)

            def of_all(states, numbers_and_given, shared, count):
                def of_one(state, numbers_and_given):
                    numbers, mine = numbers_and_given
                    return steps(numbers, state, *given_of(mine, shared), count)

                if one_by_one:
                    return lax.map(lambda each: of_one(*each), (states, numbers_and_given))
                return jax.vmap(of_one)(states, numbers_and_given)

            self._numbers = placed(numbers, first.layout.replicated), given
            return jax.jit(of_all).lower(stacked, self._numbers, shared, count).compile()

        self._shared = shared
        try:
            fit = fastest_that_fits(compile_fn, first.variants, first.chunks, first.bytes_available)
        except NotTheSame as error:
            raise Apart(f"their programs differ in more than numbers ({error})") from error
        plan = plan_of(fit, first.layout, experiments[0].tasks_per_step, False, first.bytes_available)
        words = [plan.variant] * bool(plan.variant) + [f"{self._number} runs together"]
        self.plan: Plan = plan._replace(variant="; ".join(words))
        self._program, self._layout = fit.program, first.layout
        self._turn = threading.Condition()
        self._live = set(range(self._number))
        self._asked: dict[int, tuple[TrainState, int]] = {}
        self._answers: dict[int, Any] = {}

    def step(self, run: int, state: TrainState, num_steps: int) -> tuple[TrainState, Metrics]:
        """As `Experiment.step` of one of the runs; returns when all others have asked for their steps, or have left."""
        with self._turn:
            self._asked[run] = state, num_steps
            self._take()
            self._turn.wait_for(lambda: run in self._answers)
            answer = self._answers.pop(run)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def leave(self, run: int) -> None:
        """That a run will ask no more."""
        with self._turn:
            self._live.discard(run)
            self._take()

    def _take(self) -> None:
        """Takes the steps of those that are furthest behind, if all wait; the others' go on when they have caught up."""
        if not self._live or set(self._asked) != self._live:
            return
        at = {run: (int(state.step), count) for run, (state, count) in self._asked.items()}
        behind = [run for run in at if at[run] == min(at.values())]
        anyone = self._asked[behind[0]][0]
        states = [self._asked[run][0] if run in behind else anyone for run in range(self._number)]
        try:
            stacked = placed(jax.tree.map(lambda *leaves: jnp.stack(leaves), *states), self._layout.replicated)
            count = placed(jnp.int32(at[behind[0]][1]), self._layout.replicated)
            found = self._program(stacked, self._numbers, self._shared, count)
            for run in behind:
                self._answers[run] = jax.tree.map(lambda leaf, run=run: leaf[run], found)
        except Exception as error:
            self._answers |= dict.fromkeys(behind, error)
        for run in behind:
            del self._asked[run]
        self._turn.notify_all()


def train(experiments: Sequence[Experiment], drive: Callable[[int, Experiment], Any]) -> list[Any]:
    """Drives several experiments at once, each in a thread, with their steps taken together.

    Args:
      experiments: which differ in numbers alone.
      drive: `(number, experiment) -> result`, such as by `runner.run`.

    Returns:
      The results, in order; of a drive that has raised, its exception, which costs the others nothing: the arrays of
      one run are none of another's, and the others' steps no longer wait for it.

    Raises:
      BaseException: the first of a drive that is no `Exception`, such as an interruption, when all have ended.
      Apart, MetarunError: as `Steps`; then nothing was driven.
    """
    steps = Steps(experiments)
    evaluating = threading.Lock()  # one at a time: their memory, and the cores
    results: list[Any] = [None] * len(experiments)
    interruptions: dict[int, BaseException] = {}

    def run(number: int) -> None:
        experiment = experiments[number]

        def evaluate(*args: Any, **kwargs: Any) -> Any:
            with evaluating:
                return experiment.evaluate(*args, **kwargs)

        try:
            results[number] = drive(
                number,
                experiment._replace(
                    prepare=lambda: steps.plan,
                    step=lambda state, num_steps: steps.step(number, state, num_steps),
                    evaluate=evaluate,
                ),
            )
        except Exception as error:
            results[number] = error
        except BaseException as error:
            interruptions[number] = error
        finally:
            steps.leave(number)

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(len(experiments))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if interruptions:
        raise interruptions[min(interruptions)]
    return results


class _Outline:
    """What decides whether two experiments have one program."""

    def __init__(self, experiment: Experiment):
        self.program = experiment.program
        self.shapes = jax.eval_shape(experiment.init)
        self._traced: Any = None

    def is_like(self, other: "_Outline") -> bool:
        """Whether the two differ in numbers alone."""
        mine, its = self.program, other.program
        if mine is None or its is None or self.shapes != other.shapes:
            return False
        if (list(mine.variants), list(mine.chunks)) != (list(its.variants), list(its.chunks)):
            return False
        if jax.tree.structure(mine.given) != jax.tree.structure(its.given):
            return False
        try:
            for pair in zip(jax.tree.leaves(mine.given), jax.tree.leaves(its.given), strict=True):
                same_numbers(pair)
            compare([self._steps(), other._steps()])
        except NotTheSame:
            return False
        return True

    def _steps(self) -> Any:
        if self._traced is None:
            program: Any = self.program
            arguments = shapes_on(program.layout, (self.shapes, *program.given, jnp.int32(0)))
            self._traced = traced(program.steps(program.variants[0], program.chunks[0]), *arguments)
        return self._traced


def groups(experiments: Sequence[Experiment]) -> list[list[int]]:
    """Returns which of several experiments one program can train: lists of their numbers, by the first of each."""
    found: list[tuple[_Outline, list[int]]] = []
    for number, experiment in enumerate(experiments):
        outline = _Outline(experiment)
        group = next((numbers for first, numbers in found if first.is_like(outline)), None)
        if group is None:
            found.append((outline, [number]))
        else:
            group.append(number)
    return [numbers for _, numbers in found]

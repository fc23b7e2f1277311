"""The reference of `result.json`: every field of the schema by which such files are read."""

from collections.abc import Iterator
from typing import Any

from generate.markdown import cell, code, table
from metarun.training import result

# The schema says what a field is; this says what it means. A field that is missing here, or is no field, ends the build.
MEANINGS = {
    "metric": "the quantity: `accuracy`, `mse`, or `reward` of reinforcement learning",
    "value": "its mean over the test tasks; an accuracy is a fraction from 0 to 1",
    "ci95": "half the width of the 95% interval over tasks, 1.96 s / √n; null for one task",
    "num_tasks": "test tasks",
    "method": "the choice `method=`",
    "protocol": "everything that moves the number without being the method",
    "protocol_id": "a hash of the protocol: two results compare only where it is equal",
    "seed": "of the initial parameters and the training tasks",
    "checks": "by name; `passed` is null where a check could not be made, and `reason` says why",
    "dataset": "the choice `dataset=`; absent of reinforcement learning",
    "env": "the choice `env=`; absent of few-shot learning",
    "way": "classes of a test task, or the fewest and the most",
    "shot": "support examples of each class, or the fewest and the most",
    "query_shot": "query examples of each class",
    "episodes": "episodes of a trial",
    "horizon": "steps of an episode, at most",
    "split": "how classes are divided into training, validation and test",
    "published": "figures that the experiment is held against, by paper",
    "sizes": "how many numbers the meta-parameters have, and what else the method says of its size",
    "device": "on which the test was computed",
    "versions": "of metarun, Python, JAX and what else computes",
    "steps": "outer steps of the run",
    "selected_steps": "outer steps after which the tested parameters were saved",
    "val": "the best validation; null without validations",
    "seconds": "of training, all sessions together",
    "compile_seconds": "of these, spent compiling",
    "tasks_per_second": "training tasks a second, compilation apart",
    "plan": "how an outer step was computed, and the memory that it took",
    "domains": "of a mixture of data sets: what was found on the tasks of each",
    "by_way": "where tasks differ in way: what was found on those of each",
    "by_shot": "where they differ in shot, likewise; of a task whose classes differ it is their mean, rounded",
    "by_class_shot": "where classes of one task differ in shot: what was found on the queries of classes of each shot",
    "yardsticks": "what agents that were not learnt earn on the same tasks",
    "regret": "what the best of these earns more; below 0 the learner is better",
    "regret_of_optimum": "what one who knows the task earns more",
    "curves": "reward against episode, of the learner and of the agents",
    "learner_curve_ci95": "half the widths of the learner's intervals in `curves`",
    "run": "of an evaluation: the directory of the run",
    "trained_on": "of an evaluation on other data: what the run was trained on",
}


def _kind(kind: Any) -> str:
    """A kind of the schema, in words."""
    if isinstance(kind, result._Leaf):
        return kind.words
    if isinstance(kind, result._List):
        return f"a list; each entry is {_kind(kind.kind)}"
    if isinstance(kind, result._Each):
        return f"an object; each entry is {_kind(kind.kind)}"
    fields = [f"`{name}`" for name in kind.required] + [f"`{name}` (may be absent)" for name in kind.optional]
    others = "any name" * (kind.others is not None)
    return f"an object with {', '.join(filter(None, [*fields, others]))}"


def _rows(fields: Any) -> Iterator[tuple[str, str, str]]:
    for name, kind in fields.items():
        yield code(name), cell(_kind(kind)), cell(MEANINGS[name])


def page() -> str:
    """The fields that every result has, then those that some have."""
    schema = result._RESULT
    if unknown := {*MEANINGS} - {*schema.required, *schema.optional}:
        raise KeyError(f"result.json has no {', '.join(sorted(unknown))}")
    header = ("field", "kind", "meaning")
    return "\n".join(
        [
            "## Fields that every result has\n",
            table(header, _rows(schema.required)),
            "## Fields that some have\n",
            table(header, _rows(schema.optional)),
        ]
    )

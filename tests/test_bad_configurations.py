"""Bad configurations, drawn at random from the schema: each ends at once, in a message that names the key."""

import dataclasses
import importlib
import inspect
import random
import time
import types
import typing

import pytest
from omegaconf import OmegaConf
from small_run import call

from metarun.commands import cli
from metarun.config.schema import COMMON, FEW_SHOT, RL, SCHEMAS
from metarun.config.search_path import conf_dir

COUNT, SEED, SECONDS = 30, 2026, 10
# What no value of a type is.
WRONG = {int: ["many", "1.5", "[1,2]", "{a: 1}"], float: ["fast", "[0.1]", "{a: 1}"], bool: ["maybe", "[true]", "2.5"]}
# What no number among the keys may be: none counts downwards, and none has to be infinite.
OUTSIDE = {int: ["-1", "-1000000"], float: ["-1", "nan", "inf", "-0.5"]}
# Settings that are each allowed, and not together.
CONTRADICTIONS = [
    (FEW_SHOT, ["method=maml", "way=5", "train_way={n}"], "train_way"),
    (FEW_SHOT, ["dataset=sinusoid", "model=mlp", "method=protonet"], "method"),
    (FEW_SHOT, ["dataset=sinusoid", "model=mlp", "memory.stream=true"], "memory.stream"),
    (FEW_SHOT, ["method=protonet", "memory.remat=true"], "memory.remat"),
    (FEW_SHOT, ["way={n}000"], "way"),
    (FEW_SHOT, ["shot={n}000"], "shot"),
    (FEW_SHOT, ["distributed.process={n}"], "distributed.address"),
    (FEW_SHOT, ["distributed.address=localhost:1234", "distributed.processes=2", "distributed.process={n}"], "process"),
    (FEW_SHOT, ["distributed.address=localhost", "distributed.processes=2", "distributed.process=0"], "address"),
    (RL, ["method=gittins", "env=tabular_mdp"], "method"),
    (RL, ["method=maml", "env.episodes={n}"], "env.episodes"),
    (RL, ["distributed.processes={n}"], "distributed.address"),
]


def scalars(part):
    """`{key: type}` of the schema, one level deep, and of the factories that its groups name by default."""
    found = {}
    for field in dataclasses.fields(SCHEMAS[part]):
        kind = typing.get_type_hints(SCHEMAS[part])[field.name]
        if dataclasses.is_dataclass(kind):
            inner = typing.get_type_hints(kind)
            found |= {f"{field.name}.{each.name}": inner[each.name] for each in dataclasses.fields(kind)}
        else:
            found[field.name] = kind
    for group, option in (("method", "rl2" if part == RL else "maml"), ("optimizer", "adam")):
        file = next(
            folder / group / f"{option}.yaml"
            for folder in (conf_dir(part), conf_dir(COMMON))
            if (folder / group / f"{option}.yaml").exists()
        )
        node = OmegaConf.load(file)
        module, _, name = node.get(group, node)["_target_"].rpartition(".")
        hints = typing.get_type_hints(getattr(importlib.import_module(module), name))
        parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
        found |= {f"{group}.{key}": hints[key] for key, p in parameters.items() if p.default is not p.empty}
    return {key: plain for key, kind in found.items() if (plain := plain_type(kind)) in WRONG}


def plain_type(kind):
    """`int` of `int | None`."""
    if isinstance(kind, types.UnionType):
        kinds = [each for each in typing.get_args(kind) if each is not type(None)]
        return kinds[0] if len(kinds) == 1 else None
    return kind


def drawn(count=COUNT, seed=SEED):
    """Commands that cannot work: `(part, settings, what the message has to name)`."""
    rng, found = random.Random(seed), []
    while len(found) < count:
        part = rng.choice([FEW_SHOT, FEW_SHOT, RL])
        known = scalars(part)
        key = rng.choice(sorted(known))
        kind = ["wrong type", "out of range", "no such thing", "contradictory"][len(found) % 4]
        if kind == "wrong type":
            settings, named = [f"{key}={rng.choice(WRONG[known[key]])}"], key
        elif kind == "out of range":
            key = rng.choice(sorted(each for each in known if known[each] in OUTSIDE))
            settings, named = [f"{key}={rng.choice(OUTSIDE[known[key]])}"], key
        elif kind == "no such thing":
            place = rng.randrange(len(key) - 1)
            wrong = key[:place] + key[place + 1] + key[place] + key[place + 2 :]
            if wrong == key:
                continue
            settings, named = rng.choice([([f"{wrong}=1"], ""), (["method=" + wrong.replace(".", "_")], "method")])
        else:
            part, settings, named = rng.choice(CONTRADICTIONS)
            settings = [setting.format(n=rng.randint(6, 60)) for setting in settings]
        if (part, settings, named) not in found:
            found.append((part, settings, named))
    return found


@pytest.mark.parametrize(
    "part, settings, named", drawn(), ids=lambda value: "+".join(value) if isinstance(value, list) else ""
)
def test_it_ends_at_once_in_a_message(part, settings, named, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    began = time.process_time()  # which other work on the machine does not add to
    code, out, err = call(
        {FEW_SHOT: cli.main, RL: cli.rl_main}[part], capsys, monkeypatch, *settings, "hydra.run.dir=run"
    )
    took = time.process_time() - began
    assert code not in (0, 75) and "Traceback" not in out + err, out + err
    assert [line.startswith("metarun: ") for line in err.splitlines()].count(True) == 1, err
    assert named in err[err.index("metarun: ") :], err
    assert took < SECONDS, took
    assert not [path for name in ("metrics.jsonl", "checkpoints", "result.json") for path in tmp_path.rglob(name)]


@pytest.mark.parametrize(
    "settings, named",
    [
        (["seed=4294967296"], "seed=4294967296"),  # which JAX would take for 0
        (["eval_seed=1000000000000000000000000000000"], "0 to 4294967295"),
        (["steps=100000000000000000000"], "1 to 2147483647"),
        (["resume=2"], "resume=2"),
        (["method=from_scratch", "steps=-1"], "steps=-1"),
        (["distributed.processes=0"], "distributed.processes=0"),
        (["method={a: 1}"], "method={a: 1}"),
        (["memory.limit=11KB"], "11 KB are available"),  # and nothing is compiled to find out
        (["precision='a\nb\x1b[2J'"], r"precision='a\nb\x1b[2J': expected"),  # and the terminal stays as it is
        (["outer_lr=1e39"], "outer_lr=1e+39"),  # which 32 bits do not hold
        (["method=cavia", "method.context_at=null"], "method.context_at=None"),
        (["dataset=image_folder", "dataset.source=[a]"], "dataset.source=['a']"),
        (["dataset=omniglot", "dataset.source='~nobody at all'"], "dataset.source=~nobody at all"),
        (["dataset=mini_imagenet", "dataset.source=" + 300 * "x"], "dataset.source=xxx"),
    ],
)
def test_what_would_have_been_taken_for_something_else_is_refused(settings, named, tmp_path, capsys, monkeypatch):
    test_it_ends_at_once_in_a_message(FEW_SHOT, settings, named, tmp_path, capsys, monkeypatch)


@pytest.mark.parametrize(
    "settings, named",
    [
        (["method=epsilon_greedy", "method.agent=[[1]]"], "method=[[1]]"),
        (["env=gaussian_bandit", "env.noise=1e300"], "env.noise=1e+300: expected a number above 0, at most 3.4e+38"),
    ],
)
def test_so_is_it_where_agents_learn(settings, named, tmp_path, capsys, monkeypatch):
    test_it_ends_at_once_in_a_message(RL, settings, named, tmp_path, capsys, monkeypatch)

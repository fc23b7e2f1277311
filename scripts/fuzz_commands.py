#!/usr/bin/env python
"""Gives every command of metarun bad command lines, made from its schema at random, and judges how each of them ends.

    python scripts/fuzz_commands.py [--count 300] [--seed 0] [--only COMMAND or NUMBER] [--seconds 60] [--workers 2]

A command line is found wanting if it prints a traceback, a warning of Python, or words of the libraries' own; if it is
refused with anything but a message that begins with `metarun: ` (or argparse's `usage:` with `COMMAND: error:`); if it is
a mistake and exits with 0; if, refused, it has changed or left a file; or if it does not end in time. Lines that happen to
be right do a tiny piece of work. Prints each finding with the line to repeat it, and exits with 1 if there is one.

Commands run in processes forked from one that has imported all there is, in a directory of their own with four runs.
"""

import argparse
import dataclasses
import functools
import hashlib
import importlib
import inspect
import os
import random
import re
import resource
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
import types
import typing
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")  # they compile much and compute little

from omegaconf import OmegaConf

from metarun.commands import cli
from metarun.config.schema import COMMON, FEW_SHOT, RL, SCHEMAS
from metarun.config.search_path import conf_dir
from metarun.data.cache import cache_dir

COMMANDS = {
    "metarun": cli.main,
    "metarun-rl": cli.rl_main,
    "metarun-eval": cli.eval_main,
    "metarun-predict": cli.predict_main,
    "metarun-compare": cli.compare_main,
    "metarun-export": cli.export_main,
    "metarun-replay": cli.replay_main,
    "metarun-reproduce": cli.reproduce_main,
    "metarun-report": cli.report_main,
    "metarun-data": cli.data_main,
}
# How often each is drawn: where there is most to be mistaken in, most.
WEIGHTS = {"metarun": 10, "metarun-rl": 5, "metarun-eval": 4, "metarun-data": 2}
TINY = {
    FEW_SHOT: [
        "method=protonet model=mlp model.hidden=[4] way=2 query_shot=1 eval_query_shot=1 meta_batch_size=2",
        "steps=1 eval_every=0 eval_tasks=2 val_tasks=2",
    ],
    RL: ["method.hidden=4 env.episodes=4 meta_batch_size=4 steps=1 eval_every=0 eval_tasks=4 val_tasks=4"],
}
# The runs that every command finds in its directory.
RUNS = {
    "r1": (FEW_SHOT, ["hydra.run.dir=r1"]),
    "r2": (FEW_SHOT, ["hydra.run.dir=r2", "method=maml", "seed=1"]),
    "lr[1]": (FEW_SHOT, ["hydra.run.dir='lr[1]'", "dataset=sinusoid", "method=maml", "way=5"]),
    "rl": (RL, ["hydra.run.dir=rl"]),
}
# Data that need neither a download nor minutes.
AT_HAND = {"dataset": ["glyphs", "sinusoid", "image_folder", "omniglot", "mini_imagenet"]}
AT_HAND["logger"] = ["jsonl", "tensorboard"]  # and that no tracker is told of a fuzzed run
AT_HAND["env"] = ["bernoulli_bandit", "gaussian_bandit", "tabular_mdp", "point_navigation", "two_step"]

WRONG = {int: ["many", "1.5", "[1,2]", "{a: 1}"], float: ["fast", "[0.1]", "{a: 1}"], bool: ["maybe", "[true]", "2.5"]}
OUTSIDE = {int: ["-1", "-1000000", "nan", "inf", "1e400"], float: ["-1", "nan", "inf", "-inf", "-0.5"]}
# Of any value some are right for some keys.
ODD = [
    "null",
    "''",
    "[]",
    "{}",
    "0",
    "1e-300",
    "1e300",
    "4294967296",
    "99999999999999999999",
    "true",
    "a b",
    "ü",
    "模型",
]
ODD += [
    "'x",
    '"x',
    "[1,2",
    "{a:",
    "a=b",
    "a,b",
    "1,2",
    "${nope}",
    "${oc.env:NOPE}",
    "${way}",
    "${",
    "\\",
    "\\x",
    "~",
    "*",
]
ODD += ["???", "!!python/object:os.system", "range(1,3)", "choice(1,2)", "glob(*)", "interval(0,1)", "%s", "\t", "a\nb"]
ODD += [
    "[[[[1]]]]",
    "'it''s'",
    "(1)",
    "lr[1]",
    "#",
    "-",
    "--x",
    "e\u0301",
    os.fsdecode(b"\xff"),
    "\x1b[31m",
    "x" * 3000,
]

FORBIDDEN = {
    "traceback": r"Traceback \(most recent call last\)",
    "Hydra's line": r"Error executing job with overrides|HYDRA_FULL_ERROR|hydra\.cc",
    "OmegaConf's text": r"full_key:|object_type=|reference_type=",
    "grammar's text": r"LexerNoViableAlt|no viable alternative|mismatched input|extraneous input|token recognition",
    "warning": r"^\S*\d+: \w*Warning: |^\w*Warning: ",
}
CODES = (0, 1, 2, 3, 4, 75)
MEMORY = 8 * 2**30  # bytes of addresses: what takes more is stopped, for the sake of others


class Command(NamedTuple):
    """A command line.

    Attributes:
      name: of the command.
      arguments: of it.
      mistake: whether it must be refused; False where it may as well be right.
    """

    name: str
    arguments: Sequence[str]
    mistake: bool

    def __str__(self) -> str:
        words = [self.name, *self.arguments]
        return " ".join(
            f"$'{w.encode('unicode_escape').decode()}'" if not w.isprintable() else shlex.quote(w) for w in words
        )


class Ended(NamedTuple):
    """How a command ended.

    Attributes:
      code: its exit code, negative for a signal, or None if it did not end in time.
      out: what it printed on stdout.
      err: what it printed on stderr.
      changed: the files that it has added, removed or changed.
    """

    code: int | None
    out: str
    err: str
    changed: Sequence[str]


# ---- What there is to be mistaken in.


def plain_type(kind: Any) -> Any:
    """`int` of `int | None`."""
    kinds = [each for each in typing.get_args(kind) if each is not type(None)]
    return (kinds[0] if len(kinds) == 1 else None) if isinstance(kind, types.UnionType) else kind


@functools.cache
def options(part: str) -> dict[str, list[str]]:
    """The groups of a command, and what can be chosen in each."""
    found: dict[str, list[str]] = {}
    for file in sorted([*conf_dir(part).glob("*/*.yaml"), *conf_dir(COMMON).glob("*/*.yaml")]):
        if file.parent.name != "hydra":
            found.setdefault(file.parent.name, []).append(file.stem)
    return {group: AT_HAND.get(group, names) for group, names in found.items()}


@functools.cache
def scalars(part: str) -> dict[str, Any]:
    """`{key: type}` of the schema, one level deep."""
    found = {}
    for name, kind in typing.get_type_hints(SCHEMAS[part]).items():
        if dataclasses.is_dataclass(kind):
            found |= {f"{name}.{key}": plain_type(inner) for key, inner in typing.get_type_hints(kind).items()}
        elif name not in options(part):
            found[name] = plain_type(kind)
    return found


@functools.cache
def keys_of(part: str, group: str, option: str) -> dict[str, Any]:
    """`{key: type}` of a choice: what its factory can be given; nothing if what it needs is not installed."""
    folders = conf_dir(part), conf_dir(COMMON)
    node = OmegaConf.load(next(file for each in folders if (file := each / group / f"{option}.yaml").exists()))
    module, _, name = str(node.get(group, node).get("_target_", "")).rpartition(".")
    try:
        factory = getattr(importlib.import_module(module), name)
    except (ImportError, ValueError):
        return {}
    hints = typing.get_type_hints(factory)
    parameters = inspect.signature(factory).parameters.values()
    settable = [each.name for each in parameters if each.default is not each.empty or each.name in node]
    return {f"{group}.{key}": plain_type(hints.get(key)) for key in settable}


# ---- Command lines.


def bad_value(rng: random.Random, kind: Any) -> tuple[str, bool]:
    """A value for a key of a type, and whether no key of that type takes it."""
    choice = rng.random()
    if choice < 0.4 and kind in WRONG:
        return rng.choice(WRONG[kind]), True
    if choice < 0.7 and kind in OUTSIDE:
        return rng.choice(OUTSIDE[kind]), True
    return rng.choice(ODD), False


def misspelt(rng: random.Random, key: str) -> str:
    place = rng.randrange(len(key))
    return key[:place] + rng.choice("xqz_.") + key[place + 1 :]


def mutated(rng: random.Random, keys: dict[str, Any], groups: dict[str, list[str]]) -> tuple[list[str], bool]:
    """Settings that are wrong or odd, and whether they must be refused."""
    key = rng.choice(sorted(keys))
    group = rng.choice(sorted(groups)) if groups else "dataset"
    value, wrong = bad_value(rng, keys[key])
    right = rng.choice(["1", "2"])
    kind = rng.randrange(12)
    if kind < 5:
        return [f"{key}={value}"], wrong
    return {
        5: ([f"{misspelt(rng, key)}={right}"], False),
        6: ([f"{rng.choice(['+', '++', '~'])}{key}={rng.choice([right, value])}"], False),
        7: ([f"{rng.choice(['~', '+', '++', ''])}{rng.choice([key, group])}"], False),
        8: ([f"{key}={right}", f"{key}={value}"], wrong),
        9: ([f"{group}={rng.choice([*groups.get(group, []), 'nope', *ODD])}"], False),
        10: ([f"{rng.choice(['+', '++', ''])}{group}.nope={value}"], False),
        11: ([rng.choice(ODD)], False),
    }[kind]


def of_training(rng: random.Random, part: str) -> tuple[list[str], bool]:
    groups = options(part)
    keys, chosen = scalars(part), []
    if rng.random() < 0.6:
        group = rng.choice(sorted(groups))
        option = rng.choice(groups[group])
        if more := keys_of(part, group, option):
            keys, chosen = more, [f"{group}={option}"]
    settings, wrong = mutated(rng, keys, groups)
    if rng.random() < 0.25:
        more, also = mutated(rng, scalars(part), groups)
        settings, wrong = settings + more, wrong or also
    where = rng.choice(["", "", "hydra.run.dir=new", "hydra.run.dir=new", "hydra.run.dir=r1", "hydra.run.dir='lr[1]'"])
    how = rng.choice(
        ["", "", "", "", "", "", "-m", "seeds=2", "seed=0,1", "hydra.output_subdir=null", "--cfg=job", "-c"]
    )
    if rng.random() < 0.05:
        where = rng.choice(["hydra.run.dir=lr[1]", "hydra.run.dir=a=b", "experiment=nope", "hydra.run.dir=note.txt/x"])
    given = {setting.split("=", 1)[0] for setting in chosen}
    # Its own size goes before what is drawn, so that what is right is small and what is wrong is what counts.
    tiny = [each for line in TINY[part] for each in line.split() if each.split("=", 1)[0] not in given]
    if chosen and chosen[0].startswith(("method=", "model=")):
        tiny = [
            each
            for each in tiny
            if not each.startswith(("method.", "model.hidden" if chosen[0][:5] == "model" else "-"))
        ]
    return [*tiny, *chosen, *settings, *filter(None, [where, how])], wrong and how not in ("--cfg=job", "-c")


PATHS = [
    "r1",
    "r2",
    "lr[1]",
    "rl",
    "nope",
    "",
    "note.txt",
    "/",
    "/dev/null",
    "r1/checkpoints",
    "~nobody",
    "ü",
    "a b",
    "x" * 300,
]


# Of the keys of these commands, those that cannot be left out.
NEEDED = {"run", "with", "support", "query"}


def of_pairs(
    rng: random.Random, right: dict[str, str], keys: Sequence[str], more: Any = None
) -> tuple[list[str], bool]:
    """Arguments of a command that takes KEY=VALUE, of which `right` would do."""
    given, wrong = dict(right), False
    for _ in range(rng.randint(1, 2)):
        kind = rng.randrange(6)
        if kind == 0 and given:
            gone = rng.choice(sorted(given))
            wrong = given.pop(gone) is not None and gone in NEEDED or wrong
        elif kind == 1 and given:
            given[rng.choice(sorted(given))] = rng.choice([*PATHS, *ODD])
        elif kind < 4 and keys:
            given[rng.choice(keys)] = rng.choice([*ODD, *WRONG[int], *OUTSIDE[int]])
        elif kind == 4:
            given[misspelt(rng, rng.choice([*given, *keys]))] = "1"
    arguments = [f"{key}={value}" for key, value in given.items()]
    if rng.random() < 0.3:
        arguments.append(rng.choice([*ODD, *arguments, "--nope", "-m", "~way", "+way=3", "++way=3"]))
    if more and rng.random() < 0.3:
        arguments += mutated(rng, scalars(more), options(more))[0]
    # One that is gone may be given again by what was drawn after it.
    return arguments, wrong and not NEEDED & {*right} <= {each.split("=", 1)[0] for each in arguments}


def drawn(rng: random.Random) -> Command:
    """A command line; which one follows from the state of `rng` alone."""
    name = rng.choices([*COMMANDS], [WEIGHTS.get(each, 1.5) for each in COMMANDS])[0]
    few = [
        "way",
        "shot",
        "eval_query_shot",
        "eval_tasks",
        "eval_seed",
        "ensemble",
        "dataset",
        "dataset.source",
        "protocol",
    ]
    few += ["method.eval_inner_steps", "method.query_statistics", "memory.chunk", "memory.limit", "env", "env.episodes"]
    run = rng.choice(["r1", "r2", "lr[1]", "rl"])
    if name == "metarun":
        arguments, wrong = of_training(rng, FEW_SHOT)
    elif name == "metarun-rl":
        arguments, wrong = of_training(rng, RL)
    elif name == "metarun-eval":
        arguments, wrong = of_pairs(rng, {"run": run, "eval_tasks": "2"}, few, RL if run == "rl" else FEW_SHOT)
    elif name == "metarun-compare":
        arguments, wrong = of_pairs(rng, {"run": "r1", "with": "r2"}, few, FEW_SHOT)
    elif name == "metarun-predict":
        arguments, wrong = of_pairs(rng, {"run": "r1", "support": "pics", "query": "pics"}, ["invert", "output"])
    elif name == "metarun-export":
        arguments, wrong = of_pairs(rng, {"run": run, "output": "new"}, ["way", "shot", "query_statistics"])
        wrong = wrong or run == "rl" and "run=rl" in arguments
    elif name == "metarun-replay":
        arguments, wrong = (
            *of_pairs(rng, {"run": run}, ["outer_lr", "precision", "method.inner_lr"], FEW_SHOT)[:1],
            True,
        )
    elif name == "metarun-reproduce":
        cell = rng.choice(["nope", "finn2017/nope", "../r1", *ODD])
        arguments = [cell, *of_pairs(rng, {"output": "new"}, ["seeds", "seed", "steps", "hydra.run.dir", "cell"])[0]]
        wrong = True
    elif name == "metarun-report":
        arguments, wrong = [rng.choice([*PATHS, *ODD]) for _ in range(rng.randint(0, 2))], False
        arguments = [each for each in arguments if each != "/"]  # which holds all there is
        for option in rng.sample(["--output", "--csv", "--latex", "--markdown", "--nope"], rng.randint(0, 2)):
            arguments += [option, rng.choice(["page.html", "nope/page", "r1", "/dev/null/x", ""])]
    else:
        what = rng.choice(["list", "verify", "prepare", "prepare", "show", "show", "nope"])
        arguments, wrong = [what], what == "nope"
        if what in ("prepare", "show"):
            arguments.append(rng.choice([*AT_HAND["dataset"], "nope", *ODD]))
            arguments += mutated(rng, keys_of(FEW_SHOT, "dataset", "image_folder"), options(FEW_SHOT))[0]
    return Command(name, arguments, wrong)


# ---- Running and judging.


def listing(directory: Path) -> dict[str, str]:
    """What every path below `directory` holds."""
    found = {}
    for path in directory.rglob("*"):
        kept = path.is_file() and not path.is_symlink()
        found[str(path.relative_to(directory))] = hashlib.sha256(path.read_bytes()).hexdigest() if kept else ""
    return found


def run(command: Command, directory: Path, seconds: float) -> Ended:
    """Runs a command in a process of its own, in `directory`."""
    before = listing(directory)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = os.fork()
        if process == 0:
            _become(command, directory, out.fileno(), err.fileno())
        code, end = None, time.monotonic() + seconds
        while code is None and time.monotonic() < end:
            time.sleep(0.02)
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
        if code is None:
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
        said = []
        for stream in (out, err):
            stream.seek(0)
            said.append(stream.read().decode(errors="surrogateescape"))
    after = listing(directory)
    changed = sorted(name for name in {**before, **after} if before.get(name) != after.get(name))
    return Ended(code, *said, changed)


def _become(command: Command, directory: Path, out: int, err: int) -> None:
    """Does in a forked process what the console script does, and never returns."""
    code: object = 1
    try:
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        os.chdir(directory)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (out, 1), (err, 2)):
            os.dup2(source, target)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
        warnings.resetwarnings()
        sys.argv = [command.name, *command.arguments]
        COMMANDS[command.name]()
        code = 0
    except SystemExit as stopped:
        code = stopped.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def ours(line: str, name: str) -> bool:
    """Whether a line on stderr is one of ours, or argparse's for one of our commands."""
    return not line.strip() or line.startswith(
        ("metarun: ", "sweep: ", "Building ", "usage: ", f"{name}: error: ", f"{name} ", "       ")
    )


def faults(command: Command, ended: Ended) -> list[str]:
    """What is wrong with how a command ended."""
    said = ended.out + "\n" + ended.err
    if ended.code is None:
        return ["does not end in time"]
    found = [f"{kind} is printed" for kind, text in FORBIDDEN.items() if re.search(text, said, re.MULTILINE)]
    if ended.code not in CODES:
        found.append(f"exit code {ended.code}")
    if command.mistake and ended.code == 0:
        found.append("a mistake exits with 0")
    begun = "compiled in" in said or "A training step was predicted" in said
    if ended.code != 0 and not begun:
        if ended.changed:
            found.append(f"a refused command leaves or changes {', '.join(ended.changed[:3])}")
        strangers = [line for line in ended.err.splitlines() if not ours(line, command.name)]
        if strangers:
            found.append(f"a line is not ours: {strangers[0][:200]}")
        if ended.code in (1, 2) and not re.search(
            rf"^metarun: |^{command.name}( \w+)?: error: ", ended.err, re.MULTILINE
        ):
            found.append("no message")
    return found


def prepare(directory: Path) -> None:
    """Makes what every command finds: four runs, some pictures, a note."""
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0)
    for name in ("a", "b"):
        (directory / "pics" / name).mkdir(parents=True)
        for number in range(2):
            Image.fromarray(noise.integers(0, 255, (8, 8), dtype=np.uint8)).save(
                directory / f"pics/{name}/{number}.png"
            )
    (directory / "note.txt").write_text("mine\n")
    for part, settings in RUNS.values():
        name = "metarun-rl" if part == RL else "metarun"
        tiny = [each for line in TINY[part] for each in line.split()]
        ended = run(Command(name, [*tiny, *settings], False), directory, 300)
        if ended.code != 0:
            raise SystemExit(f"A run to begin with cannot be made:\n{ended.err}")


def warm_up() -> None:
    """Imports what commands import, so that none of them waits for it; starts nothing of JAX, which could not be forked."""
    for name in (
        *("assembly.few_shot_run", "assembly.rl_run", "training.runner"),
        *(
            f"commands.{command}"
            for command in ("evaluation", "prediction", "comparison", "replay", "reproduce", "sweep")
        ),
        *(f"report.{part}" for part in ("run_pictures", "rl_pictures", "page", "collection", "tables", "predictions")),
    ):
        importlib.import_module(f"metarun.{name}")
    for part in (FEW_SHOT, RL):
        for group, names in options(part).items():
            for option in names:
                keys_of(part, group, option)


def judged(
    commands: Sequence[tuple[int, Command]], template: Path, seconds: float
) -> Iterator[tuple[int, Command, Ended, list]]:
    """Runs commands one after the other, each in a copy of `template`."""
    for number, command in commands:
        place = template.with_name(f"{number}")
        shutil.copytree(template, place, symlinks=True)
        ended = run(command, place, seconds)
        yield number, command, ended, faults(command, ended)
        shutil.rmtree(place, ignore_errors=True)


def in_processes(work: Callable[[int], int], workers: int) -> int:
    """Does `work(0)` … in forked processes; returns the sum of what they return."""
    pipes = []
    for worker in range(workers):
        reader, writer = os.pipe()
        sys.stdout.flush()
        if os.fork() == 0:
            code = 1
            try:
                os.write(writer, str(work(worker)).encode())
                sys.stdout.flush()
                code = 0
            finally:
                os._exit(code)
        os.close(writer)
        pipes.append(reader)
    total = 0
    for reader in pipes:
        with os.fdopen(reader) as stream:
            total += int(stream.read() or 1_000_000)  # nothing: a worker has failed
        os.wait()
    return total


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=300, help="command lines (default: 300)")
    parser.add_argument("--seed", type=int, default=0, help="what they are drawn by (default: 0)")
    parser.add_argument("--only", help="those of one command, such as metarun-eval, or the one of a number")
    parser.add_argument("--seconds", type=float, default=60, help="after which a command has not ended (default: 60)")
    parser.add_argument("--workers", type=int, default=2, help="processes at once (default: 2)")
    given = parser.parse_args(arguments)
    began = time.monotonic()
    commands = [(number, drawn(random.Random(f"{given.seed} {number}"))) for number in range(given.count)]
    if given.only:
        commands = [each for each in commands if given.only in (str(each[0]), each[1].name)]
    warm_up()
    with tempfile.TemporaryDirectory(prefix="fuzz") as scratch:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_dir() / "compiled"))
        os.environ["COLUMNS"] = "400"
        os.environ["METARUN_CACHE"] = str(Path(scratch) / "cache")
        template = Path(scratch) / "template"
        prepare(template)

        def work(worker: int) -> int:
            found: Counter[str] = Counter()
            for number, command, ended, wrong in judged(commands[worker :: given.workers], template, given.seconds):
                found["findings"] += bool(wrong)
                if wrong or given.only == str(number):
                    print(f"\n[{number}] {command}\n    exit code {ended.code}: {'; '.join(wrong) or 'well'}")
                    print("".join(f"    | {line}\n" for line in ended.err.splitlines()[-8:]), end="", flush=True)
            return found["findings"]

        findings = in_processes(work, max(1, given.workers))
    names = Counter(command.name for _, command in commands)
    print(
        f"\n{len(commands)} command lines ({', '.join(f'{n} {c}' for n, c in names.most_common())}), seed {given.seed},"
    )
    print(f"{findings} findings, {time.monotonic() - began:.0f} s")
    return int(findings > 0)


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(main())

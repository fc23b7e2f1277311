"""What the environment says of random numbers and types moves no task; what else of it can move a number is stated."""

import hashlib
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from metarun.assembly.few_shot_run import build
from metarun.config.composing import composed
from metarun.system.backend import PINNED
from metarun.system.machine import environment
from metarun.trust.protocol import protocol_id

# Each of these alone moves what is drawn, or the type that it is computed in, where nothing is pinned.
HOSTILE = {
    "JAX_THREEFRY_PARTITIONABLE": "0",
    "JAX_DEFAULT_PRNG_IMPL": "rbg",
    "JAX_ENABLE_X64": "1",
    "JAX_RANDOM_SEED_OFFSET": "7",
}
SETTINGS = ["method=nearest_neighbor", "eval_tasks=20", "way=3"]
CODE = """
from pathlib import Path
import sys
from metarun.system import backend
backend.set_up(Path(sys.argv[1]))
import test_environment
print(test_environment.drawn())
"""


def drawn():
    """The protocol, a hash of some test tasks, and what was computed on them, as JSON."""
    config, choices = composed(SETTINGS)
    run = build(config, choices)
    tasks, *_ = run.experiment.examples({}, 4)
    digest = hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tasks))).hexdigest()
    tested = run.experiment.evaluate({}, "test", 20)
    types = sorted({str(leaf.dtype) for leaf in jax.tree.leaves(tasks)})
    return json.dumps([protocol_id(run.experiment.protocol), digest, tested.per_task.tolist(), types])


@pytest.mark.slow
def test_the_test_is_the_same_whatever_the_environment_says_of_random_numbers(tmp_path):
    path = os.pathsep.join([os.path.dirname(__file__), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, **HOSTILE, "PYTHONPATH": path}
    cache = jax.config.jax_compilation_cache_dir
    done = subprocess.run([sys.executable, "-c", CODE, cache], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(drawn())


def test_all_of_them_are_pinned_by_name():
    assert {name.lower() for name in HOSTILE} == set(PINNED)


def test_a_result_states_the_variables_that_can_move_a_number(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/nowhere")
    config, choices = composed(SETTINGS)
    stated = build(config, choices).facts["environment"]
    assert stated == environment()
    assert stated["XLA_FLAGS"] == "--xla_cpu_enable_fast_math=true" and "JAX_COMPILATION_CACHE_DIR" not in stated


BITS = """
import sys
from pathlib import Path
from metarun.system import backend
backend.set_up(Path(sys.argv[1]))
import jax
import numpy as np
from metarun.assembly.few_shot_run import build
from metarun.assembly.rl_run import build as build_rl
from metarun.compiled.task_map import default_layout
from metarun.config.composing import composed
from metarun.config.schema import FEW_SHOT, RL
from metarun.data.glyphs import glyphs
from metarun.data.sinusoid import sinusoid
from metarun.few_shot.task_sources import sampler

jit, sizes = jax.jit, {"shot": 5, "query_shot": 2, "eval_query_shot": 15}

def both(make):
    yield make()
    jax.jit = lambda fn, compiler_options=None, **given: jit(fn, **given)
    yield make()
    jax.jit = jit

def same(make):
    return all(np.array_equal(*leaves) for leaves in zip(*map(jax.tree.leaves, both(make)), strict=True))

for part, build_run, choice in ((FEW_SHOT, build, "snail"), (FEW_SHOT, build, "rnn"), (RL, build_rl, "rl2")):
    assert same(lambda: build_run(*composed([f"method={choice}"], part)).experiment.init().params), choice
keys = jax.random.split(jax.random.key(0), 50)
for data in (glyphs(way=5, **sizes), sinusoid(**sizes)):
    assert same(lambda: sampler(data.test, default_layout(), False)(keys)), data.protocol["name"]
"""


@pytest.mark.slow
def test_parameters_and_tasks_are_the_same_to_the_bit_however_they_are_compiled(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "JAX_DISABLE_MOST_OPTIMIZATIONS"}
    own = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", BITS, str(tmp_path)], env={**environment, **own}, check=True)

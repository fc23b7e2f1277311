"""The memory of a device, and the choice of the fastest program that fits it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metarun.compiled.memory import available, fastest_that_fits, in_words, parse_limit, predicted
from metarun.compiled.task_map import default_layout, frugal_layouts
from metarun.data.sinusoid import sinusoid
from metarun.errors import ConfigError, MetarunError
from metarun.few_shot.experiment import few_shot_experiment
from metarun.few_shot.methods.maml import maml
from metarun.models.mlp import mlp
from metarun.training.optimizers import adam

# ---- A limit, and what is available.


@pytest.mark.parametrize(
    "text, size",
    [(None, None), (1000, 1000), ("8GB", 8 * 10**9), ("1.5 mb", 1_500_000), ("12kB", 12_000), ("64", 64), ("7B", 7)],
)
def test_limit(text, size):
    assert parse_limit(text) == size


@pytest.mark.parametrize("text", ["8XB", "GB", "", -5, 0, "0MB", True, "1e9", [1]])
def test_a_limit_that_cannot_be_used_is_named(text):
    with pytest.raises(ConfigError, match=r"memory\.limit=.*: expected a size such as 8GB"):
        parse_limit(text)


@pytest.mark.parametrize(
    "size, words",
    [(0, "0 bytes"), (999, "999 bytes"), (38_240_000, "38.2 MB"), (999_700, "1000 KB"), (10**13, "10 TB")],
)
def test_sizes_are_readable(size, words):
    assert in_words(size) == words


def machine(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal: 9000 kB\nMemFree: 100 kB\nMemAvailable: 8000 kB\n"}
VERSION_2 = {
    "proc/self/cgroup": "0::/jobs/one\n",
    "sys/fs/cgroup/jobs/one/memory.max": "max\n",
    "sys/fs/cgroup/jobs/one/memory.current": "5000\n",
    "sys/fs/cgroup/jobs/memory.max": "9000\n",
    "sys/fs/cgroup/jobs/memory.current": "6000\n",
    "sys/fs/cgroup/jobs/memory.stat": "anon 1000\ninactive_file 1000\n",
}
VERSION_1 = {
    "proc/self/cgroup": "9:cpu:/\n4:cpuset,memory:/docker/abc\n0::/\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "7000\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "2000\n",
    "sys/fs/cgroup/memory/memory.stat": "inactive_file 5\ntotal_inactive_file 500\n",
}


@pytest.mark.parametrize(
    "files, bytes_free", [({}, 8_192_000), (VERSION_2, 4000), (VERSION_1, 5500)], ids=["none", "version 2", "version 1"]
)
def test_cpu_devices_share_what_kernel_and_control_groups_leave(tmp_path, files, bytes_free):
    root, devices = machine(tmp_path, {**MEMINFO, **files}), jax.devices()
    assert available(devices, root=root) == bytes_free // len(devices)
    assert available(devices, limit=10**9, root=root) == bytes_free // len(devices)
    assert available(devices, limit=10, root=root) == 10


def test_without_an_account_of_free_memory_the_size_of_the_machine_counts(tmp_path):
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert available(jax.devices(), root=tmp_path) == size // len(jax.devices())


def accelerator(stats):
    return SimpleNamespace(platform="gpu", process_index=0, memory_stats=lambda: stats)


def test_an_accelerator_has_what_its_fullest_device_has_left():
    devices = [accelerator({"bytes_limit": 1000, "bytes_in_use": used}) for used in (100, 300)]
    assert available(devices) == 700
    assert available(devices, limit=500) == 500
    assert available([accelerator(None)]) is None
    assert available([accelerator(None)], limit=500) == 500


# ---- The choice.


def program(temporary, arrays=100):
    sizes = {"argument_size_in_bytes": arrays, "output_size_in_bytes": 70, "alias_size_in_bytes": 70}
    sizes |= {"generated_code_size_in_bytes": 0, "temp_size_in_bytes": temporary}
    return SimpleNamespace(memory_analysis=lambda: SimpleNamespace(**sizes))


def choose(bytes_available, variants=("kept", "again"), chunks=(32, 16, 8, 4, 2, 1)):
    """Returns the choice among programs of 1000 and 100 bytes a task, and what was compiled."""
    compiled = []

    def compile_fn(variant, chunk):
        compiled.append((variant, chunk))
        return program((1000 if variant == "kept" else 100) * chunk)

    fit = fastest_that_fits(compile_fn, variants, chunks, bytes_available)
    return (fit.variant, fit.chunk, fit.predicted), compiled


@pytest.mark.parametrize(
    "bytes_available, choice, compiled",
    [
        (None, ("kept", 32, 32_100), [("kept", 32)]),
        (32_100, ("kept", 32, 32_100), [("kept", 32)]),
        (32_099, ("kept", 16, 16_100), [("kept", 32), ("kept", 16)]),
        (5000, ("kept", 4, 4100), [("kept", 32), ("kept", 4)]),
        (1100, ("kept", 1, 1100), [("kept", 32), ("kept", 1)]),
        (1099, ("again", 8, 900), [("kept", 32), ("kept", 1), ("again", 32), ("again", 8)]),
        (200, ("again", 1, 200), [("kept", 32), ("kept", 1), ("again", 32), ("again", 1)]),
    ],
)
def test_the_fastest_that_fits_is_found_in_few_compilations(bytes_available, choice, compiled):
    assert choose(bytes_available) == (choice, compiled)


def test_a_variant_that_must_not_be_used_is_not():
    assert choose(1099, variants=["again"])[0] == ("again", 8, 900)
    with pytest.raises(MetarunError):
        choose(1099, variants=["kept"])


def test_the_refusal_has_the_numbers_and_the_keys():
    with pytest.raises(MetarunError) as error:
        choose(199)
    for words in ("takes 200 bytes", "199 bytes are available", "memory.limit", "method.inner_steps", "query_shot"):
        assert words in str(error.value)


def test_nothing_is_compiled_where_not_even_the_arguments_fit():
    arguments = {"w": jax.ShapeDtypeStruct((10, 5), jnp.float32), "key": jax.eval_shape(lambda: jax.random.key(0))}
    with pytest.raises(MetarunError, match="alone take 208 bytes of a device, and 207 bytes are available"):
        fastest_that_fits(None, ["kept"], [1], 207, arguments)


def test_prediction_is_of_the_compiled_program_on_one_device():
    x = jax.ShapeDtypeStruct((1000, 250), jnp.float32)
    compiled = jax.jit(lambda x: jnp.sin(jnp.cos(x) @ jnp.cos(x).T).sum(0)).lower(x).compile()
    arrays, temporary = predicted(compiled)
    assert 1_004_000 <= arrays < 1_500_000
    assert 4_000_000 <= temporary < 9_000_000


# ---- The choice for an experiment.


def experiment(bytes_available=None, *, inner_steps=60, remat=(False, True), seed=0, chunk=None):
    dataset = sinusoid(shot=5, query_shot=5)
    words = {False: "kept", True: "again"}
    options = {"model": mlp(num_outputs=1, hidden=[16]), "objective": "regression", "inner_steps": inner_steps}
    return few_shot_experiment(
        {words[again]: maml(remat=again, inner_lr=0.01, **options) for again in remat},
        dataset,
        adam(outer_lr=0.01, steps=10),
        frugal_layouts(default_layout()._replace(chunk=chunk), 8),
        seed=seed,
        eval_seed=0,
        meta_batch_size=8,
        protocol={},
        bytes_available=bytes_available,
    )


@pytest.mark.slow
def test_many_inner_steps_that_do_not_fit_are_computed_again():
    plain, frugal = (experiment(remat=[again], chunk=1).prepare() for again in (False, True))
    assert frugal.bytes_predicted < plain.bytes_predicted / 1.5  # parameters of all inner steps, or of a few
    between = (plain.bytes_predicted + frugal.bytes_predicted) // 2
    one = experiment(between, chunk=1)
    plan = one.prepare()
    assert (plan.variant, plan.chunk, plan.bytes_predicted) == ("again", 1, frugal.bytes_predicted)
    # The program that was chosen is the one that runs, and it learns what the plain one learns.
    other = experiment(chunk=1)
    theirs, ours = other.step(other.init(), 3), one.step(one.init(), 3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), theirs, ours)


def test_fewer_tasks_at_once_come_before_computing_again():
    everything = experiment().prepare()
    assert (everything.devices, everything.tasks, everything.chunk, everything.variant) == (2, 4, 4, "kept")
    fewer = experiment(everything.bytes_predicted - 1).prepare()
    assert fewer.chunk in (1, 2) and fewer.variant == "kept"
    assert fewer.bytes_predicted < everything.bytes_predicted
    assert fewer.bytes_available == everything.bytes_predicted - 1


def test_an_experiment_that_does_not_fit_is_refused():
    with pytest.raises(MetarunError, match="2 KB are available"):
        experiment(2000, inner_steps=1).prepare()
    with pytest.raises(MetarunError, match="2 KB are available"):
        one = experiment(2000, inner_steps=1)
        one.step(one.init(), 1)


# ---- Compiled programs are kept between runs.

TWO_RUNS = """
import json, os, sys
from pathlib import Path
from metarun.system import backend
backend.set_up(Path(sys.argv[1]))
import jax
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from metarun.assembly.few_shot_run import build
from metarun.config.composing import register
from metarun.config.search_path import conf_dir
from metarun.config.hydra_versions import BASE

register()
counts = []
for overrides in sys.argv[2].split(";"):
    with initialize_config_dir(str(conf_dir()), **BASE):
        config = compose("config", ["experiment=finn2017/maml_sinusoid", *overrides.split()], return_hydra_config=True)
    choices = dict(config.hydra.runtime.choices)
    experiment = build(OmegaConf.masked_copy(config, [key for key in config if key != "hydra"]), choices).experiment
    jax.clear_caches()
    experiment.prepare()
    state, _ = experiment.step(experiment.init(), 2)
    experiment.evaluate(state.params, "val", 4)
    counts.append(len(list(Path(sys.argv[1]).glob("*-cache"))))
print(json.dumps(counts))
"""


@pytest.mark.slow
def test_what_changes_no_shape_compiles_nothing_again(tmp_path):
    configurations = ["seed=0", "seed=1", "eval_seed=1", "outer_lr=0.01", "eval_tasks=7 steps=3", "meta_batch_size=4"]
    env = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", TWO_RUNS, str(tmp_path), ";".join(configurations)],
        env={**env, "PYTHONPATH": str(Path(__file__).parents[1] / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts[0] > 3
    assert dict(zip(configurations[:-1], counts[:-1], strict=True)) == dict.fromkeys(configurations[:-1], counts[0])
    assert counts[-1] > counts[0], "the count sees a new program"

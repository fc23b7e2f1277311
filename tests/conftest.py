"""Strictness for every test: no silent promotion, no key used twice, no warning passed over. And what all tests share."""

import gc
import os

import pytest

from metarun.system import backend

# Two devices whatever the machine has, so that sharding over devices is always exercised.
os.environ["JAX_NUM_CPU_DEVICES"] = "2"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile much and compute little; the processes that they start inherit it, and so the last bit of a number.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
# Each by one thread: the programs are small, and tests run side by side.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_parallel_codegen_split_count=1".strip()
# The many small programs as well: other processes, and the next session, need the same.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def pytest_configure(config):
    if not hasattr(config, "workerinput"):
        # The data and the programs of one worker or process are those of all. Not the user's: tests ask no home for them.
        shared = config.cache.mkdir("metarun")
        os.environ["METARUN_CACHE"] = str(shared)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(shared / "compiled")
    # JAX makes objects by the million, and to look for circles among them takes a fifth of the time of the tests.
    gc.disable()
    backend.set_up(os.environ["JAX_COMPILATION_CACHE_DIR"])
    import jax
    from hydra._internal import logging_config

    # Hydra's logging would disable the loggers that there are, and close the stderr that Abseil was imported with: pytest's.
    logging_config.configure_logging = lambda *_: None
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_debug_key_reuse", True)
    jax.config.update("jax_legacy_prng_key", "error")


# Those that take longest begin first: no worker shall be left with one at the end, while the other waits.
LONGEST = (
    "test_slurm.py",
    "test_trackers.py",
    "test_build.py",
    "test_cli.py",
    "test_rl_experiment.py",
    "test_plugins.py",
    "test_foreign_runs.py",
    "test_sweep.py",
    "test_experiment.py",
    "test_predict_command.py",
    "test_contract.py",
)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(name) if (name := item.path.name) in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True, scope="module")
def nothing_compiled_is_left_behind():
    """Programs of other files would only fill the memory."""
    yield
    import jax

    jax.clear_caches()
    gc.collect()


@pytest.fixture(autouse=True)
def no_precision_is_left_behind():
    """The scripts that measure set it for their whole process, which here is that of other tests as well."""
    import jax

    jax.config.update("jax_default_matmul_precision", None)
    yield
    jax.config.update("jax_default_matmul_precision", None)

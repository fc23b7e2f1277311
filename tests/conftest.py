"""Strictness for every test: no silent promotion, no key used twice, no warning passed over."""

import os

from metarun.system import backend

# Two devices whatever the machine has, so that sharding over devices is always exercised.
os.environ["JAX_NUM_CPU_DEVICES"] = "2"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile much and compute little; the processes that they start inherit it, and so the last bit of a number.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")


def pytest_configure(config):
    from metarun.data.cache import cache_dir

    backend.set_up(cache_dir() / "compiled")
    import jax

    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_debug_key_reuse", True)
    jax.config.update("jax_legacy_prng_key", "error")

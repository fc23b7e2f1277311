"""Set-up of JAX, which has to come before the first computation; and the precision of each run's products."""

import contextlib
import functools
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from metarun.errors import one_of

T = TypeVar("T")

# What the random draws and the types of numbers depend on, whatever the environment says: the same seeds have to be the
# same tasks everywhere.
PINNED = {
    "jax_threefry_partitionable": True,
    "jax_default_prng_impl": "threefry2x32",
    "jax_random_seed_offset": 0,
    "jax_enable_x64": False,
}
# Values of `precision`, and how each computes products of float32 arrays. JAX's own default on a GPU rounds their
# factors to TensorFloat-32; on a CPU nothing rounds.
PRECISIONS = {"float32": "float32", "tensorfloat32": "tensorfloat32", "bfloat16": "tensorfloat32"}


def set_up(cache: Path) -> None:
    """Makes one JAX device of each CPU core, keeps compiled programs between processes, and pins how tasks are drawn.

    Tasks are sharded over the devices, so each core computes its own tasks with single-threaded kernels: faster than
    all cores on one kernel after the other. Accelerators are not affected.

    Args:
      cache: folder for compiled programs; one that is set already has precedence, as by `JAX_COMPILATION_CACHE_DIR`, and
        so has what else the environment says of it.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    # On a GPU, XLA would time kernels of its own for every matrix product: minutes of compiling, and another process
    # may choose others, so that a run that is continued would not be the same to the bit.
    wanted = {
        "xla_cpu_multi_thread_eigen": "false",
        # XLA ends the process where a core has waited a minute for another, as one that other work shares may have it do.
        "xla_cpu_collective_call_warn_stuck_timeout_seconds": "300",
        "xla_cpu_collective_call_terminate_timeout_seconds": "3600",
        "xla_gpu_enable_triton_gemm": "false",
        "xla_gpu_autotune_level": "0",
    }
    if version("jaxlib").startswith("0.10."):
        # The older emitters compile in half the time and half the memory, to programs as fast; later XLA has them not.
        wanted["xla_cpu_use_fusion_emitters"] = "false"
    unset = [f"--{name}={value}" for name, value in wanted.items() if name not in flags]
    os.environ["XLA_FLAGS"] = " ".join([flags, *unset]).strip()
    import jax

    for name, value in PINNED.items():
        jax.config.update(name, value)
    if "xla_force_host_platform_device_count" not in flags and "JAX_NUM_CPU_DEVICES" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        with contextlib.suppress(RuntimeError):  # a program of a user's has computed already
            jax.config.update("jax_num_cpu_devices", cores)
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def jit_quickly(fn: Callable[..., T]) -> Callable[..., T]:
    """`jax.jit` of a function that draws things, and computes little: on a CPU LLVM optimises it little, in a fraction of the time.

    Initial parameters and tasks are the same to the bit, and tasks are drawn as fast. What computes with them is for
    `jax.jit`: with other optimisations it may round otherwise.
    """
    import jax
    import jax.numpy as jnp

    alone, within = jax.jit(fn, compiler_options={"xla_backend_optimization_level": 1}), jax.jit(fn)

    @functools.wraps(fn)
    def call(*args: Any) -> T:
        # Within another trace, as where only shapes are asked for, it can have no options of its own.
        traced = isinstance(jnp.zeros(()), jax.core.Tracer)
        optimised = jax.default_backend() == "cpu" and not jax.config.values["jax_disable_most_optimizations"]
        return (alone if optimised and not traced else within)(*args)

    return call


def matmul_precision(precision: str) -> AbstractContextManager:
    """A context: how products of float32 arrays that are traced in it are computed; models choose what is bfloat16.

    Args:
      precision: "float32", "tensorfloat32", or "bfloat16", where what stays float32 is multiplied in TensorFloat-32.

    Raises:
      ConfigError: for another value.
    """
    import jax

    return jax.default_matmul_precision(PRECISIONS[one_of("precision", precision, PRECISIONS)])


def at_precision(precision: str, fn: Callable[..., T]) -> Callable[..., T]:
    """Returns `fn`, all of whose products are traced at `precision`, whoever calls it and in whatever thread.

    What is compiled once and called later has to be traced under one precision, and several runs in one process may each
    have their own.

    Raises:
      ConfigError: as `matmul_precision`.
    """
    one_of("precision", precision, PRECISIONS)

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> T:
        with matmul_precision(precision):
            return fn(*args, **kwargs)

    return call

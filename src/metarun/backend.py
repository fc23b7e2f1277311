"""Process-wide set-up of JAX; it has to come before the first computation."""

import os
from pathlib import Path


def set_up(cache: Path) -> None:
    """Makes one JAX device of each CPU core, and keeps compiled programs between processes.

    Tasks are sharded over the devices, so each core computes its own tasks with single-threaded kernels: faster than
    all cores on one kernel after the other. Accelerators are not affected.

    Args:
      cache: folder for compiled programs; `JAX_COMPILATION_CACHE_DIR` has precedence.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_cpu_multi_thread_eigen" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
    import jax

    if "xla_force_host_platform_device_count" not in flags and "JAX_NUM_CPU_DEVICES" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        jax.config.update("jax_num_cpu_devices", cores)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

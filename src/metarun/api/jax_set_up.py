"""Sets JAX up. Importing this file does not import JAX."""

from metarun.errors import MetarunError


def set_up() -> None:
    """Sets JAX up for a process that is metarun's own, before anything computes."""
    from metarun.data.cache import cache_dir
    from metarun.system import backend

    backend.set_up(cache_dir() / "compiled")


def set_up_within() -> None:
    """Sets JAX up in a program of a user's, at its first call of metarun.

    Raises:
      MetarunError: the program computes in 64 bits, which would end for all of it.
    """
    import jax

    if jax.config.values["jax_enable_x64"]:
        raise MetarunError(
            "jax_enable_x64 is on, and metarun computes in 32 bits: it would turn that off for the rest of the program. "
            "Turn it off first (JAX_ENABLE_X64=0), or call metarun in a process of its own."
        )
    set_up()

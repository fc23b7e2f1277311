"""Several processes that compute one run together: how they find each other, and what they have to agree on.

All of them go through the same program, and every device of every process computes its share of the tasks; the first
process alone writes. JAX connects them.
"""

import json
import os
from typing import Any

from metarun.errors import ConfigError, non_negative_int, positive_int

# A process that is silent for so many seconds is taken for dead, and ends the others.
_SILENCE = 30
# Launchers that JAX knows by their variables: how many processes there are, and which of them this one is.
_LAUNCHERS = {"SLURM_STEP_NUM_TASKS": "SLURM_PROCID", "OMPI_COMM_WORLD_SIZE": "OMPI_COMM_WORLD_RANK"}


def launched() -> tuple[int, int]:
    """Number of the processes that a launcher has started together, and which this is: (1, 0) without one."""
    for number, which in _LAUNCHERS.items():
        if int(os.environ.get(number, 1)) > 1:
            return int(os.environ[number]), int(os.environ.get(which, 0))
    return 1, 0


def join(address: str | None, processes: int | None, process: int | None) -> None:
    """Connects this process with the others of its run, if there are others. It has to come before any computation.

    Args:
      address: host:port of the first process; None: what the launcher says; "auto": what JAX finds, as on a TPU.
      processes: how many there are; with an address.
      process: which of them this is, from 0; with an address.

    Raises:
      ConfigError: for a value that is not allowed.
    """
    if processes is not None:
        positive_int("distributed.processes", processes)
    if process is not None:
        non_negative_int("distributed.process", process)
    if address is None and launched()[0] == 1:
        if processes is not None or process is not None:
            raise ConfigError("distributed.address", address, "host:port of the first process")
        return
    import jax

    given: dict[str, Any] = {}
    if address not in (None, "auto"):
        host, _, port = str(address).rpartition(":")
        if not host or not port.isdecimal():
            raise ConfigError("distributed.address", address, "host:port of the first process, auto, or null")
        processes = positive_int("distributed.processes", processes)
        process = non_negative_int("distributed.process", process)
        if process >= processes:
            raise ConfigError("distributed.process", process, f"0 to {processes - 1}")
        given = {"coordinator_address": address, "num_processes": processes, "process_id": process}
    # Programs with all-reduces that run side by side on a CPU would mix up whose messages are whose.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    jax.distributed.initialize(**given, heartbeat_timeout_seconds=_SILENCE)


def is_first() -> bool:
    """Whether this process is the one that writes."""
    import jax

    return jax.process_index() == 0


def are_several() -> bool:
    """Whether there are other processes in this run."""
    import jax

    return jax.process_count() > 1


def largest(number: int) -> int:
    """The largest of the processes' numbers; all of them have to ask."""
    if not are_several():
        return number
    import numpy as np
    from jax.experimental import multihost_utils

    # Halves, because JAX computes with 32 bits.
    high, low = multihost_utils.process_allgather(np.array(divmod(number, 2**31), np.int32)).astype(np.int64).T
    return int((high * 2**31 + low).max())


def smallest(number: int) -> int:
    """The smallest of the processes' numbers; all of them have to ask."""
    return -largest(-number)


def from_first(value: Any) -> Any:
    """What the first process has, in every process; what the others give does not matter.

    Args:
      value: what JSON can hold.
    """
    return json.loads(_bytes_from_first(json.dumps(value).encode())) if are_several() else value


def arrays_from_first(tree: Any) -> Any:
    """The first process's arrays, bit for bit, in every process.

    Args:
      tree: a pytree of arrays; of the others, one of the same shapes and types.
    """
    if not are_several():
        return tree
    import jax
    import numpy as np

    leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, tree))
    data, begin, found = _bytes_from_first(b"".join(leaf.tobytes() for leaf in leaves)), 0, []
    for leaf in leaves:
        end = begin + leaf.nbytes
        found.append(np.frombuffer(data[begin:end], leaf.dtype).reshape(leaf.shape))
        begin = end
    return jax.tree.unflatten(structure, found)


def is_loss_of_another(error: Exception) -> bool:
    """Whether an error says that another process of the run does not answer any more."""
    words = "Gloo", "NCCL", "oordination service", "eartbeat"
    return are_several() and any(word in str(error) for word in words)


def _bytes_from_first(data: bytes) -> bytes:
    import numpy as np
    from jax.experimental import multihost_utils

    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    buffer = np.frombuffer(data, np.uint8) if is_first() else np.zeros(size, np.uint8)
    return multihost_utils.broadcast_one_to_all(buffer).tobytes()

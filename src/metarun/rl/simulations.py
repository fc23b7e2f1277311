"""Many bodies of one model, stepped by MuJoCo in C."""

import os
from collections import defaultdict
from queue import Empty, SimpleQueue
from typing import Any

import jax
import numpy as np


class Simulations:
    """Steps bodies of a model, each from its own state, in float64.

    What comes out follows from what goes in: it does not depend on earlier calls, on the other bodies or on threads.

    Args:
      model: the `mujoco.MjModel`.
      frame_skip: timesteps of a step.
    """

    def __init__(self, model: Any, frame_skip: int):
        import mujoco
        from mujoco.batch import Batch, SimulationError

        self._model, self._frame_skip = model, frame_skip
        # A body whose simulation bursts is not to stand up again: what is not finite stays so, for the environment to see.
        model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET
        if mujoco.get_mju_user_warning() is None:
            mujoco.set_mju_user_warning(lambda message: None)  # else of each that bursts, into a file where one works
        self._batch_of, self._error = Batch, SimulationError
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._threads = max(1, cores // jax.local_device_count())  # each device of a CPU calls by a thread of its own
        self._idle: dict[int, SimpleQueue[Any]] = defaultdict(SimpleQueue)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """The states after a step. Where a number is not finite, or MuJoCo gives up, nothing of the row is.

        Args:
          rows: qpos, qvel, warmstart and controls, `[n, nq + 2 nv + nu]` float32.

        Returns:
          qpos, qvel and warmstart, `[n, nq + 2 nv]` float32.
        """
        idle = self._idle[len(rows)]
        try:
            batch = idle.get_nowait()
        except Empty:
            batch = self._batch_of(self._model, len(rows), self._threads)
        burst = ~np.isfinite(rows).all(1)
        rows = np.where(burst[:, None], np.float32(0), rows)
        fields = [batch.bind(name) for name in ("qpos", "qvel", "qacc_warmstart", "ctrl")]
        ends = np.cumsum([field.shape[1] for field in fields])[:-1]
        for field, given in zip(fields, np.split(rows, ends, 1), strict=True):
            field[:] = given
        batch.bind("time")[:] = 0
        try:
            batch.step(nstep=self._frame_skip)
        except self._error as error:
            burst[error.ids] = True
        with np.errstate(over="ignore"):  # beyond float32 is infinite
            moved = np.concatenate(fields[:3], 1).astype(np.float32)
        idle.put(batch)
        moved[burst] = np.nan
        return moved

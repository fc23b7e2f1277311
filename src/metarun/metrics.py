"""Where the numbers of a run go while it runs: `metrics.jsonl`, and TensorBoard if asked for.

A logger is made by a factory `(directory, resume_step) -> Logger` when a run begins at `resume_step` (0 for a new one).
What an earlier piece of the run logged beyond that step is dropped: it is about to be computed, and logged, again.
"""

import json
import socket
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from metarun.files import plain, writing


class Logger(NamedTuple):
    """Takes the numbers of a step.

    Attributes:
      write: `(step, values) -> None`, `values` being name -> number or None; on disk when it returns, but for fsync.
      close: `() -> None`.
    """

    write: Callable[[int, Mapping[str, float | None]], None]
    close: Callable[[], None]


def jsonl(directory: Path, resume_step: int) -> Logger:
    """Returns a logger to `metrics.jsonl` in `directory`: one JSON object a line, `step` first.

    JSON has no NaN and no infinity; they are written as null.

    Args:
      directory: directory of the run.
      resume_step: lines of later steps are removed, and whatever follows the first line that is not whole.

    Raises:
      MetarunError: the file cannot be written, now or at a `write`.
    """
    path = directory / "metrics.jsonl"
    append, close = _appending(path, _whole_lines(path, resume_step))

    def write(step: int, values: Mapping[str, float | None]) -> None:
        append((json.dumps(plain({"step": step, **values}), allow_nan=False) + "\n").encode())

    return Logger(write, close)


def tensorboard(directory: Path, resume_step: int) -> Logger:
    """Returns a logger to a new TensorBoard event file in `directory`; numbers that are None are left out.

    The records are those of tensorboardX, but written from here and not by its `SummaryWriter`, whose background
    thread ends in a traceback on a full disk and whose file names collide when a run resumes within a second.

    Args:
      directory: directory of the run.
      resume_step: TensorBoard forgets what earlier event files hold of later steps.

    Raises:
      MetarunError: the file cannot be written, now or at a `write`.
    """
    from tensorboardX.crc32c import crc32c
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.proto.summary_pb2 import Summary

    append, close = _appending(directory / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}", 0)

    def checksum(data: bytes) -> bytes:
        crc = crc32c(data)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    def record(**fields: object) -> None:
        data = Event(wall_time=time.time(), **fields).SerializeToString()
        length = struct.pack("<Q", len(data))
        append(length + checksum(length) + data + checksum(data))

    def write(step: int, values: Mapping[str, float | None]) -> None:
        numbers = [Summary.Value(tag=name, simple_value=value) for name, value in values.items() if value is not None]
        record(step=step, summary=Summary(value=numbers))

    record(file_version="brain.Event:2")
    record(step=resume_step + 1, session_log=SessionLog(status=SessionLog.START))
    return Logger(write, close)


def no_logger(directory: Path, resume_step: int) -> Logger:
    """Returns a logger that drops everything, for a run that writes `metrics.jsonl` alone."""
    del directory, resume_step
    return Logger(write=lambda step, values: None, close=lambda: None)


def _whole_lines(path: Path, last_step: int) -> int:
    """Returns the length in bytes of the lines of `path` up to `last_step`, short of the first that is broken."""
    length = 0
    if path.exists():
        with writing(path), path.open("rb") as stream:
            for line in stream:
                try:
                    step = json.loads(line)["step"]
                except (ValueError, KeyError, TypeError):
                    break
                if step > last_step or not line.endswith(b"\n"):
                    break
                length += len(line)
    return length


def _appending(path: Path, length: int) -> tuple[Callable[[bytes], None], Callable[[], None]]:
    """Opens `path`, cuts it to `length` bytes, and returns `(append, close)`."""
    with writing(path):
        # Unbuffered: nothing is left over that a later flush or close could stumble on when the disk is full.
        stream = path.open("ab", buffering=0)
        stream.truncate(length)

    def append(data: bytes) -> None:
        rest = memoryview(data)
        with writing(path):
            while rest:
                rest = rest[stream.write(rest) :]

    return append, stream.close

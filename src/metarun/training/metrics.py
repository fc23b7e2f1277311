"""Where the numbers of a run go while it runs: `metrics.jsonl`, and what was asked for beside it, such as TensorBoard.

A logger is made by a factory `(directory, resume_step) -> Logger` when a run begins at `resume_step` (0 for a new one).
What an earlier piece of the run logged beyond that step is dropped: it is about to be computed, and logged, again.
"""

import contextlib
import json
import math
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metarun.errors import ConfigError, Diverged, MetarunError, Pruned, in_a_line
from metarun.system.files import plain, write_bytes, writing
from metarun.training.result import METRICS
from metarun.training.stopping import Interrupted

# How a run can end, as a logger is told of it.
FINISHED, PRUNED, DIVERGED, INTERRUPTED, FAILED = "finished", "pruned", "diverged", "interrupted", "failed"


class Logger(NamedTuple):
    """Takes what a run gives out. One that writes and closes is enough; the other calls are for who wants to know more.

    It is open until the test is done and its pictures are drawn. What `pictures` and `result` are given is on disk.

    Attributes:
      write: `(step, values) -> None`, `values` being name -> number or None; on disk when it returns, but for fsync.
      close: `() -> None`; the last call, however the run has ended.
      pictures: `(files) -> None`, the pictures of the run, as paths.
      result: `(result) -> None`, what `result.json` holds, the checks among it.
      end: `(outcome, reason) -> None`, before `close`: one of `FINISHED`, `PRUNED`, `DIVERGED`, `INTERRUPTED` and `FAILED`, and
        why in a line, "" of a finished run. One that was interrupted may be continued.
    """

    write: Callable[[int, Mapping[str, float | None]], None]
    close: Callable[[], None]
    pictures: Callable[[Sequence[Path]], None] = lambda files: None
    result: Callable[[Mapping[str, Any]], None] = lambda result: None
    end: Callable[[str, str], None] = lambda outcome, reason: None


# Makes a logger for a run in `directory` that begins at `resume_step`.
LoggerFactory = Callable[[Path, int], Logger]


def jsonl(directory: Path, resume_step: int) -> Logger:
    """Returns a logger to `metrics.jsonl` in `directory`: one JSON object a line, `step` first.

    JSON has no NaN and no infinity; they are written as null.

    Args:
      directory: directory of the run.
      resume_step: lines of later steps are removed, and those that are no JSON object with a step.

    Raises:
      MetarunError: the file cannot be written, now or at a `write`.
    """
    path = directory / METRICS
    append, close = _appending(path, _cleaned(path, resume_step))

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


@contextlib.contextmanager
def opened(
    factories: Sequence[LoggerFactory], directory: Path, resume_step: int, say: Callable[[str], object]
) -> Iterator[Logger]:
    """Within this context, a logger that hands everything to those of `factories`; it tells them how the body has ended.

    Args:
      factories: of loggers, opened in this order.
      directory: of the run.
      resume_step: step at which it begins or continues.
      say: told in one line what could not be logged, once for each logger.

    Raises:
      ConfigError: a setting of a logger cannot be used.
    """
    loggers: list[Logger] = []

    def to_each(call: str) -> Callable[..., None]:
        def calls(*given: Any) -> None:
            for logger in loggers:
                getattr(logger, call)(*given)

        return calls

    every = Logger(*map(to_each, Logger._fields))
    outcome, reason = FINISHED, ""
    try:
        for factory in factories:
            loggers.append(unfailing(factory, directory, resume_step, say))
        yield every
    except BaseException as error:
        outcome, reason = _ending(error)
        raise
    finally:
        every.end(outcome, reason)
        every.close()


def _ending(error: BaseException) -> tuple[str, str]:
    """What a run has come to that an error ends, and why."""
    if isinstance(error, Interrupted):
        return INTERRUPTED, str(error)
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "Stopped at once"
    if isinstance(error, Pruned):
        return PRUNED, in_a_line(error)
    return DIVERGED if isinstance(error, Diverged) else FAILED, in_a_line(error)


def unfailing(factory: LoggerFactory, directory: Path, resume_step: int, say: Callable[[str], object]) -> Logger:
    """Returns the logger of `factory`, which no run is to end for: once it fails, that is said, and it takes no more.

    Args:
      factory: of a logger.
      directory: as the factory takes it.
      resume_step: as the factory takes it.
      say: told in one line what could not be logged.

    Raises:
      ConfigError: a setting of the logger cannot be used.
    """
    at_work: list[Logger] = []

    def guarded(call: Callable[..., object], *given: Any) -> None:
        try:
            call(*given)
        except ConfigError:
            raise
        except Exception as error:  # of whatever kind: loggers are others' code
            at_work.clear()
            say(f"metarun: from here on the run goes on without one of its logs. {in_a_line(error)}")

    def guarding(call: str) -> Callable[..., None]:
        def calls(*given: Any) -> None:
            for logger in [*at_work]:
                guarded(getattr(logger, call), *given)

        return calls

    guarded(lambda: at_work.append(factory(directory, resume_step)))
    return Logger(*map(guarding, Logger._fields))


def _cleaned(path: Path, last_step: int) -> int:
    """Takes out of `path` the lines that are broken, and returns the length in bytes of those up to `last_step`."""
    if not path.exists():
        return 0
    with writing(path):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise MetarunError(f"Cannot write {path}: it is a link or a device. Remove it.")
        lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if line.endswith(b"\n") and _step_of(line) <= last_step]
    if kept != lines[: len(kept)]:
        write_bytes(path, b"".join(kept))
    return sum(map(len, kept))


def _step_of(line: bytes) -> float:
    """The step of a line; infinity for what is none."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return math.inf
    return step if type(step) is int else math.inf


def _appending(path: Path, length: int) -> tuple[Callable[[bytes], None], Callable[[], None]]:
    """Opens `path`, cuts it to `length` bytes, and returns `(append, close)`."""
    with writing(path):
        # Unbuffered: nothing is left over that a later flush or close could stumble on when the disk is full.
        stream = os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666), "ab", 0)
        stream.truncate(length)

    def append(data: bytes) -> None:
        rest = memoryview(data)
        with writing(path):
            while rest:
                rest = rest[stream.write(rest) :]

    return append, stream.close

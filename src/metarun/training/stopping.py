"""What ends a run before its last step, so that the same command continues it: signals, a time limit, a lost process."""

import contextlib
import dataclasses
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

# Exit code of a run that was told to stop and can be continued: EX_TEMPFAIL of sysexits.h, "try again". A scheduler that
# starts the command again on it needs to know nothing else.
REQUEUE = 75
# What asks a run to stop, in words: Ctrl-C; schedulers before they kill a job; its own time limit.
_STOPS: dict[int, str] = {
    signal.SIGINT: "SIGINT",
    signal.SIGTERM: "SIGTERM",
    signal.SIGUSR1: "SIGUSR1",
    signal.SIGUSR2: "SIGUSR2",
    signal.SIGALRM: "its time_limit",
}


class Interrupted(SystemExit):
    """A signal ended the run; the same command continues it. It ends a sweep as well, whose next point must not begin.

    Attributes:
      code: of the process: `REQUEUE`; after Ctrl-C 130, as a shell reports it.
    """

    def __init__(self, signum: int, where: str):
        super().__init__(128 + signum if signum == signal.SIGINT else REQUEUE)
        self._message = f"Stopped by {_STOPS[signum]} {where}"

    def __str__(self) -> str:
        return self._message


@dataclasses.dataclass
class Stop:
    """What signals asked for.

    Attributes:
      signum: the first signal that came.
      at_once: whether a signal need not wait for the end of a dispatch.
      followers: the `Stop` of each other run in this process; they are told of the same signals.
    """

    signum: int | None = None
    at_once: bool = False
    followers: list["Stop"] = dataclasses.field(default_factory=list)


@contextlib.contextmanager
def stop_on_signals(time_limit: float | None) -> Iterator[Stop]:
    """Within this context a signal is noted in the `Stop` that it gives, that of the time limit (minutes) included."""
    stop = Stop()

    def handle(signum: int, frame: object) -> None:
        again = stop.signum is not None and signum == signal.SIGINT
        for each in (stop, *stop.followers):
            each.signum = each.signum or signum
        if again or stop.at_once:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield stop
        return
    before = {signum: signal.signal(signum, handle) for signum in _STOPS}
    signal.setitimer(signal.ITIMER_REAL, 60 * (time_limit or 0))
    try:
        yield stop
    except Interrupted:
        signum = stop.signum or signal.SIGINT
        asked = before[signum]
        if callable(asked) and asked is not signal.default_int_handler:
            asked(signum, None)
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for signum, handler in before.items():
            signal.signal(signum, handler)


def leave(directory: Path) -> None:
    """Ends this process, whose run has lost another: at once, since an orderly end would wait for that one."""
    console = Console(stderr=True)
    console.print(
        f"metarun: Another process of this run has ended, or does not answer. The same command, in all processes, "
        f"continues {directory} from its newest checkpoint.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    console.file.flush()
    os._exit(REQUEUE)

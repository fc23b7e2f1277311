"""How far a run is, on the terminal: a bar, or plain lines where there is no terminal, as in a batch job."""

import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class RunProgress:
    """Shows the steps of a run from `start` to `total`; a context manager.

    Args:
      console: where to show them; a bar if it is an interactive terminal.
      start: steps taken before.
      total: steps in all.
    """

    def __init__(self, console: Console, start: int, total: int):
        self._console = console
        self._start, self._total = start, total
        self._began = time.monotonic()
        self._bar = None
        if console.is_terminal and not console.is_dumb_terminal:
            self._bar = Progress(
                MofNCompleteColumn(),
                BarColumn(bar_width=20),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.description}", markup=False),
                console=console,
            )
            self._task = self._bar.add_task("", total=total, completed=start)

    def __enter__(self) -> "RunProgress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, step: int, text: str, *, line: bool) -> None:
        """Shows `step` and `text`; where there is no bar, as a line, and only if `line` says that one is due."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=text)
        elif line:
            elapsed = time.monotonic() - self._began
            left = elapsed * (self._total - step) / (step - self._start)
            clock = f"{_clock(elapsed)} elapsed, {_clock(left)} left"
            self._console.print(
                f"step {step}/{self._total}  {text}  {clock}", markup=False, highlight=False, soft_wrap=True
            )


def hush(tfds: Any) -> None:
    """Has TFDS, the module, draw no bars where standard error is no terminal and they would fill a log."""
    if not Console(stderr=True).is_terminal:
        tfds.disable_progress_bar()


def counted(items: Iterable[Any], what: str, total: int | None = None) -> Iterator[Any]:
    """Yields `items` and shows on standard error how many there were, if that is a terminal.

    Args:
      items: to be yielded.
      what: what they are, in the plural.
      total: how many there will be, if that is known.
    """
    with Progress(
        MofNCompleteColumn(),
        BarColumn(bar_width=20),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
        console=(console := Console(stderr=True)),
        disable=not console.is_terminal,
        transient=True,
    ) as bar:
        yield from bar.track(items, total, description=what)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"

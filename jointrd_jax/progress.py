"""What a person sees while a run goes: a live line on a terminal, plain lines elsewhere."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from jointrd_jax import hosts


class Reporter:
    """Prints a run's progress. `indent` marks the lines of a run within a run (the teacher's).

    Args:
      label: what runs, in front of every line.
      console: where to; by default standard output of the first host (colours off when NO_COLOR is set).
      every_seconds: plain lines for epochs come at most this often (the first and last always).
    """

    def __init__(self, label: str, console: Console | None = None, every_seconds: float = 5.0):
        self.label, self.console, self.every_seconds = (
            label,
            console or Console(highlight=False, quiet=not hosts.is_first()),
            every_seconds,
        )
        self._bar: Progress | None = None
        self._task: Any = None
        self._printed = 0.0

    def say(self, message: str) -> None:
        """One line that stays."""
        self.console.print(f'\\[{self.label}] {message}', soft_wrap=True)

    @contextlib.contextmanager
    def live(self, total_steps: int, done: int) -> Iterator[None]:
        """Show a progress bar (terminals only) while the body runs."""
        if not self.console.is_terminal:
            yield
            return
        columns = (TextColumn('{task.description}'), BarColumn(), TextColumn('{task.completed}/{task.total} steps'))
        self._bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console, transient=True)
        with self._bar:
            self._task = self._bar.add_task(self.label, total=total_steps, completed=done)
            yield
        self._bar = None

    def step(self, step: int) -> None:
        if self._bar:
            self._bar.update(self._task, completed=step)

    def epoch(self, line: dict[str, Any], epochs: int) -> None:
        """An evaluated epoch: a line of metrics.jsonl."""
        shown = [f'epoch {line["epoch"]}/{epochs}', f'loss {line["loss"]:.4f}']
        if 'mix' in line:
            shown.append(f'mix {line["mix"]:.2f}')
        shown += [
            f'top-1 {line["top1"]:.2f}%',
            f'best {line["best_top1"]:.2f}%',
            f'{line["images_per_second"]:.0f} img/s',
        ]
        text = '  '.join(shown)
        if self._bar:
            self._bar.update(self._task, description=f'{self.label}  {text}')
        due = time.monotonic() - self._printed >= self.every_seconds
        if not self._bar and (due or line['epoch'] in (1, epochs)):
            self._printed = time.monotonic()
            self.say(text)

    def table(self, title: str, rows: list[tuple[str, ...]], header: tuple[str, ...]) -> None:
        """A final table."""
        table = Table(*header, title=title, title_justify='left')
        for row in rows:
            table.add_row(*row)
        self.console.print(table)

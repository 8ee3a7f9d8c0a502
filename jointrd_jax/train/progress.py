"""What a person sees while a run goes: one live display on a terminal, plain lines elsewhere."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.columns import Columns
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from jointrd_jax.method import joint
from jointrd_jax.system import distributed, terminal
from jointrd_jax.train.history import SKIPPED_STEPS

RATE_SECONDS = 0.5  # how often the live rate is taken anew
NAME_WAIT_AFTER = 1.0  # plain lines name a wait when it has lasted this long


def accuracies(line: dict[str, Any]) -> dict[str, float]:
    """The top-1 accuracies of a line of metrics.jsonl by what they are of: 'student', 'teacher', 'path1', ..."""
    found = {name.removesuffix('_top1'): value for name, value in line.items() if name.endswith('_top1')}
    found.pop('best', None)
    return {joint.STUDENT: line['top1'], **found} if 'top1' in line else found


def loss_terms(line: dict[str, Any]) -> dict[str, float]:
    """The loss and its terms (before their weights) in a line of metrics.jsonl, the loss first."""
    terms = {name: value for name, value in line.items() if name == joint.LOSS or name.split('/')[0] in joint.KINDS}
    return dict(sorted(terms.items(), key=lambda term: term[0] != joint.LOSS))


class Reporter:
    """Prints a run's progress.

    Args:
      label: what runs, in front of every line.
      console: where to; by default standard output of the first host (colours off when NO_COLOR is set).
      every_seconds: plain lines for epochs come at most this often (the first and last always).
      quiet: print nothing but the final table of the outermost run.
      nested: the run is part of another (its teacher).
    """

    def __init__(
        self,
        label: str,
        console: Console | None = None,
        every_seconds: float = 5.0,
        quiet: bool = False,
        nested: bool = False,
    ):
        self.label, self.every_seconds = label, every_seconds
        self.console = console or terminal.console(quiet=not distributed.is_first())
        self.quiet, self.nested = quiet, nested
        self.display: _Display | None = None
        self._printed = 0.0

    def child(self, label: str) -> 'Reporter':
        """The reporter of a run within this one."""
        return Reporter(label, self.console, self.every_seconds, self.quiet, nested=True)

    def say(self, message: str) -> None:
        """Print one line that stays; brackets in it are not taken for markup."""
        if not self.quiet:
            self.console.print(Text(f'[{self.label}] {message}'), soft_wrap=True)

    @contextlib.contextmanager
    def live(self, total_steps: int, done: int, steps_per_epoch: int = 0, batch_size: int = 0) -> Iterator[None]:
        """Show the live display (terminals only) while the body runs."""
        if self.quiet or not self.console.is_terminal or self.console.is_dumb_terminal:
            yield
            return
        display = _Display(self.label, total_steps, done, steps_per_epoch or total_steps, batch_size)
        with Live(display, console=self.console, refresh_per_second=4, transient=True):
            self.display = display
            try:
                yield
            finally:
                self.display = None

    def step(self, step: int) -> None:
        if self.display:
            self.display.step(step)

    def terms(self, terms: Callable[[], dict[str, float]]) -> None:
        """Show the loss terms of this epoch so far; `terms` is called only where they can be shown."""
        if self.display:
            self.display.line.update(terms())

    @contextlib.contextmanager
    def waiting(self, what: str, after: float = NAME_WAIT_AFTER) -> Iterator[None]:
        """Name what the body makes the user wait for: at once in the live display, else once it takes long."""
        display = self.display
        if display:
            display.doing = what
            try:
                yield
            finally:
                display.doing = ''
                display.restart_rate()
            return
        timer = threading.Timer(after, self.say, [f'{what} ...'])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def first_call(self, what: str, function: Callable) -> Callable:
        """`function`, whose first call (which compiles it) is shown as a wait for `what`."""
        called = False

        def call(*arguments: Any) -> Any:
            nonlocal called
            if called:
                return function(*arguments)
            with self.waiting(what):
                result = function(*arguments)
            called = True
            return result

        return call

    def epoch(self, line: dict[str, Any], epochs: int) -> None:
        """Show a finished epoch, given its line of metrics.jsonl."""
        if self.display:
            self.display.line.update(line)
            self.display.rate = line['images_per_second']  # an epoch may be too short to take one in it
            return
        due = time.monotonic() - self._printed >= self.every_seconds
        if due or line['epoch'] in (1, epochs):
            self._printed = time.monotonic()
            self.say(one_line(line, epochs))

    def table(self, title: str, rows: list[tuple[str, ...]], header: tuple[str, ...]) -> None:
        """Print a final table."""
        if self.quiet and self.nested:
            return
        table = Table(title=Text(title, style='italic'), title_justify='left')
        for name in header:
            table.add_column(Text(name), overflow='fold')  # nothing of a name is left out in a narrow terminal
        for row in rows:
            table.add_row(*map(Text, row))
        self.console.print(table)


def one_line(line: dict[str, Any], epochs: int) -> str:
    """An epoch in plain text."""
    shown = [f'epoch {line["epoch"]}/{epochs}', f'loss {line["loss"]:.4f}']
    if 'mix' in line:
        shown.append(f'mix {line["mix"]:.2f}')
    shown += [f'{name} {line[key]:.2f}%' for name, key in (('top-1', 'top1'), ('best', 'best_top1')) if key in line]
    if line.get(SKIPPED_STEPS):
        shown.append(f'{line[SKIPPED_STEPS]} steps skipped')
    shown.append(f'{line["images_per_second"]:.0f} img/s')
    return '  '.join(shown)


class _Display:
    """The live display: a bar each for the run and the epoch, what it waits for, the latest numbers."""

    def __init__(self, label: str, total_steps: int, done: int, steps_per_epoch: int, batch_size: int):
        self.steps_per_epoch, self.batch_size = steps_per_epoch, batch_size
        self.epochs = -(-total_steps // steps_per_epoch)
        self.line: dict[str, Any] = {}
        self.doing = ''
        self.rate = 0.0
        self.at = done
        self.in_epoch = -1
        self.bars = Progress(
            TextColumn('{task.description}', style='bold', markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TaskProgressColumn(),
            TextColumn('[dim]left'),
            TimeRemainingColumn(),
            TextColumn('{task.fields[note]}'),
        )
        self.run = self.bars.add_task(label, total=total_steps, completed=done, note='')
        self.epoch = self.bars.add_task('epoch', total=steps_per_epoch, note='')
        self.marked = (time.monotonic(), self.at)  # when and where the rate is taken from
        self.step(done)

    def restart_rate(self) -> None:
        """Take the rate from here, so that a wait does not count as slow steps."""
        self.marked = (time.monotonic(), self.at)

    def step(self, step: int) -> None:
        self.at = step
        now, (then, before) = time.monotonic(), self.marked
        if now - then >= RATE_SECONDS:
            self.rate, self.marked = (step - before) * self.batch_size / (now - then), (now, step)
        epoch, within = divmod(max(step - 1, 0), self.steps_per_epoch)
        note = f'{self.rate:,.0f} img/s' if self.rate else ''
        self.bars.update(self.run, completed=step, note=note)
        if epoch != self.in_epoch:  # a bar that was full once has no time left until it is reset
            self.in_epoch = epoch
            self.bars.reset(self.epoch, description=f'epoch {epoch + 1}/{self.epochs}')
        self.bars.update(self.epoch, completed=within + 1 if step else 0)

    def __rich__(self) -> Group:
        parts: list[Any] = [self.bars]
        if self.doing:
            parts.append(Text(f'  {self.doing} ...', style='yellow'))
        line = self.line
        numbers = Table.grid(padding=(0, 2))
        losses = [f'{name} {value:.4f}' for name, value in loss_terms(line).items()]
        names = {'mix': 'mixing weight', 'learning_rate': 'learning rate'}
        schedules = [f'{shown} {line[name]:.3g}' for name, shown in names.items() if name in line]
        shown = accuracies(line)
        top1 = [f'{name if len(shown) > 1 else "now"} {value:.2f} %' for name, value in shown.items()]
        if 'best_top1' in line:
            top1.append(f'best {line["best_top1"]:.2f} %')
        for name, items in (('loss', losses), ('schedule', schedules), ('top-1', top1)):
            if items:  # lines break between items, not inside of one
                numbers.add_row(Text(f'  {name}', style='dim'), Columns([Text(i, no_wrap=True) for i in items], (0, 2)))
        parts.append(numbers)
        return Group(*parts)

"""`jointrd targets`: runs the asked targets and writes tables, files, and what belongs beside an export."""

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from jointrd_jax.deploy import advise as advising, bench, candidates as candidates_lib, card, export, results, savings
from jointrd_jax.deploy.candidates import Candidate
from jointrd_jax.deploy.graph import Graph
from jointrd_jax.deploy.results import Row
from jointrd_jax.errors import UserError, choice_error
from jointrd_jax.method.architectures import STAGE_SIZES
from jointrd_jax.method.networks import create
from jointrd_jax.runs import run_directory
from jointrd_jax.system import files, terminal

UNITS = {'kib': 2**10, 'mib': 2**20, 'kb': 10**3, 'mb': 10**6, 'b': 1, '': 1}
DEFAULT_MODEL: advising.Model = ('in_place', 1)


@dataclass
class Request:
    """Which targets are run on which networks; the fields are the flags of `jointrd targets`."""

    runs: Sequence[str] = ()
    targets: Sequence[str] = ()
    shapes: Sequence[str] = ()
    stem: str = 'imagenet'
    width: int = 64
    networks: Sequence[str] = (savings.RESNET, 'projection', savings.PLAIN)
    images: int = 500
    rounds: int = 21
    timeout: float = 600
    pythons: Sequence[str] = ()
    any_version: bool = False
    which: str = 'last'
    data_dir: str | None = None
    out: Path | None = None
    json: Path | None = None

    @property
    def depths(self) -> list[int]:
        known = [str(depth) for depth in STAGE_SIZES]
        for text in self.shapes:
            if text.strip() not in known:
                raise choice_error('shapes', text, known)
        return list(dict.fromkeys(int(text) for text in self.shapes))

    @property
    def python_of(self) -> dict[str, str]:
        found = {}
        for text in self.pythons:
            target, equals, path = text.partition('=')
            if not equals or not path:
                raise UserError(f'--python={text!r} is not TARGET=PYTHON')
            found[target.strip()] = python_at(path.strip())
        return found

    def settings(self) -> bench.Settings:
        return bench.Settings(self.python_of, self.timeout, self.rounds, self.any_version)


def python_at(text: str) -> str:
    """A Python that is named by path or by its name alone, as an absolute path.

    Targets run in directories of their own. Links are kept: by its own link a Python knows its environment.
    """
    path = Path(text).expanduser()
    if path.name == text and (found := shutil.which(text)):
        path = Path(found)
    return str(path.absolute())


def check(request: Request) -> None:
    """Check all that can be known to be wrong before anything is made.

    Raises:
      UserError: the first fault that is found.
    """
    if bool(request.runs) == bool(request.shapes):
        raise UserError('name runs (or what jointrd export made of them), or --shapes; one of the two')
    if request.shapes and not request.depths:
        raise choice_error('shapes', '', STAGE_SIZES)
    for name in request.networks:
        if name not in savings.FAMILIES:
            raise choice_error('networks', name, savings.FAMILIES)
    if request.out and request.shapes:
        raise UserError('--out is for exports of runs; with --shapes, write the rows with --json FILE')
    if request.out:
        files.check_new(request.out)
    if request.json and (request.json.is_dir() or not request.json.name):
        raise UserError(f'--json={request.json} is a directory; name a file')
    if request.json:
        files.make_parent(request.json)


def run(request: Request, console: Console | None = None) -> list[Row]:
    """Run the targets, print and write each row as it comes, print the table at the end; return all rows.

    Raises:
      UserError: a bad request, a run that cannot be exported, or an export that is older than its run.
    """
    console = console or terminal.console()
    check(request)
    asked = bench.questions(request.targets, request.python_of)
    kinds = list(dict.fromkeys(question.takes for question in asked))
    rows: list[Row] = []
    with files.temporary_directory(prefix='jointrd-targets-') as work:

        def tell(text: str) -> None:
            console.print(text, markup=False, soft_wrap=True)

        if request.runs:
            found = candidates_lib.of_runs(
                request.runs, kinds, work, request.out, request.images, request.which, request.data_dir, say=tell
            )
        else:
            shapes = candidates_lib.shapes(request.depths, request.stem, request.width, request.networks)
            found = candidates_lib.of_shapes(shapes, kinds, work, tell)

        def kept(row: Row) -> None:
            tell(one_line(row))
            rows.append(row)
            keep(rows, found, request.json)

        bench.ask(found, asked, request.settings(), kept)
    show(rows, console)
    left = [name for name in bench.TARGETS if not request.targets and name not in {row.target for row in rows}]
    if left:
        tell(f'not installed, so not asked: {", ".join(left)} (docs/guides/fpga_npu.md says how)')
    return rows


def keep(rows: Sequence[Row], found: Sequence[Candidate], file: Path | None) -> None:
    """Write the rows that there are beside the exports and into `file`."""
    for candidate in found:
        if candidate.export:
            beside(candidate, candidate.export, command(), rows)
    if file:
        files.write_json(file, {'command': command(), 'rows': [row.as_json() for row in rows]})


def command() -> str:
    """The command line of this process, as it can be given again."""
    return f'jointrd targets {" ".join(sys.argv[1:])}'


def beside(candidate: Candidate, out: Path, asked: str, rows: Sequence[Row]) -> None:
    """Write what targets said of an exported network, and of its baseline, into its directory `out` and model card."""
    own = [row for row in rows if row.network in (candidate.name, candidate.baseline)]
    held = {'command': asked, 'network': candidate.name, 'rows': [row.as_json() for row in own]}
    files.write_json(out / results.FILE, held)
    record = files.read_json(out / export.RECORD)
    files.write_atomically(out / 'README.md', '\n'.join([card.text(record), *section(held)]))


def section(held: dict[str, Any]) -> list[str]:
    """The part of a model card that says what targets make of the network."""
    rows = [results.row({}, row) for row in held['rows']]
    return [
        '## What targets say', '', f'By `{held["command"]}`. {results.LEGEND}', '', *results.markdown(rows), '',
    ]  # fmt: skip


def one_line(row: Row) -> str:
    """A row as one line, printed while other targets still run."""
    what = f'{row.target} {row.configuration}{" " + row.note if row.note else ""}, {row.network}'
    if not row.went:
        return f'{what}: {row.outcome}: {row.reason}'
    memory = f', {results.kib(row.memory_bytes)} KiB' if row.memory_bytes is not None else ''
    time = f', {results.milliseconds(row.time_ms)} ms' if row.time_ms is not None else ''
    top1 = f', top-1 {row.top1:.2f} %' if row.top1 is not None else ''
    return f'{what}: {row.outcome}{top1}{memory}{time}'


def show(rows: Sequence[Row], console: Console) -> None:
    """The table, and what its columns are."""
    console.print('\n'.join(['', *results.text(rows), '']), markup=False, soft_wrap=True)
    console.print(results.LEGEND, markup=False)


def bytes_of(text: str) -> int:
    """Bytes written as '1500KiB', '1.5 MiB', '2MB'.

    Raises:
      UserError: not such a size.
    """
    number = text.strip().lower().rstrip('ikmb')
    unit = text.strip().lower().removeprefix(number).strip()
    try:
        size = float(number) * UNITS[unit]
    except (ValueError, KeyError):
        size = float('nan')
    if not 0 < size < 2**50:
        raise UserError(f'--budget={text!r} is not a size such as 1500KiB or 1.5MiB')
    return int(size)


def residual(request: Request) -> tuple[str, Graph]:
    """The ResNet whose shortcuts are to be chosen: its name, and its graph (values do not matter)."""
    if request.shapes:
        if len(request.depths) != 1:
            raise UserError('--advise is for one network: name one of --shapes')
        image_shape, classes = savings.INPUTS[request.stem]
        depth = request.depths[0]
        network = create(f'resnet{depth}', stem_kind=request.stem, width=request.width, num_classes=classes)
        return f'R{depth}', candidates_lib.folded(network, image_shape)
    if len(request.runs) != 1:
        raise UserError('--advise is for one network: name one run')
    (path,) = request.runs
    if (Path(path) / export.RECORD).is_file():
        path = files.read_json(Path(path) / export.RECORD)['run']
    held = run_directory.load(path, request.which)
    network = held.network.clone(shortcuts='all', hidden=(), reparam='none', activation='relu')
    return Path(path).resolve().name, candidates_lib.folded(network, held.data.image_shape)


def advise(request: Request, budget: str | None, console: Console | None = None) -> advising.Advice:
    """Print and return the fewest blocks to make plain; print them for every other reachable peak too.

    If the request names targets, they are run on the ResNet, the advised network and the plain one, to confirm it.

    Raises:
      UserError: a bad request, or nothing fits the budget.
    """
    console = console or terminal.console()
    check(request)
    size = bytes_of(budget) if budget else None
    asked = bench.questions(request.targets, request.python_of) if request.targets else []
    models = [q.module.CONFIGURATIONS[q.configuration].get('predicted') for q in asked]
    model = next((model for model in models if model), DEFAULT_MODEL)
    name, graph = residual(request)
    advice = advising.advise(graph, model, size)
    table = Table(
        title=f'{name}: liveness, {model[0]}, {model[1]} byte(s) a value', box=box.SIMPLE, title_justify='left'
    )
    for column in ('plain blocks', 'peak KiB', 'saved', 'which (from 1)'):
        table.add_column(column, justify='left' if column.startswith('which') else 'right')
    for step in advising.steps(graph, model):
        which = ', '.join(str(block + 1) for block in step.plain) or 'none'
        saved = f'{100 * (1 - step.peak / step.full):.0f} %'
        table.add_row(str(len(step.plain)), results.kib(step.peak), saved, which)
    console.print(table)
    tell: Callable[[str], None] = lambda text: console.print(text, markup=False, soft_wrap=True)  # noqa: E731
    goal = f'for {budget}' if budget else 'for the lowest peak that there is'
    blocks = ', '.join(str(block + 1) for block in advice.plain) or 'none'
    tell(f'{goal}: make {len(advice.plain)} of {advice.shortcuts.count(",") + 1} blocks plain ({blocks}): '
         f'{advice.full / 1024:.0f} to {advice.peak / 1024:.0f} KiB of feature maps')  # fmt: skip
    tell(f'--config.model.shortcuts={advice.shortcuts}')
    if asked:
        bare = advising.without(graph, range(graph.operators().get('add', 0)))
        made = {name: {'ResNet': graph, 'advised': advice.graph, 'plain': bare}}
        kinds = list(dict.fromkeys(question.takes for question in asked))
        with files.temporary_directory(prefix='jointrd-targets-') as directory:
            found = candidates_lib.of_shapes(made, kinds, directory, tell)
            show(bench.ask(found, asked, request.settings(), lambda row: tell(one_line(row))), console)
    return advice

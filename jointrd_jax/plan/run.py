"""Start the compiler in a process of its own, target by target, and show what it found (`jointrd plan`)."""

import json
import os
import re
import selectors
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import ml_collections
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from jointrd_jax import config as config_lib
from jointrd_jax.errors import Interrupted, UserError
from jointrd_jax.plan import chips, estimate
from jointrd_jax.runs import run_directory
from jointrd_jax.system import files, signals

WORKER = 'jointrd_jax.plan.worker'
ROOM_BYTES = 64 << 20  # for the compiler's temporary files
ANSWER_SECONDS = 0.2  # how often a signal is looked for
KILLED = (-9, 137)
NO_MEMORY = ('bad_alloc', 'MemoryError', 'Cannot allocate memory')  # in what a compiler without memory says
# In what JAX or a compiler says of programs that it cannot read, or of a plug-in of another version.
MISFIT = ('Failed to parse using StableHLO', 'PJRT C API version', 'not compatible with the installed jaxlib')
# What the compiling process must not inherit: where JAX runs, and flags for a program that runs here.
ENVIRONMENT = {'JAX_PLATFORMS': 'cpu', 'TPU_SKIP_MDS_QUERY': '1', 'ALLOW_MULTIPLE_LIBTPU_LOAD': '1', 'XLA_FLAGS': ''}


class Line:
    """Shows what is being done: in one live line on a terminal, in plain lines elsewhere; on standard error."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.progress = Progress(
            SpinnerColumn(), TextColumn('{task.description}'), TimeElapsedColumn(), console=self.console, transient=True
        )
        self.task = None

    @contextmanager
    def shown(self) -> Iterator['Line']:
        if not self.console.is_terminal:
            yield self
            return
        with self.progress:
            self.task = self.progress.add_task('starting')
            yield self

    def say(self, text: str) -> None:
        if self.task is None:
            print(text, file=sys.stderr, flush=True)
        else:
            self.progress.reset(self.task, description=text)


def answers(process: subprocess.Popen) -> Iterator[dict[str, Any]]:
    """The JSON objects that a worker writes, until it ends.

    Raises:
      Interrupted: a signal asked for a stop; the worker is ended.
    """
    assert process.stdout
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if signals.requested():
                process.kill()
                raise Interrupted(f'stopped by {signals.requested()}; nothing was written')
            if selector.select(ANSWER_SECONDS):
                line = process.stdout.readline()
                if not line:
                    return
                yield json.loads(line)


def version(package: str) -> str:
    """The installed version of a package; '' if there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ''


def ended_badly(status: int, said: str, target: chips.Target) -> UserError:
    """The error for a worker that gave up without saying why."""
    if status in KILLED or any(mark in said for mark in NO_MEMORY):
        return UserError(
            f'--topology={target.name}: the compiler was ended, most likely because this machine ran out of memory; '
            'close other programs, or plan on a machine with more'
        )
    if 'No space left' in said:
        return UserError(
            f'--topology={target.name}: no room for the compiler in {tempfile.gettempdir()}; free some, or set TMPDIR'
        )
    if any(mark in said for mark in MISFIT):
        plugin, extra = {'tpu': ('libtpu', 'plan-tpu'), 'cuda': ('jax-cuda12-plugin', 'plan-gpu')}[target.chip.platform]
        return UserError(
            f'--topology={target.name}: {plugin} {version(plugin)} does not fit JAX {version("jax")}; '
            f"pip install --upgrade 'jointrd_jax[{extra}]' brings the one that does"
        )
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ['no output']
    last = next((line for line in lines if re.match(r'F\d{4} ', line)), lines[-1])  # F: libtpu's fatal errors
    return UserError(f'--topology={target.name}: the compiler ended with status {status}: {last[:300]}')


def check_room() -> None:
    """Raises UserError where there is no room for temporary files."""
    directory = tempfile.gettempdir()
    if (free := shutil.disk_usage(directory).free) < ROOM_BYTES:
        raise UserError(
            f'{free >> 20} MiB are free in {directory}, too little for the compiler (it needs {ROOM_BYTES >> 20} MiB); '
            'free some, or set TMPDIR to another directory'
        )


def compile_for(
    config: ml_collections.ConfigDict, target: chips.Target, *, effort: str, largest: bool, say: Any
) -> dict[str, Any]:
    """What a worker finds of `config` on `target`: {'about', 'programs', 'largest'}.

    Raises:
      UserError: the worker could not compile it.
      Interrupted: a signal asked for a stop.
    """
    found: dict[str, Any] = {'about': {}, 'programs': [], 'largest': None}
    with files.temporary_directory() as directory, tempfile.TemporaryFile('w+') as log:
        files.write_json(directory / run_directory.CONFIG, config_lib.flatten(config))
        process = subprocess.Popen(
            [sys.executable, '-m', WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            env={**os.environ, **ENVIRONMENT},
        )  # fmt: skip
        try:
            request = {'config': str(directory), 'topology': target.name, 'effort': effort, 'largest': largest}
            print(json.dumps(request), file=process.stdin, flush=True)  # left open: the worker ends when it closes
            for answer in answers(process):
                if 'error' in answer:
                    raise UserError(answer['error'])
                if 'doing' in answer:
                    say(f'{target.name}: {answer["doing"]}')
                elif 'program' in answer:
                    found['programs'].append(answer['program'])
                else:
                    found |= answer
            status = process.wait()
        finally:
            process.kill()
            process.wait()
        if status:
            log.seek(0)
            raise ended_badly(status, log.read(), target)
    return found


def run(
    config: ml_collections.ConfigDict,
    topologies: list[str],
    *,
    effort: str = 'quick',
    largest: bool = False,
    out: str | Path = '',
) -> dict[str, Any]:
    """Compile the recipe for every topology, print the table, and return its figures as JSON values.

    Args:
      config: the recipe.
      topologies: such as v5e:4x4 and h100x8, see `chips`.
      effort: 'quick' or 'full', as much as the compiler does for a run; minutes for each program of a TPU.
      largest: also look for the largest batch that fits.
      out: a file for the figures; '': none.

    Raises:
      UserError: bad input, or a compiler that is missing, does not fit JAX or fails.
      Interrupted: a signal asked for a stop.
    """
    config_lib.validate(config)
    targets = [chips.parse(text) for text in topologies]
    if not targets:
        raise UserError(f'--topology is empty; there are {chips.choices()}')
    for target in targets:
        for field in ('batch_size', 'eval_batch_size'):
            if config[field] % target.count:
                raise UserError(
                    f'config.{field}={config[field]} is not a multiple of the {target.count} chips of {target.name}'
                )
    if out and not Path(out).absolute().parent.is_dir():
        raise UserError(f'--json: the directory of {out} does not exist')
    check_room()
    plans = []
    with Line().shown() as line:
        for target in targets:
            found = compile_for(config, target, effort=effort, largest=largest, say=line.say)
            plans.append(estimate.of_target(config, target, found))
    result = {'config': config_lib.flatten(config), 'effort': effort, 'targets': plans}
    print(estimate.table(config, plans))
    for plan in plans:
        for warning in plan['warnings']:
            print(f'warning: {plan["topology"]}: {warning}')
    if out:
        files.write_json(Path(out), result)
    return result

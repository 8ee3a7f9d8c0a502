"""Run targets on networks: every pair in a process of its own, so that a crash or a time-out costs one row only."""

import errno
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

from jointrd_jax.deploy import artifacts, candidates as candidates_lib, results
from jointrd_jax.deploy.candidates import Candidate
from jointrd_jax.deploy.results import Row
from jointrd_jax.errors import UserError, choice_error
from jointrd_jax.system import files, signals

TARGETS = ('vela', 'tflite_micro', 'rknn', 'openvino', 'ncnn', 'mnn', 'tvm', 'iree', 'hls4ml')
WORKER = Path(__file__).parent / 'targets' / 'worker.py'
ROOM = ('no space left', 'disk quota exceeded', 'errno 28')  # how tools say that a disk is full


class Question(NamedTuple):
    """A target in one configuration, and the Python that has its tool."""

    target: str
    configuration: str
    module: ModuleType
    python: str

    @property
    def takes(self) -> str:
        return self.module.CONFIGURATIONS[self.configuration]['takes']


class Settings(NamedTuple):
    """How targets are run.

    Attributes:
      pythons: {target: the Python that has its tool}, where it is not this one.
      timeout: seconds after which a tool counts as hanging and is killed.
      rounds: of timing, where a target is timed on this machine.
      any_version: take a tool also in a version whose figures were not checked.
    """

    pythons: Mapping[str, str] = MappingProxyType({})
    timeout: float = 600
    rounds: int = 21
    any_version: bool = False


def module_of(target: str) -> ModuleType:
    return importlib.import_module(f'jointrd_jax.deploy.targets.{target}')


def questions(asked: Sequence[str], pythons: Mapping[str, str]) -> list[Question]:
    """Each 'TARGET' or 'TARGET/PART' (configurations with PART in their name) as questions; none asked: all installed.

    Raises:
      UserError: no such target or configuration, or no target is installed at all.
    """
    for target in pythons:
        if target not in TARGETS:
            raise choice_error('python', target, TARGETS)
    found: dict[tuple[str, str], Question] = {}
    for text in asked or [target for target in TARGETS if is_installed(target, pythons)]:
        target, _, part = text.partition('/')
        if target not in TARGETS:
            raise choice_error('target', target, TARGETS)
        module = module_of(target)
        names = [name for name in module.CONFIGURATIONS if part in name]
        if not names:
            raise UserError(f'{target} has no configuration {part!r}; it has {", ".join(module.CONFIGURATIONS)}')
        for name in names:
            found[target, name] = Question(target, name, module, pythons.get(target, sys.executable))
    if not found:
        raise UserError("no target's tool is installed: pip install 'jointrd_jax[targets]', or name --targets")
    return list(found.values())


def is_installed(target: str, pythons: Mapping[str, str]) -> bool:
    from jointrd_jax.deploy.targets.worker import installed

    return target in pythons or installed(module_of(target)) is not None


def ask(
    candidates: Sequence[Candidate],
    asked: Sequence[Question],
    settings: Settings,
    say: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """Every candidate on every target asked, target by target; `say` gets each row as soon as it is there."""
    rows: list[Row] = []
    by_name = {candidate.name: candidate for candidate in candidates}
    for question in asked:
        for candidate in candidates:
            new = list(rows_of(question, candidate, by_name.get(candidate.baseline or ''), settings))
            rows += new
            results.against(rows, {name: c.baseline or '' for name, c in by_name.items()})
            for row in new:
                say(row)
    return rows


def rows_of(question: Question, candidate: Candidate, base: Candidate | None, settings: Settings) -> Iterator[Row]:
    """What one target says of one network: a row, and one more where the tool has a remedy for its failure."""
    known: dict[str, Any] = {
        'target': question.target,
        'configuration': question.configuration,
        'network': candidate.name,
        'takes': question.takes,
    }
    if question.takes not in candidate.artifacts:
        kind = artifacts.KINDS[question.takes]
        formats = f'--format {kind.format}' + (' --int8' if kind.is_int8 else '')
        yield results.row(known, {'outcome': 'no artifact', 'reason': f'export with {formats}'})
        return
    chosen = question.module.CONFIGURATIONS[question.configuration]
    baseline = base.artifacts.get(question.takes) if base else None
    request = {
        'artifact': str(candidate.artifacts[question.takes].resolve()),
        'baseline': str(baseline.resolve()) if baseline else None,
        'configuration': chosen,
        'images': str(candidate.images) if candidate.images else None,
        'image_shape': list(candidate.graph.image_shape),
        'rounds': settings.rounds,
        'any_version': settings.any_version,
        'int8_input': candidate.scales.get('int8_input'),
        'int8_output': candidate.scales.get('int8_output'),
    }
    said = in_process(question, request, settings.timeout)
    remedy = said.pop('remedy', None)
    yield finished(known, said, candidate, chosen)
    if remedy:
        yield finished(known, {'tool': said.get('tool'), **remedy}, candidate, chosen)


def finished(known: dict[str, Any], said: dict[str, Any], candidate: Candidate, chosen: dict[str, Any]) -> Row:
    row = results.row(known, said)
    if row.memory_bytes is not None:
        row.predicted_bytes = candidates_lib.predicted(candidate.graph, chosen.get('predicted'))
    return row


def in_process(question: Question, request: dict[str, Any], timeout: float) -> dict[str, Any]:
    """The target's answer, or the reason why there is none."""
    try:
        with files.temporary_directory(prefix='jointrd-target-') as directory:
            asked, answer, log = (directory / name for name in ('request.json', 'answer.json', 'log.txt'))
            work = directory / 'work'
            work.mkdir()
            asked.write_text(json.dumps({**request, 'directory': str(work)}))
            command = [question.python, str(WORKER), str(question.module.__file__), str(asked), str(answer)]
            with log.open('wb') as output:
                # A tool may install nothing (MNN's tries to).
                environment = {**os.environ, 'PYTHONWARNINGS': 'ignore', 'PIP_NO_INDEX': '1'}
                environment.pop('PYTHONPATH', None)
                process = subprocess.Popen(
                    command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=work,
                    env=environment, start_new_session=True,
                )  # fmt: skip
                try:
                    with signals.killed_if_ended(process.pid):
                        status = process.wait(timeout)
                except subprocess.TimeoutExpired:
                    return {'outcome': 'hangs', 'reason': f'no answer after {timeout:.0f} s (--timeout)'}
                finally:
                    end(process)
            said = [line.strip() for line in log.read_text(errors='replace').splitlines() if line.strip()]
            if status == 0 and answer.exists():
                return checked(json.loads(answer.read_text()))
            return failure(status, said)
    except FileNotFoundError as error:
        return {'outcome': 'not installed', 'reason': f'{error.filename} is not here (--python {question.target}=...)'}
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return {'outcome': 'no room' if full else 'fails', 'reason': str(error)}


def checked(said: Any) -> dict[str, Any]:
    """The answer `said`; or, where it has no outcome, one whose outcome is 'says nothing'."""
    if not isinstance(said, dict) or 'outcome' not in said:
        return {'outcome': 'says nothing', 'reason': 'its answer holds no figures'}
    return said


def failure(status: int, said: list[str]) -> dict[str, Any]:
    """Why a process ended without an answer: a signal, a full disk, or the last line of its standard error."""
    last = said[-1] if said else None
    if any(word in (last or '').lower() for word in ROOM):
        return {'outcome': 'no room', 'reason': last}
    if status < 0:
        name = signal.Signals(-status).name
        return {'outcome': 'crashes', 'reason': f'{name}' + (f' after: {last}' if last else ', no output')}
    if status == 0 or not last:
        return {'outcome': 'says nothing', 'reason': f'it ended with status {status} and no answer'}
    return {'outcome': 'fails', 'reason': last}


def end(process: subprocess.Popen) -> None:
    """End a tool with all that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    process.wait()

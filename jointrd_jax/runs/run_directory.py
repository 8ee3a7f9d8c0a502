"""A run directory: what a training run (or an import of weights) leaves, and how others read it.

config.json      the config, flat
metrics.jsonl    a line per epoch
summary.json     the result; written when the run is finished
correct.npy      which evaluation images the last evaluation got right
not_finite.json  {'step', 'term'} of the loss that ended the run; gone as soon as the run is continued
checkpoints/     see `checkpoint`
teacher/         the run directory of the teacher, if this run trained it first
"""

import contextlib
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from jointrd_jax import config as config_lib
from jointrd_jax.data.description import DataDescription
from jointrd_jax.errors import UserError
from jointrd_jax.method.networks import Network, Variables, deployed
from jointrd_jax.runs import from_config, summary as summary_lib
from jointrd_jax.runs.checkpoint import Checkpoints
from jointrd_jax.runs.summary import SUMMARY, Summary
from jointrd_jax.runs.upgrade import upgraded
from jointrd_jax.system import buckets, files, runtime

CONFIG, METRICS, NOT_FINITE = 'config.json', 'metrics.jsonl', 'not_finite.json'
CORRECT = 'correct.npy'


class Run(NamedTuple):
    """A trained network with all that is needed to use it.

    Attributes:
      path: the run directory.
      config: of the run; its model.shortcuts and model.activation are those of `network`.
      network: its student (for procedure resnet, the ResNet), as it is deployed (see `networks.deployed`).
      variables: {'params', 'batch_stats'}, host arrays.
      data: what the network was trained on.
      summary: of the finished run, or None.
    """

    path: Path
    config: ml_collections.ConfigDict
    network: Network
    variables: Variables
    data: DataDescription
    summary: Summary | None


def digest(variables: Variables) -> str:
    """SHA-256 over parameters and running statistics: path, dtype, shape and bytes of each, in sorted order."""
    sha = hashlib.sha256()
    leaves = jax.tree_util.tree_flatten_with_path(variables)[0]
    for path, leaf in sorted(((jax.tree_util.keystr(p), leaf) for p, leaf in leaves), key=lambda pair: pair[0]):
        array = np.asarray(leaf)
        sha.update(f'{path} {array.dtype} {array.shape}\n'.encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


@contextlib.contextmanager
def removed_if_refused(path: Path) -> Iterator[None]:
    """Remove a new run's config, and its local directory, if it is refused before it has anything else.

    Only for the process that holds the directory's lock. The exception is raised again.
    """
    is_new = not (path / CONFIG).is_file()
    try:
        yield
    except UserError:
        if is_new and {entry.name for entry in path.iterdir()} <= {CONFIG, files.LOCK}:
            (path / CONFIG).unlink(missing_ok=True)
            if not buckets.is_remote(path):
                (path / files.LOCK).unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # a mount
                    path.rmdir()
        raise


def read_config(path: str | Path) -> ml_collections.ConfigDict:
    """The config of the run at `path`.

    Raises:
      UserError: no run there, or its config.json is not a config.
    """
    path = buckets.place(path)
    with buckets.answering(path):
        there = (path / CONFIG).is_file()
    if not there:
        raise UserError(f'{path} is not a run directory: it has no {CONFIG}')
    flat = files.read_json(path / CONFIG)
    config = config_lib.default()
    try:
        for name, value in upgraded(flat).items():
            node = config
            *groups, leaf = name.split('.')
            for group in groups:
                node = node[group]
            node[leaf] = tuple(value) if isinstance(value, list) else value
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f'{path / CONFIG} is not a config of this version: {error}') from error
    try:
        config_lib.validate(config)
    except UserError as error:
        raise UserError(f'{path / CONFIG}: {error}') from error
    return config


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; none while there is no such file.

    Raises:
      UserError: a line, other than a torn last one, is not {name: number} with an epoch.
    """
    lines = files.read_text(path).splitlines() if path.is_file() else []
    metrics = []
    for i, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
            if i == len(lines):
                break
        numbers = line if isinstance(line, dict) else {}
        if not isinstance(numbers.get('epoch'), int) or not all(isinstance(n, int | float) for n in numbers.values()):
            raise UserError(f'{path} is damaged: line {i} is not a line of metrics')
        metrics.append(numbers)
    return metrics


def write_correct(path: Path, correct: np.ndarray) -> None:
    """Write what `read_correct` reads."""
    blob = io.BytesIO()
    np.save(blob, correct.astype(np.int8))
    files.write_atomically(buckets.place(path) / CORRECT, blob.getvalue())


def read_correct(path: Path) -> np.ndarray | None:
    """[evaluation images] of the run at `path`: 1 where its last evaluation was right, 0 where not, -1 unread images.

    None where the run kept none.

    Raises:
      UserError: the file is damaged.
    """
    path = buckets.place(path) / CORRECT
    with buckets.answering(path):
        if not path.is_file():
            return None
        blob = path.read_bytes()
    try:
        correct = np.load(io.BytesIO(blob), allow_pickle=False)
        if correct.dtype != np.int8 or correct.ndim != 1 or not np.isin(correct, (-1, 0, 1)).all():
            raise ValueError('other numbers')
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f'{path} is damaged: it does not say which images were right') from error
    return correct


def load(path: str | Path, which: str = 'last') -> Run:
    """The network of the run at `path`: its 'last' weights or its 'best'.

    Only the newest checkpoint is read: what is used elsewhere must be what the run's summary describes.

    Raises:
      UserError: no run, no checkpoint, or a damaged one; the message says which and where.
    """
    path = buckets.place(path)
    config, summary = read_config(path), summary_lib.read(path)
    checkpoints = Checkpoints(path)
    step = max(checkpoints.steps(), default=None)
    if step is None:
        raise UserError(f'{path} has no finished checkpoint; run its training first')
    if fault := checkpoints.damage(step):
        again = f'delete {checkpoints.directory / str(step)}' + (f' and {path / SUMMARY}' if summary else '')
        raise UserError(f'{fault}; to have it made again, {again} and run the training command once more')
    data = DataDescription.from_json(checkpoints.meta(step).get('data'), checkpoints.directory / str(step))
    network = from_config.student(config, len(data.classes))
    template = runtime.template(network.shapes(data.image_shape))
    item = 'student' if which == 'last' else 'best'
    stored = jax.tree.map(np.asarray, checkpoints.restore(step, {item: template})[item])
    trained, (network, variables) = network, deployed(network, stored)
    if network.shortcuts != trained.shortcuts:
        config.model.shortcuts = network.shortcut_choices
    if network.activation != trained.activation:
        config.model.update(activation=network.activation, slope=0.0, slope_layers=0)
    recorded = summary and summary.student_digest
    # Summaries have been written that record the digest of `stored`.
    if which == 'last' and recorded and recorded not in (digest(variables), digest(stored)):
        raise UserError(
            f'the weights of step {step} in {path} are not those that its {SUMMARY} records (student_digest); '
            'the checkpoint or the summary was replaced'
        )
    return Run(path, config, network, variables, data, summary)


def save(
    path: str | Path,
    config: ml_collections.ConfigDict,
    variables: Variables,
    data: DataDescription,
    summary: Summary,
) -> None:
    """Write a run directory that holds a network which was not trained here (imported weights).

    Raises:
      UserError: `path` holds something already.
    """
    with files.atomic_directory(buckets.place(path), last=SUMMARY) as temporary:
        files.write_json(temporary / CONFIG, config_lib.flatten(config))
        with contextlib.closing(Checkpoints(temporary, keep=1)) as checkpoints:
            checkpoints.save(0, {'student': variables, 'best': variables}, {'data': data.to_json()})
        summary.write(temporary)

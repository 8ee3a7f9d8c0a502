"""summary.json: the result of a finished run, or of an import of weights."""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jointrd_jax.errors import UserError
from jointrd_jax.system import buckets, files, forms

SUMMARY = 'summary.json'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """The result of a run. Accuracies are in percent; None, or the default, where something is unknown.

    Attributes:
      procedure: config.procedure.
      dataset: its name, with its version where it has one.
      eval_images: [dataset, how many]: what the accuracies are of.
      model: what the network is called.
      depth: layers with weights on its main path.
      shortcuts: of its blocks, comma-separated where they differ.
      taps: block boundaries of the mixed paths.
      skipped_images: bad images passed over, on all hosts.
      steps: taken in all.
      teacher: where a frozen teacher came from.
      teacher_top1: the teacher's, on the same images.
      wall_seconds: over all sessions.
      images_per_second: of the last epoch.
      input_late: of the last epoch's calls, the share (0 to 1) that waited for input.
      rollbacks: {'step', 'term', 'to'} of each loss that was not finite and led to one.
      skipped_steps: those that were not taken since a loss was not finite.
      changes_on_resume: what was different when the run was continued, and was allowed.
      student_digest: see `run_directory.digest`.
      devices: how many of which kind.
      versions: of packages.
      origin: the file of imported weights.
      origin_sha256: its digest.
      shortcuts_removed_from: the digest of the network that this one is equivalent to.
    """

    procedure: str
    wall_seconds: float
    dataset: str | None = None
    eval_images: list[Any] | None = None
    model: str | None = None
    depth: int | None = None
    stage_sizes: list[int] | None = None
    width: int | None = None
    shortcuts: str | None = None
    reparam: str | None = None
    activation: str | None = None
    slope: float | list[float] | None = None
    taps: list[int] | None = None
    skipped_images: int = 0
    seed: int = 0
    epochs: int = 0
    steps: int = 0
    best_top1: float | None = None
    best_epoch: int | None = None
    last_top1: float | None = None
    last_top5: float | None = None
    teacher: str | None = None
    teacher_top1: float | None = None
    images_per_second: float | None = None
    input_late: float | None = None
    rollbacks: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    skipped_steps: int = 0
    changes_on_resume: list[str] = dataclasses.field(default_factory=list)
    student_digest: str | None = None
    devices: str | None = None
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    origin: str | None = None
    origin_sha256: str | None = None
    shortcuts_removed_from: str | None = None

    def write(self, run: Path) -> None:
        """Write summary.json of the run directory `run`."""
        files.write_json(run / SUMMARY, dataclasses.asdict(self))


TEXT, NUMBER, COUNT = (forms.optional(form) for form in (forms.is_text, forms.is_number, forms.is_count))
REQUIRED = ('procedure', 'wall_seconds')
COUNTS = forms.optional(forms.is_list(forms.is_count))
FORMS: dict[str, Callable[[Any], bool]] = {
    'procedure': forms.is_text,
    'wall_seconds': forms.is_number,
    **dict.fromkeys(('dataset', 'model', 'shortcuts', 'reparam', 'activation', 'teacher', 'student_digest'), TEXT),
    **dict.fromkeys(('devices', 'origin', 'origin_sha256', 'shortcuts_removed_from'), TEXT),
    **dict.fromkeys(('best_top1', 'last_top1', 'last_top5', 'teacher_top1', 'images_per_second', 'input_late'), NUMBER),
    **dict.fromkeys(('depth', 'width', 'best_epoch'), COUNT),
    **dict.fromkeys(('skipped_images', 'skipped_steps', 'seed', 'epochs', 'steps'), forms.is_count),
    **dict.fromkeys(('stage_sizes', 'taps'), COUNTS),
    'slope': lambda value: NUMBER(value) or forms.is_list(forms.is_number)(value),
    'eval_images': forms.optional(lambda value: isinstance(value, list) and len(value) == 2),
    'rollbacks': forms.is_list(lambda value: isinstance(value, dict)),
    'changes_on_resume': forms.is_list(forms.is_text),
    'versions': forms.is_texts,
}


def read(run: str | Path) -> Summary | None:
    """The summary of the run in the directory `run`; None while it is not finished.

    Fields that this version does not know are left out, those that it alone knows have their defaults.

    Raises:
      UserError: it is damaged.
    """
    path = buckets.place(run) / SUMMARY
    with buckets.answering(path):
        if not path.is_file():
            return None
    value = files.read_json(path)
    there = {
        name: form for name, form in FORMS.items() if name in REQUIRED or (isinstance(value, dict) and name in value)
    }
    try:
        return Summary(**forms.check(value, there, path, 'the summary'))
    except UserError as error:
        raise UserError(f'{error}; delete it and continue the run to have it written again') from error


def mean_and_spread(values: Sequence[float]) -> tuple[float, float] | None:
    """Mean and sample standard deviation (0 of a single value); None without values."""
    if not values:
        return None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0

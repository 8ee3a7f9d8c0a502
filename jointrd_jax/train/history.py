"""Results of a run so far, stored in its checkpoints so that a continued run has them."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

from jointrd_jax.errors import UserError
from jointrd_jax.system import forms

SKIPPED_STEPS = 'skipped_steps'  # in a line of metrics.jsonl: how many, where config.nan.action is 'skip'
FORMS: dict[str, Callable[[Any], bool]] = {
    'best_top1': forms.is_number,
    'best_epoch': forms.is_count,
    'last': forms.is_table,
    'lines': forms.is_list(forms.is_text),
    'gradient_samples': forms.is_list(forms.is_table),
    'rollbacks': forms.is_list(lambda v: isinstance(v, dict) and v.keys() == {'step', 'term', 'to'}),
    'changes': forms.is_list(forms.is_text),
    'bad': forms.is_list(forms.is_count),
    'images_per_second': forms.is_number,
    'seconds': forms.is_number,
}


@dataclasses.dataclass
class History:
    """The results of a run up to a step.

    Attributes:
      best_top1: of the best evaluation, percent (-1: none yet).
      best_epoch: the epoch of the best evaluation (0: none yet).
      last: {'step'} of the last finished epoch, with its accuracies and speed.
      lines: of metrics.jsonl, as text.
      gradient_samples: measurements of gradients in the epoch under way (see `gradients.Probe`).
      rollbacks: {'step', 'term', 'to'} of each loss that was not finite.
      changes: what was different when the run was continued, and was allowed.
      bad: numbers of the bad images passed over.
      images_per_second: in the last finished epoch.
      seconds: wall time of earlier sessions.
    """

    best_top1: float = -1.0
    best_epoch: int = 0
    last: dict[str, Any] = dataclasses.field(default_factory=dict)
    lines: list[str] = dataclasses.field(default_factory=list)
    gradient_samples: list[dict[str, float]] = dataclasses.field(default_factory=list)
    rollbacks: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    changes: list[str] = dataclasses.field(default_factory=list)
    bad: list[int] = dataclasses.field(default_factory=list)
    images_per_second: float = 0.0
    seconds: float = 0.0

    @classmethod
    def from_json(cls, value: Any, where: object) -> 'History':
        """The history in a checkpoint's metadata (`dataclasses.asdict` of one).

        Raises:
          UserError: `value` is not one; the message begins with `where`.
        """
        if not isinstance(value, dict) or value.keys() != {field.name for field in dataclasses.fields(cls)}:
            raise UserError(f'{where} does not hold the history of a run of this version')
        forms.check(value, FORMS, where, 'the history of its run')
        return cls(**value)

    def at_end_of(self, step: int) -> bool:
        """Whether the epoch that ends with `step` is finished: evaluated if that was due, and its line written."""
        return self.last.get('step') == step

    def skipped_steps(self) -> int:
        """Steps of the finished epochs that were skipped since a loss was not finite."""
        return sum(json.loads(line).get(SKIPPED_STEPS, 0) for line in self.lines)

    def add_epoch(self, line: dict[str, Any], accuracies: dict[str, float]) -> dict[str, Any]:
        """Finish an epoch: return `line` ({'epoch', 'step', ...}) with its accuracies, if it was evaluated."""
        line = {**line, **accuracies}
        if self.best_epoch:
            line['best_top1'] = self.best_top1
        line['images_per_second'] = self.images_per_second
        kept = {k: v for k, v in line.items() if k.endswith(('top1', 'top5', 'per_second', 'input_late'))}
        self.last = {'step': line['step'], **kept}
        self.lines = [*self.lines, json.dumps(line)]
        return line

"""Results of a run so far, stored in its checkpoints so that a continued run has them."""

import dataclasses
import json
from typing import Any

from jointrd_jax.errors import UserError


@dataclasses.dataclass
class History:
    """The results of a run up to a step.

    Attributes:
      best_top1: of the best evaluation, percent (-1: none yet).
      best_epoch: the epoch of the best evaluation (0: none yet).
      last: {'step'} of the last finished epoch, with its accuracies.
      lines: of metrics.jsonl, as text.
      looks: measurements of gradients in the epoch under way (see `gradients.Probe`).
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
    looks: list[dict[str, float]] = dataclasses.field(default_factory=list)
    rollbacks: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    changes: list[str] = dataclasses.field(default_factory=list)
    bad: list[int] = dataclasses.field(default_factory=list)
    images_per_second: float = 0.0
    seconds: float = 0.0

    @classmethod
    def from_json(cls, value: Any, where: object) -> 'History':
        """The history in a checkpoint's metadata (`dataclasses.asdict` of one).

        Raises:
          UserError: it is none; the message begins with `where`.
        """
        if not isinstance(value, dict) or value.keys() != {field.name for field in dataclasses.fields(cls)}:
            raise UserError(f'{where} does not hold the history of a run of this version')
        for name, default in dataclasses.asdict(cls()).items():
            of = {'lines': str, 'changes': str, 'bad': int}.get(name, dict) if isinstance(default, list) else object
            kind = (int, float) if isinstance(default, float) else type(default)
            entries = value[name] if isinstance(value[name], list) else ()
            if not isinstance(value[name], kind) or not all(isinstance(entry, of) for entry in entries):
                raise UserError(f'{where}: {name!r} in the history of its run is damaged')
        return cls(**value)

    def at_end_of(self, step: int) -> bool:
        """Whether the epoch that ends with `step` is finished: evaluated if that was due, and its line written."""
        return self.last.get('step') == step

    def add_epoch(self, line: dict[str, Any], accuracies: dict[str, float]) -> dict[str, Any]:
        """Finish an epoch: `line` ({'epoch', 'step', ...}) completed by what it was evaluated to, if it was."""
        line = {**line, **accuracies}
        if self.best_epoch:
            line['best_top1'] = self.best_top1
        line['images_per_second'] = self.images_per_second
        kept = {k: v for k, v in line.items() if k.endswith(('top1', 'top5', 'per_second'))}
        self.last = {'step': line['step'], **kept}
        self.lines = [*self.lines, json.dumps(line)]
        return line

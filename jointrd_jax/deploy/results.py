"""The answer of a target about a network, in one form for all targets, and as tables."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

FILE = 'targets.json'  # beside the artifacts that it describes
WENT = 'goes through'
KIB = 1024


@dataclass
class Row:
    """One network on one target in one configuration; None where the target does not say.

    Attributes:
      target, configuration: which.
      network: which, as the user named it.
      outcome: `WENT`, or what happened instead: 'fails', 'not installed', 'other version', 'hangs', 'crashes',
        'says nothing', 'no artifact', 'no room'.
      reason: the tool's own, or what to do.
      tool: its package and version.
      command: by which the tool can be run on the artifact alone.
      takes: the kind of artifact that goes in.
      top1: percent, over `images` test images; `agreement`: share of them on which the checkpoint says the same;
        `difference`: largest of the logits to the checkpoint's, relative.
      memory_bytes, memory_kind: for feature maps, and which memory that is; `memories`: all that is reported.
      predicted_bytes: the liveness model's figure for `memory_bytes`.
      time_ms, time_kind: per image, and whether it is an estimate or measured.
      faster: time of the baseline over this one's; `faster_quartiles` where both were timed in pairs.
      saved: share of the baseline's `memory_bytes` that is not needed.
      accelerated: share of the operators that run on the accelerator.
      cycles, traffic_bytes: by part, per image.
      parts: what a dataflow design consists of.
      seconds: that the tool took.
    """

    target: str
    configuration: str
    network: str
    outcome: str = WENT
    reason: str | None = None
    tool: str | None = None
    command: str | None = None
    note: str | None = None
    takes: str | None = None
    images: int | None = None
    top1: float | None = None
    agreement: float | None = None
    difference: float | None = None
    memory_bytes: int | None = None
    memory_kind: str | None = None
    memories: dict[str, int] = field(default_factory=dict)
    predicted_bytes: int | None = None
    time_ms: float | None = None
    time_kind: str | None = None
    faster: float | None = None
    faster_quartiles: list[float] | None = None
    saved: float | None = None
    accelerated: float | None = None
    cycles: dict[str, int] = field(default_factory=dict)
    traffic_bytes: dict[str, int] = field(default_factory=dict)
    parts: dict[str, int] = field(default_factory=dict)
    seconds: float | None = None

    @property
    def went(self) -> bool:
        return self.outcome == WENT

    def as_json(self) -> dict[str, Any]:
        """A row's fields as a dict, without those that are None."""
        return {name: value for name, value in asdict(self).items() if value not in (None, {}, [])}


FIELDS = {f.name for f in fields(Row)}


def row(known: dict[str, Any], said: dict[str, Any]) -> Row:
    """A row made of the fields in `known` and of those in `said`, a tool's answer, that a row has."""
    return Row(**{name: value for name, value in {**said, **known}.items() if name in FIELDS})


def against(rows: Sequence[Row], baselines: dict[str, str]) -> None:
    """Fill in `faster` and `saved` from the row of each network's baseline on the same target and configuration."""
    found = {
        (r.target, r.configuration, r.network): r for r in rows if r.went and not (r.note or '').startswith('with')
    }
    for r in rows:
        base = found.get((r.target, r.configuration, baselines.get(r.network, '')))
        if not r.went or base is None or base is r:
            continue
        if r.faster is None and r.time_ms and base.time_ms:
            r.faster = base.time_ms / r.time_ms
        elif r.faster is None and r.cycles.get('total') and base.cycles.get('total'):
            r.faster = base.cycles['total'] / r.cycles['total']
        if base.memory_bytes and r.memory_bytes is not None:
            r.saved = 1 - r.memory_bytes / base.memory_bytes


def kib(size: float | None) -> str:
    return '' if size is None else f'{size / KIB:.0f}' if size >= 10 * KIB else f'{size / KIB:.1f}'


def number(value: float | None, digits: int = 2) -> str:
    return '' if value is None else f'{value:.{digits}f}'


def milliseconds(value: float | None) -> str:
    return '' if value is None else f'{value:.3g}' if value < 100 else f'{value:.0f}'


COLUMNS = ('target', 'configuration', 'network', 'top-1 %', 'KiB', 'predicted', 'saved', 'ms', 'faster', 'NPU', 'MB')


def cells(r: Row) -> list[str]:
    """A row as text, one for each of `COLUMNS`; a row that did not go through says why instead of figures."""
    if not r.went:
        return [r.target, r.configuration, r.network, f'{r.outcome}: {r.reason}', *[''] * (len(COLUMNS) - 4)]
    traffic = sum(r.traffic_bytes.values()) / 1e6 if r.traffic_bytes else None
    return [
        r.target, r.configuration, r.network, number(r.top1), kib(r.memory_bytes), kib(r.predicted_bytes),
        '' if r.saved is None else f'{100 * r.saved:.0f} %', milliseconds(r.time_ms), number(r.faster),
        '' if r.accelerated is None else f'{100 * r.accelerated:.0f} %', number(traffic, 1),
    ]  # fmt: skip


def used(rows: Sequence[Row]) -> list[int]:
    """Numbers of the columns that any of the rows has something for."""
    table = [cells(r) for r in rows]
    return [i for i in range(len(COLUMNS)) if i < 4 or any(line[i] for line in table)]


def markdown(rows: Sequence[Row]) -> list[str]:
    """The rows as lines of a Markdown table."""
    shown = used(rows)
    lines = [[COLUMNS[i] for i in shown], ['---'] * len(shown)]
    for r in rows:
        said = cells(r)
        said[1] += f' ({r.note})' if r.note else ''
        lines.append([said[i] for i in shown])
    return [f'| {" | ".join(text.replace("|", "/") for text in line)} |' for line in lines]


LEGEND = (
    'KiB: memory of feature maps (Vela: SRAM; TFLite-Micro: the head of its arena; RKNN: internal memory); predicted: '
    'the same by liveness. saved, faster: against the ResNet (RKNN: by cycles). ms: estimates of NPU compilers; '
    'of OpenVINO, MNN, ncnn and IREE the CPU time of one pinned thread of this machine. NPU: share of the operators '
    'that run on it. MB: moved over all memories for one image.'
)


def text(rows: Sequence[Row]) -> list[str]:
    """The rows as lines for a terminal: under each target and configuration one for each network."""
    shown = [i for i in used(rows) if i > 1]
    lines = {id(row): [cells(row)[i] for i in shown] for row in rows}
    widths = [
        max(len(COLUMNS[i]), *(len(lines[id(row)][k]) for row in rows if row.went or not k), 0)
        for k, i in enumerate(shown)
    ]

    def aligned(parts: Sequence[str]) -> str:
        return '  '.join(
            part.rjust(width) if k else part.ljust(width) for k, (part, width) in enumerate(zip(parts, widths))
        )

    found, heading = [f'  {aligned([COLUMNS[i] for i in shown])}'], None
    for row in rows:
        if (row.target, row.configuration) != heading:
            heading = row.target, row.configuration
            found += ['', ' '.join(heading)]
        said = lines[id(row)]
        line = aligned(said) if row.went else f'{said[0].ljust(widths[0])}  {row.outcome}: {row.reason}'
        found.append(f'  {line}'.rstrip() + (f'  {row.note}' if row.note else ''))
    return found

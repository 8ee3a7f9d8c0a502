"""What targets said of an exported network (`jointrd targets`), for the report: lines with bars."""

from pathlib import Path
from typing import Any

from jointrd_jax.deploy import results
from jointrd_jax.deploy.results import Row
from jointrd_jax.errors import UserError
from jointrd_jax.system import files


def read(export: Path) -> dict[str, Any] | None:
    """{'command', 'lines', 'legend'} of the targets.json beside an export; None without one of this form."""
    path = export / results.FILE
    if not path.is_file():
        return None
    try:
        held = files.read_json(path)
        rows = [results.row({}, row) for row in held['rows']]
        found = {'command': str(held['command']), 'lines': lines(rows), 'legend': results.LEGEND}
    except (UserError, KeyError, TypeError, ValueError, AttributeError):
        return None
    return found if found['lines'] else None


def lines(rows: list[Row]) -> list[dict[str, Any]]:
    """A line for each row: its texts, and how long its bars are (percent of the longest on the same target)."""

    def longest(row: Row, field: str) -> float:
        same = [r for r in rows if (r.target, r.configuration) == (row.target, row.configuration)]
        return max((getattr(r, field) or 0 for r in same), default=0)

    def bar(row: Row, field: str) -> float | None:
        value = getattr(row, field)
        return 100 * value / longest(row, field) if value else None

    networks = list(dict.fromkeys(row.network for row in rows))
    return [
        {
            'target': f'{row.target} {row.configuration}',
            'network': row.network,
            'colour': networks.index(row.network),
            'reason': None if row.went else f'{row.outcome}: {row.reason}',
            'note': row.note,
            'top1': results.number(row.top1),
            'memory': results.kib(row.memory_bytes),
            'memory_bar': bar(row, 'memory_bytes'),
            'predicted': results.kib(row.predicted_bytes),
            'time': results.milliseconds(row.time_ms),
            'time_bar': bar(row, 'time_ms'),
            'faster': results.number(row.faster),
            'npu': '' if row.accelerated is None else f'{100 * row.accelerated:.0f} %',
            'first': at == 0 or (rows[at - 1].target, rows[at - 1].configuration) != (row.target, row.configuration),
        }
        for at, row in enumerate(rows)
    ]

"""What follows from step times: rates, shares of the machine's peak, ratios; and their table."""

import statistics
from typing import Any

from jointrd_jax.benchmark.tasks import EVALUATE

CIFAR_EPOCHS, CIFAR_IMAGES = 200, (50_000, 10_000)  # trained on and evaluated in every epoch


def finish(rows: list[dict[str, Any]], peak: dict[str, float]) -> None:
    """Add what follows from the times: rates, shares of the machine's peak, ratios to the plain step."""
    plain = {row['shape']: row for row in rows if row['procedure'] == 'plain' and not row['variant']}
    default = {(row['shape'], row['procedure']): row for row in rows if not row['variant']}
    for row in rows:
        row['images_per_second'] = round(row['batch_size'] / row['step_ms'] * 1e3, 1)
    for row in rows:
        seconds, flops, traffic = row['step_ms'] / 1e3, row.get('flops'), row.get('bytes')
        evaluation = default.get((row['shape'], EVALUATE))
        if ':32:' in row['shape'] and evaluation and row['procedure'] != EVALUATE:
            rates = row['images_per_second'], evaluation['images_per_second']
            epoch = sum(images / rate for images, rate in zip(CIFAR_IMAGES, rates))
            row['cifar_minutes'] = round(CIFAR_EPOCHS * epoch / 60, 1)
        if flops and flops > 0:
            row['flops_per_second'] = flops / seconds
            row['share_of_peak'] = round(flops / seconds / peak['flops_per_second'], 3)
            limit = max(flops / peak['flops_per_second'], (traffic or 0) / peak['bytes_per_second'])
            row['share_of_roofline'] = round(limit / seconds, 3)
        base = plain.get(row['shape'])
        if row['variant']:
            row['time_to_default'] = ratio(row, default[row['shape'], row['procedure']])
        elif base and row['procedure'] != EVALUATE:
            row['time_to_plain'] = ratio(row, base)
            row['flops_to_plain'] = round(flops / base['flops'], 3) if flops and base['flops'] else None


def ratio(row: dict[str, Any], base: dict[str, Any]) -> float:
    """The ratio of two step times: its median over the rounds, in which they ran side by side."""
    return round(statistics.median(a / b for a, b in zip(row['rounds'], base['rounds'])), 3)


COLUMNS = {
    'shape': 'shape', 'procedure': 'procedure', 'compile_seconds': 'compile s', 'step_ms': 'step ms',
    'spread_ms': 'quartiles', 'images_per_second': 'images/s', 'time_to_plain': 'time/plain',
    'flops_to_plain': 'flops/plain', 'share_of_peak': 'of peak', 'share_of_roofline': 'of roofline',
    'cifar_minutes': '200 CIFAR epochs, min', 'memory_bytes': 'memory MB',
    'variant': 'variant', 'time_to_default': 'time/default',
}  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    def cell(row: dict[str, Any], name: str) -> str:
        value = row.get(name)
        if value is None or value == '':
            return '-'
        if name == 'memory_bytes':
            return f'{value / 1e6:.0f}'
        return '-'.join(map(str, value)) if isinstance(value, list) else str(value)

    columns = [name for name in COLUMNS if any(row.get(name) not in (None, '') for row in rows)]
    lines = [[COLUMNS[name] for name in columns], *([cell(row, name) for name in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return '\n'.join('  '.join(text.rjust(width) for text, width in zip(line, widths)) for line in lines)

"""The tables of docs/experiments.md on gradients: python scripts/gradient_table.py DIR

DIR is one of `compare` with --config.log.gradients=1: its resnet, plain and jointrd runs, means over the seeds.
"""

import functools
import itertools
import math
import statistics
import sys
from collections.abc import Callable

from jointrd_jax.report import collect, page


def norm(stage: str, line: dict[str, float]) -> float:
    """The norm of the whole gradient at a stage, from the norms of its two parts and the cosine between them."""
    student = line[f'gradient/{stage}/student']
    teacher = line.get(f'gradient/{stage}/teacher', 0.0)
    return math.sqrt(student**2 + teacher**2 + 2 * student * teacher * line.get(f'gradient/{stage}/cosine', 0.0))


def mean(variant: collect.Variant, name: str | Callable, first: int, last: int) -> float:
    """The mean of a number in the metrics' lines, or computed from them, over epochs and seeds."""
    return statistics.fmean(value for epoch, value, *_ in variant.curve(name) if first <= epoch <= last)


def table(header: list[str], rows: list[list[str]]) -> None:
    for row in (header, ['---'] * len(header), *rows):
        print('|', ' | '.join(row), '|')
    print()


def main(directory: str) -> None:
    variants = {variant.procedure: variant for variant in collect.variants(collect.find([directory]))}
    joint = variants['jointrd']
    epochs = joint.config['epochs']
    ends = [1, 10, 20, 40, epochs]
    spans = [(1, 1), *((a + 1, min(b, epochs)) for a, b in itertools.pairwise(ends) if a < min(b, epochs))]
    stages = [stage for stage in page.gradient_stages(joint) if stage != 'head']
    names = [f'{a}' if a == b else f'{a} to {b}' for a, b in spans]

    rows = [['mixing weight m', *(f'{mean(joint, "mix", *span):.2f}' for span in spans)]]
    for stage in stages[:-1]:
        rows.append([f'share, {stage}', *(f'{mean(joint, f"gradient/{stage}/share", *s):.0%}' for s in spans)])
    for stage in stages[:-1]:
        rows.append([f'cosine, {stage}', *(f'{mean(joint, f"gradient/{stage}/cosine", *s):.2f}' for s in spans)])
    for origin in ('teacher', 'student'):
        row = [f'norm in stage1, {origin}', *(f'{mean(joint, f"gradient/stage1/{origin}", *s):.2f}' for s in spans)]
        rows.append(row)
    table(['epochs', *names], rows)

    rows = []
    for first, last in ((a, min(b, epochs)) for a, b in ((1, 1), (2, 2), (2, 10), (41, epochs)) if a <= epochs):
        for name in ('resnet', 'plain', 'jointrd'):
            norms = [mean(variants[name], functools.partial(norm, stage), first, last) for stage in stages]
            top1 = f'{mean(variants[name], "top1", first, last):.1f} %'
            rows.append([f'{name}, {first} to {last}', *(f'{value:.2f}' for value in norms), top1])
    table(['norm of the gradient', *stages, 'top-1, mean of the epochs'], rows)


if __name__ == '__main__':
    main(*sys.argv[1:])

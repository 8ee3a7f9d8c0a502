"""The paired difference of any two rows of a comparison: python scripts/paired.py ROW OTHER

    python scripts/paired.py runs/twice/digits/34/plain+dirac runs/study/digits/34/plain+dirac
    python scripts/paired.py runs/choice/jointrd/eta0 runs/choice/jointrd/base

ROW and OTHER are directories with finished runs below them, of one comparison or of two (`jointrd compare`,
scripts/study.py). Prints the accuracy and the student's last loss on the training images of each, and how far ROW is
above OTHER on the same seeds, folds and images, in points with a 95 % interval; for each number of folds that there are
runs of. (To the ResNet, compare does it.)
"""

import dataclasses
import statistics
import sys
from pathlib import Path

from jointrd_jax import cli, compare
from jointrd_jax.errors import UserError
from jointrd_jax.report import paired
from jointrd_jax.runs import run_directory, summary

Runs = dict[paired.Key, tuple[Path, summary.Summary]]


def finished(row: Path) -> Runs:
    """The finished runs below a directory.

    Raises:
      UserError: there is none, or there are two of one seed and fold: those of several rows.
    """
    runs: Runs = {}
    for path in sorted(file.parent for file in row.rglob(run_directory.CONFIG)):
        if found := summary.read(path):
            key = found.seed, run_directory.read_config(path).dataset.fold
            if key in runs:
                raise UserError(f'{row} has two runs of seed {key[0]}: {runs[key][0]} and {path}; name one row')
            runs[key] = path, found
    if not runs:
        raise UserError(f'{row}: no finished run lies below it')
    return runs


def main(row: Path, other: Path) -> None:
    runs = {row: finished(row), other: finished(other)}
    for folds in sorted({fold.partition('/')[2] for found in runs.values() for _, fold in found}):
        if folds:
            print(f'{folds} folds:')
        parts = {
            name: {key: run for key, run in found.items() if key[1].partition('/')[2] == folds}
            for name, found in runs.items()
        }
        for name, part in parts.items():
            print(f'{name}: {described(part)}')
        ours, theirs = parts[row], parts[other]
        pairs = [key for key in ours if key in theirs and ours[key][1].eval_images == theirs[key][1].eval_images]
        correct = [{key: run_directory.read_correct(part[key][0]) for key in pairs} for part in (ours, theirs)]
        whole = [{key: images for key, images in read.items() if images is not None} for read in correct]
        print(f'difference: {paired.difference(*whole) or "none: no two runs have the same seed, fold and images"}')


def described(runs: Runs) -> str:
    """'97.70 ± 0.36 % (98.10 97.40 97.60), training loss 0.030'"""
    if not runs:
        return 'no finished run'
    cell = compare.statistics_of([dataclasses.asdict(found) for _, found in runs.values()])
    seeds = ' '.join(f'{value:.2f}' for value in compare.by_seed(cell['runs'], 'last_top1').values())
    metrics = [run_directory.read_metrics(path / run_directory.METRICS) for path, _ in runs.values()]
    loss = statistics.fmean(lines[-1]['ce/student'] for lines in metrics)
    return f'{compare.spread(cell, "last_top1")} % ({seeds}), training loss {loss:.3f}'


if __name__ == '__main__':
    with cli.errors_in_one_line():
        if len(sys.argv) != 3:
            raise UserError('give two directories: python scripts/paired.py ROW OTHER')
        main(Path(sys.argv[1]), Path(sys.argv[2]))

"""How far runs are from their ResNet: on the same images and seeds, with an interval."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 2000

# Which images of which run: its seed, and its fold 'k/n' ('' where images are not dealt out to folds).
Key = tuple[int, str]


class Difference(NamedTuple):
    """A mean difference of top-1 in points, and the interval that holds the true one with 95 % confidence.

    Attributes:
      mean: over images and seeds.
      low: the interval's lower end.
      high: its upper end.
      seeds: how many are paired.
      images: how many, each seen once by every seed.
    """

    mean: float
    low: float
    high: float
    seeds: int
    images: int

    @property
    def is_told_apart(self) -> bool:
        """Whether the interval does not hold 0."""
        return not self.low <= 0 <= self.high

    def __str__(self) -> str:
        verdict = '' if self.is_told_apart else ', cannot be told apart'
        return f'{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]{verdict}'


def difference(runs: Mapping[Key, np.ndarray], baseline: Mapping[Key, np.ndarray]) -> Difference | None:
    """The difference of `runs` to `baseline`, or None where no run has a partner on the same images, two at least.

    The interval is the percentile bootstrap over two crossed samples, the images and the seeds: both are drawn anew
    with replacement, so that it speaks of other images and other seeds. With one seed it is over the images alone and
    says nothing about other seeds; two or three seeds still show too little of their spread.

    Args:
      runs: for each run what `run_directory.read_correct` gives: 1 for an image that it gets right, 0 for one that it
        does not, -1 for one that could not be read.
      baseline: the same of the ResNets.
    """
    table = paired(runs, baseline)
    if table is None:
        return None
    from scipy import stats

    seeds, images = (np.arange(n) for n in table.shape)

    def mean(*samples: np.ndarray) -> float:
        rows = samples[0] if len(samples) == 2 else seeds
        return table[np.ix_(rows, samples[-1])].mean()

    result = stats.bootstrap(
        (seeds, images) if len(seeds) > 1 else (images,),
        mean,
        n_resamples=RESAMPLES,
        vectorized=False,
        confidence_level=CONFIDENCE,
        method='percentile',
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Difference(100 * table.mean(), 100 * float(result.low), 100 * float(result.high), *table.shape)


def paired(runs: Mapping[Key, np.ndarray], baseline: Mapping[Key, np.ndarray]) -> np.ndarray | None:
    """[seeds, images] of -1, 0 and 1: by how much a run does better than its partner on an image.

    Only seeds with the same folds as the seed that has most are kept, and images that all of them could read.
    """
    common = [key for key in runs if key in baseline and len(runs[key]) == len(baseline[key])]
    if len({fold.partition('/')[2] for _, fold in common}) > 1:
        raise ValueError(f'the images are dealt out in several ways: {sorted({fold for _, fold in common})}')
    folds: dict[int, list[str]] = {}
    for seed, fold in sorted(common):
        folds.setdefault(seed, []).append(fold)
    most = max(folds.values(), key=len, default=[])
    seeds = [seed for seed in folds if folds[seed] == most]
    if not seeds:
        return None
    ours, theirs = (
        np.stack([np.concatenate([found[seed, fold] for fold in most]) for seed in seeds]) for found in (runs, baseline)
    )
    read = ((ours >= 0) & (theirs >= 0)).all(0)
    return (ours.astype(np.int8) - theirs)[:, read] if read.sum() > 1 else None

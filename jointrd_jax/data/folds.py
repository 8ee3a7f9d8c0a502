"""Folds: all images of a dataset dealt out to n parts, each evaluated on once by runs trained on the others."""

import numpy as np

from jointrd_jax.errors import UserError

MARK = ':fold '  # in the name of a dataset, before 'k/n'


def in_fold(fold: str, size: int) -> np.ndarray:
    """[size] booleans: which of all images are evaluated on in fold 'k/n'; each is in one of the n folds.

    Raises:
      UserError: there are fewer images than folds.
    """
    k, n = map(int, fold.split('/'))
    if n > size:
        raise UserError(f'dataset.fold={fold}: {size} images cannot be dealt out to {n} folds')
    evaluated = np.zeros(size, bool)
    evaluated[np.random.default_rng(0).permutation(size)[k - 1 :: n]] = True
    return evaluated


def name_with_fold(name: str, fold: str) -> str:
    """The name of a dataset together with the fold evaluated on, since every fold has other evaluation images."""
    return f'{name}{MARK}{fold}' if fold else name


def overlap(one: str, other: str) -> bool:
    """Whether datasets of these names split the same images differently.

    A network trained on `one` may then have seen images that `other` evaluates on.
    """
    return one != other and one.partition(MARK)[0] == other.partition(MARK)[0]

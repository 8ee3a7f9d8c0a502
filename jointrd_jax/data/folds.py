"""How the images of a dataset are split: in folds, or by holding some out; and what that is called.

Folds: all images are dealt out to n parts, each evaluated on once by runs trained on the others.
"""

import re

import numpy as np

from jointrd_jax.errors import UserError

SPLITS = ('fold', 'validation', 'eval_fraction', 'splits')  # kinds, in the name of a dataset before their value
NAME = re.compile(rf'(?P<name>.*):(?P<kind>{"|".join(SPLITS)}) (?P<value>.*)')


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


def name_of_split(name: str, kind: str, value: object) -> str:
    """The name of a dataset together with how its images were split, since that decides which are evaluated on.

    Args:
      kind: of `SPLITS`.
      value: 'k/n' of a fold, how many images of a validation, ...; '' and 0 leave the name as it is.
    """
    return f'{name}:{kind} {value}' if value else name


def parts(name: str) -> tuple[str, str, str]:
    """What `name_of_split` was given: the dataset, and the kind and value of its split ('' and '' for its own)."""
    found = NAME.fullmatch(name)
    return (found['name'], found['kind'], found['value']) if found else (name, '', '')


def overlap(trained: str, evaluated: str) -> bool:
    """Whether a network trained on the dataset `trained` may have seen images that `evaluated` evaluates on.

    Of datasets that hold the same images, split differently. What splits of TFDS share cannot be read off their names:
    False.
    """
    (dataset, kind, value), (other, other_kind, other_value) = parts(trained), parts(evaluated)
    if trained == evaluated or dataset != other or 'splits' in (kind, other_kind):
        return False
    if kind == 'validation':  # its images are the first of one order, and the dataset's own test images were not seen
        return (other_kind == 'validation' and int(value) < int(other_value)) or other_kind in ('fold', 'eval_fraction')
    return True

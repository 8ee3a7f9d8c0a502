"""scikit-learn's handwritten digits: 1,797 real 8x8 images that come with its package (no download)."""

import importlib.util
from pathlib import Path

import ml_collections
import numpy as np

from jointrd_jax.data import normalisation
from jointrd_jax.data.base import InMemory
from jointrd_jax.data.folds import in_fold, name_of_split

TEST_SIZE = 500


def read() -> tuple[np.ndarray, np.ndarray]:
    """(images [1797, 8, 8] of 0..16, labels [1797]) as `sklearn.datasets.load_digits` has them.

    From the same file, without importing scikit-learn, which takes longer than all else before the first compilation.
    """
    package = importlib.util.find_spec('sklearn')
    places = (package and package.submodule_search_locations) or ()
    paths = [path for place in places if (path := Path(place, 'datasets', 'data', 'digits.csv.gz')).is_file()]
    if not paths:  # another version of scikit-learn may keep the file elsewhere
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        return np.asarray(pixels).reshape(-1, 8, 8), np.asarray(labels)
    table = np.loadtxt(paths[0], delimiter=',')
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(int)


def load(config: ml_collections.ConfigDict) -> InMemory:
    """1,297 training and 500 test images, split once and for all by a fixed permutation; or a fold of them all."""
    images, labels = read()
    images = np.round(images[..., None] * (255 / 16)).astype(np.uint8)
    labels = labels.astype(np.int32)
    order = np.random.default_rng(0).permutation(len(labels))
    test, train = order[:TEST_SIZE], order[TEST_SIZE:]
    if fold := config.dataset.fold:
        evaluated = in_fold(fold, len(labels))
        test, train = np.flatnonzero(evaluated), np.flatnonzero(~evaluated)
    name = name_of_split('digits', 'fold', fold)
    classes = tuple(str(digit) for digit in range(10))
    mean, std = normalisation.mean_and_std(
        config.dataset, 1, None, lambda: ((images[train].mean() / 255,), (images[train].std() / 255,))
    )
    return InMemory(name, classes, (images[train], labels[train]), (images[test], labels[test]), mean, std, config)

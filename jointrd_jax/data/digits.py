"""scikit-learn's handwritten digits: 1,797 real 8x8 images that come with its package (no download)."""

import ml_collections
import numpy as np

from jointrd_jax.data.base import InMemory

TEST_SIZE = 500


def load(config: ml_collections.ConfigDict) -> InMemory:
    """1,297 training and 500 test images, split once and for all by a fixed permutation."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images[..., None] * (255 / 16)).astype(np.uint8)
    labels = bunch.target.astype(np.int32)
    order = np.random.default_rng(0).permutation(len(labels))
    test, train = order[:TEST_SIZE], order[TEST_SIZE:]
    classes = tuple(str(digit) for digit in range(10))
    mean, std = (images[train].mean() / 255,), (images[train].std() / 255,)
    return InMemory('digits', classes, (images[train], labels[train]), (images[test], labels[test]), mean, std, config)

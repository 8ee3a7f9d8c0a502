"""What a trained network makes of a dataset's evaluation images, batch by batch: the one pass that all readers share.

Training itself only counts right answers, on all devices at once (`train.evaluation`); all else uses this module.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jointrd_jax.data.base import Dataset
from jointrd_jax.method.networks import Network, Variables


class Predicted(NamedTuple):
    """A batch.

    Attributes:
      images: [B, H, W, C] float32, normalised as the network sees them.
      labels: [B].
      logits: [B, classes]; None where no network was given.
      mask: [B], False for padding and for images that could not be read.
    """

    images: np.ndarray
    labels: np.ndarray
    logits: Any
    mask: np.ndarray


def of(dataset: Dataset, network: Network | None, variables: Variables | None = None) -> Iterator[Predicted]:
    """Every evaluation image once, in the dataset's order, in batches of one size; on one device."""

    @jax.jit
    def predict(variables, device_arrays, batch):
        images, labels = dataset.preprocess(device_arrays, batch, None)
        return images, labels, network.apply(variables, images).logits if network else None

    device_arrays, variables = jax.device_put((dataset.device_arrays, variables))
    for batch in dataset.eval_batches():
        images, labels, logits = jax.device_get(predict(variables, device_arrays, batch))
        yield Predicted(images, labels, logits, batch['mask'])


def confusion_matrix(true: Sequence[np.ndarray], predicted: Sequence[np.ndarray], classes: int) -> np.ndarray:
    """[true, predicted] counts of images whose classes, true and predicted, are given in batches."""
    matrix = np.zeros((classes, classes), np.int64)
    for batch in zip(true, predicted, strict=True):
        np.add.at(matrix, batch, 1)
    return matrix


def commonest_confusions(matrix: np.ndarray, most: int) -> list[tuple[int, int, int]]:
    """At most `most` pairs of a confusion matrix as (true, predicted, images), commonest first; none without images."""
    off = matrix - np.diag(matrix.diagonal())
    places = np.unravel_index(np.argsort(-off, axis=None, kind='stable')[:most], off.shape)
    return [(int(t), int(p), int(off[t, p])) for t, p in zip(*places) if off[t, p]]


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the classes, in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)

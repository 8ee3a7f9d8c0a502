"""A trained network looked at image by image: which classes it confuses, and on what."""

import base64
import io
from typing import Any, NamedTuple

import numpy as np

from jointrd_jax import data
from jointrd_jax.errors import require
from jointrd_jax.runs import predictions, run_directory

WORST = 5  # classes shown with examples
EXAMPLES = 4  # images for each
MATRIX_CLASSES = 20  # up to so many, the whole matrix is shown
PAIRS = 12  # else, and below it, the commonest confusions
MAX_SIDE = 96  # pixels of an example image


class Example(NamedTuple):
    """A misclassified image as a PNG data URI, what it was taken for, and how surely (percent)."""

    image: str
    taken_for: str
    confidence: float


class WorstClass(NamedTuple):
    name: str
    accuracy: float
    images: int
    examples: list[Example]


class Confusion(NamedTuple):
    """What a network does with the evaluation images.

    Attributes:
      classes: names.
      matrix: [true, predicted] counts; None where there are too many classes to show.
      pairs: (true, predicted, images), commonest first.
      worst: the least accurate classes, worst first.
      top1: percent.
      images: how many.
    """

    classes: tuple[str, ...]
    matrix: np.ndarray | None
    pairs: list[tuple[str, str, int]]
    worst: list[WorstClass]
    top1: float
    images: int


def evaluate(path: Any, which: str = 'last') -> Confusion:
    """Evaluate the run at `path` on its own evaluation images.

    Raises:
      UserError: no run, no intact checkpoint, or its dataset is not there.
    """
    run = run_directory.load(path, which)
    dataset = data.load(run.config)
    try:
        return confusion(run, dataset)
    finally:
        dataset.close()


def confusion(run: run_directory.Run, dataset: data.Dataset) -> Confusion:
    """Predict every evaluation image, keeping counts and the surest mistakes of each class."""
    true, taken = [], []
    mistakes: dict[int, list[tuple[float, int, np.ndarray]]] = {}
    for images, labels, logits, keep in predictions.of(dataset, run.network, run.variables):
        chances = predictions.probabilities(logits)
        predicted = chances.argmax(1)
        true.append(labels[keep])
        taken.append(predicted[keep])
        for i in np.flatnonzero(keep & (predicted != labels)):
            kept = mistakes.setdefault(int(labels[i]), [])
            kept.append((float(chances[i].max()), int(predicted[i]), images[i]))
            kept.sort(key=lambda mistake: -mistake[0])
            del kept[EXAMPLES:]
    return summarise(predictions.confusion_matrix(true, taken, len(dataset.classes)), mistakes, dataset)


def summarise(matrix: np.ndarray, mistakes: dict[int, list], dataset: data.Dataset) -> Confusion:
    classes, totals = dataset.classes, matrix.sum(1)
    accuracy = 100 * matrix.diagonal() / np.maximum(totals, 1)
    order = [int(c) for c in np.argsort(accuracy, kind='stable') if totals[c] and accuracy[c] < 100]
    worst = [
        WorstClass(classes[c], float(accuracy[c]), int(totals[c]), [example(m, dataset) for m in mistakes.get(c, [])])
        for c in order[:WORST]
    ]
    commonest = predictions.commonest_confusions(matrix, PAIRS)
    return Confusion(
        classes=classes,
        matrix=matrix if len(classes) <= MATRIX_CLASSES else None,
        pairs=[(classes[t], classes[p], images) for t, p, images in commonest],
        worst=worst,
        top1=float(100 * matrix.trace() / matrix.sum()),
        images=int(matrix.sum()),
    )


def example(mistake: tuple[float, int, np.ndarray], dataset: data.Dataset) -> Example:
    confidence, predicted, image = mistake
    pixels = dataset.description.to_uint8(image)
    return Example(data_uri(pixels), dataset.classes[predicted], 100 * confidence)


def data_uri(pixels: np.ndarray) -> str:
    """An image [H, W, C] uint8 (RGB or grey) as a PNG to embed, shrunk to at most MAX_SIDE."""
    image = require('PIL.Image', 'report').fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    png = io.BytesIO()
    image.save(png, 'PNG')
    return f'data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}'

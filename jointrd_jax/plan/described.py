"""A recipe's dataset where it is not at hand: its sizes and shapes are known, its pixels do not matter."""

import io
import time

import ml_collections
import numpy as np

from jointrd_jax import data
from jointrd_jax.data.base import Dataset, InMemory
from jointrd_jax.data.sources import Source
from jointrd_jax.data.streaming import Streaming
from jointrd_jax.data.tfds import MEAN_STD, NAME
from jointrd_jax.errors import UserError

# Of TFDS's sets: training and evaluation images, classes, and the shape of all images where they have one.
KNOWN = {
    'cifar10': (50_000, 10_000, 10, (32, 32, 3)),
    'cifar100': (50_000, 10_000, 100, (32, 32, 3)),
    'imagenet2012': (1_281_167, 50_000, 1000, None),
}
PHOTO = (500, 375)  # width and height of a usual ImageNet image
MEASURED_SECONDS = 1.0


class Photographs(Source):
    """One real photograph (of scikit-learn's) as if it were `size` JPEGs."""

    def __init__(self, size: int, classes: int):
        from PIL import Image
        from sklearn.datasets import load_sample_image

        encoded = io.BytesIO()
        Image.fromarray(load_sample_image('china.jpg')).resize(PHOTO).save(encoded, 'JPEG', quality=90)
        self.name, self.size, self.data = 'photographs', size, encoded.getvalue()
        self.classes = tuple(str(i) for i in range(classes))

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: int) -> tuple[bytes, int]:
        return self.data, i % len(self.classes)

    def describe(self, i: int) -> str:
        return f'photograph {i}'


def describe(config: ml_collections.ConfigDict) -> Dataset:
    """The dataset of `config` as its steps see it; the caller closes it.

    CIFAR and ImageNet need not be here; another one, or a part of a split, is opened.

    Raises:
      UserError: a dataset that is neither known nor here.
    """
    settings = config.dataset
    match = NAME.fullmatch(settings.name)
    name = match['name'] if match else ''
    if name not in KNOWN or '[' in settings.train_split + settings.eval_split:
        try:
            return data.load(config)
        except UserError as error:
            raise UserError(f'{error} (without their images {", ".join(KNOWN)} can be planned)') from error
    train, evaluation, classes, shape = KNOWN[name]
    if shape and settings.in_memory != 'never':
        names = tuple(str(i) for i in range(classes))
        first, second = ((np.zeros((n, *shape), np.uint8), np.zeros(n, np.int32)) for n in (train, evaluation))
        mean, std = MEAN_STD[name]
        return InMemory(name, names, first, second, mean, std, config)
    if settings.in_memory == 'always':
        raise UserError(f'dataset.in_memory=always: the images of {name} have no common size')
    return Streaming(name, Photographs(train, classes), Photographs(evaluation, classes), config)


def decoding_rate(dataset: Dataset) -> float | None:
    """Training images per second that one core of this machine decodes and crops; None where all are on the device."""
    if not isinstance(dataset, Streaming):
        return None
    chunks, images, number = dataset.train_chunks(), 0, 0
    began = time.process_time()
    while time.process_time() - began < MEASURED_SECONDS:
        images += len(chunks.make(number)['label'])
        number += 1
    return images / (time.process_time() - began)

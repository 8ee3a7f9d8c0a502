"""The interface that the trainer uses of a dataset, and the dataset that is kept whole on the device."""

import abc
import itertools
from collections.abc import Generator

import jax
import ml_collections
import numpy as np

from jointrd_jax.data import augment
from jointrd_jax.data.description import DataDescription
from jointrd_jax.data.folds import name_of_split
from jointrd_jax.errors import UserError

Batch = dict[str, np.ndarray]


class Dataset(abc.ABC):
    """Images with labels for training and evaluation, delivered as host batches plus a traced `preprocess`.

    The trainer maps `preprocess` into its jitted step: host batches stay small (indices, or uint8 images),
    everything random is drawn on the device from the step's key, so that a batch depends on the seed
    and the step alone, not on the number of devices, hosts or workers.

    Attributes:
      name: the dataset's name with its version where it has one.
      classes: class names in label order.
      image_shape: (H, W, C) as the network sees it.
      train_size: images in the training split.
      eval_size: images in the evaluation split.
      mean: per channel, of images scaled to 0..1.
      std: the same; the network's input is (x / 255 - mean) / std.
      bad: the numbers of the bad images passed over so far on this host (dataset.on_bad_image=skip).
      device_arrays: arrays to keep on every device, given back to `preprocess`; {} when streaming.
      resize: what the shorter side of an evaluation image is resized to, in pixels, before its centre is cut out;
        None where images are taken as they are.
    """

    name: str
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    train_size: int
    eval_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bad: set[int]
    device_arrays: dict[str, np.ndarray]
    resize: int | None = None

    @abc.abstractmethod
    def train_batches(self, start_step: int) -> Generator[Batch, None, None]:
        """This host's share of every training batch from `start_step` on, without end."""

    @abc.abstractmethod
    def eval_batches(self) -> Generator[Batch, None, None]:
        """This host's share of the evaluation images, each exactly once over all hosts.

        Every batch has the same shapes; 'mask' [B] is False for the padding of the last ones.
        All hosts yield the same number of batches.
        """

    @abc.abstractmethod
    def preprocess(
        self, device_arrays: dict[str, jax.Array], batch: dict[str, jax.Array], key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Traced: (images [B, H, W, C] normalised float32, labels [B]); augmented when a key is given."""

    def bad_anywhere(self) -> list[int]:
        """The numbers of the bad images passed over on any host; every process must call it at the same place."""
        if jax.process_count() == 1:
            return sorted(self.bad)
        from jax.experimental import multihost_utils

        most = int(np.max(multihost_utils.process_allgather(np.asarray(len(self.bad)))))
        padded = np.full(most + 1, -1, np.int32)
        padded[: len(self.bad)] = list(self.bad)
        return sorted({*multihost_utils.process_allgather(padded).ravel().tolist()} - {-1})

    @property
    def description(self) -> DataDescription:
        """What is kept with a network that was trained on this dataset."""
        return DataDescription(self.name, self.classes, self.image_shape, self.mean, self.std, self.resize)

    def close(self) -> None:
        """End worker processes, if any."""


def host_share(batch_size: int) -> slice:
    """The rows of a global batch that this process delivers."""
    share = batch_size // jax.process_count()
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def held_out(size: int, validation_size: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the training images to train on, and of those to evaluate on: always the same ones.

    Raises:
      UserError: none would be left to train on.
    """
    if validation_size >= size:
        raise UserError(
            f'dataset.validation_size={validation_size} leaves no image to train on: {name} has {size} training images'
        )
    order = np.random.default_rng(0).permutation(size)
    return order[validation_size:], order[:validation_size]


class InMemory(Dataset):
    """A dataset small enough to keep whole on the device as uint8; host batches are indices.

    The device holds each image as one row, [N, H * W * C]: of [N, H, W, C] a TPU would copy the whole set to
    another layout at every step (docs/benchmarks.md).

    Args:
      name: the dataset's name with its version where it has one.
      classes: class names in label order.
      train: (images [N, H, W, C] uint8, labels [N]).
      evaluation: the same; may be None where config.dataset.validation_size holds out training images.
      mean: per channel, of images scaled to 0..1.
      std: the same.
      config: the run's config (seed, batch sizes, augmentation).
    """

    def __init__(
        self,
        name: str,
        classes: tuple[str, ...],
        train: tuple[np.ndarray, np.ndarray],
        evaluation: tuple[np.ndarray, np.ndarray] | None,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        config: ml_collections.ConfigDict,
    ):
        self.name, self.classes, self.mean, self.std = name, tuple(classes), tuple(mean), tuple(std)
        self.config, self.bad = config, set()
        if config.dataset.validation_size:
            kept, held = held_out(len(train[1]), config.dataset.validation_size, name)
            self.name = name_of_split(name, 'validation', config.dataset.validation_size)
            images, labels = train
            train, evaluation = (images[kept], labels[kept]), (images[held], labels[held])
        if evaluation is None:
            raise ValueError(f'{name} has neither evaluation images nor dataset.validation_size')
        height, width, channels = train[0].shape[1:]
        self.image_shape = (height, width, channels)
        self.train_size, self.eval_size = len(train[1]), len(evaluation[1])
        self.device_arrays = {
            'images': np.concatenate([train[0], evaluation[0]]).reshape(self.train_size + self.eval_size, -1),
            'labels': np.concatenate([train[1], evaluation[1]]).astype(np.int32),
        }

    def train_batches(self, start_step: int) -> Generator[Batch, None, None]:
        batch_size = self.config.batch_size
        steps_per_epoch = self.train_size // batch_size
        for epoch in itertools.count(start_step // steps_per_epoch):
            order = np.random.default_rng((self.config.seed, epoch)).permutation(self.train_size).astype(np.int32)
            first = start_step % steps_per_epoch if epoch == start_step // steps_per_epoch else 0
            for step in range(first, steps_per_epoch):
                yield {'index': order[step * batch_size : (step + 1) * batch_size][host_share(batch_size)]}

    def eval_batches(self) -> Generator[Batch, None, None]:
        batch_size = self.config.eval_batch_size
        for start in range(0, self.eval_size, batch_size):
            position = np.arange(start, start + batch_size, dtype=np.int32)[host_share(batch_size)]
            mask = position < self.eval_size
            yield {'index': self.train_size + np.where(mask, position, 0), 'mask': mask}

    def preprocess(
        self, device_arrays: dict[str, jax.Array], batch: dict[str, jax.Array], key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        index, settings = batch['index'], self.config.dataset
        images, labels = device_arrays['images'][index].reshape(-1, *self.image_shape), device_arrays['labels'][index]
        if key is None:
            return augment.normalise(images, self.mean, self.std), labels
        crop_key, cutout_key = jax.random.split(key)
        images = augment.crop_and_flip(images, crop_key, padding=settings.crop_padding, flip=settings.flip)
        normal = augment.normalise(images, self.mean, self.std)
        return augment.cutout(normal, cutout_key, settings.cutout), labels

"""Datasets too large for the device: images decoded and cropped by worker processes, step by step."""

import abc
import functools
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import grain
import jax
import ml_collections
import numpy as np
from absl import flags

from jointrd_jax.data import augment, images
from jointrd_jax.data.base import Batch, Dataset, held_out, host_share
from jointrd_jax.data.sources import Source
from jointrd_jax.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as torchvision and the authors
CHUNK = 64  # images that a worker prepares at a time: bounds its memory, whatever the batch size
MAX_WORKERS = 32
MAX_BAD = 1000  # in one chunk
CHUNKS_AHEAD = 2  # kept ready by each worker

Bad = list[tuple[int, str]]  # (number of the image, what is wrong with it)

logger = logging.getLogger(__name__)


class Chunks(abc.ABC):
    """Part of a batch by its number: a pure function of it, so that any worker can make any chunk.

    Chunk n is rows [c * CHUNK, (c + 1) * CHUNK) of this host's share of step n // per_step, with
    c = n % per_step. It knows nothing of JAX devices; workers get a copy.

    Args:
      source: the images.
      indices: which of the source's images belong to the split.
      rows: this host's rows of the global batch.
      skip_bad: replace (training) or mask (evaluation) bad images rather than raise.
    """

    stop_file = ''  # where a file appears when nobody wants more chunks
    first = 0  # the number of the source's image 0 among all images of the dataset

    def __init__(self, source: Source, indices: np.ndarray, *, batch_size: int, rows: slice, size: int, skip_bad: bool):
        self.source, self.indices, self.batch_size, self.rows = source, indices, batch_size, rows
        self.size, self.skip_bad = size, skip_bad
        self.chunk = min(CHUNK, rows.stop - rows.start)
        self.per_step = -(-(rows.stop - rows.start) // self.chunk)

    def positions(self, n: int) -> np.ndarray:
        """The places of a chunk's images in the endless sequence of all training (or evaluation) images."""
        step, c = divmod(n, self.per_step)
        first = self.rows.start + c * self.chunk
        return step * self.batch_size + np.arange(first, min(first + self.chunk, self.rows.stop))

    @abc.abstractmethod
    def make(self, n: int) -> dict:
        """Chunk n: arrays of one length, and what was bad in 'bad'."""

    def __call__(self, n: int) -> dict:
        """Chunk n, or {'error': text}: raised in a worker, it would leave Grain's queues in shared memory."""
        try:
            return self.make(n)
        except UserError as error:
            return {'error': str(error)}

    def check(self) -> None:
        """Look for an image that can be used, as far as the first where bad ones are not to be skipped.

        Raises:
          UserError: the first is bad, or all are; the message names it, or the split and one of them.
        """
        bad = []
        for i in self.indices:
            if self.read(int(i), lambda data: images.Encoded(data).pixels(), bad):
                return
        raise UserError(f'none of the {len(bad)} images of {self.source.name!r} can be used, such as {bad[0][1]}')

    def read(self, i: int, prepare: Callable[[bytes], np.ndarray], bad: Bad) -> tuple[np.ndarray, int] | None:
        """(pixels, label) of image i of the source, or None for a bad one, which is noted in `bad`."""
        label = None
        if self.stop_file and os.path.exists(self.stop_file):  # between images, which may be slow
            raise UserError('stopped')
        try:
            data, label = self.source[i]
            return prepare(data), label
        except images.BadImage as error:
            of_class = '' if label is None else f' (class {self.source.classes[label]})'
            message = f'{self.source.describe(i)}{of_class}: {error}'
            if not self.skip_bad:
                raise UserError(f'{message}; repair it, or set dataset.on_bad_image=skip') from error
            bad.append((self.first + i, message))
            return None


class TrainChunks(Chunks):
    """Training images: every epoch another permutation, every position its own random crop and mirroring."""

    def __init__(self, *args, seed: int, flip: bool, **kwargs):
        super().__init__(*args, **kwargs)
        self.seed, self.flip = seed, flip
        self.steps_per_epoch = len(self.indices) // self.batch_size
        self.epoch, self.order = -1, self.indices

    def image_at(self, position: int) -> int:
        """The source's index of the image at a position."""
        step, row = divmod(position, self.batch_size)
        epoch, step = divmod(step, self.steps_per_epoch)
        if epoch != self.epoch:
            self.order = np.random.default_rng((self.seed, epoch)).permutation(self.indices)
            self.epoch = epoch
        return int(self.order[step * self.batch_size + row])

    def make(self, n: int) -> dict:
        positions, bad = self.positions(n), []
        pixels = np.empty((len(positions), self.size, self.size, 3), np.uint8)
        labels, flips = np.empty(len(positions), np.int32), np.zeros(len(positions), bool)
        for row, position in enumerate(positions):
            rng = np.random.default_rng((self.seed, 1, position))
            flips[row] = self.flip and rng.random() < 0.5
            crop = functools.partial(images.random_resized_crop, size=self.size, rng=rng)
            i = self.image_at(position)
            while (found := self.read(i, crop, bad)) is None:  # a bad image's place goes to another, drawn by position
                if len(bad) > MAX_BAD:
                    raise UserError(f'{self.source.name}: over {MAX_BAD} bad images in one chunk, such as {bad[-1][1]}')
                i = int(rng.choice(self.order))
            pixels[row], labels[row] = found
        return {'image': pixels, 'label': labels, 'flip': flips, 'bad': bad}


class EvalChunks(Chunks):
    """Evaluation images in order, each once; places beyond the end and bad images are masked."""

    def __init__(self, *args, resize: int, first: int, **kwargs):
        super().__init__(*args, **kwargs)
        self.resize, self.first = resize, first

    def make(self, n: int) -> dict:
        positions, bad = self.positions(n), []
        pixels = np.zeros((len(positions), self.size, self.size, 3), np.uint8)
        labels, mask = np.zeros(len(positions), np.int32), np.zeros(len(positions), bool)
        crop = functools.partial(images.centre_crop, size=self.size, resize=self.resize)
        for row, position in enumerate(positions):
            if position >= len(self.indices):
                continue
            if found := self.read(int(self.indices[position]), crop, bad):
                pixels[row], labels[row] = found
                mask[row] = True
        return {'image': pixels, 'label': labels, 'mask': mask, 'bad': bad}


def start_worker(_index: int, _count: int) -> None:
    """One thread per worker: parallelism comes from their number."""
    import cv2

    cv2.setNumThreads(0)


class Streaming(Dataset):
    """A dataset read image by image; batches hold uint8 pixels, mirrored and normalised on the device.

    Args:
      name: with the version where there is one.
      train: the source of the training split.
      evaluation: that of the evaluation split; may be None where config.dataset.validation_size holds out images.
      config: the run's config.
    """

    def __init__(self, name: str, train: Source, evaluation: Source | None, config: ml_collections.ConfigDict):
        settings = config.dataset
        self.name, self.classes, self.mean, self.std, self.config = name, train.classes, MEAN, STD, config
        self.train_source = self.eval_source = train
        if settings.validation_size:
            self.train_indices, self.eval_indices = held_out(len(train), settings.validation_size, name)
        elif evaluation is not None:
            self.eval_source = evaluation
            self.train_indices, self.eval_indices = np.arange(len(train)), np.arange(len(evaluation))
        else:
            raise ValueError(f'{name} has neither evaluation images nor dataset.validation_size')
        if settings.resize < settings.image_size:
            raise UserError(
                f'dataset.resize={settings.resize} is less than dataset.image_size={settings.image_size},'
                ' the centre that is cut out of it'
            )
        self.image_shape = (settings.image_size, settings.image_size, 3)
        self.train_size, self.eval_size = len(self.train_indices), len(self.eval_indices)
        if self.train_size < config.batch_size:
            raise UserError(
                f'batch_size={config.batch_size} is more than the {self.train_size} training images of {name}'
            )
        self.device_arrays, self.bad = {}, set()
        self.running: list[Generator[Batch, None, None]] = []
        for chunks in (self.train_chunks(), self.eval_chunks()):  # a split without usable images fails now, not later
            chunks.check()

    def train_chunks(self) -> TrainChunks:
        config = self.config
        return TrainChunks(
            self.train_source, self.train_indices, batch_size=config.batch_size, rows=host_share(config.batch_size),
            size=config.dataset.image_size, skip_bad=config.dataset.on_bad_image == 'skip',
            seed=config.seed, flip=config.dataset.flip,
        )  # fmt: skip

    def eval_chunks(self) -> EvalChunks:
        config = self.config
        return EvalChunks(
            self.eval_source, self.eval_indices, batch_size=config.eval_batch_size,
            rows=host_share(config.eval_batch_size), size=config.dataset.image_size,
            skip_bad=config.dataset.on_bad_image == 'skip', resize=config.dataset.resize,
            first=len(self.train_source),
        )  # fmt: skip

    def workers(self) -> int:
        workers = self.config.dataset.workers
        return min(os.cpu_count() or 1, MAX_WORKERS) if workers < 0 else workers

    def run(self, chunks: Chunks, start_step: int, stop_step: int) -> Iterator[Batch]:
        """The batches of steps [start_step, stop_step); ends with `close`."""
        batches = self.batches(chunks, start_step, stop_step)
        self.running.append(batches)
        return batches

    def batches(self, chunks: Chunks, start_step: int, stop_step: int) -> Generator[Batch, None, None]:
        """Batches made by worker processes (or here, with 0 workers)."""
        chunks.stop_file = os.path.join(tempfile.mkdtemp(prefix='jointrd-'), 'stop')
        numbers = grain.MapDataset.range(start_step * chunks.per_step, stop_step * chunks.per_step)
        dataset = numbers.map(chunks).to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        if workers := self.workers():
            if not flags.FLAGS.is_parsed():  # Grain reads absl flags of its own; as a library we have parsed none
                flags.FLAGS.mark_as_parsed()
            dataset = dataset.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=CHUNKS_AHEAD),
                worker_init_fn=start_worker,
            )
        iterator = iter(dataset)
        try:
            for _ in range(start_step, stop_step):
                yield self.next_batch(iterator, chunks.per_step)
        finally:
            Path(chunks.stop_file).touch()
            iterator.close()
            shutil.rmtree(Path(chunks.stop_file).parent, ignore_errors=True)

    def next_batch(self, iterator: Iterator, chunks: int) -> Batch:
        """The next chunks together, copied out of the workers' shared memory."""
        parts = [self.next_chunk(iterator) for _ in range(chunks)]
        return {key: np.concatenate([np.asarray(part[key]) for part in parts]) for key in parts[0]}

    def next_chunk(self, iterator: Iterator) -> Batch:
        try:
            chunk = dict(next(iterator))
        except RuntimeError as error:
            if 'Worker process was terminated' not in str(error):
                raise
            raise UserError(
                f'an input worker of {self.name} died ({str(error).split(".")[0].lower()}); if memory ran out,'
                f' lower dataset.workers (now {self.workers()})'
            ) from error
        if 'error' in chunk:
            raise UserError(chunk['error'])
        for number, message in chunk.pop('bad'):
            if number not in self.bad:
                logger.warning('skipped: %s', message)
                self.bad.add(number)
        return chunk

    def train_batches(self, start_step: int) -> Iterator[Batch]:
        return self.run(self.train_chunks(), start_step, 2**40)

    def eval_batches(self) -> Iterator[Batch]:
        return self.run(self.eval_chunks(), 0, -(-self.eval_size // self.config.eval_batch_size))

    def preprocess(
        self, device_arrays: dict[str, jax.Array], batch: dict[str, jax.Array], key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        if key is None:
            return augment.normalise(batch['image'], self.mean, self.std), batch['label']
        pixels = augment.mirror(batch['image'], batch['flip'])
        normal = augment.normalise(pixels, self.mean, self.std)
        return augment.cutout(normal, key, self.config.dataset.cutout), batch['label']

    def close(self) -> None:
        while self.running:
            self.running.pop().close()
        if self.bad:
            logger.warning('%s: %d bad images skipped', self.name, len(self.bad))

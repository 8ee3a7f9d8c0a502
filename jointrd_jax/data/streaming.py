"""Datasets too large for the device: images decoded and cropped by worker processes, step by step."""

import abc
import functools
import gc
import logging
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grain
import jax
import ml_collections
import numpy as np
from absl import flags

from jointrd_jax.data import augment, images, normalisation
from jointrd_jax.data.base import Batch, Dataset, held_out, host_share
from jointrd_jax.data.folds import name_of_split
from jointrd_jax.data.sources import Source, read
from jointrd_jax.errors import UserError

CHUNK = 64  # images that a worker prepares at a time: bounds its memory, whatever the batch size
MAX_WORKERS = 32
MAX_BAD = 1000  # in one chunk
MEASURED = 10_000  # training images that their mean and standard deviation are measured on, at most
SHARED = '/dev/shm'  # where worker processes put what they made: 64 MB in a Docker container by default
CHUNKS_AHEAD = 2  # kept ready by each worker

Bad = list[tuple[int, str]]  # (number of the image, what is wrong with it)

logger = logging.getLogger(__name__)


class Chunks(abc.ABC):
    """The chunks that batches are made of, by number. A chunk depends on its number alone, so any worker can make it.

    Chunk n is rows [c * CHUNK, (c + 1) * CHUNK) of this host's share of step n // per_step, with
    c = n % per_step. No JAX device is used; workers get a copy of this object.

    Args:
      source: the images.
      indices: which of the source's images belong to the split.
      rows: this host's rows of the global batch.
      shape: (H, W, C) of the crops.
      skip_bad: replace (training) or mask (evaluation) bad images rather than raise.
    """

    stop_file = ''  # path of a file that is made when no more chunks are wanted
    first = 0  # the number of the source's image 0 among all images of the dataset

    def __init__(
        self,
        source: Source,
        indices: np.ndarray,
        *,
        batch_size: int,
        rows: slice,
        shape: tuple[int, int, int],
        skip_bad: bool,
    ):
        self.source, self.indices, self.batch_size, self.rows = source, indices, batch_size, rows
        self.shape, self.skip_bad = shape, skip_bad
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
        """Chunk n, or {'error': text}: an exception raised in a worker would leave Grain's queues in shared memory."""
        try:
            return self.make(n)
        except UserError as error:
            return {'error': str(error)}

    def check(self) -> None:
        """Check that the split has an image that can be used: the first, or if bad ones are to be skipped, any.

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
        if self.stop_file and os.path.exists(self.stop_file):  # between images, which may be slow
            raise UserError('stopped')
        found, message = read(self.source, i, prepare, self.skip_bad)
        if message:
            bad.append((self.first + i, message))
        return found


class TrainChunks(Chunks):
    """Training images: every epoch another permutation, every position its own random crop and mirroring."""

    def __init__(self, *args, seed: int, flip: bool, scale: float, **kwargs):
        super().__init__(*args, **kwargs)
        self.seed, self.flip, self.scale = seed, flip, scale
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
        pixels = np.empty((len(positions), *self.shape), np.uint8)
        labels, flips = np.empty(len(positions), np.int32), np.zeros(len(positions), bool)
        for row, position in enumerate(positions):
            rng = np.random.default_rng((self.seed, 1, position))
            flips[row] = self.flip and rng.random() < 0.5
            crop = functools.partial(
                images.random_resized_crop, size=self.shape[0], rng=rng, scale=self.scale, channels=self.shape[2]
            )
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
        pixels = np.zeros((len(positions), *self.shape), np.uint8)
        labels, mask = np.zeros(len(positions), np.int32), np.zeros(len(positions), bool)
        crop = functools.partial(images.centre_crop, size=self.shape[0], resize=self.resize, channels=self.shape[2])
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


def free_shared() -> int:
    """Bytes that processes can still share."""
    try:
        return shutil.disk_usage(SHARED).free
    except OSError:  # a system without it shares by other means
        return 1 << 62


def shared_memory(workers: int, each: int) -> int:
    """How many of `workers` that share `each` bytes fit."""
    return min(workers, free_shared() * 9 // 10 // each)


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
        self.name, self.classes, self.config, self.resize = name, train.classes, config, settings.resize
        self.train_source = self.eval_source = train
        if settings.validation_size:
            self.name = name_of_split(name, 'validation', settings.validation_size)
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
        self.image_shape = (settings.image_size, settings.image_size, 1 if settings.grey == 'always' else 3)
        self.train_size, self.eval_size = len(self.train_indices), len(self.eval_indices)
        if self.train_size < config.batch_size:
            raise UserError(
                f'batch_size={config.batch_size} is more than the {self.train_size} training images of {name}'
            )
        self.device_arrays, self.bad = {}, set()
        self.num_workers = self.workers()
        self.running: list[Generator[Batch, None, None]] = []
        for chunks in (self.train_chunks(), self.eval_chunks()):  # a split without usable images fails now, not later
            chunks.check()
        self.mean, self.std = normalisation.mean_and_std(
            settings, self.image_shape[2], normalisation.IMAGENET, lambda: normalisation.measured(self.histograms())
        )

    def histograms(self) -> Iterator[np.ndarray]:
        """The histograms of at most MEASURED training images, evenly spaced, cropped as for evaluation."""
        settings, chunks = self.config.dataset, self.train_chunks()

        def histogram(i: int) -> np.ndarray:
            found = chunks.read(
                i, lambda data: images.centre_crop(data, settings.image_size, settings.resize, self.image_shape[2]), []
            )
            return normalisation.histogram(found[0] if found else np.empty((0, self.image_shape[2]), np.uint8))

        chosen = self.train_indices[:: -(-self.train_size // MEASURED)]
        with ThreadPoolExecutor() as pool:  # the decoders release the interpreter's lock
            yield from pool.map(histogram, chosen.tolist())

    def train_chunks(self) -> TrainChunks:
        config = self.config
        return TrainChunks(
            self.train_source, self.train_indices, batch_size=config.batch_size, rows=host_share(config.batch_size),
            shape=self.image_shape, skip_bad=config.dataset.on_bad_image == 'skip',
            seed=config.seed, flip=config.dataset.flip, scale=config.dataset.crop_scale,
        )  # fmt: skip

    def eval_chunks(self) -> EvalChunks:
        config = self.config
        return EvalChunks(
            self.eval_source, self.eval_indices, batch_size=config.eval_batch_size,
            rows=host_share(config.eval_batch_size), shape=self.image_shape,
            skip_bad=config.dataset.on_bad_image == 'skip', resize=config.dataset.resize,
            first=len(self.train_source),
        )  # fmt: skip

    def workers(self) -> int:
        """Input processes: as many as asked for, or fewer where they would not fit into /dev/shm.

        Raises:
          UserError: not even one fits.
        """
        workers = self.config.dataset.workers
        workers = min(os.cpu_count() or 1, MAX_WORKERS) if workers < 0 else workers
        chunk = min(CHUNK, max(self.config.batch_size, self.config.eval_batch_size))
        # Also one being made and one being read; and evaluation has as many workers while training's wait.
        each = 2 * (CHUNKS_AHEAD + 2) * chunk * math.prod(self.image_shape)
        fit = shared_memory(workers, each)
        if workers and not fit:
            raise UserError(
                f'{SHARED} has room for {free_shared() >> 20} MiB, and an input worker needs {(each >> 20) + 1}: give '
                'the container more (docker run --shm-size=8g, or --ipc=host), or set dataset.workers=0'
            )
        if fit < workers:
            logger.warning(
                '%s has room for %d MiB: %d input workers instead of %d; docker run --shm-size=8g makes room for more',
                SHARED, free_shared() >> 20, fit, workers,
            )  # fmt: skip
        return fit

    def run(self, chunks: Chunks, start_step: int, stop_step: int) -> Generator[Batch, None, None]:
        """The batches of steps [start_step, stop_step); ends with `close`."""
        batches = self.batches(chunks, start_step, stop_step)
        self.running.append(batches)
        return batches

    def batches(self, chunks: Chunks, start_step: int, stop_step: int) -> Generator[Batch, None, None]:
        """Batches made by worker processes (or here, with 0 workers)."""
        chunks.stop_file = os.path.join(tempfile.mkdtemp(prefix='jointrd-'), 'stop')
        numbers = grain.MapDataset.range(start_step * chunks.per_step, stop_step * chunks.per_step)
        dataset = numbers.map(chunks).to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        if workers := self.num_workers:
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
            if not re.search(r'worker process (\d+ )?was terminated', str(error), re.IGNORECASE):  # as its versions say
                raise
            raise UserError(
                f'an input worker of {self.name} died ({str(error).split(".")[0].lower()}); if memory ran out,'
                f' lower dataset.workers (now {self.num_workers});'
                f' if {SHARED} did, docker run --shm-size=8g'
            ) from error
        if 'error' in chunk:
            raise UserError(chunk['error'])
        for number, message in chunk.pop('bad'):
            if number not in self.bad:
                logger.warning('skipped: %s', message)
                self.bad.add(number)
        return chunk

    def train_batches(self, start_step: int) -> Generator[Batch, None, None]:
        return self.run(self.train_chunks(), start_step, 2**40)

    def eval_batches(self) -> Generator[Batch, None, None]:
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
        # A finished iterator of Grain's keeps its last chunks in a cycle of references: left to the end of the process,
        # their shared memory would be reported as leaked.
        gc.collect()
        if self.bad:
            logger.warning('%s: %d bad images skipped', self.name, len(self.bad))

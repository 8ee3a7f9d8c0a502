"""Where a run's numbers go beside metrics.jsonl: TensorBoard event files, and one tracking service.

Both are optional extras and are asked for by config.log. A tracker never holds up a run that it was
not asked for, and a missing package is said before anything is trained.
"""

import abc
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from jointrd_jax import config as config_lib, hosts
from jointrd_jax.errors import require
from jointrd_jax.models import Variables

TENSORBOARD = 'tensorboard'  # subdirectory of the run


class Tracker(abc.ABC):
    """One destination. `step` counts training steps everywhere."""

    every = 1  # epochs between scalars

    @abc.abstractmethod
    def scalars(self, step: int, values: dict[str, float]) -> None: ...

    @abc.abstractmethod
    def histogram(self, step: int, name: str, values: np.ndarray) -> None: ...

    @abc.abstractmethod
    def images(self, step: int, name: str, images: np.ndarray, captions: list[str]) -> None:
        """Images [N, H, W, C] uint8."""

    @abc.abstractmethod
    def finish(self, summary: dict[str, Any]) -> None:
        """The run is complete: hyperparameters beside its result."""

    @abc.abstractmethod
    def close(self) -> None:
        """Everything given is on disk."""


class TensorBoard(Tracker):
    """Event files in RUN/tensorboard, written without TensorFlow; a resumed run hides the points it takes again."""

    def __init__(self, config: ml_collections.ConfigDict, workdir: Path, step: int):
        writer = require('tensorboardX', 'tensorboard').SummaryWriter
        self.every = config.log.tensorboard
        self.config = config
        self.writer = writer(str(workdir / TENSORBOARD), purge_step=step + 1 if step else None)

    def scalars(self, step, values):
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def histogram(self, step, name, values):
        self.writer.add_histogram(name, values, step, bins='auto')

    def images(self, step, name, images, captions):
        self.writer.add_images(name, images, step, dataformats='NHWC')
        self.writer.add_text(name, ', '.join(captions), step)

    def finish(self, summary):
        results = {f'result/{name}': summary[name] for name in ('last_top1', 'best_top1')}
        self.writer.add_hparams(hyperparameters(self.config), results, name='.', global_step=summary['steps'])

    def close(self):
        self.writer.close()


class WandB(Tracker):
    """Weights & Biases; WANDB_MODE=offline keeps everything in RUN/wandb. A resumed run continues its own."""

    def __init__(self, config: ml_collections.ConfigDict, workdir: Path, step: int):
        self.wandb = require('wandb', 'wandb')
        self.run = self.wandb.init(
            project='jointrd_jax', name=workdir.name, dir=str(workdir), id=run_id(workdir), resume='allow',
            config=hyperparameters(config), settings=self.wandb.Settings(silent=True, console='off'),
        )  # fmt: skip

    def scalars(self, step, values):
        self.run.log(values, step=step)

    def histogram(self, step, name, values):
        self.run.log({name: self.wandb.Histogram(values)}, step=step)

    def images(self, step, name, images, captions):
        shown = [self.wandb.Image(image.squeeze(), caption=caption) for image, caption in zip(images, captions)]
        self.run.log({name: shown}, step=step)

    def finish(self, summary):
        self.run.summary.update({name: summary[name] for name in ('last_top1', 'best_top1', 'wall_seconds')})

    def close(self):
        self.run.finish()


def run_id(workdir: Path) -> str:
    """The same for the same directory, so that a resumed run finds itself."""
    import hashlib

    return hashlib.sha256(str(workdir).encode()).hexdigest()[:16]


def hyperparameters(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The config as values that trackers take."""
    flat = config_lib.flatten(config)
    return {name: ','.join(map(str, v)) if isinstance(v, tuple) else v for name, v in flat.items()}


def wanted(config: ml_collections.ConfigDict) -> bool:
    """Whether the config asks for any tracker (the same on every host)."""
    return bool(config.log.tensorboard or config.log.tracker)


def check(config: ml_collections.ConfigDict) -> None:
    """The packages of the trackers asked for are there.

    Raises:
      UserError: one is not; the message names its extra.
    """
    if config.log.tensorboard:
        require('tensorboardX', 'tensorboard')
    if config.log.tracker:
        require(config.log.tracker, config.log.tracker)


class Trackers:
    """All trackers of a run; on hosts other than the first, none.

    Args:
      config: the run's.
      workdir: the run's.
      step: where the run begins or continues.
    """

    def __init__(self, config: ml_collections.ConfigDict, workdir: Path, step: int):
        self.config, self.epochs = config, config.epochs
        self.all: list[Tracker] = []
        if hosts.is_first():
            if config.log.tensorboard:
                self.all.append(TensorBoard(config, workdir, step))
            if config.log.tracker == 'wandb':
                self.all.append(WandB(config, workdir, step))

    def samples(self, step: int, dataset: Any, images: jax.Array, labels: jax.Array) -> None:
        """What the network sees of a training batch: normalised, augmented `images`."""
        number = min(self.config.log.images, len(labels))
        if self.all and number:
            pixels = to_pixels(jax.device_get(images[:number]), dataset.mean, dataset.std)
            captions = [dataset.classes[label] for label in jax.device_get(labels[:number])]
            for tracker in self.all:
                tracker.images(step, 'augmented', pixels, captions)

    def epoch(self, line: dict[str, Any], student: Variables) -> None:
        """An evaluated epoch: its line of metrics.jsonl, and histograms of the weights if they are due."""
        epoch, step = line['epoch'], line['step']
        values = {name: value for name, value in line.items() if name not in ('epoch', 'step')}
        with_histograms = self.config.log.histograms and self.due(epoch, self.config.log.histograms)
        for tracker in self.all:
            if self.due(epoch, tracker.every):
                tracker.scalars(step, values)
            if with_histograms:
                for path, leaf in jax.tree_util.tree_leaves_with_path(student['params']):
                    name = '/'.join(key.key for key in path)
                    tracker.histogram(step, f'weights/{name}', np.asarray(leaf).ravel())

    def due(self, epoch: int, every: int) -> bool:
        return epoch % every == 0 or epoch in (1, self.epochs)

    def finish(self, summary: dict[str, Any]) -> None:
        for tracker in self.all:
            tracker.finish(summary)

    def close(self) -> None:
        for tracker in self.all:
            tracker.close()


def to_pixels(images: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """Normalised images back to uint8."""
    return np.clip(np.round((images * np.float32(std) + np.float32(mean)) * 255), 0, 255).astype(np.uint8)

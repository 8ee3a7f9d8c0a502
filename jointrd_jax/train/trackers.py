"""Where a run's numbers go beside metrics.jsonl: TensorBoard event files, and one tracking service.

Both are optional extras and are asked for by config.log. A missing package is an error before anything
is trained; a tracker that cannot write any more is given up with one line, and the run goes on.
"""

import abc
import contextlib
import os
import secrets
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from jointrd_jax import config as config_lib
from jointrd_jax.errors import UserError, require
from jointrd_jax.method.networks import Variables
from jointrd_jax.runs.summary import Summary
from jointrd_jax.system import buckets, distributed, files

SHOWN_IMAGES = 16  # augmented training images, when a run begins
WANDB_ID = 'wandb_id'  # file in the run's directory with its id at Weights & Biases
WANDB_MODES = ('online', 'offline', 'disabled', 'shared', 'dryrun', 'run')
WANDB_SECONDS = 15
TENSORBOARD = 'tensorboard'  # subdirectory of the run


class Tracker(abc.ABC):
    """One destination. `step` counts training steps everywhere."""

    every = 1  # epochs between scalars

    @abc.abstractmethod
    def scalars(self, step: int, values: dict[str, Any]) -> None: ...

    @abc.abstractmethod
    def histogram(self, step: int, name: str, values: np.ndarray) -> None: ...

    @abc.abstractmethod
    def images(self, step: int, name: str, images: np.ndarray, captions: list[str]) -> None:
        """Images [N, H, W, C] uint8."""

    @abc.abstractmethod
    def finish(self, summary: Summary) -> None:
        """Record the hyperparameters and the result of a complete run."""

    @abc.abstractmethod
    def close(self) -> None:
        """Return when everything given is on disk."""


class TensorBoard(Tracker):
    """Event files in RUN/tensorboard, written without TensorFlow; a resumed run replaces the points of repeated steps.

    Written from this thread: tensorboardX's SummaryWriter hands over to one of its own, and when that dies of a full
    disk, the next write waits for it for ever.
    """

    def __init__(self, config: ml_collections.ConfigDict, workdir: Path, step: int):
        require('tensorboardX', 'tensorboard')
        from tensorboardX import summary
        from tensorboardX.proto import event_pb2
        from tensorboardX.record_writer import RecordWriter

        self.every, self.config = config.log.tensorboard, config
        events: Any = event_pb2  # made by protobuf, which annotates nothing
        self.protos, self.event = summary, events.Event
        name = f'events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}'
        self.place = workdir / TENSORBOARD / name
        self.file = local_directory(workdir / TENSORBOARD) / name
        self.writer = RecordWriter(str(self.file))
        self.write(file_version='brain.Event:2')
        if step:
            self.write(step=step + 1, session_log=events.SessionLog(status=events.SessionLog.START))

    def write(self, **event: Any) -> None:
        self.writer.write(self.event(wall_time=time.time(), **event).SerializeToString())

    def scalars(self, step, values):
        for name, value in values.items():
            self.write(step=step, summary=self.protos.scalar(name, value))
        self.writer.flush()
        self.send()

    def send(self) -> None:
        """Copy the event file to the bucket, if the run is in one; whole, since objects cannot be appended to."""
        if buckets.is_remote(self.place):
            buckets.put(self.place, self.file.read_bytes())

    def histogram(self, step, name, values):
        self.write(step=step, summary=self.protos.histogram(name, values, 'auto'))

    def images(self, step, name, images, captions):
        self.write(step=step, summary=self.protos.image(name, images, dataformats='NHWC'))
        self.write(step=step, summary=self.protos.text(name, ', '.join(captions)))

    def finish(self, summary):
        results = {'result/last_top1': summary.last_top1, 'result/best_top1': summary.best_top1}
        for part in self.protos.hparams(hyperparameters(self.config), results):
            self.write(step=summary.steps, summary=part)
        self.scalars(summary.steps, results)

    def close(self):
        self.writer.close()
        self.send()


class WandB(Tracker):
    """Weights & Biases, set by its own variables: WANDB_MODE=offline keeps everything in RUN/wandb, and WANDB_PROJECT,
    WANDB_NAME and WANDB_RUN_ID name the run. A resumed run continues its record."""

    def __init__(self, config: ml_collections.ConfigDict, workdir: Path, step: int):
        self.wandb = require('wandb', 'wandb')
        self.run = self.wandb.init(
            project=os.environ.get('WANDB_PROJECT') or 'jointrd_jax', name=os.environ.get('WANDB_NAME') or workdir.name,
            dir=str(local_directory(workdir)), id=run_id(workdir), resume='allow',
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
        found = {name: getattr(summary, name) for name in ('last_top1', 'best_top1', 'wall_seconds')}
        self.run.summary.update(found)

    def close(self):
        self.run.finish()


def local_directory(place: Path) -> Path:
    """`place`, or for one in a bucket a directory on the disk that is deleted when this process ends."""
    if not buckets.is_remote(place):
        place.mkdir(parents=True, exist_ok=True)
        return place
    return buckets.kept_until_exit()


def run_id(workdir: Path) -> str:
    """WANDB_RUN_ID, or a random one kept in the workdir, so that a resumed run continues its record there."""
    kept = workdir / WANDB_ID
    with buckets.answering(kept):
        before = kept.read_text().strip() if kept.is_file() else ''
    found = os.environ.get('WANDB_RUN_ID') or before or secrets.token_hex(8)
    if found != before:
        files.write_atomically(kept, f'{found}\n')
    return found


def check_wandb() -> None:
    """Check that Weights & Biases can be written to, before training.

    Raises:
      UserError: not installed, an unknown WANDB_MODE, not logged in, or not reachable.
    """
    wandb, mode = require('wandb', 'wandb'), os.environ.get('WANDB_MODE', 'online')
    if mode not in WANDB_MODES:
        raise UserError(f"WANDB_MODE={mode} is not one of {', '.join(WANDB_MODES)}; 'disabled' turns tracking off")
    if mode not in ('online', 'run', 'shared'):
        return
    try:
        ready = wandb.login(verify=True, timeout=WANDB_SECONDS)
        why = 'no key is known'
    except Exception as error:  # of its many kinds
        ready, why = False, files.reason(error)
    if not ready:
        raise UserError(
            f'config.log.tracker=wandb cannot log in ({why.rstrip(".")}); run wandb login, set WANDB_API_KEY, or keep '
            'everything here with WANDB_MODE=offline'
        )


def hyperparameters(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The config as values that trackers take."""
    flat = config_lib.flatten(config)
    return {name: ','.join(map(str, v)) if isinstance(v, tuple) else v for name, v in flat.items()}


def wanted(config: ml_collections.ConfigDict) -> bool:
    """Whether the config asks for any tracker (the same on every host)."""
    return bool(config.log.tensorboard or config.log.tracker)


def check(config: ml_collections.ConfigDict) -> None:
    """Check that the packages of the trackers asked for are installed.

    Raises:
      UserError: one is not; the message names its extra.
    """
    if config.log.tensorboard:
        require('tensorboardX', 'tensorboard')
        require('PIL', 'tensorboard')  # it writes images by
    if config.log.tracker == 'wandb' and distributed.is_first():
        check_wandb()


def failures() -> tuple[type[BaseException], ...]:
    """The exceptions that a tracker raises when it cannot write."""
    import sys

    wandb = sys.modules.get('wandb')
    return (*buckets.failures(), *([wandb.Error] if wandb else []))


class Trackers:
    """All trackers of a run; on hosts other than the first, none.

    Args:
      config: the run's.
      workdir: the run's.
      step: where the run begins or continues.
      say: tells the user of a tracker that was given up.
    """

    def __init__(
        self, config: ml_collections.ConfigDict, workdir: Path, step: int, say: Callable[[str], None] = lambda _: None
    ):
        self.config, self.epochs, self.say = config, config.epochs, say
        self.all: list[Tracker] = []
        for asked, tracker in ((config.log.tensorboard, TensorBoard), (config.log.tracker == 'wandb', WandB)):
            if asked and distributed.is_first():
                try:
                    self.all.append(tracker(config, workdir, step))
                except failures() as error:
                    self.say_given_up(tracker, error)

    def say_given_up(self, kind: type[Tracker], error: BaseException) -> None:
        self.say(f'{kind.__name__} cannot be written ({files.reason(error)}): the run goes on without it')

    def tell(self, tracker: Tracker, what: Callable[[Tracker], None]) -> None:
        """Call `what` with a tracker, which is given up if it cannot write."""
        try:
            what(tracker)
        except failures() as error:
            self.all = [other for other in self.all if other is not tracker]
            with contextlib.suppress(*failures()):
                tracker.close()
            self.say_given_up(type(tracker), error)

    def samples(self, step: int, dataset: Any, images: jax.Array, labels: jax.Array) -> None:
        """Record the first images of a training batch as the network takes them: normalised and augmented."""
        number = min(SHOWN_IMAGES, len(labels))
        if self.all and number:
            pixels = dataset.description.to_uint8(jax.device_get(images[:number]))
            captions = [dataset.classes[label] for label in jax.device_get(labels[:number])]
            for tracker in self.all:
                self.tell(tracker, lambda tracker: tracker.images(step, 'augmented', pixels, captions))

    def epoch(self, line: dict[str, Any], student: Variables) -> None:
        """Record an epoch: its line of metrics.jsonl, and histograms of the weights, where these are due."""
        epoch, step = line['epoch'], line['step']
        values = {name: value for name, value in line.items() if name not in ('epoch', 'step')}
        with_histograms = self.config.log.histograms and self.due(epoch, self.config.log.histograms)

        def write(tracker: Tracker) -> None:
            if with_histograms:
                for path, leaf in jax.tree_util.tree_leaves_with_path(student['params']):
                    name = '/'.join(key.key for key in path)
                    tracker.histogram(step, f'weights/{name}', np.asarray(leaf).ravel())
            if self.due(epoch, tracker.every):
                tracker.scalars(step, values)

        for tracker in self.all:
            self.tell(tracker, write)

    def due(self, epoch: int, every: int) -> bool:
        return epoch % every == 0 or epoch in (1, self.epochs)

    def finish(self, summary: Summary) -> None:
        for tracker in self.all:
            self.tell(tracker, lambda tracker: tracker.finish(summary))

    def close(self) -> None:
        for tracker in self.all:
            self.tell(tracker, lambda tracker: tracker.close())

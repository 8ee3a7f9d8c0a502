"""What must agree before a run starts: batches, workdir, teacher, initial weights. All but `stem` raise UserError."""

import json
from pathlib import Path
from typing import Any

import ml_collections

from jointrd_jax import config as config_lib, data
from jointrd_jax.data.folds import overlap, parts
from jointrd_jax.errors import UserError
from jointrd_jax.method.networks import Network
from jointrd_jax.runs import pretrained, run_directory
from jointrd_jax.runs.run_directory import Run
from jointrd_jax.runs.summary import Summary
from jointrd_jax.system import files
from jointrd_jax.system.notices import say_once

# Fields that may change when a run is continued: they do not change its result.
LOGGING = tuple(name for name in config_lib.FIELDS if name.startswith('log.'))
HARMLESS = (
    'checkpoint.every_steps',
    'checkpoint.keep',
    'checkpoint.accept_changes',
    'dataset.data_dir',
    'dataset.workers',
    'teacher.least_top1',
    'teacher.path',
    *LOGGING,
)
# Pixels a side: a stem with stride is a likely mistake below SMALL, one without stride above LARGE.
SMALL, LARGE = 64, 128
# What two networks must share to have the same blocks.
SHAPE_FIELDS = ('stage_sizes', 'bottleneck', 'width', 'stem_kind')


def batches(config: ml_collections.ConfigDict, dataset: data.Dataset, devices: int) -> None:
    """Check that batches divide over that many devices and fit the data."""
    for name in ('batch_size', 'eval_batch_size'):
        size = config[name]
        if size % devices:
            below = size // devices * devices
            fitting = f'{below} or {below + devices}' if below else devices
            raise UserError(f'config.{name}={size} is not a multiple of the {devices} devices; {fitting} is')
    steps = config.epochs * (dataset.train_size // config.batch_size)
    if steps > config_lib.MAX_INT:
        raise UserError(
            f'config.epochs={config.epochs} of {dataset.name} are {steps} steps, more than {config_lib.MAX_INT}; '
            'give fewer epochs or a larger config.batch_size'
        )
    if config.batch_size > dataset.train_size:
        raise UserError(
            f'config.batch_size={config.batch_size} is more than the {dataset.train_size} training images '
            f'of {dataset.name}'
        )


def stem(config: ml_collections.ConfigDict, dataset: data.Dataset) -> None:
    """Print a notice if the stem does not suit the size of the images; the run continues, since it may be intended."""
    side = max(dataset.image_shape[:2])
    size = f'{dataset.image_shape[0]}x{dataset.image_shape[1]}'
    if config.model.stem == 'cifar' and side > LARGE:
        say_once(
            f'config.model.stem=cifar does not shrink images, and these of {size} pixels make a step about '
            '16 times as long as config.model.stem=imagenet would'
        )
    elif config.model.stem == 'imagenet' and side < SMALL:
        say_once(
            f'config.model.stem=imagenet shrinks images to a quarter, which leaves few pixels of images of {size}; '
            'config.model.stem=cifar keeps their size'
        )


def workdir(config: ml_collections.ConfigDict, directory: Path) -> None:
    """Check that a run in `directory` has this config; only fields that cannot change the result may differ."""
    if not (directory / run_directory.CONFIG).exists():
        return
    before = files.read_json(directory / run_directory.CONFIG)
    if not isinstance(before, dict):
        raise UserError(f'{directory / run_directory.CONFIG} is damaged: not a config')
    same_config(config, before, directory)


def same_config(config: ml_collections.ConfigDict, before: dict[str, Any], directory: Path) -> None:
    """Check that `config` differs only in harmless fields from `before`, the flat config of the run in `directory`."""
    now = json.loads(json.dumps(config_lib.flatten(config)))
    before = json.loads(json.dumps(config_lib.flatten(config_lib.default()))) | before  # fields that came later
    if others := sorted(before.keys() - now.keys()):
        raise UserError(
            f'{directory} holds a run of another version of jointrd_jax (it knows the fields {", ".join(others)}), '
            'which cannot be continued; use another --workdir. The network of this run can still be exported or used '
            'as a teacher'
        )
    decisive = set()
    if config.nan.action == 'rollback':  # it goes to the newest scheduled checkpoint
        decisive.add('checkpoint.every_steps')
    if config.steps_per_dispatch > 1:  # these decide which steps are taken in one call, which changes rounding
        decisive |= {'checkpoint.every_steps', 'log.gradients'}
    harmless = set(HARMLESS) - decisive
    changed = [
        f'{name}: {before.get(name)!r} there, {now.get(name)!r} now'
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and name not in harmless
    ]
    if changed:
        raise UserError(f'{directory} holds a run of another config ({"; ".join(changed)}); use another --workdir')


def restore(config: ml_collections.ConfigDict, student: Network, dataset: data.Dataset) -> Run | None:
    """The run that `config.restore` names, or None; its network must fit, and its classes unless the head is new."""
    if config.restore_head == 'new' and not config.restore:
        raise UserError(
            'config.restore_head=new needs config.restore=RUN, the run to start from (see configs/finetune.py)'
        )
    if not config.restore:
        return None
    other = pretrained.load(config.restore, config, student, dataset.description, new_head=config.restore_head == 'new')
    unseen(f'config.restore={config.restore}', other.data.dataset, dataset.name)
    channels = other.data.image_shape[-1], dataset.image_shape[-1]
    if channels[0] != channels[1]:
        raise UserError(
            f'config.restore={config.restore} takes images of {channels[0]} channel{"s" * (channels[0] > 1)}, this '
            f'dataset has {channels[1]}'
        )
    same(
        f'config.restore={config.restore}',
        other.network,
        student,
        SHAPE_FIELDS + ('shortcuts', 'reparam', 'activation', 'groups'),
    )
    if config.restore_head == 'keep':
        classes(f'config.restore={config.restore}', other.data.classes, dataset.classes)
    return other


def same_images(summary: Summary, dataset: data.Dataset, directory: Path) -> None:
    """Check that the finished run in `directory` was evaluated on the images of `dataset`."""
    there, here = summary.eval_images, [dataset.name, dataset.eval_size]
    if there and (parts(there[0])[0], there[1]) != (parts(dataset.name)[0], dataset.eval_size):
        raise UserError(
            f'{directory} holds a finished run of other data: {there[1]} images of {there[0]} there, {here[1]} of '
            f'{here[0]} now; use another --workdir'
        )


def unseen(what: str, trained: str, evaluated: str) -> None:
    """Check that a network trained on the dataset `trained` has not seen the images that `evaluated` evaluates on."""
    if overlap(trained, evaluated):
        raise UserError(
            f'{what} was trained on {trained}: it has seen images that this run, of {evaluated}, is evaluated on'
        )


def same(what: str, there: Network, here: Network, fields: tuple[str, ...]) -> None:
    """Check that two networks agree in `fields`; the error names both sides."""
    for field in fields:
        if getattr(there, field) != getattr(here, field):
            raise UserError(
                f'{what} has {field} {getattr(there, field)} (depth {there.depth}) '
                f'but this run needs {field} {getattr(here, field)} (depth {here.depth})'
            )


def classes(what: str, there: tuple[str, ...], here: tuple[str, ...]) -> None:
    if len(there) != len(here):
        raise UserError(f'{what} has {len(there)} classes but the dataset of this run has {len(here)}')
    for i, (a, b) in enumerate(zip(there, here)):
        if a != b:
            raise UserError(f'{what} calls class {i} {a!r} but the dataset of this run calls it {b!r}')

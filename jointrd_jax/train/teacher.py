"""The frozen teacher of a run: where it comes from, and whether it is as good as recorded."""

import math
from pathlib import Path
from typing import NamedTuple

import ml_collections

from jointrd_jax import data
from jointrd_jax.errors import UserError
from jointrd_jax.method.joint import Method
from jointrd_jax.method.networks import Network, Variables
from jointrd_jax.runs import from_config, pretrained, run_directory
from jointrd_jax.runs.summary import SUMMARY, Summary
from jointrd_jax.train import preflight

ABOVE_CHANCE = 5.0  # points, or CHANCE_DEVIATIONS standard deviations of guessing where there are few images
CHANCE_DEVIATIONS = 4
TOLERANCE = 0.5  # points between a teacher's recorded accuracy and what it shows here


class Teacher(NamedTuple):
    """A frozen teacher: its network and variables, and the run or file it came from with its summary."""

    network: Network
    variables: Variables
    origin: str
    summary: Summary
    digest: str
    top1: float | None = None  # here, percent; None until evaluated


def recipe(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config that trains the teacher of `config`: an ordinary ResNet, from random weights.

    It keeps the other fields of the student, of which a ResNet reads none (`from_config.student`).
    """
    config = config.copy_and_resolve_references()
    config.procedure, config.restore, config.restore_head = 'resnet', '', 'keep'
    config.model.init = 'random'
    return config


def load(
    config: ml_collections.ConfigDict, path: Path, dataset: data.Dataset, student: Network, method: Method
) -> Teacher:
    """The teacher kept in `path`, a finished run or a file of weights.

    Raises:
      UserError: there is none, or it does not fit the student, the method or the dataset.
    """
    what, channels = f'teacher {path}', dataset.image_shape[-1]
    resnet = from_config.resnet(config, len(dataset.classes))
    found = pretrained.load(path, config, resnet, dataset.description, config.teacher.which)
    if found.summary is None:
        raise UserError(f'{what} is not a finished run: it has no {SUMMARY}; continue its training first')
    preflight.classes(what, found.data.classes, dataset.classes)
    preflight.unseen(what, found.data.dataset, dataset.name)
    network = found.network.clone(dtype=student.dtype, remat=student.remat)
    if method.taps or method.distill_weight:
        preflight.same(what, network, student, preflight.SHAPE_FIELDS)
    if found.data.image_shape[-1] != channels:
        taken = found.data.image_shape[-1]
        raise UserError(f'{what} takes images of {taken} channel{"s" * (taken > 1)}, this dataset has {channels}')
    return Teacher(network, found.variables, str(path), found.summary, run_directory.digest(found.variables))


def check_record(teacher: Teacher, top1: float, which: str, dataset: data.Dataset) -> None:
    """Raises UserError if the `which` ('last' | 'best') top-1 that its run recorded on these images is not `top1`."""
    recorded = teacher.summary.last_top1 if which == 'last' else teacher.summary.best_top1
    same_images = teacher.summary.eval_images == [dataset.name, dataset.eval_size]
    if recorded is not None and same_images and abs(top1 - recorded) > TOLERANCE:
        raise UserError(
            f'teacher {teacher.origin} reaches {top1:.2f} % top-1 here but its summary records {recorded:.2f} %; '
            'its checkpoint or the data is not what it was'
        )


def check_useful(teacher: Teacher, top1: float, least: float, dataset: data.Dataset) -> None:
    """Raises UserError if `top1` is below `least` percent, or (a negative `least`) no better than guessing.

    A teacher whose own run measured it on these images may be no better than guessing; `least` holds for it too.
    """
    images = (
        f'{teacher.origin} reaches {top1:.2f} % top-1 on the {dataset.eval_size} evaluation images of {dataset.name}'
    )
    if least >= 0:
        if top1 < least:
            raise UserError(f'teacher {images}, less than config.teacher.least_top1={least:g}')
        return
    if teacher.summary.eval_images == [dataset.name, dataset.eval_size]:
        return
    chance = 1 / len(dataset.classes)
    deviation = math.sqrt(chance * (1 - chance) / dataset.eval_size)
    if top1 / 100 - chance < min(max(ABOVE_CHANCE / 100, CHANCE_DEVIATIONS * deviation), (1 - chance) / 2):
        raise UserError(
            f'teacher {images}, near chance ({100 * chance:.2f} %): its classes may be in another order, or it may '
            'need another normalisation or image size; give a teacher of this dataset, or go on with this one by '
            'config.teacher.least_top1=0'
        )

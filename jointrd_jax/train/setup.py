"""What a run will do: its data, networks, loss and teacher, known to be good before anything is made or compiled."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import jax
import ml_collections

from jointrd_jax import config as config_lib, data
from jointrd_jax.method.joint import Method
from jointrd_jax.method.networks import Network
from jointrd_jax.runs import from_config
from jointrd_jax.system import buckets, distributed
from jointrd_jax.train import preflight, teacher as teacher_lib, trackers
from jointrd_jax.train.step import AXIS
from jointrd_jax.train.teacher import Teacher


class Plan(NamedTuple):
    """A run that passed all checks.

    `teacher` is the frozen one that the config names; None if none is needed or it is to be trained first.
    """

    dataset: data.Dataset
    student: Network
    method: Method
    teacher: Teacher | None
    lacks_teacher: bool  # it needs one, which is to be trained first


def make(config: ml_collections.ConfigDict, workdir: Path) -> Plan:
    """The plan of a run in `workdir`; the caller closes its dataset.

    Raises:
      UserError: anything wrong with the config, the data, the teacher, or what is in `workdir`.
    """
    config_lib.validate(config)
    distributed.agree(config_lib.flatten(config))
    trackers.check(config)
    dataset = data.load(config)
    try:
        classes = hashlib.sha256('\n'.join(dataset.classes).encode()).hexdigest()[:12]
        sizes = {'training images': dataset.train_size, 'evaluation images': dataset.eval_size}
        distributed.agree({'dataset': dataset.name, 'classes': classes, **sizes}, 'data')
        preflight.batches(config, dataset, jax.device_count())
        preflight.stem(config, dataset)
        student = from_config.student(config, len(dataset.classes), AXIS)
        method = from_config.method(config, student)
        preflight.workdir(config, workdir)
        preflight.restore(config, student, dataset)
        teacher, needs_teacher = None, config.procedure in config_lib.NEEDS_TEACHER
        if needs_teacher and config.teacher.path:
            teacher = teacher_lib.load(config, buckets.place(config.teacher.path), dataset, student, method)
    except BaseException:
        dataset.close()
        raise
    return Plan(dataset, student, method, teacher, needs_teacher and teacher is None)

"""Accuracies over every evaluation image."""

from collections.abc import Callable

import jax
import numpy as np

from jointrd_jax import data
from jointrd_jax.errors import UserError
from jointrd_jax.method import joint
from jointrd_jax.method.networks import Variables
from jointrd_jax.system import signals
from jointrd_jax.train.step import shard_batches


def evaluate(
    eval_step: Callable,
    dataset: data.Dataset,
    device_arrays: dict[str, jax.Array],
    mesh: jax.sharding.Mesh,
    student: Variables,
    teacher: Variables | None = None,
) -> dict[str, float] | None:
    """Top-1 and top-5 in percent by `step.make_eval_step`'s step: 'top1', 'teacher_top1', 'path1_top1', ...

    None if a stop was asked for meanwhile (on a single host; several finish together).

    Raises:
      UserError: no evaluation image could be used.
    """
    total, images = {}, 0
    for batch in dataset.eval_batches():
        if signals.requested() and jax.process_count() == 1:
            return None
        counts, number = eval_step(student, teacher, device_arrays, shard_batches([batch], mesh))
        total = {name: total.get(name, 0) + count for name, count in counts.items()}
        images += number
    if not int(images):
        raise UserError(f'{dataset.name}: none of its {dataset.eval_size} evaluation images can be used any more')
    result = {}
    for name, count in total.items():
        prefix = '' if name == joint.STUDENT else f'{name}_'
        for k, correct in zip((1, 5), np.asarray(count)):
            result[f'{prefix}top{k}'] = round(100 * float(correct) / int(images), 4)
    return result

"""Accuracies over every evaluation image."""

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from jointrd_jax import data
from jointrd_jax.errors import UserError
from jointrd_jax.method import joint
from jointrd_jax.method.networks import Variables
from jointrd_jax.system import distributed
from jointrd_jax.train.feed import Feed, InFlight
from jointrd_jax.train.step import shard_batches


class Evaluation(NamedTuple):
    """What an evaluation found.

    Attributes:
      accuracies: top-1 and top-5 in percent: 'top1', 'teacher_top1', 'path1_top1', ...
      correct: [evaluation images] int8, in the dataset's order: 1 where the student was right, 0 where it was not, -1
        where an image could not be read.
    """

    accuracies: dict[str, float]
    correct: np.ndarray


def evaluate(
    eval_step: Callable,
    dataset: data.Dataset,
    device_arrays: dict[str, jax.Array],
    mesh: jax.sharding.Mesh,
    student: Variables,
    teacher: Variables | None = None,
) -> Evaluation | None:
    """What `step.make_eval_step`'s step finds on all evaluation images.

    None if a stop was asked for meanwhile.

    Raises:
      UserError: no evaluation image could be used.
    """
    total, parts = {}, []
    batches = (shard_batches([batch], mesh) for batch in dataset.eval_batches())
    in_flight = InFlight()
    with contextlib.closing(Feed(batches)) as feed, contextlib.suppress(StopIteration):
        while True:
            batch = feed.take(distributed.alone_and_stopping)
            if batch is None or distributed.stop_asked():
                return None
            counts, right = eval_step(student, teacher, device_arrays, batch)
            total = {name: total.get(name, 0) + count for name, count in counts.items()}
            parts.append(right)
            in_flight.add(right)
    correct = np.concatenate([on_host(part) for part in parts])[: dataset.eval_size]
    images = int((correct >= 0).sum())
    if not images:
        raise UserError(f'{dataset.name}: none of its {dataset.eval_size} evaluation images can be used any more')
    result = {}
    for name, count in total.items():
        prefix = '' if name == joint.STUDENT else f'{name}_'
        for k, hits in zip((1, 5), np.asarray(count)):
            result[f'{prefix}top{k}'] = round(100 * float(hits) / images, 4)
    return Evaluation(result, correct)


def on_host(rows: jax.Array) -> np.ndarray:
    """The rows of all hosts, on every host."""
    if rows.is_fully_addressable:
        return np.asarray(rows)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(rows, tiled=True))

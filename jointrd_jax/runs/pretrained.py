"""Trained networks to start from or to learn from: a run directory, or a weight file."""

import dataclasses
from pathlib import Path

import ml_collections

from jointrd_jax.data.description import DataDescription
from jointrd_jax.method.networks import Network
from jointrd_jax.runs import run_directory, state_dicts, weights
from jointrd_jax.runs.run_directory import Run
from jointrd_jax.runs.summary import Summary
from jointrd_jax.system import buckets
from jointrd_jax.system.notices import say_once


def load(
    path: str | Path,
    config: ml_collections.ConfigDict,
    network: Network,
    data: DataDescription,
    which: str = 'last',
    *,
    new_head: bool = False,
) -> Run:
    """The network at `path` as a run. A foreign weight file must hold `network`, and is taken as trained on `data`.

    Args:
      path: a run directory or a weight file.
      config: of the run that asks; it stands in where a weight file has none.
      network: what a foreign weight file must hold.
      data: what a weight file that does not say otherwise was trained on.
      which: of a run's weights, 'last' or 'best'.
      new_head: the caller does not want the classifier, so it may be for other classes.

    Raises:
      UserError: nothing there, damaged, or a weight file that does not fit.
    """
    path = buckets.place(path)
    if not state_dicts.is_weight_file(path):
        return run_directory.load(path, which)
    channels = None if new_head else data.image_shape[-1]
    loaded = weights.load(path, network, channels, new_head=new_head)
    if loaded.taken:
        say_once(f'{path}: {loaded.taken}')
    sees = loaded.variables['params']['stem']['conv']['kernel'].shape[2]
    assumed = dataclasses.replace(data, image_shape=(*data.image_shape[:2], sees))
    unmeasured = Summary(procedure=config.procedure, wall_seconds=0.0)
    return Run(path, config, loaded.network, loaded.variables, loaded.data or assumed, unmeasured)

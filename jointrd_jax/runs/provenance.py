"""What besides the config decides a run's result: the code, the packages, the devices, the data."""

import contextlib
import hashlib
import importlib.metadata
import os
from collections.abc import Iterable
from pathlib import Path

import jax
import ml_collections
import numpy as np

from jointrd_jax.data import Dataset
from jointrd_jax.errors import UserError

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy')
RECORDED = ('jointrd_jax', *PACKAGES, 'orbax-checkpoint')  # in summaries and exports
DECODERS = ('grain', 'opencv-python-headless', 'pillow', 'simplejpeg')  # decide the pixels of streamed images
# Modules whose text decides what a step computes, and when.
CODE = (
    'config', 'data', 'method', 'runs.from_config', 'system.runtime', 'train.assembly', 'train.evaluation',
    'train.history', 'train.job', 'train.loop', 'train.resume', 'train.rollback', 'train.setup', 'train.step',
)  # fmt: skip
SETTINGS = ('jax_default_prng_impl', 'jax_threefry_partitionable', 'jax_default_matmul_precision', 'jax_enable_x64')
DEVICES = 'devices'
DEVICE_COUNT_FLAG = '--xla_force_host_platform_device_count='  # counted in `DEVICES`


def versions(packages: Iterable[str] = RECORDED) -> dict[str, str]:
    """{package: version} of those that are installed."""
    found = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def code_digests() -> dict[str, str]:
    """{module: digest of its text}."""
    package, found = Path(__file__).parents[1], {}
    for name in CODE:
        place = package / name.replace('.', '/')
        paths = sorted(place.glob('*.py')) or [place.with_suffix('.py')]
        found[name] = hashlib.sha256(b''.join(path.read_bytes() for path in paths)).hexdigest()[:12]
    return found


LOADED = code_digests()  # at import: what runs, also when a file is edited meanwhile


def provenance(dataset: Dataset) -> dict[str, str]:
    """{what: its state}, kept with every checkpoint and compared when a run is continued."""
    packages = PACKAGES if dataset.device_arrays else PACKAGES + DECODERS
    found = {f'package {name}': version for name, version in versions(packages).items()}
    found |= {f'code of jointrd_jax.{name}': digest for name, digest in LOADED.items()}
    found[DEVICES] = f'{jax.device_count()} x {jax.devices()[0].device_kind}'
    flags = os.environ.get('XLA_FLAGS', '').split()
    found |= {f'setting {name}': str(getattr(jax.config, name)) for name in SETTINGS}
    found['XLA_FLAGS'] = ' '.join(sorted(flag for flag in flags if not flag.startswith(DEVICE_COUNT_FLAG)))
    data = {**dataset.description.to_json(), 'train_size': dataset.train_size, 'eval_size': dataset.eval_size}
    del data['resize']  # in the config too; runs from before it was recorded can be continued without
    if dataset.device_arrays:
        sha = hashlib.sha256()
        for array in dataset.device_arrays.values():
            sha.update(np.ascontiguousarray(array).data)
        data['contents'] = sha.hexdigest()[:12]
    return found | {f'data {name}': str(value) for name, value in data.items()}


def is_one(value: object) -> bool:
    """Whether a JSON value has the form that `provenance` makes."""
    return isinstance(value, dict) and all(isinstance(state, str) for state in value.values())


def check(config: ml_collections.ConfigDict, before: dict[str, str], now: dict[str, str], where: Path) -> list[str]:
    """The differences, which must have been allowed by `config.checkpoint.accept_changes`.

    Another number of devices is allowed where BatchNorm is over all of them: the result is the same up to rounding.

    Raises:
      UserError: something changed since the checkpoint and was not allowed; the message names all of it.
    """
    changed = [
        f'{name}: {before.get(name)} then, {now.get(name)} now'
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    kinds = [state.get(DEVICES, '').partition(' x ')[2] for state in (before, now)]
    same_but_for_rounding = config.batch_norm == 'global' and kinds[0] == kinds[1]
    refused = [change for change in changed if not (same_but_for_rounding and change.startswith(f'{DEVICES}:'))]
    if refused and not config.checkpoint.accept_changes:
        raise UserError(
            f'the run in {where} would not continue as it began ({"; ".join(refused)}); restore these, or allow '
            'another result by --config.checkpoint.accept_changes=True'
        )
    return changed

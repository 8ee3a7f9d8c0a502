"""What besides the config decides a run's result: the code, the packages, the devices, the data."""

import hashlib
import importlib.metadata
from pathlib import Path

import jax
import ml_collections

from jointrd_jax.data import Dataset
from jointrd_jax.data.base import as_config
from jointrd_jax.errors import UserError

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy')
CODE = ('build', 'joint', 'losses', 'models', 'step', 'data')  # modules whose text decides what a step computes


def code_digests() -> dict[str, str]:
    """{module: digest of its text}."""
    here, found = Path(__file__).parent, {}
    for name in CODE:
        paths = sorted((here / name).glob('*.py')) or [here / f'{name}.py']
        found[name] = hashlib.sha256(b''.join(path.read_bytes() for path in paths)).hexdigest()[:12]
    return found


LOADED = code_digests()  # at import: what runs, also when a file is edited meanwhile


def provenance(dataset: Dataset) -> dict[str, str]:
    """{what: its state}, kept with every checkpoint and compared when a run is continued."""
    found = {f'package {name}': importlib.metadata.version(name) for name in PACKAGES}
    found |= {f'code of jointrd_jax.{name}': digest for name, digest in LOADED.items()}
    found['devices'] = f'{jax.device_count()} x {jax.devices()[0].device_kind}'
    data = {**as_config(dataset), 'train_size': dataset.train_size, 'eval_size': dataset.eval_size}
    return found | {f'data {name}': str(value) for name, value in data.items()}


def check(config: ml_collections.ConfigDict, before: dict[str, str], now: dict[str, str], where: Path) -> list[str]:
    """The differences, which must have been allowed by `config.checkpoint.accept_changes`.

    Raises:
      UserError: something changed since the checkpoint and was not allowed; the message names all of it.
    """
    changed = [
        f'{name}: {before.get(name)} then, {now.get(name)} now'
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if changed and not config.checkpoint.accept_changes:
        raise UserError(
            f'the run in {where} would not continue as it began ({"; ".join(changed)}); bring back what it began '
            'with, or allow another result by --config.checkpoint.accept_changes=True'
        )
    return changed

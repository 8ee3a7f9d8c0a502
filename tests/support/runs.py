"""Run directories with random weights, made without training."""

from pathlib import Path

from jointrd_jax import data
from jointrd_jax.config import default
from jointrd_jax.data.base import as_config
from jointrd_jax.deploy import convert
from jointrd_jax.method.networks import Network, Variables
from jointrd_jax.runs import run_directory
from tests.support.networks import randomised


def digits_run(path: Path, shortcuts: str = 'none', **fields) -> tuple[Network, Variables]:
    """A finished run on the digits in `path`: its network and variables."""
    network = Network((1, 1), False, 4, 10, 'cifar', shortcuts, **fields)
    variables = randomised(network, (8, 8, 1))
    config = convert.config_of(network, 'digits')
    summary = {
        'procedure': config.procedure,
        'last_top1': None,
        'best_top1': None,
        'wall_seconds': 0.0,
        'student_digest': run_directory.digest(variables),
    }
    run_directory.save(path, config, variables, as_config(data.load(default())), summary)
    return network, variables

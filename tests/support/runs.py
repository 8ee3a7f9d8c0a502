"""Run directories with random weights, made without training."""

from pathlib import Path

from jointrd_jax import data
from jointrd_jax.config import default
from jointrd_jax.deploy import convert
from jointrd_jax.method.networks import Network, Variables
from jointrd_jax.runs import run_directory
from jointrd_jax.runs.summary import Summary
from tests.support.networks import randomised


def digits_run(path: Path, shortcuts: str = 'none', **fields) -> tuple[Network, Variables]:
    """A finished run on the digits in `path`: its network and variables."""
    network = Network((1, 1), False, 4, 10, 'cifar', shortcuts, **fields)
    variables = randomised(network, (8, 8, 1))
    config = convert.config_of(network, 'digits')
    digest = run_directory.digest(variables)
    summary = Summary(procedure=config.procedure, wall_seconds=0.0, student_digest=digest)
    run_directory.save(path, config, variables, data.load(default()).description, summary)
    return network, variables

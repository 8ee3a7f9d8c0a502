"""Train: python -m jointrd_jax.main --config configs/digits.py --workdir DIR [--config.field=value ...]

On several hosts the same command runs on each, with --coordinator=HOST:PORT --num_processes=N --process_id=I,
or --coordinator=auto where JAX detects them (SLURM, TPU, GKE). See docs/multihost.md.
"""

from absl import flags
from ml_collections import config_flags

from jointrd_jax import cli

CONFIG = config_flags.DEFINE_config_file('config', None, 'The recipe; override with --config.field=value.')
WORKDIR = flags.DEFINE_string('workdir', None, 'Where the run is kept; the same command continues it.')
COORDINATOR = flags.DEFINE_string('coordinator', None, "HOST:PORT of process 0, or 'auto'; none: one process.")
NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'How many processes (hosts) take part.', lower_bound=1)
PROCESS_ID = flags.DEFINE_integer('process_id', None, 'The number of this process, from 0.', lower_bound=0)
flags.mark_flags_as_required(['config', 'workdir'])


def main() -> None:
    from jointrd_jax import hosts, runtime, train

    runtime.configure()
    hosts.start(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    with hosts.joined():
        train.run(CONFIG.value, WORKDIR.value)


if __name__ == '__main__':
    cli.run(main)

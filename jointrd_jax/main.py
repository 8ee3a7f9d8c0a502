"""Train: python -m jointrd_jax.main --config configs/digits.py --workdir DIR [--config.field=value ...]"""

from absl import flags
from ml_collections import config_flags

from jointrd_jax import cli

CONFIG = config_flags.DEFINE_config_file('config', None, 'The recipe; override with --config.field=value.')
WORKDIR = flags.DEFINE_string('workdir', None, 'Where the run is kept; the same command continues it.')
flags.mark_flags_as_required(['config', 'workdir'])


def main() -> None:
    from jointrd_jax import runtime, train

    runtime.configure()
    train.run(CONFIG.value, WORKDIR.value)


if __name__ == '__main__':
    cli.run(main)

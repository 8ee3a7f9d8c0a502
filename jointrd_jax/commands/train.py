"""Train what a recipe says; the same command continues an interrupted run.

    jointrd train --config digits --workdir runs/digits --config.epochs=32

On several hosts the same command runs on each, with --coordinator=HOST:PORT --num_processes=N --process_id=I,
or --coordinator=auto where JAX detects them (SLURM, TPU, GKE). See docs/multihost.md.
"""

from absl import flags

from jointrd_jax.commands import options
from jointrd_jax.system import signals

STOPPED = signals.NOTHING_TO_SAVE


def define_flags(values: flags.FlagValues) -> None:
    options.recipe(values)
    options.workdir(values, 'Where the run is kept; the same command continues it.')
    flags.DEFINE_string(
        'coordinator', None, "HOST:PORT of process 0, or 'auto'; none: one process.", flag_values=values
    )
    flags.DEFINE_integer(
        'num_processes', None, 'How many processes (hosts) take part.', lower_bound=1, flag_values=values
    )
    flags.DEFINE_integer('process_id', None, 'The number of this process, from 0.', lower_bound=0, flag_values=values)


def main(given: flags.FlagValues) -> None:
    from jointrd_jax import config

    if given.coordinator is None:  # several processes join first: an error of one must end all
        config.validate(given.config)  # again in `loop.run`, but here before JAX is imported

    from jointrd_jax.system import distributed, runtime
    from jointrd_jax.train import loop

    runtime.configure()
    distributed.start(given.coordinator, given.num_processes, given.process_id)
    with distributed.joined():
        loop.run(given.config, given.workdir)

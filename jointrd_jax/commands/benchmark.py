"""How fast a training step is, beside what its arithmetic costs and what the machine can do.

    jointrd benchmark [--shapes=18:32:128,50:224:256] [--procedures=plain,jointrd] [--out=FILE]
    jointrd benchmark --config digits [--config.field=value ...]

Without a config the images are synthetic and nothing is imported beyond jax, flax, optax, absl and the step
itself. Programs are compiled anew (no cache); steps of the procedures alternate, so that a machine that is
slow for a while is slow for all of them. One device.
"""

import importlib.util

from absl import flags

from jointrd_jax.commands import options

LOCAL = ('out', 'trace')  # take local paths only


def define_flags(values: flags.FlagValues) -> None:
    from jointrd_jax.benchmark.tasks import CPU_SHAPES, GPU_SHAPES, PROCEDURES

    if importlib.util.find_spec('ml_collections'):  # a machine to measure on may have jax and flax alone
        options.recipe(values, required=False, help='A recipe, on its own data, with its own procedures.')
    shapes = f'DEPTH:PIXELS:BATCH, ...; by default {GPU_SHAPES}, on a CPU {CPU_SHAPES}.'
    flags.DEFINE_string('shapes', '', shapes, flag_values=values)
    flags.DEFINE_list('procedures', ['resnet', 'plain', 'jointrd'], f'Of {", ".join(PROCEDURES)}.', flag_values=values)
    flags.DEFINE_integer(
        'width', 0, 'Channels of the first stage; by default 64, on a CPU 16.', lower_bound=0, flag_values=values
    )
    flags.DEFINE_enum(
        'dtype', '', ['', 'float32', 'bfloat16'], 'By default bfloat16, on a CPU float32.', flag_values=values
    )
    flags.DEFINE_float(
        'distill_weight', 1e-3, 'Of margin distillation, in the procedures that have it.', flag_values=values
    )
    flags.DEFINE_bool('remat', False, 'Compute blocks anew in the backward pass.', flag_values=values)
    flags.DEFINE_integer('rounds', 9, 'How many times the procedures alternate.', lower_bound=1, flag_values=values)
    flags.DEFINE_string(
        'compiler_options', '', 'NAME=VALUE;NAME=VALUE ...: time each task also with each of these options of XLA.',
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_list(
        'steps_per_dispatch', [], 'Time each training task also with so many steps taken by one call, such as 10.',
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string(
        'trace', '', 'Also profile a round of each task into this directory, and print what took the time.',
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string('out', '', 'Also write the figures there, as JSON.', flag_values=values)


def main(given: flags.FlagValues) -> None:
    from jointrd_jax.benchmark import measure, tasks

    measure.run(
        config=getattr(given, 'config', None),
        shapes=given.shapes,
        procedures=given.procedures,
        settings=tasks.Settings(given.width, given.dtype, given.distill_weight, given.remat),
        rounds=given.rounds,
        compiler_options=[option for option in given.compiler_options.split(';') if option],
        steps_per_dispatch=given.steps_per_dispatch,
        trace=given.trace,
        out=given.out,
    )

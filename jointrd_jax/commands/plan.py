"""What a recipe needs of accelerators that are not here: does it fit, and what will it cost at least?

    jointrd plan --config imagenet --topology v5e:4x4,h100x8

The recipe's own steps (training, evaluation, those of a teacher that it trains first) are compiled for the chips.
Neither the chips nor CIFAR or ImageNet need be here. Each figure is marked: known (counted), bound (the
chip cannot do better) or guess. Needs the extra [plan-tpu] or [plan-gpu]. See docs/guides/gpu_tpu.md.
"""

from absl import flags

from jointrd_jax.commands import options

LOCAL = ('json',)  # take local paths only


def define_flags(values: flags.FlagValues) -> None:
    from jointrd_jax.plan.chips import choices

    options.recipe(values)
    flags.DEFINE_list('topology', None, f'{choices()}; several are compared.', required=True, flag_values=values)
    flags.DEFINE_enum(
        'effort', 'quick', ['quick', 'full'], "Of a TPU's compiler; full is a run's own and takes minutes a program.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_bool(
        'largest', False, 'Also look for the largest batch per chip that fits (of no more than the training images).',
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string('json', '', 'Also write the figures there.', flag_values=values)


def main(given: flags.FlagValues) -> None:
    from jointrd_jax.errors import require

    run = require('jointrd_jax.plan.run', 'data')  # batches as the input pipeline would make them
    run.run(given.config, given.topology, effort=given.effort, largest=given.largest, out=given.json)

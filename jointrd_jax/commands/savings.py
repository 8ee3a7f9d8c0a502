"""What a network without shortcuts saves, on which runtime and by which model of memory.

    jointrd savings [--stem cifar] [--out DIR]

For each depth four networks with random weights: the ResNet, the student that keeps its projections, the
student without any shortcut, and the plain network that equivalent removal (RMNet) makes of the ResNet.
"""

from pathlib import Path

from absl import flags

LOCAL = ('out',)  # take local paths only


def define_flags(values: flags.FlagValues) -> None:
    from jointrd_jax.method.architectures import STEMS

    flags.DEFINE_list(
        'models', ['resnet18', 'resnet34', 'resnet50'], 'ResNets to compare with their students.', flag_values=values
    )
    flags.DEFINE_enum(
        'stem',
        'imagenet',
        STEMS,
        'Of 224 x 224 pixels and 1000 classes; cifar: 32 x 32, 10.',
        flag_values=values,
    )
    flags.DEFINE_string('out', None, 'A directory to make for report.md, report.json and pictures.', flag_values=values)
    flags.DEFINE_integer('rounds', 30, 'Pairs of timed runs.', lower_bound=2, flag_values=values)
    flags.DEFINE_integer('width', 64, 'Channels of the first stage.', lower_bound=1, flag_values=values)


def main(given: flags.FlagValues) -> None:
    from jointrd_jax.deploy import savings

    savings.run(given.models, given.stem, Path(given.out) if given.out else None, given.rounds, given.width)

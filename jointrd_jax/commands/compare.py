"""Procedures beside each other, over seeds; with --variants also ablations.

    jointrd compare --config digits --workdir DIR --seeds 0,1,2

Every cell (procedure, seed) is a run of its own in DIR/PROCEDURE/seedN, resumed or reused when it is
there. The `resnet` run of a seed is the teacher of that seed's other runs. A run whose loss is not finite at
some step is a result too: the table says so, and the others go on. Writes DIR/compare.json and a
picture of the learning curves, DIR/compare.png; with --report also DIR/report.html (see `report`).

A name says how its student is made: `plain+dirac`, `jointrd+branches` (config.model.reparam), `plain+leaky`, `+prelu`,
`+tailored`, `+annealed` (config.model.activation), `+identity` (config.model.init), `+fading` (config.model.shortcuts),
or one of each kind: `jointrd+identity+prelu`. A recipe that has one of them (configs/imagenet.py: dirac) is refused
where the name says otherwise: name `jointrd+dirac`, or give --config.model.reparam=none.

Every row has its difference to the ResNet of the same seed on the same images, with a 95 % interval (bootstrap over
images and seeds); where that holds 0, the two cannot be told apart. --folds 5 deals all images of the dataset (digits,
or a folder without train/ and val/) out to five parts: each is evaluated on once, by runs that were not trained on it.

Ablations: --variants names lists of overrides, and every procedure is run with each:

    --procedures jointrd --variants 'eta0: mix.eta=0; more: mix.num_taps=7 mix.eta=1; base:'

The runs of such a cell are in DIR/PROCEDURE/VARIANT/seedN. The teacher is that of the recipe without overrides.
"""

from absl import flags

from jointrd_jax.commands import options
from jointrd_jax.system import signals

STOPPED = signals.NOTHING_TO_SAVE


def define_flags(values: flags.FlagValues) -> None:
    from jointrd_jax.compare import DEFAULT

    options.recipe(values)
    options.workdir(values, 'Where the runs are kept; the same command continues them.')
    flags.DEFINE_list('seeds', ['0'], 'Seeds, comma-separated.', flag_values=values)
    flags.DEFINE_list(
        'procedures', list(DEFAULT), 'Procedures; +dirac, +prelu, ... say how the student is made.', flag_values=values
    )
    flags.DEFINE_string('variants', '', "Ablations: 'NAME: field=value field=value; NAME: ...'.", flag_values=values)
    flags.DEFINE_integer(
        'folds',
        0,
        'Into how many parts to deal all images, each evaluated on once; 0: the split.',
        0,
        100,
        flag_values=values,
    )
    flags.DEFINE_bool('report', False, 'Also write WORKDIR/report.html.', flag_values=values)


def main(given: flags.FlagValues) -> None:
    from jointrd_jax import compare
    from jointrd_jax.config import MAX_INT
    from jointrd_jax.errors import whole_number
    from jointrd_jax.system import runtime

    seeds = [whole_number('seeds', seed, 0, MAX_INT) for seed in given.seeds]
    runtime.configure()
    variants = compare.parse_variants(given.variants)
    compare.run(given.config, given.workdir, seeds, tuple(given.procedures), variants, given.report, given.folds)

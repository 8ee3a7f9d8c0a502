"""Evaluate a run: top-1, top-5, per class and which classes it confuses.

    jointrd evaluate RUN [--dataset NAME --data_dir DIR] [--format json]

Without --dataset, the evaluation images are those of the run's own dataset. Another dataset (such as --dataset folder)
may have fewer classes than the run, under the same names. --data_dir alone says where the run's own dataset is now; it
keeps the run's fold.
"""

from absl import flags

from jointrd_jax.commands import options

POSITIONAL = ('RUN',)


def define_flags(values: flags.FlagValues) -> None:
    options.which(values)
    flags.DEFINE_string('dataset', None, "Another dataset than the run's: folder, cifar10, ...", flag_values=values)
    flags.DEFINE_string('data_dir', None, 'Where the dataset is, if not where it was.', flag_values=values)
    flags.DEFINE_enum('format', 'table', ['table', 'json'], 'Of what is printed.', flag_values=values)


def main(given: flags.FlagValues, path: str) -> None:
    import json

    from jointrd_jax.report import evaluate
    from jointrd_jax.system import runtime, terminal

    runtime.configure()
    found = evaluate.evaluate(path, given.which, given.dataset, given.data_dir)
    if given.format == 'json':
        print(json.dumps(found, indent=2))
    else:
        evaluate.show(found, terminal.console())

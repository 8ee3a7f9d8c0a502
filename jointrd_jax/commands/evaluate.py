"""Evaluate a run: top-1, top-5, per class and which classes it takes for which.

    jointrd evaluate RUN [--dataset NAME --data_dir DIR] [--format json]

Without --dataset on the evaluation images of the run's own dataset. Another one (such as --dataset folder) may have
fewer classes, under the names that the run knows.
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

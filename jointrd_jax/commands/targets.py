"""What compilers and runtimes of NPUs, microcontrollers, FPGAs and phones make of trained networks, or of shapes.

    jointrd targets RUN RUN/teacher [--targets vela,tflite_micro] [--out DIR] [--json FILE]
    jointrd targets --shapes 18,34,50 --stem imagenet [--targets vela/u55-256]
    jointrd targets --shapes 50 --advise --budget 1500KiB

RUN is a run directory or what jointrd export made of one. Every tool runs in a process of its own; one that is
missing, fails or hangs has a row with the reason, and the exit status is 1. --advise names the fewest blocks that must
lose their shortcut for feature maps to fit.
"""

from pathlib import Path

from absl import flags

POSITIONAL = ('[RUN ...]',)

LOCAL = ('arguments', 'json', 'out')  # take local paths only
STOPPED = 'stopped; --json and the model cards of exports have the rows so far; to go on, name what --out already holds'


def define_flags(values: flags.FlagValues) -> None:
    from jointrd_jax.commands import options
    from jointrd_jax.deploy.bench import TARGETS
    from jointrd_jax.method.architectures import STEMS

    flags.DEFINE_list(
        'targets', [],
        f'Of {", ".join(TARGETS)}; vela/u55-256: its configurations with that in their name. All that are installed.',
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_list('shapes', [], 'Instead of runs: ResNet depths, with random weights.', flag_values=values)
    flags.DEFINE_enum('stem', 'imagenet', STEMS, 'Of the shapes: 224 or 32 pixels.', flag_values=values)
    flags.DEFINE_integer('width', 64, 'Of the shapes: channels of the first stage.', lower_bound=1, flag_values=values)
    flags.DEFINE_list(
        'networks', ['ResNet', 'projection', 'plain'], 'Of each shape: ResNet, projection, plain.', flag_values=values
    )
    flags.DEFINE_string('json', None, 'A file for all rows.', flag_values=values)
    flags.DEFINE_string(
        'out', None, 'A directory to make for the exports of runs, and their results.', flag_values=values
    )
    flags.DEFINE_integer('images', 500, 'Test images on which accuracy is taken.', lower_bound=1, flag_values=values)
    flags.DEFINE_integer('rounds', 21, 'Timings, where a target runs here; 0: none.', lower_bound=0, flag_values=values)
    flags.DEFINE_float('timeout', 600, 'Seconds after which a tool hangs.', lower_bound=1, flag_values=values)
    flags.DEFINE_list('python', [], 'TARGET=PYTHON, for tools in environments of their own.', flag_values=values)
    flags.DEFINE_bool('any_version', False, 'Take tools also in other versions than checked.', flag_values=values)
    flags.DEFINE_bool('advise', False, 'Name the fewest blocks to make plain, by liveness.', flag_values=values)
    flags.DEFINE_string(
        'budget', None, 'For --advise: memory for feature maps, as 1500KiB or 1.5MiB.', flag_values=values
    )
    options.which(values)
    flags.DEFINE_string('data_dir', None, "Where the runs' dataset is, if not where it was.", flag_values=values)


def main(given: flags.FlagValues, *runs: str) -> None:
    import sys

    from jointrd_jax.deploy import ask_targets
    from jointrd_jax.system import runtime

    runtime.configure()
    request = ask_targets.Request(
        runs=runs, targets=given.targets, shapes=given.shapes, stem=given.stem, width=given.width,
        networks=given.networks, images=given.images, rounds=given.rounds, timeout=given.timeout,
        pythons=given.python, any_version=given.any_version, which=given.which, data_dir=given.data_dir,
        out=Path(given.out) if given.out else None, json=Path(given.json) if given.json else None,
    )  # fmt: skip
    if given.advise:
        ask_targets.advise(request, given.budget)
        return
    rows = ask_targets.run(request)
    if not all(row.went for row in rows):
        sys.exit(1)

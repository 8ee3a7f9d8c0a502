"""Runs, comparisons and exports on one HTML page that needs nothing else.

jointrd report RUN [RUN ...] --out report.html
"""

from absl import flags

POSITIONAL = ('RUN ...',)


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string('out', 'report.html', 'The file to write.', flag_values=values)
    flags.DEFINE_string('title', '', 'Of the page; by default the dataset and the procedures.', flag_values=values)
    flags.DEFINE_bool(
        'evaluate', True, 'Evaluate the networks again, for confusions and example images.', flag_values=values
    )


def main(given: flags.FlagValues, *paths: str) -> None:
    from jointrd_jax.report import page
    from jointrd_jax.system import runtime

    runtime.configure()
    written = page.write(paths, given.out, title=given.title, evaluate=given.evaluate)
    for path, shown in written['left_out']:
        print(f'left out: {path}, other weights of the same config and seed as {shown}')
    print(f'report of {written["runs"]} runs: {given.out}')

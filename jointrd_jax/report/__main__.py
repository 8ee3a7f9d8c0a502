"""Report: python -m jointrd_jax.report RUN [RUN ...] --out report.html"""

from absl import flags

from jointrd_jax import cli

OUT = flags.DEFINE_string('out', 'report.html', 'The file to write.')
TITLE = flags.DEFINE_string('title', '', 'Of the page; by default the dataset and the procedures.')
EVALUATE = flags.DEFINE_bool('evaluate', True, 'Evaluate the networks again, for confusions and example images.')


def main(*paths: str) -> None:
    from jointrd_jax import runtime
    from jointrd_jax.report import page

    runtime.configure()
    written = page.write(paths, OUT.value, title=TITLE.value, evaluate=EVALUATE.value)
    for path, shown in written['left_out']:
        print(f'left out: {path}, other weights of the same config and seed as {shown}')
    print(f'report of {written["runs"]} runs: {OUT.value}')


if __name__ == '__main__':
    cli.run(main, ('RUN ...',))

"""python -m jointrd_jax.report is jointrd report."""

import sys

from jointrd_jax import cli

if __name__ == '__main__':
    cli.run('report', sys.argv[1:])

"""python -m jointrd_jax.export is jointrd export."""

import sys

from jointrd_jax import cli

if __name__ == '__main__':
    cli.run('export', sys.argv[1:])

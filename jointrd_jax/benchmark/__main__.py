"""python -m jointrd_jax.benchmark is jointrd benchmark."""

import sys

from jointrd_jax import cli

if __name__ == '__main__':
    cli.run('benchmark', sys.argv[1:])

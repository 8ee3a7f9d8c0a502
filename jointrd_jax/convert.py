"""python -m jointrd_jax.convert is jointrd convert."""

import sys

from jointrd_jax import cli

if __name__ == '__main__':
    cli.run('convert', sys.argv[1:])

"""python -m jointrd_jax.main is jointrd train."""

import sys

from jointrd_jax import cli

if __name__ == '__main__':
    cli.run('train', sys.argv[1:])

"""python -m jointrd_jax.prepare is jointrd prepare."""

import sys

from jointrd_jax import cli

if __name__ == '__main__':
    cli.run('prepare', sys.argv[1:])

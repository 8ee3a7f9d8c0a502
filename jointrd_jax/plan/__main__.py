"""python -m jointrd_jax.plan is jointrd plan."""

import sys

from jointrd_jax import cli

if __name__ == '__main__':
    cli.run('plan', sys.argv[1:])

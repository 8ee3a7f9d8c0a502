"""python -m jointrd_jax.deploy_report is jointrd savings."""

import sys

from jointrd_jax import cli

if __name__ == '__main__':
    cli.run('savings', sys.argv[1:])

"""python -m jointrd_jax is the command jointrd."""

from jointrd_jax import cli

if __name__ == '__main__':
    cli.main()

"""The recipes that come with the package: `configs/` of the repository, installed as jointrd_jax.configs."""

from pathlib import Path

DIRECTORY = Path(__file__).with_name('configs')


def shipped() -> list[str]:
    """The names of the recipes that come with the package."""
    return sorted(path.stem for path in DIRECTORY.glob('*.py') if path.stem != '__init__')


def find(value: str) -> str:
    """The path of the recipe `value` names: a file, or a shipped recipe by name ('digits', 'configs/digits.py').

    What follows a colon is the recipe's own argument ('finetune:RUN') and stays. A value that names neither is
    returned as it is.
    """
    path, colon, argument = value.partition(':')
    if Path(path).is_file():
        return value
    name = Path(path).name.removesuffix('.py')
    is_shipped = path in (name, f'configs/{name}.py', f'configs/{name}', f'{name}.py') and name in shipped()
    return f'{DIRECTORY / name}.py{colon}{argument}' if is_shipped else value

"""The recipes that come with the package: `configs/` of the repository, installed as jointrd_jax.configs."""

import difflib
from pathlib import Path

from jointrd_jax.errors import UserError

DIRECTORY = Path(__file__).with_name('configs')


def shipped() -> list[str]:
    """The names of the recipes that come with the package."""
    return sorted(path.stem for path in DIRECTORY.glob('*.py') if path.stem != '__init__')


def find(value: str) -> str:
    """The path of the recipe `value` names: a file, or a shipped recipe by name ('digits', 'configs/digits.py').

    What follows a colon is the recipe's own argument ('finetune:RUN') and stays.

    Raises:
      UserError: `value` names neither.
    """
    path, colon, argument = value.partition(':')
    if Path(path).is_file():
        return value
    name = Path(path).name.removesuffix('.py')
    is_shipped = path in (name, f'configs/{name}.py', f'configs/{name}', f'{name}.py') and name in shipped()
    if not is_shipped:
        near = difflib.get_close_matches(name, shipped(), 1)
        meant = f'did you mean {near[0]}?' if near else f'there are {", ".join(shipped())}'
        raise UserError(f'--config={value}: no such file, and no recipe of that name; {meant}')
    return f'{DIRECTORY / name}.py{colon}{argument}'

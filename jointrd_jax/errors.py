"""What can end a command other than success: the user's or the outside world's errors, and a request to stop."""

import importlib
from types import ModuleType


class UserError(Exception):
    """Bad input: a config value, a path, a dataset, a checkpoint, a weight file.

    Its text is one line that says what was wrong, where, and what to do. The command line prints
    that line without a traceback and exits with status 2; library callers may catch it.
    """


class NotFinite(UserError):
    """A loss was not finite and no rollback is allowed, or none is left; the last good checkpoint is kept."""


class Stuck(UserError):
    """A write that does not end blocks a thread of this process, which must be ended without waiting for it."""


class Interrupted(Exception):
    """The run was told to stop and has written a checkpoint; its text says where to continue.

    The command line prints it and exits with `signals.STOPPED_STATUS`.
    """


def choice_error(field: str, value: object, choices) -> UserError:
    """The error for a value outside its `choices`, naming all of them."""
    return UserError(f'{field}={value!r} is not one of {", ".join(map(str, choices))}')


def whole_number(flag: str, text: str, low: int, high: int, other: str = '') -> int:
    """The number that a flag was given as text; `other` is a word that it could be instead.

    Raises:
      UserError: it is not a whole number from `low` to `high`.
    """
    text = text.strip()
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(high)) and low <= int(text) <= high):
        nor = f'neither {other} nor' if other else 'not'
        raise UserError(f'--{flag}={text[:100]!r} is {nor} a whole number from {low} to {high}')
    return int(text)


def require(module: str, extra: str) -> ModuleType:
    """Import and return an optional dependency.

    Raises:
      UserError: it is not installed; the message names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{error.name} is not installed; it comes with the extra [{extra}]: pip install 'jointrd_jax[{extra}]'"
        ) from error

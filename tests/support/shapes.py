"""The type checker of jaxtyping's import hook (conftest.py): an int will do for a float, as everywhere in Python."""

from collections.abc import Callable

from beartype import BeartypeConf, beartype

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(function: Callable) -> Callable:
    """`function` with its annotations checked in every call; as it is where it has none, as those made in each call."""
    return _check(function) if getattr(function, '__annotations__', None) else function

"""Notices, which are not errors: each a line on standard error, printed once, however often it is given."""

import contextlib
import functools
import logging
from collections.abc import Iterator

logger = logging.getLogger(__name__)


@functools.cache
def say_once(note: str) -> None:
    logger.warning(note)


@contextlib.contextmanager
def as_plain_lines() -> Iterator[None]:
    """Print what the package logs as the message alone, whatever other libraries make of the root logger."""
    package, handler = logging.getLogger(__name__.split('.')[0]), logging.StreamHandler()
    propagated, package.propagate = package.propagate, False
    package.addHandler(handler)
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.propagate = propagated

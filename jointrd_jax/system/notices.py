"""What a person should know that is no error: a line on standard error, once, however often it comes up."""

import functools
import logging

logger = logging.getLogger(__name__)


@functools.cache
def say_once(note: str) -> None:
    logger.warning(note)

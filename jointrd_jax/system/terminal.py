"""Where tables are printed."""

import os
import sys
from typing import Any

from rich.console import Console

WIDTH = 200  # of a file or a pipe, in characters; rich takes 80, which breaks the names in wide tables


def console(**options: Any) -> Console:
    """A console on the standard output, as wide as the terminal, or as `WIDTH` where there is none."""
    limited = sys.stdout.isatty() or 'COLUMNS' in os.environ
    return Console(highlight=False, width=None if limited else WIDTH, **options)

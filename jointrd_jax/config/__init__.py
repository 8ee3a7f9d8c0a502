"""A run's config: what fields there are (`fields`), a config's values (`values`), and its checks (`checks`).

Config files (configs/*.py) start from `default()` and change what differs. Values are primitives;
rates and step counts are derived in code. Lengths of schedules are fractions of the run, so that a recipe
keeps its shape when `epochs` changes; what ends in `_epochs` is in epochs.
"""

from jointrd_jax.config.checks import has_bottlenecks, validate
from jointrd_jax.config.fields import (
    FIELDS,
    MAX_BATCH,
    MAX_INT,
    NEEDS_TEACHER,
    PROCEDURES,
    TRAINS_RESNET,
    channel_numbers,
)
from jointrd_jax.config.values import default, flatten, from_text, suggest

__all__ = [
    'FIELDS',
    'MAX_BATCH',
    'MAX_INT',
    'NEEDS_TEACHER',
    'PROCEDURES',
    'TRAINS_RESNET',
    'channel_numbers',
    'default',
    'flatten',
    'from_text',
    'has_bottlenecks',
    'suggest',
    'validate',
]

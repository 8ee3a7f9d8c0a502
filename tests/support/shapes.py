"""The type checker of jaxtyping's import hook (conftest.py): an int will do for a float, as everywhere in Python."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))

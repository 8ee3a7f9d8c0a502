"""Configs: the defaults, flattening, values read from text and shown in messages."""

import difflib
from typing import Any

import ml_collections

from jointrd_jax.config.fields import FIELDS
from jointrd_jax.errors import UserError

SHOWN = 100  # characters of a value in a message
REPLACED = {  # fields of earlier versions
    'model.dirac': 'model.reparam=dirac',
    'model.anneal_epochs': 'model.anneal_fraction, of the run,',
    'mix.epochs': 'mix.fraction, of the run,',
    'optimizer.warmup_epochs': 'optimizer.warmup_fraction, of the run,',
    'optimizer.drop_every': 'optimizer.drop_fractions or optimizer.drop_epochs, with optimizer.schedule=step,',
    'on_nan': 'nan.action',
    'nan_factor': 'nan.factor',
    'nan_rollbacks': 'nan.rollbacks',
}


def default() -> ml_collections.ConfigDict:
    """A config with every field at its default."""
    config = ml_collections.ConfigDict()
    for name, field in FIELDS.items():
        node = config
        *groups, leaf = name.split('.')
        for group in groups:
            if group not in node:
                node[group] = ml_collections.ConfigDict()
            node = node[group]
        node[leaf] = field.default
    return config


def flatten(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """{'group.field': value}; sequences as tuples."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            flat.update({f'{name}.{k}': v for k, v in flatten(value).items()})
        else:
            flat[name] = tuple(value) if isinstance(value, list) else value
    return flat


def from_text(name: str, text: str) -> Any:
    """The value of the field `name` written as `text`: 'True', '0.5', '3,7', 'none'.

    Raises:
      UserError: no such field, or not a value of its type.
    """
    if name not in FIELDS:
        raise UserError(f'config has no field {name!r}; {suggest(name)}')
    field = FIELDS[name]
    try:
        if isinstance(field.default, bool):
            return {'true': True, 'false': False}[text.lower()]
        if isinstance(field.default, tuple):
            return tuple(float(part) if '.' in part else int(part) for part in text.split(',') if part)
        return type(field.default)(text)
    except (KeyError, ValueError) as error:
        raise UserError(f'config.{name}={text!r} is not accepted; it must be: {field.accepts}') from error


def shown(value: Any) -> str:
    """A value as a message shows it: in one line, shortened."""
    try:
        text = ' '.join(ascii(value).split())
    except (ValueError, RecursionError):  # such as whole numbers of more than 4300 digits
        text = f'a {type(value).__name__} too large to print'
    return text if len(text) <= SHOWN else f'{text[:SHOWN]}...'


def suggest(name: str) -> str:
    """For a message, what to write in place of a field name that does not exist: 'did you mean ...'."""
    if name in REPLACED:
        return f'{REPLACED[name]} has taken its place'
    close = difflib.get_close_matches(name, FIELDS, n=3, cutoff=0.5)
    return f'did you mean {" or ".join(close)}?' if close else 'jointrd_jax/config/fields.py lists all fields'

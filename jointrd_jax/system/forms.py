"""Checks of JSON values that come from files: whether they have the form that this program writes."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from jointrd_jax.errors import UserError

Form = Callable[[Any], bool]


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_count(value: Any) -> bool:
    return is_number(value) and isinstance(value, int) and abs(value) < 2**31


def is_text(value: Any) -> bool:
    """Text that can be written to a file."""
    return isinstance(value, str) and not any('\ud800' <= char <= '\udfff' for char in value)


def is_list(of: Form) -> Form:
    return lambda value: isinstance(value, list) and all(map(of, value))


def is_table(value: Any) -> bool:
    """{name: number}, not all of which need be finite: the norm of an exploding gradient is not."""
    return isinstance(value, dict) and all(isinstance(v, int | float) for v in value.values())


def is_texts(value: Any) -> bool:
    """{name: text}."""
    return isinstance(value, dict) and all(map(is_text, value.values()))


def optional(form: Form) -> Form:
    return lambda value: value is None or form(value)


def first_misfit(value: Mapping[str, Any], forms: Mapping[str, Form]) -> str | None:
    """The first name of `forms` whose value in `value` is missing or has another form; None if all fit."""
    return next((name for name, fits in forms.items() if name not in value or not fits(value[name])), None)


def check(value: Any, forms: Mapping[str, Form], where: object, what: str) -> dict[str, Any]:
    """The fields of `value`, each of its form.

    Raises:
      UserError: `value` is no such object; the message is `where`: `what` is damaged, with the field.
    """
    if not isinstance(value, dict):
        raise UserError(f'{where}: {what} is damaged: it is not a JSON object')
    if misfit := first_misfit(value, forms):
        raise UserError(f'{where}: {what} is damaged: {misfit!r} is missing or not of the expected form')
    return {name: value[name] for name in forms}

"""The one exception for everything a user can get wrong or that can go wrong outside the code."""


class UserError(Exception):
    """Bad input: a config value, a path, a dataset, a checkpoint, a weight file.

    Its text is one line that says what was wrong, where, and what to do. The command line prints
    that line without a traceback and exits with status 2; library callers may catch it.
    """


def choice_error(field: str, value: object, choices) -> UserError:
    """The error for a value outside its `choices`, naming all of them."""
    return UserError(f'{field}={value!r} is not one of {", ".join(map(str, choices))}')

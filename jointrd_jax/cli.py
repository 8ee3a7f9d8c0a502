"""The frame of every command: flags, one clear line for what the user got wrong, the exit status."""

import functools
import os
import sys
import traceback
from collections.abc import Callable, Sequence

import jax
from absl import app, flags

from jointrd_jax import hosts, signals
from jointrd_jax.config import FIELDS, suggest
from jointrd_jax.errors import Interrupted, Stuck, UserError

USAGE_STATUS = 2


def say(message: object) -> None:
    """What was wrong, on standard error, in one line."""
    print(f'error: {" ".join(str(message).split())}', file=sys.stderr, flush=True)


def out_of_memory(error: Exception) -> bool:
    """Whether the machine or an accelerator had too little."""
    return isinstance(error, MemoryError) or (
        isinstance(error, jax.errors.JaxRuntimeError) and 'RESOURCE_EXHAUSTED' in str(error)
    )


def fail(message: object) -> None:
    """Say what was wrong and end with status 2."""
    say(message)
    hosts.leave(USAGE_STATUS)
    sys.exit(USAGE_STATUS)


def explain(error: BaseException, argv: Sequence[str]) -> str:
    """One line for an error in the command line or in the config file it names."""
    for arg in argv:
        name = arg.lstrip('-').split('=')[0].removeprefix('config.')
        lookup_failed = isinstance(error, (AttributeError, KeyError, flags.UnrecognizedFlagError))
        if arg.lstrip('-').startswith('config.') and name not in FIELDS and lookup_failed:
            return f'the config has no field {name!r}; {suggest(name)}'
    text = str(error) if isinstance(error, (flags.Error, UserError)) else f'{type(error).__name__}: {error}'
    return text.replace('flag --', '--')


def repeated_list(argv: Sequence[str]) -> str | None:
    """The first list field that is overridden twice: ml_collections would join the two."""
    names = [arg.lstrip('-').split('=')[0].removeprefix('config.') for arg in argv if arg.startswith('-')]
    lists = [name for name in names if name in FIELDS and isinstance(FIELDS[name].default, tuple)]
    return next((name for name in lists if lists.count(name) > 1), None)


def parse(argv: Sequence[str], positional: Sequence[str] = ()) -> list[str]:
    for arg in argv[1:]:
        if not arg.isascii() and any(0xD800 <= ord(char) < 0xE000 for char in arg):
            fail(f'the argument {arg!a} is not UTF-8')
    repeated = repeated_list(argv[1:])
    if repeated:
        fail(f'--config.{repeated} is given more than once; give it once, as in --config.{repeated}=1,2')
    try:
        rest = flags.FLAGS(list(argv))
        if 'config' in flags.FLAGS:  # a file that could not be loaded says so when it is first used
            hasattr(flags.FLAGS['config'].value, 'procedure')
    except UserError as error:
        fail(error)
    except Exception as error:  # config files are the user's code: anything can be raised there
        fail(explain(error, argv[1:]))
    if 'workdir' in flags.FLAGS and flags.FLAGS['workdir'].value == '':
        fail('--workdir is empty; name a directory')
    if len(rest) > 1 + len(positional) and not (positional and positional[-1].endswith('...')):
        fail(f'unexpected argument {rest[1 + len(positional)]!r}; options start with --')
    if len(rest) < 1 + len(positional):
        fail(f'{positional[len(rest) - 1]} is missing: {" ".join(positional)} comes before the options')
    return rest


def run(main: Callable[..., None], positional: Sequence[str] = ()) -> None:
    """Parse the flags and call `main` with the arguments named `positional` (the last may be 'NAME ...': one or more).

    UserError ends the process with one line and status 2, a first SIGTERM or SIGINT with one line and
    `signals.STOPPED_STATUS`, after a checkpoint if there is new work.
    """

    def guarded(argv: Sequence[str]) -> None:
        try:
            with signals.handled():
                main(*argv[1:])
        except Interrupted as stop:
            print(stop, file=sys.stderr, flush=True)
            sys.exit(signals.STOPPED_STATUS)
        except Stuck as error:
            say(error)
            signals.end(USAGE_STATUS)
        except UserError as error:
            fail(error)
        except BrokenPipeError:
            sys.exit(USAGE_STATUS)
        except OSError as error:  # a path that cannot be looked at, a full disk under standard output
            if error.errno is None:
                raise
            fail(f'{error.filename or "standard output or a file"}: {os.strerror(error.errno)}')
        except Exception as error:
            if out_of_memory(error):
                fail(f'out of memory; lower config.batch_size, or set config.remat=True ({error})')
            if jax.distributed.is_initialized():
                traceback.print_exc()
                hosts.leave(1)
            raise

    app.run(guarded, flags_parser=functools.partial(parse, positional=positional))

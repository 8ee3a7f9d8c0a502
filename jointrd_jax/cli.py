"""The command `jointrd`: its subcommands, their flags, one clear line for what the user got wrong, the exit status.

A subcommand NAME is the module `commands.NAME`, imported only when it is asked for. It has a docstring, which is its
help text, and

    POSITIONAL = ('RUN ...',)               optional: arguments before the options; the last may be 'NAME ...', or
                                            '[NAME ...]' where none are needed
    def define_flags(values) -> None        its flags, defined in the absl FlagValues it is given
    def main(given, *arguments) -> None     the call into the library; `given` has the flags as attributes
"""

import contextlib
import difflib
import importlib
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from types import ModuleType

from absl import flags

from jointrd_jax.errors import Interrupted, Stuck, UserError
from jointrd_jax.system import buckets, notices, runtime, signals

USAGE_STATUS = 2
COMMANDS = {
    'train': 'train what a recipe says; the same command continues it',
    'compare': 'procedures, seeds and ablations beside each other',
    'evaluate': 'top-1, top-5, per class and confusions of a run, on its dataset or another',
    'predict': 'class and probability of images, by a run or an export',
    'export': 'a trained network as ONNX, TFLite, StableHLO, safetensors',
    'report': 'runs and exports on one HTML page',
    'prepare': 'download and prepare a TFDS dataset',
    'convert': 'weight files into runs, runs into weight files',
    'plan': 'does a recipe fit accelerators that are not here, at what cost',
    'benchmark': 'step times beside what their arithmetic costs',
    'targets': 'what compilers of NPUs, microcontrollers, FPGAs and phones make of a network',
    'savings': 'what a network without shortcuts saves, per runtime',
}


def say(message: object) -> None:
    """Print what was wrong on standard error, in one line."""
    print(f'error: {" ".join(str(message).split())}', file=sys.stderr, flush=True)


def imported_jax() -> ModuleType | None:
    """JAX if something has imported it: importing it takes longer than all else that a wrong command line needs."""
    return sys.modules.get('jax')


def is_one_of_several() -> bool:
    """Whether this process has joined others, of this host or of several."""
    jax = imported_jax()
    return jax is not None and jax.distributed.is_initialized()


def leave(status: int) -> None:
    """End this process if it is one of several (see `distributed.leave`); returns otherwise."""
    if is_one_of_several():
        from jointrd_jax.system import distributed

        distributed.leave(status)


def out_of_memory(error: Exception) -> bool:
    """Whether the error says that the memory of the machine or of an accelerator ran out."""
    if isinstance(error, MemoryError):
        return True
    jax = imported_jax()
    return jax is not None and isinstance(error, jax.errors.JaxRuntimeError) and 'RESOURCE_EXHAUSTED' in str(error)


def fail(message: object) -> None:
    """Say what was wrong and end with status 2."""
    say(message)
    leave(USAGE_STATUS)
    sys.exit(USAGE_STATUS)


def explain(error: BaseException, argv: Sequence[str]) -> str:
    """One line for an error in the command line or in the config file it names."""
    from jointrd_jax.config import FIELDS, from_text, suggest

    for arg in argv:
        given, _, value = arg.lstrip('-').partition('=')
        name = given.removeprefix('config.')
        lookup_failed = isinstance(error, (AttributeError, KeyError, flags.UnrecognizedFlagError))
        meant = name.replace('-', '_')
        if not arg.startswith('-') or given in ('config', ''):
            continue
        if meant in FIELDS and (name != meant or (given == name and lookup_failed)):
            return f'there is no --{given}; did you mean --config.{meant}?'
        if given.startswith('config.') and name not in FIELDS and lookup_failed:
            return f'the config has no field {name!r}; {suggest(name)}'
        if (
            given.startswith('config.')
            and name in FIELDS
            and isinstance(error, (flags.Error, ValueError, SyntaxError, TypeError))
        ):
            try:
                from_text(name, value)
            except UserError as refused:
                return str(refused)
    text = str(error) if isinstance(error, (flags.Error, UserError)) else f'{type(error).__name__}: {error}'
    if missing := re.match(r'flag --(\w+)=None: ', text):
        return f'--{missing[1]} is missing'
    return text.replace('flag --', '--')


def repeated_list(argv: Sequence[str]) -> str | None:
    """The first list field that is overridden twice (ml_collections would join the two), or None."""
    from jointrd_jax.config import FIELDS

    names = [arg.lstrip('-').split('=')[0].removeprefix('config.') for arg in argv if arg.startswith('-')]
    lists = [name for name in names if name in FIELDS and isinstance(FIELDS[name].default, tuple)]
    return next((name for name in lists if lists.count(name) > 1), None)


def with_recipe(argv: Sequence[str]) -> list[str]:
    """`argv` with the recipe that --config names as a path (see `recipes.find`)."""
    from jointrd_jax import recipes

    found = list(argv)
    for i, arg in enumerate(found):
        if arg in ('--config', '-config') and i + 1 < len(found):
            found[i + 1] = recipes.find(found[i + 1])
        elif arg.startswith(('--config=', '-config=')):
            flag, _, value = arg.partition('=')
            found[i] = f'{flag}={recipes.find(value)}'
    return found


def help_text(name: str, module: ModuleType, values: flags.FlagValues) -> str:
    """What `jointrd NAME --help` prints: the module's docstring and its flags."""
    lines = [
        f'jointrd {" ".join([name, *positional_of(module)])} [--FLAG=VALUE ...]',
        '',
        (module.__doc__ or '').strip(),
        '',
    ]
    for key in values:
        flag = values[key]
        default = '' if flag.default in (None, '', False, []) else f' (default: {flag.default_as_str})'
        shown = f'--[no]{key}' if flag.boolean else f'--{key}'
        lines.append(f'  {shown:<24} {" ".join((flag.help or "").split())}{default}')
    if 'config' in values:
        lines.append(
            f'  {"--config.FIELD=VALUE":<24} Any field of the recipe; jointrd_jax.config.FIELDS says what they mean.'
        )
    return '\n'.join(lines)


def positional_of(module: ModuleType) -> tuple[str, ...]:
    return getattr(module, 'POSITIONAL', ())


def check_places(name: str, module: ModuleType, given: dict[str, object], arguments: Sequence[str]) -> None:
    """End the process if a path has an unknown scheme, or has a scheme although the command takes local paths there.

    The command's LOCAL names the flags that take local paths; 'arguments' in it stands for the positional arguments.
    """
    local = getattr(module, 'LOCAL', ())
    for key, value in [*given.items(), *(('arguments', argument) for argument in arguments)]:
        if not isinstance(value, str) or key == 'coordinator':  # an address: `distributed.address` checks it
            continue
        try:
            buckets.check_scheme(value)
        except UserError as error:
            fail(error)
        if key in local and buckets.is_remote(value):
            fail(f'{value} must be a local path; jointrd {name} cannot use a bucket here')


def parse(name: str, module: ModuleType, argv: Sequence[str]) -> tuple[flags.FlagValues, list[str]]:
    """The flags and the positional arguments in `argv`; ends the process with one line if it cannot be read."""
    positional = positional_of(module)
    values = flags.FlagValues()
    module.define_flags(values)
    own = list(values)
    if any(arg in ('--help', '-h', '--helpfull', '-help') for arg in argv):
        print(help_text(name, module, values))
        sys.exit(0)
    importlib.import_module('absl.logging')  # its flags (--verbosity and others) are accepted by every command
    values.append_flag_values(flags.FLAGS)  # of absl itself and of libraries that are imported already
    for arg in argv:
        if not arg.isascii() and any(0xD800 <= ord(char) < 0xE000 for char in arg):
            fail(f'the argument {arg!a} is not UTF-8')
    argv = list(argv)
    if 'config' in values:
        repeated = repeated_list(argv)
        if repeated:
            fail(f'--config.{repeated} is given more than once; give it once, as in --config.{repeated}=1,2')
        try:
            argv = with_recipe(argv)
        except UserError as error:
            fail(error)
    sys.argv = [sys.argv[0], *argv]  # where ml_collections looks for overrides of the config
    try:
        rest = values(sys.argv)[1:]
        if 'config' in values:  # a file that could not be loaded raises when it is first used
            hasattr(values['config'].value, 'procedure')
    except UserError as error:
        fail(error)
    except Exception as error:  # config files are the user's code: anything can be raised there
        fail(explain(error, argv))
    if not flags.FLAGS.is_parsed():  # Grain asks for them in worker processes
        flags.FLAGS.mark_as_parsed()
    if 'workdir' in values and values['workdir'].value == '':
        fail('--workdir is empty; name a directory')
    check_places(name, module, {key: values[key].value for key in own}, rest)
    if len(rest) > len(positional) and not (positional and positional[-1].rstrip(']').endswith('...')):
        fail(f'unexpected argument {rest[len(positional)]!r}; options start with --')
    if len(rest) < len(positional) and not positional[len(rest)].startswith('['):
        fail(f'{positional[len(rest)]} is missing: {" ".join(positional)} comes before the options')
    return values, rest


@contextlib.contextmanager
def errors_in_one_line(stopped: str = signals.NOTHING_TO_SAVE) -> Iterator[None]:
    """Turn the errors of the body into the one line and the exit status that every command ends with.

    UserError: one line and status 2. A first SIGTERM or SIGINT: one line and `signals.STOPPED_STATUS`, after a
    checkpoint if there is new work.
    """
    try:
        with signals.handled(stopped):
            yield
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
        if reason := runtime.no_backend(error):
            fail(reason)
        if is_one_of_several():
            traceback.print_exc()
            leave(1)
        raise


def overview() -> str:
    """What `jointrd --help` prints."""
    import jointrd_jax

    lines = [
        f'jointrd {jointrd_jax.__version__}: train a CNN without shortcuts to the accuracy of its ResNet, and ship it',
        '',
    ]
    lines += [f'  jointrd {name:<12} {summary}' for name, summary in COMMANDS.items()]
    return '\n'.join([*lines, '', 'jointrd NAME --help says what a command takes.'])


def run(name: str, argv: Sequence[str]) -> None:
    """Run the subcommand `name` with the arguments `argv`.

    The command's STOPPED is what is said where a signal ended it before there was a checkpoint to write.
    """
    module = importlib.import_module(f'jointrd_jax.commands.{name}')
    stopped = getattr(module, 'STOPPED', 'stopped; the same command begins anew')
    with notices.as_plain_lines(), errors_in_one_line(stopped):
        given, arguments = parse(name, module, argv)
        runtime.check_platforms()
        module.main(given, *arguments)


def main(argv: Sequence[str] | None = None) -> None:
    """The command `jointrd`."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ('--help', '-h', 'help'):
        print(overview())
        sys.exit(0 if argv else USAGE_STATUS)
    if argv[0] == '--version':
        import jointrd_jax

        print(jointrd_jax.__version__)
        return
    name, *rest = argv
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        fail(
            f'there is no command {name!r}; ' + (f'did you mean {close[0]}?' if close else 'jointrd --help lists them')
        )
    run(name, rest)

"""What is known of a compiled program: memory, FLOPs, bytes, collectives, donation. From XLA's text and analyses."""

import collections
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

BYTES = {
    'pred': 1, 's4': 0.5, 'u4': 0.5, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 's32': 4, 'u32': 4, 's64': 8, 'u64': 8,
    'f16': 2, 'bf16': 2, 'f32': 4, 'f64': 8, 'c64': 8,
}  # fmt: skip
COLLECTIVES = (
    'all-reduce', 'all-gather', 'all-to-all', 'reduce-scatter', 'collective-permute', 'collective-broadcast',
)  # fmt: skip
LIBRARY_CALL = 'custom_call_target="__cu'
NOT_WORK = {'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'after-all', 'partition-id', 'iota'}
ARRAY = re.compile(r'\b(pred|[a-z]+\d+)\[([\d,]*)\]')
INSTRUCTION = re.compile(
    r'\s*(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<shape>\(.*?\)|\S+) (?P<opcode>[a-z][a-z\-]*)\((?P<rest>.*)'
)


class Instruction(NamedTuple):
    name: str
    opcode: str
    bytes: int  # of its result
    operands: tuple[str, ...]


def size(shape: str) -> int:
    """Bytes of an array, or of all arrays of a tuple, written as XLA does: f32[8,16]{1,0}."""
    counts = ((BYTES.get(kind, 0), [int(n) for n in dims.split(',') if n]) for kind, dims in ARRAY.findall(shape))
    return int(sum(width * math.prod(dims) for width, dims in counts))


def instructions(text: str) -> Iterator[Instruction]:
    """The instructions in a module's text, those of all its computations."""
    for line in text.splitlines():
        if match := INSTRUCTION.match(line):
            operands = tuple(re.findall(r'%([\w.\-]+)', match['rest'].split('), ')[0]))
            yield Instruction(match['name'], match['opcode'], size(match['shape']), operands)


def collectives(text: str) -> dict[str, dict[str, int]]:
    """{'all-reduce': {'number', 'bytes'}, ...} of a module's text, by what a chip contributes."""
    found: dict[str, dict[str, int]] = {}
    for one in instructions(text):
        kind = one.opcode.removesuffix('-start')
        if kind in COLLECTIVES:
            entry = found.setdefault(kind, {'number': 0, 'bytes': 0})
            entry['number'] += 1
            entry['bytes'] += one.bytes
    return found


def aliased(text: str) -> int:
    """How many results of a module take the place of an argument (donated buffers)."""
    return len(re.findall(r'-alias\)', text[: text.find('\n')]))


def traffic(text: str, cache: int) -> dict[str, int]:
    """Bytes that the entry computation's operations read and write: 'all', and 'beyond_cache', what of each must go
    to memory although a cache of `cache` bytes keeps as much as it can hold between two operations."""
    entry = text[text.rfind('\nENTRY') :]
    known, total, beyond = {}, 0, 0
    for one in instructions(entry):
        known[one.name] = one
        if one.opcode in NOT_WORK or one.opcode.endswith('-done') or one.opcode.removesuffix('-start') in COLLECTIVES:
            continue
        read = 0
        for name in set(one.operands):
            of = known[name].bytes if name in known else 0
            # One that is gathered from, such as a resident dataset, is not read whole.
            read += one.bytes if name in known and known[name].opcode == 'parameter' and of > 64 * one.bytes else of
        total += read + one.bytes
        beyond += max(0, read - cache) + max(0, one.bytes - cache)
    return {'all': total, 'beyond_cache': beyond}


def moved(count: float | None, text: str) -> float:
    """Bytes that a program reads and writes: XLA's count, or that of `traffic` where XLA has none or leaves out calls.

    On a GPU convolutions are calls of a library, cuDNN, and XLA counts no byte of theirs.

    Args:
      count: XLA's, `cost(compiled)['bytes accessed']`; None where there is none.
      text: of the compiled module.
    """
    if count and LIBRARY_CALL not in text:
        return count
    return traffic(text, cache=0)['all']


def cycles(text: str) -> int:
    """The cycles that a TPU's compiler estimates for the entry computation; meaningless at low effort."""
    entry = text[text.rfind('\nENTRY') :]
    return sum(map(int, re.findall(r'"estimated_cycles":"?(\d+)', entry)))


def operations(text: str) -> dict[str, int]:
    """{operation: how often the entry computation has it}, the commonest first, without those that do no work."""
    entry = text[text.rfind('\nENTRY') :]
    count = collections.Counter(one.opcode for one in instructions(entry))
    return {name: number for name, number in count.most_common() if name not in NOT_WORK}


def memory(compiled: Any) -> dict[str, int]:
    """Bytes on one chip: arguments, results, those that share their place, temporaries, and the most at one time."""
    found = compiled.memory_analysis()
    parts = {
        'arguments': found.argument_size_in_bytes,
        'results': found.output_size_in_bytes,
        'shared': found.alias_size_in_bytes,
        'temporaries': found.temp_size_in_bytes,
        'program': found.generated_code_size_in_bytes,
    }
    parts['all'] = parts['arguments'] + parts['results'] - parts['shared'] + parts['temporaries']
    parts['peak'] = getattr(found, 'peak_memory_in_bytes', 0) or parts['all']
    return parts


def cost(compiled: Any) -> dict[str, float]:
    """XLA's cost analysis of one chip's program; {} where the compiler has none (GPUs)."""
    try:
        found = compiled.cost_analysis()
    except NotImplementedError:
        return {}
    first = found[0] if isinstance(found, (list, tuple)) and found else found
    return dict(first or {})

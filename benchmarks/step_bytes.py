"""What the training step of a recipe reads and writes on chips that are not here, against what its convolutions must.

    python benchmarks/step_bytes.py --topology=v5e:1x1,h100x1            needs the extra [plan-tpu] or [plan-gpu]

The step of each procedure is compiled ahead of time. `GB` is what its operations read and write (a TPU's by XLA's own
cost analysis, a GPU's counted in the compiled text, caches ignored), `least GB` what its convolutions alone do: each
reads its operands and writes its result once, as if all else were fused into them. Compilers' counts, no measurement.
`--by_kind` lists the operations that move most, `--compiler_options` passes options to XLA.
"""

import collections
import math
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jointrd_jax.plan.run import ENVIRONMENT

if not all(os.environ.get(name) == value for name, value in ENVIRONMENT.items()):  # they are read when JAX is imported
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ENVIRONMENT})

from absl import app, flags

from jointrd_jax.commands import options
from jointrd_jax.plan import chips, compiled, described, programs, worker
from jointrd_jax.train import step as step_lib

options.recipe(flags.FLAGS)
TOPOLOGY = flags.DEFINE_list('topology', ['v5e:1x1', 'h100x1'], chips.choices())
PROCEDURES = flags.DEFINE_list('procedures', ['plain', 'resnet', 'jointrd'], 'Of config.procedure.')
PER_CHIP = flags.DEFINE_integer('per_chip', 64, 'Images on each chip.')
EFFORT = flags.DEFINE_enum('effort', 'quick', ['quick', 'full'], "Of a TPU's compiler, as plan has it.")
COMPILER_OPTIONS = flags.DEFINE_list('compiler_options', [], 'NAME=VALUE, given to the compiler.')
BY_KIND = flags.DEFINE_integer('by_kind', 0, 'List so many kinds of operations, those that move most first.')
KEEP = flags.DEFINE_string('keep', '', "A directory for the compiled programs' texts.")


def equations(jaxpr: Any) -> Iterator[Any]:
    """The equations of a jaxpr and of all that it calls."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, 'jaxpr', inner)
                if hasattr(inner, 'eqns'):
                    yield from equations(inner)


def least_bytes(traced: Any) -> int:
    """What the convolutions of a traced step read and write on one chip."""
    arrays = (
        variable.aval
        for equation in equations(traced.jaxpr.jaxpr)
        if equation.primitive.name == 'conv_general_dilated'
        for variable in (*equation.invars, *equation.outvars)
    )
    return sum(math.prod(array.shape) * array.dtype.itemsize for array in arrays)


def by_kind(text: str) -> list[tuple[float, int, str]]:
    """(GB, number, what) of the operations of a compiled text, by where in the network they are, blocks together."""
    entry = text[text.rfind('\nENTRY') :]
    sizes, total, number = {}, collections.Counter(), collections.Counter()
    for line in entry.splitlines():
        for one in compiled.instructions(line):
            sizes[one.name] = one.bytes
            if one.opcode in compiled.NOT_WORK or one.opcode.endswith('-done'):
                continue
            found = re.search(r'op_name="([^"]*)"', line)
            name = re.sub(r'\d+', '#', re.sub(r'stage\d_block\d+', 'block', found[1] if found else ''))
            called = re.search(r'custom_call_target="([^"]*)"', line)
            what = f'{called[1] if called else one.opcode} {name.removeprefix("jit(train_step)/")}'
            total[what] += one.bytes + sum(sizes.get(operand, 0) for operand in set(one.operands))
            number[what] += 1
    return [(size / 1e9, number[what], what) for what, size in total.most_common()]


def all_reduces(text: str) -> str:
    """Where the all-reduces of a scheduled text lie among its operations, and from where to where each runs.

    A TPU's compiler may run one inside the fusions of other work, from "async-collective-start" to "-done".
    """
    entry = [line for line in text[text.rfind('\nENTRY') :].splitlines() if compiled.INSTRUCTION.match(line)]
    started, lines = {}, []
    for at, line in enumerate(entry):
        (one,) = compiled.instructions(line)
        is_fused = one.name.startswith('async-collective-')
        begun = one.name.replace('done', 'start') if is_fused else next(iter(one.operands), '')
        if one.opcode == 'all-reduce':
            lines.append(f'all-reduce {one.bytes / 1e6:.1f} MB at {at}/{len(entry)}, nothing beside it')
        elif begun == one.name or (one.opcode in ('all-reduce-start', 'async-start') and 'all-reduce' in line):
            started[one.name] = at
        elif begun in started and (is_fused or one.opcode in ('all-reduce-done', 'async-done')):
            lines.append(f'all-reduce {one.bytes / 1e6:.1f} MB from {started[begun]} to {at}/{len(entry)}')
    return '\n'.join(lines)


def main(_: list[str]) -> None:
    chosen: dict[str, Any] = dict(option.split('=', 1) for option in COMPILER_OPTIONS.value)
    if KEEP.value:
        Path(KEEP.value).mkdir(parents=True, exist_ok=True)
    print('procedure | topology | GB | least GB | MB of temporaries | ms at least | TFLOP compiled')
    for topology in TOPOLOGY.value:
        target = chips.parse(topology)
        mesh = step_lib.make_mesh(chips.devices(target))
        for procedure in PROCEDURES.value:
            config = flags.FLAGS.config.copy_and_resolve_references()
            config.procedure, config.batch_size = procedure, PER_CHIP.value * target.count
            config.eval_batch_size = config.batch_size
            dataset = described.describe(config)
            program = programs.of_run(config, dataset, mesh)[0]
            dataset.close()
            least = least_bytes(program.function.trace(*program.arguments))
            made, text = worker.compiled(program, target, EFFORT.value, chosen)
            cost, memory = compiled.cost(made), compiled.memory(made)
            traffic = compiled.moved(cost.get('bytes accessed'), text)
            time = f'{1e3 * cost.get("optimal_seconds", 0):.1f}'
            if EFFORT.value == 'full':
                time = f'{1e3 * compiled.cycles(text) / (target.chip.clock or 1):.1f}'
            row = [procedure, topology, f'{traffic / 1e9:.2f}', f'{least / 1e9:.2f}']
            row += [f'{memory["temporaries"] / 1e6:.0f}', time, f'{cost.get("flops", 0) / 1e12:.3f}']
            print(' | '.join(row), flush=True)
            for gigabytes, number, what in by_kind(text)[: BY_KIND.value]:
                print(f'  {gigabytes:7.3f} GB {number:4} {what}')
            if mesh.size > 1:
                print(all_reduces(text))
            if KEEP.value:
                Path(KEEP.value, f'{procedure}_{topology.replace(":", "_")}.hlo').write_text(text)


if __name__ == '__main__':
    app.run(main)

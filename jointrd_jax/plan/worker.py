"""The process that compiles: `python -m jointrd_jax.plan.worker`, started by `plan.run` with an environment of its own.

It reads a request from standard input, and writes one JSON object a line to standard output: {'doing': text} before
each part, {'program': figures} after it, {'largest': see `largest`} where that was asked for, {'error': text} for a
UserError.
"""

import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_collections

from jointrd_jax.data.base import Dataset
from jointrd_jax.errors import UserError
from jointrd_jax.plan import chips, compiled as read, described, programs as programs_lib
from jointrd_jax.plan.programs import Program
from jointrd_jax.runs import run_directory
from jointrd_jax.train import step as step_lib

MOST_IMAGES = 1 << 16  # of a batch over all chips, in the search for the largest


class DoesNotFit(Exception):
    """The compiler found too little memory on a chip; its text says how much would be needed."""


def compiled(
    program: Program, target: chips.Target, effort: str, options: dict[str, Any] | None = None
) -> tuple[Any, str]:
    """The compiled program and its text; `options` are XLA's.

    Raises:
      DoesNotFit: a TPU has too little memory for it.
    """
    quick = effort == 'quick' and target.chip.platform == 'tpu'
    jax.config.update('jax_optimization_level', 'O0' if quick else 'UNKNOWN')
    lowered = program.function.lower(*program.arguments)
    try:
        made = lowered.compile(options)
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        lines = [line.strip() for line in str(error).splitlines() if 'memory' in line.lower() or 'hbm' in line]
        raise DoesNotFit(lines[0][:300] if lines else str(error)[:300]) from error
    return made, made.as_text()


def flops_of_one_chip(config: ml_collections.ConfigDict, dataset: Dataset, chips_used: int) -> dict[str, float]:
    """FLOPs of every program by name, on one chip's share of the images, as XLA counts them before it optimises."""
    share = config.copy_and_resolve_references()
    share.batch_size, share.eval_batch_size = config.batch_size // chips_used, config.eval_batch_size // chips_used
    one = step_lib.make_mesh(jax.devices('cpu')[:1])
    found = {}
    for program in programs_lib.of_recipe(share, dataset, one):
        found[program.name] = read.cost(program.function.lower(*program.arguments)).get('flops', 0.0)
    return found


def figures(program: Program, target: chips.Target, effort: str, flops: float) -> dict[str, Any]:
    """What the compiler says of a program, as JSON values, bytes and FLOPs of one chip and one call."""
    row: dict[str, Any] = {'name': program.name, 'images': program.images, 'calls': program.calls}
    row['flops'] = flops
    try:
        made, text = compiled(program, target, effort)
    except DoesNotFit as error:
        return {**row, 'fits': False, 'reason': str(error)}
    row['memory'] = memory = read.memory(made)
    row['fits'] = target.chip.platform == 'tpu' or memory['all'] <= target.usable
    cost = read.cost(made)
    row['flops_compiled'] = cost.get('flops')
    if target.chip.platform == 'tpu':
        row['traffic'] = {'all': cost.get('bytes accessed')}
        if effort == 'quick':
            row['least_seconds'] = cost.get('optimal_seconds')
        else:
            row['seconds'] = read.cycles(text) / target.chip.clock
    else:
        row['traffic'] = read.traffic(text, target.chip.cache)
    row['collectives'] = read.collectives(text)
    row['state_arrays'], row['donated'] = program.state_arrays, read.aliased(text)
    row['operations'] = read.operations(text)
    if keep := os.environ.get('JOINTRD_PLAN_KEEP'):
        name = f'{target.name}_{program.name}.hlo'.replace(' ', '_').replace(':', '_')
        Path(keep, name).write_text(text)
    return row


def most_that_fit(fits: Callable[[int], bool], first: int, most: int) -> tuple[int, bool]:
    """The largest number of images that fits, and whether no number that was tried was too large.

    The number is at most `most`, and found in steps of 8 above 64.

    Args:
      fits: whether a number of images fits.
      first: how many to try first.
    """
    low, high, too_many = 0, first, False
    while high <= most:
        if not fits(high):
            too_many = True
            break
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > (8 if high > 64 else 1):
        middle = (low + high) // 2
        if high > 64:
            middle = max(middle - middle % 8, low + 8)
        if fits(middle):
            low = middle
        else:
            high, too_many = middle, True
    return low, not too_many


def largest(
    config: ml_collections.ConfigDict, dataset: Dataset, target: chips.Target, mesh: Any, say: Any
) -> dict[str, Any]:
    """{'images': the most per chip of which every training step of the recipe fits}; with 'limit', what ended the
    search, where it was not the chip's memory."""

    def fits(images: int) -> bool:
        tried = config.copy_and_resolve_references()
        tried.batch_size = images * mesh.size
        say({'doing': f'compiling with {images} images per chip'})
        return all(
            figures(program, target, 'quick', 0)['fits']
            for program in programs_lib.of_recipe(tried, dataset, mesh)
            if program.trains
        )

    most = min(dataset.train_size, MOST_IMAGES)
    images, is_capped = most_that_fit(fits, config.batch_size // mesh.size, most // mesh.size)
    limit = f'of {dataset.train_size:,} training images' if most == dataset.train_size else f'of {most:,} in a batch'
    return {'images': images} | ({'limit': limit} if is_capped else {})


def serve(request: dict[str, Any], say: Any) -> None:
    """Answer one request: {'config': directory with a config.json, 'topology', 'effort', 'largest'}."""
    config = run_directory.read_config(Path(request['config']))
    target = chips.parse(request['topology'])
    say({'doing': 'reading the recipe'})
    mesh = step_lib.make_mesh(chips.devices(target))
    hosts = len({device.process_index for device in mesh.devices.flat})
    dataset = described.describe(config)
    try:
        wanted = programs_lib.of_recipe(config, dataset, mesh)
        say({'about': {
            'chips': mesh.size, 'hosts': hosts, 'kind': mesh.devices.flat[0].device_kind, 'dataset': dataset.name,
            'train_images': dataset.train_size, 'decoded_per_core': described.decoding_rate(dataset),
            'jax': jax.__version__,
        }})  # fmt: skip
        flops = flops_of_one_chip(config, dataset, mesh.size)
        for program in wanted:
            say({'doing': f'compiling the {program.name}'})
            say({'program': figures(program, target, request['effort'], flops.get(program.name, 0.0))})
        if request['largest']:
            say({'largest': largest(config, dataset, target, mesh, say)})
    finally:
        dataset.close()


def end_with_parent() -> None:
    """Wait until standard input is closed, as it is when the process that asked ends, and end this one too.

    That process may be killed, and a compilation would go on for minutes.
    """
    while os.read(0, 1):
        pass
    os._exit(1)


def main() -> None:
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # what libraries print must not be mixed with the answers

    def say(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=answers, flush=True)

    try:
        request = json.loads(sys.stdin.readline())
        threading.Thread(target=end_with_parent, daemon=True).start()
        serve(request, say)
    except UserError as error:
        say({'error': str(error)})
    except MemoryError:
        say({'error': 'this machine has too little memory to compile it'})


if __name__ == '__main__':
    main()

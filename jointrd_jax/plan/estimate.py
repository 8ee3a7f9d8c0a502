"""From what the compiler said to what a user wants to know, each figure with how far it can be trusted.

known  counted by the compiler or by this project; exact for the program
bound  the chip cannot do better than this, by its maker's figures
guess  what it may come to
"""

import os
from collections.abc import Sequence
from typing import Any

import ml_collections

from jointrd_jax.data.streaming import MAX_WORKERS
from jointrd_jax.plan.chips import Target
from jointrd_jax.plan.programs import EVALUATION, TRAINING

KNOWN, BOUND, GUESS = 'known', 'bound', 'guess'
FULL_EFFORT = 1.3  # a full-effort TPU program's cycles over the least time of the quick one: 1.24 to 1.34 were seen
FEW_IMAGES = 16  # per chip: below, BatchNorm's own statistics are too rough
BATCHES_IN_FLIGHT = 3  # on the device at a time: the one of the step, and those that wait
FLOAT32_PRODUCTS = {  # what is multiplied by default where float32 is asked for, and what real float32 costs
    'tpu': ('a TPU', 'bfloat16', ', about six times slower'),
    'cuda': ('an NVIDIA GPU', 'TF32', ''),
}


def least_seconds(program: dict[str, Any], target: Target) -> float:
    """The least time of one call: of its arithmetic, or of its bytes, at the chip's full rate.

    A TPU's compiler adds these up operation by operation. On a GPU only bytes beyond what its last cache could keep
    between operations count.
    """
    arithmetic = program['flops'] / target.chip.flops
    if target.chip.platform == 'tpu':
        return max(arithmetic, program.get('least_seconds') or 0.0)
    return max(arithmetic, program['traffic']['beyond_cache'] / target.chip.bandwidth)


def likely_seconds(program: dict[str, Any], target: Target) -> float:
    """A guess of the time of one call."""
    if program.get('seconds'):
        return program['seconds']
    if target.chip.platform == 'tpu':
        return FULL_EFFORT * least_seconds(program, target)
    return max(least_seconds(program, target), program['traffic']['all'] / target.chip.bandwidth)


def hours(programs: Sequence[dict[str, Any]], target: Target, seconds: Any) -> float:
    return sum(program['calls'] * seconds(program, target) for program in programs) / 3600


def of_target(config: ml_collections.ConfigDict, target: Target, found: dict[str, Any]) -> dict[str, Any]:
    """The figures of one target: {'topology', 'about', 'programs', 'figures': {name: [value, mark]}, 'warnings'}."""
    about, programs = found['about'], found['programs']
    training = next(program for program in programs if program['name'].startswith(TRAINING))
    evaluation = next(program for program in programs if program['name'] == EVALUATION)
    per_chip = config.batch_size // target.count
    on_gpu = target.chip.platform == 'cuda'
    figures: dict[str, list] = {
        'chips': [f'{target.count} on {about["hosts"]} hosts' if about['hosts'] > 1 else target.count, KNOWN],
        'images per chip and step': [per_chip, KNOWN],
    }
    fits = all(program['fits'] for program in programs)
    mark = GUESS if on_gpu else KNOWN
    figures['fits'] = ['yes' if fits else 'no', mark]
    if not fits:
        first = next(program for program in programs if not program['fits'])
        figures['does not fit'] = [f'{first["name"]}: {first.get("reason", "more than the chip has")}', mark]
    if 'memory' in training:
        memory = training['memory']
        figures['MiB a chip may hold'] = [target.usable >> 20, KNOWN]
        figures['MiB of arguments'] = [memory['arguments'] >> 20, KNOWN]
        figures['MiB of temporaries'] = [memory['temporaries'] >> 20, KNOWN]
        figures['MiB at most at a time'] = [memory['all' if on_gpu else 'peak'] >> 20, mark]
        figures[f'MiB of {BATCHES_IN_FLIGHT} batches in flight'] = [in_flight(found, target, config) >> 20, KNOWN]
    if found['largest'] is not None:
        images, limit = found['largest']['images'], found['largest'].get('limit')
        figures['largest batch per chip'] = [
            f'{images:,}, all that there are {limit}; more may fit' if limit else images,
            mark,
        ]
    figures['TFLOP a step and chip'] = [round(training['flops'] / 1e12, 3), KNOWN]
    if 'traffic' in training:
        name = 'GB read and written a step and chip'
        figures[name] = [round((training['traffic']['all'] or 0) / 1e9, 1), GUESS if on_gpu else KNOWN]
        for kind in ('all-reduce', 'all-gather'):
            seen = training['collectives'].get(kind, {'number': 0, 'bytes': 0})
            figures[f'{kind}s a step'] = [f'{seen["number"]}, {seen["bytes"] / 1e6:.1f} MB', KNOWN]
        figures['donated buffers of the state'] = [f'{training["donated"]} of {training["state_arrays"]}', KNOWN]
    if 'traffic' in evaluation:
        gathers = evaluation['collectives'].get('all-gather', {'number': 0})['number']
        figures['evaluation is split'] = ['no' if gathers else 'yes', KNOWN]
    if fits:
        figures |= times(config, target, programs, training)
    return {
        'topology': target.name,
        'about': about,
        'figures': figures,
        'warnings': warnings(config, target, about, figures) if fits else [],
        'programs': programs,
    }


def in_flight(found: dict[str, Any], target: Target, config: ml_collections.ConfigDict) -> int:
    """Bytes of the batches on one chip at a time."""
    if found['about']['decoded_per_core'] is None:  # indices into a resident set
        return 4 * BATCHES_IN_FLIGHT * config.batch_size // target.count
    side = config.dataset.image_size
    return BATCHES_IN_FLIGHT * (config.batch_size // target.count) * (3 * side * side + 5)


def times(
    config: ml_collections.ConfigDict, target: Target, programs: Sequence[dict], training: dict
) -> dict[str, list]:
    """Rates and hours."""
    own = [program for program in programs if not program['name'].startswith('teacher')]
    teachers = [program for program in programs if program['name'].startswith('teacher')]
    rate = config.batch_size / least_seconds(training, target)
    likely = config.batch_size / likely_seconds(training, target)
    total = hours(programs, target, least_seconds)
    guessed = hours(programs, target, likely_seconds)
    return {
        'images/s a chip, at most': [round(rate / target.count), BOUND],
        'images/s, at most': [round(rate), BOUND],
        'images/s, perhaps': [round(likely), GUESS],
        'hours of the teacher, at least': [round(hours(teachers, target, least_seconds), 2), BOUND],
        'hours of the run, at least': [round(hours(own, target, least_seconds), 2), BOUND],
        'hours in all, at least': [round(total, 2), BOUND],
        'chip-hours in all, at least': [round(total * target.count, 1), BOUND],
        'chip-hours in all, perhaps': [round(guessed * target.count, 1), GUESS],
    }


def warnings(
    config: ml_collections.ConfigDict, target: Target, about: dict[str, Any], figures: dict[str, list]
) -> list[str]:
    """What a user should know before paying."""
    found, per_chip = [], config.batch_size // target.count
    if config.batch_norm == 'local' and per_chip < FEW_IMAGES and target.count > 1:
        found.append(
            f'BatchNorm sees {per_chip} images on each chip, fewer than {FEW_IMAGES}: set config.batch_norm=global, '
            'a larger config.batch_size, or take fewer chips'
        )
    if config.dtype == 'float32':
        chip, products, slower = FLOAT32_PRODUCTS[target.chip.platform]
        found.append(
            f'config.dtype=float32, but {chip} multiplies in {products} by default: '
            f'JAX_DEFAULT_MATMUL_PRECISION=highest makes it float32{slower}'
        )
    if about['decoded_per_core']:
        needed = figures['images/s, at most'][0] / about['hosts']
        workers = MAX_WORKERS if config.dataset.workers < 0 else config.dataset.workers
        here, most = min(os.cpu_count() or 1, max(workers, 1)), about['decoded_per_core'] * max(workers, 1)
        cores = needed / about['decoded_per_core']
        figures['images/s a host must deliver, at most'] = [round(needed), BOUND]
        figures['images/s decoded by a core here'] = [round(about['decoded_per_core']), KNOWN]
        figures['such cores a host must have, at most'] = [round(cores, 1), BOUND]
        if needed > about['decoded_per_core'] * here:
            limit = f', and {workers} input processes at most do {most:,.0f}' if needed > most else ''
            found.append(
                f'the input may have to deliver {needed:,.0f} images/s on each host; {here} cores of this machine '
                f'decode {about["decoded_per_core"] * here:,.0f}{limit}'
            )
    return found


def table(config: ml_collections.ConfigDict, plans: Sequence[dict[str, Any]]) -> str:
    """The figures side by side, as Markdown."""
    names = list(dict.fromkeys(name for plan in plans for name in plan['figures']))
    about = plans[0]['about']
    head = (
        f'{about["dataset"]}, {config.procedure}, {config.dtype}, {config.batch_size} images a step, JAX {about["jax"]}'
    )
    lines = [[head, '', *(plan['topology'] for plan in plans)]]
    for name in names:
        found = [plan['figures'].get(name, ['-', '']) for plan in plans]
        marks = dict.fromkeys(mark for _, mark in found if mark)
        lines.append([name, '/'.join(marks), *(f'{v:,}' if isinstance(v, int | float) else v for v, _ in found)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    lines.insert(1, ['-' * width for width in widths])
    return '\n'.join(f'| {" | ".join(text.ljust(width) for text, width in zip(line, widths))} |' for line in lines)

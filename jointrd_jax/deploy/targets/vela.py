"""Arm's Ethos-U NPUs, by Vela: compiles an int8 TFLite file and estimates cycles, memory and traffic.

Everything is the compiler's own estimate for the system configuration named; nothing runs. The same file and
configuration give the same figures on every machine.
"""

import csv
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

TITLE = 'Arm Ethos-U, by Vela'
PACKAGE, VERSION = 'ethos-u-vela', '5.2.0'
INSTALL = "pip install 'jointrd_jax[npu]'"
SYSTEMS = (  # accelerator, system configuration, memory mode (of Arm/vela.ini, which comes with it)
    ('u55-128', 'Ethos_U55_High_End_Embedded', 'Shared_Sram'),
    ('u55-128', 'Ethos_U55_High_End_Embedded', 'Sram_Only'),
    ('u55-256', 'Ethos_U55_High_End_Embedded', 'Shared_Sram'),
    ('u55-256', 'Ethos_U55_High_End_Embedded', 'Sram_Only'),
    ('u65-512', 'Ethos_U65_High_End', 'Shared_Sram'),
    ('u65-512', 'Ethos_U65_High_End', 'Dedicated_Sram_384KB'),
    ('u65-512', 'Ethos_U65_Client_Server', 'Dedicated_Sram_512KB'),
    ('u85-1024', 'Ethos_U85_SYS_DRAM_Mid', 'Dedicated_Sram_384KB'),
    ('u85-2048', 'Ethos_U85_SYS_DRAM_High', 'Dedicated_Sram_512KB'),
)
CONFIGURATIONS = {
    f'{accelerator}-{memory.removesuffix("_Sram").lower()}-{optimise.lower()}': {
        'takes': 'int8_tflite',
        'accelerator': f'ethos-{accelerator}',
        'system': system,
        'memory': memory,
        'optimise': optimise,
        # With one memory for all, nothing is cascaded: feature maps need what liveness says.
        'predicted': ('in_place', 1) if memory == 'Sram_Only' else None,
    }
    for accelerator, system, memory in SYSTEMS
    for optimise in ('Performance', 'Size')
}
REMEDY = '--disable-cascading'  # for "Failed to allocate tensors"


def command(request: dict[str, Any], *more: str) -> list[str]:
    chosen = request['configuration']
    return [
        sys.executable, '-c', 'from ethosu.vela.vela import main; main()', request['artifact'],
        '--accelerator-config', chosen['accelerator'], '--config', 'Arm/vela.ini',
        '--system-config', chosen['system'], '--memory-mode', chosen['memory'],
        '--optimise', chosen['optimise'], '--output-dir', request['directory'], *more,
    ]  # fmt: skip


def compiled(request: dict[str, Any], *more: str) -> dict[str, Any]:
    """The figures of one compilation.

    Raises:
      RuntimeError: the compiler's own reason.
    """
    asked = command(request, *more)
    ended = subprocess.run(asked, capture_output=True, text=True)
    said = [line.strip() for line in (ended.stdout + ended.stderr).splitlines() if line.strip()]
    if ended.returncode:
        reasons = [line for line in said if re.search(r'error|failed|unable|no space', line, re.IGNORECASE)]
        raise RuntimeError((reasons or said or [f'status {ended.returncode}, no output'])[-1])
    summaries = list(Path(request['directory']).glob('*_summary_*.csv'))
    operators = re.search(r'NPU operators = \d+ \(([\d.]+)%\)', ended.stdout)
    if not summaries or not operators:
        raise RuntimeError('Vela wrote no summary or printed no share of NPU operators')
    with summaries[0].open() as file:
        row = next(csv.DictReader(file))

    def total(name: str) -> float:
        return float(row[name])

    areas = ('sram', 'dram', 'on_chip_flash', 'off_chip_flash')
    memory = {area: round(1024 * total(f'{area}_memory_used')) for area in areas}
    traffic = {
        f'{area} {what}': round(total(f'{area}_{part}_read_bytes') + total(f'{area}_{part}_write_bytes'))
        for area in areas
        for what, part in (('feature maps', 'feature_map'), ('weights', 'weight'))
    }
    return {
        'command': ' '.join(['vela', Path(asked[3]).name, *asked[4:-2 - len(more)], *more]),
        'memory_bytes': memory['sram'],
        'memory_kind': 'SRAM',
        'memories': {area: size for area, size in memory.items() if size},
        'time_ms': 1e3 * total('inference_time'),
        'time_kind': 'estimate',
        'cycles': {
            name.removeprefix('cycles_'): round(total(name)) for name in row if name and name.startswith('cycles_')
        },
        'accelerated': float(operators[1]) / 100,
        'traffic_bytes': {name: size for name, size in traffic.items() if size},
    }  # fmt: skip


def measure(request: dict[str, Any], worker: Any) -> dict[str, Any]:
    try:
        return compiled(request)
    except RuntimeError as error:
        found: dict[str, Any] = {'outcome': 'fails', 'reason': str(error)}
        if 'allocate tensors' in str(error).lower():
            try:
                found['remedy'] = {'note': f'with {REMEDY}', **compiled(request, REMEDY)}
            except RuntimeError as again:
                found['reason'] += f'; with {REMEDY}: {again}'
        return found

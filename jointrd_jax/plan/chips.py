"""The accelerators that can be compiled for, and how a topology is written: v5e:4x4, h100x8."""

import math
import re
from typing import Any, NamedTuple

from jointrd_jax.errors import UserError

MAX_CHIPS = 4096
CHIPS_PER_HOST = 4  # of TPUs
GPUS_A_HOST = 8  # of the usual machines
# A TPU's memory is what XLA leaves of it; JAX takes this share of a GPU's by default.
GPU_SHARE = 0.75


class Chip(NamedTuple):
    """One accelerator, by its maker's figures.

    Attributes:
      platform: 'tpu' or 'cuda'.
      memory: bytes on one chip.
      flops: products and sums per second in bfloat16, dense.
      bandwidth: of its memory, bytes per second.
      clock: Hz of a TPU's matrix units; 0: not used.
      cache: bytes that a GPU's last cache holds between two kernels.
      options: of `topologies.get_topology_desc`.
      description: of a GPU, the fields of XLA's GpuDeviceInfo that differ between them.
    """

    platform: str
    memory: int
    flops: float
    bandwidth: float
    clock: float = 0
    cache: int = 0
    options: tuple[tuple[str, str], ...] = ()
    description: tuple[tuple[str, object], ...] = ()


GIB = 1 << 30
HOPPER = (
    ('device_description_str', 'NVIDIA H100 80GB HBM3'), ('capability', (9, 0)), ('core_count', 132),
    ('fpus_per_core', 128), ('shared_memory_per_core', 233472), ('shared_memory_per_block_optin', 232448),
    ('clock_rate_ghz', 1.98),
)  # fmt: skip
CHIPS = {
    'v4': Chip('tpu', 32 * GIB, 275e12, 1228e9, 1.05e9, options=(('chip_config_name', 'megacore'),)),
    'v5e': Chip('tpu', 16 * GIB, 197e12, 819e9, 1.5e9),
    'v5p': Chip('tpu', 95 * GIB, 459e12, 2765e9, 1.75e9, options=(('chip_config_name', 'megacore'),)),
    'v6e': Chip('tpu', 32 * GIB, 918e12, 1640e9, 1.75e9),
    'h100': Chip('cuda', 84929347584, 989e12, 3352e9, cache=52428800, description=HOPPER),
    'h200': Chip(
        'cuda', 150754820096, 989e12, 4800e9, cache=52428800,
        description=(('device_description_str', 'NVIDIA H200'), *HOPPER[1:]),
    ),
}  # fmt: skip


class Target(NamedTuple):
    """So many chips of one kind, as connected."""

    name: str
    chip: Chip
    layout: str  # as the compiler's plug-in wants it: 4x4
    count: int

    @property
    def usable(self) -> int:
        """Bytes of one chip that a JAX program may take by default (a TPU's compiler itself knows the rest)."""
        return int(self.chip.memory * (GPU_SHARE if self.chip.platform == 'cuda' else 1))


def choices() -> str:
    tpus = ', '.join(name for name, chip in CHIPS.items() if chip.platform == 'tpu')
    gpus = ', '.join(name for name, chip in CHIPS.items() if chip.platform == 'cuda')
    return f'TPUs ({tpus}) such as v5e:4x4 or v4:2x2x2, and GPUs ({gpus}) such as h100x8'


def parse(text: str) -> Target:
    """The target that is written as `text`.

    Raises:
      UserError: no such chip, or not a topology; the message says what there is.
    """
    text = text.strip().lower()
    match = re.fullmatch(r'(?P<chip>[a-z]\w*?)(:(?P<tpu>\d{1,3}(x\d{1,3}){1,2})|x(?P<gpus>\d{1,4}))?', text)
    chip = CHIPS.get(match['chip']) if match else None
    if not chip or not match:
        raise UserError(f'--topology={text[:60]!r} names no chip that can be compiled for; there are {choices()}')
    if not match['tpu' if chip.platform == 'tpu' else 'gpus']:
        raise UserError(f'--topology={text!r} does not say how many chips; there are {choices()}')
    if chip.platform == 'tpu':
        layout = match['tpu']
        count = math.prod(map(int, layout.split('x')))
    else:
        count = int(match['gpus'])
        hosts = max(1, count // GPUS_A_HOST)
        layout = f'1x{hosts}x{count // hosts}'
    if not 0 < count <= MAX_CHIPS:
        raise UserError(f'--topology={text!r}: {count} chips; use 1 to {MAX_CHIPS}')
    if chip.platform == 'cuda' and count > GPUS_A_HOST and count % GPUS_A_HOST:
        raise UserError(
            f'--topology={text!r}: more than {GPUS_A_HOST} GPUs must be a multiple of {GPUS_A_HOST} (whole hosts)'
        )
    return Target(text, chip, layout, count)


def gpu_description(chip: Chip) -> str:
    """XLA's description of a GPU, as protobuf text."""
    about: dict[str, Any] = dict(chip.description)
    major, minor = about['capability']
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: {about['shared_memory_per_core']}
  threads_per_core_limit: 2048 core_count: {about['core_count']} fpus_per_core: {about['fpus_per_core']}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {int(chip.bandwidth)} l2_cache_size: {chip.cache} clock_rate_ghz: {about['clock_rate_ghz']}
  device_memory_size: {chip.memory} shared_memory_per_block_optin: {about['shared_memory_per_block_optin']}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
runtime_version {{ major: 12 minor: 8 }}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{about['device_description_str']}"
"""


def devices(target: Target) -> list:
    """The devices of `target`, which are not here: to be compiled for, not to be computed on.

    Raises:
      UserError: the compiler's plug-in is missing, does not fit this JAX, or has no such layout.
    """
    from jax.experimental import topologies

    from jointrd_jax.errors import require

    chip = target.chip
    if chip.platform == 'tpu':
        require('libtpu', 'plan-tpu')
        arguments: dict[str, Any] = dict(platform='tpu', topology_name=f'{target.name.split(":")[0]}:{target.layout}')
        sides = [int(side) for side in target.layout.split('x')]
        if math.prod(sides) < CHIPS_PER_HOST:  # a part of a host, which older versions must be told
            arguments['chips_per_host_bounds'] = [*sides, 1][:3]
    else:
        require('jax_plugins.xla_cuda12', 'plan-gpu')
        arguments = dict(platform='cuda', topology_name='', topology=target.layout, target_config=gpu_description(chip))
    try:
        return list(topologies.get_topology_desc(**arguments, **dict(chip.options)).devices)
    except Exception as error:  # plug-ins raise whatever they do
        reason = ' '.join(str(error).split())[:300]
        raise UserError(f'--topology={target.name}: {reason or type(error).__name__}') from error

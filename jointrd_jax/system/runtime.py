"""Process-wide settings of JAX, made once before its first use; programs that run once, and templates of arrays.

JAX is imported where it is used: it takes half a second, and a command line that is wrong is answered before.
"""

import importlib.metadata
import importlib.util
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jointrd_jax.errors import UserError
from jointrd_jax.system import files

if TYPE_CHECKING:
    import jax

# The packages that bring a platform, by the name that JAX_PLATFORMS has for it.
CUDA, ROCM = ('jax_cuda13_plugin', 'jax_cuda12_plugin'), ('jax_rocm7_plugin', 'jax_rocm60_plugin')
PLUGINS = {'cpu': (), 'cuda': CUDA, 'rocm': ROCM, 'gpu': CUDA + ROCM, 'tpu': ('libtpu',)}
NO_BACKEND = ('Unable to initialize backend', 'Unknown backend', 'No visible GPU devices')  # in what JAX says
GOOGLE = '0x1ae0'  # as a maker of PCI devices
# JAX's names of settings; its variables for them are in capitals.
CACHE, LEAST_SECONDS = 'jax_compilation_cache_dir', 'jax_persistent_cache_min_compile_time_secs'


def quieten() -> None:
    """Hide what JAX logs of backends that are not installed and of joining processes, which absl would show."""
    for name in ('jax._src.xla_bridge', 'jax._src.distributed'):
        logging.getLogger(name).setLevel(logging.WARNING)


def installed_platforms() -> list[str]:
    """The platforms that JAX could use here, as far as packages tell: the plug-in may still not fit the machine."""
    others = {entry.name for entry in importlib.metadata.entry_points(group='jax_plugins')}
    names = [name for name, packages in PLUGINS.items() if not packages or any(map(importlib.util.find_spec, packages))]
    return [name for name in names if name != 'gpu'] + sorted(others - set(names) - {'xla_cuda12', 'xla_cuda13'})


def check_platforms() -> None:
    """Check that JAX_PLATFORMS and JAX_PLATFORM_NAME name installed platforms.

    Raises:
      UserError: another name, or a platform whose plug-in is not there.
    """
    for variable in ('JAX_PLATFORMS', 'JAX_PLATFORM_NAME'):
        value = os.environ.get(variable, '')
        for name in filter(None, (part.strip() for part in value.split(','))):
            if name in PLUGINS and (not PLUGINS[name] or any(map(importlib.util.find_spec, PLUGINS[name]))):
                continue
            have = installed_platforms()
            if name in have:
                continue
            if name.lower() in PLUGINS and name != name.lower():
                why = f'is written {name.lower()}'
            elif name in PLUGINS:
                why = f'needs a plug-in that is not installed ({" or ".join(PLUGINS[name])})'
            else:
                why = 'is no platform of JAX'
            raise UserError(
                f'{variable}={value}: {name!r} {why}; installed here: {", ".join(have)}; set it to one of '
                'these, or unset it'
            )


def no_backend(error: BaseException) -> str | None:
    """One line for JAX's error where no device of the platform asked for can be used; None for other errors."""
    text = ' '.join(str(error).split())
    if not isinstance(error, RuntimeError) or not any(mark in text for mark in NO_BACKEND):
        return None
    return (
        f'JAX finds no device to run on: {text[:300]}; installed here: {", ".join(installed_platforms())}; a plug-in '
        'must fit the driver and the version of JAX; JAX_PLATFORMS=cpu runs without it'
    )


def tpu_is_here() -> bool:
    """Whether this machine may have a TPU: its driver's devices, or hardware of its maker."""
    vendors = Path('/sys/bus/pci/devices').glob('*/vendor')
    drivers = [*Path('/dev').glob('accel*'), *Path('/dev/vfio').glob('[0-9]*')]
    return bool(drivers) or any(vendor.read_text().strip() == GOOGLE for vendor in vendors)


def configure() -> None:
    """Persistent compilation cache, and no search for a TPU in vain. JAX's own variables take precedence."""
    import jax

    quieten()
    chosen = os.environ.get('JAX_PLATFORMS') or os.environ.get('JAX_PLATFORM_NAME')
    if not chosen and installed_platforms() == ['cpu', 'tpu'] and not tpu_is_here():
        jax.config.update('jax_platforms', 'cpu')  # libtpu, here to compile for `plan`, would warn at length
    if getattr(jax.config, CACHE) is None:
        jax.config.update(CACHE, str(files.cache_directory()))
        if LEAST_SECONDS.upper() not in os.environ:
            jax.config.update(LEAST_SECONDS, 0.5)


def template(tree: Any, sharding: 'jax.sharding.Sharding | None' = None) -> Any:
    """A jax.ShapeDtypeStruct for each array of `tree`, with `sharding`; by default that of the first device here."""
    import jax

    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def jit_once(function: Callable, **options: Any) -> Callable:
    """`jax.jit` for a program that runs once: for CPU devices (of `out_shardings`, else the first here) not optimised.

    A 34-layer network's initialisation compiles in 3 s instead of 11 there (two cores; random numbers are
    unrolled per parameter); what it computes differs by rounding.
    """
    import jax

    sharding = options.get('out_shardings')
    device = next(iter(sharding.device_set)) if sharding else jax.devices()[0]
    quick = {'xla_backend_optimization_level': 0} if device.platform == 'cpu' else None
    return jax.jit(function, compiler_options=quick, **options)

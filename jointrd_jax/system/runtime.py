"""Process-wide settings of JAX, made once before its first use, and how programs that run once are compiled."""

import logging
from collections.abc import Callable
from typing import Any

import jax

from jointrd_jax.system import files

CACHE = 'jax_compilation_cache_dir'  # JAX's name of the setting


def quieten() -> None:
    """Hide what JAX logs of backends that are not installed and of joining processes, which absl would show."""
    for name in ('jax._src.xla_bridge', 'jax._src.distributed'):
        logging.getLogger(name).setLevel(logging.WARNING)


def configure() -> None:
    """Persistent compilation cache. Settings the user made through JAX's own variables win."""
    quieten()
    if getattr(jax.config, CACHE) is None:
        jax.config.update(CACHE, str(files.cache_directory()))
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


def jit_once(function: Callable, **options: Any) -> Callable:
    """`jax.jit` for a program that runs once: for CPU devices (of `out_shardings`, else the first here) not optimised.

    A 34-layer network's initialisation compiles in 3 s instead of 11 there (two cores; random numbers are
    unrolled per parameter); what it computes differs by rounding.
    """
    sharding = options.get('out_shardings')
    device = next(iter(sharding.device_set)) if sharding else jax.devices()[0]
    quick = {'xla_backend_optimization_level': 0} if device.platform == 'cpu' else None
    return jax.jit(function, compiler_options=quick, **options)

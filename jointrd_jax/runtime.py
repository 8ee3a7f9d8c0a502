"""Process-wide settings of JAX, made once before its first use."""

import os
from pathlib import Path

import jax


def cache_directory() -> Path:
    """Where compiled programs are kept: $JOINTRD_CACHE_DIR, or jointrd_jax under the user's cache directory."""
    chosen = os.environ.get('JOINTRD_CACHE_DIR')
    base = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(chosen) if chosen else Path(base) / 'jointrd_jax'


def configure() -> None:
    """Persistent compilation cache. Settings the user made through JAX's own variables win."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update('jax_compilation_cache_dir', str(cache_directory()))
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)

"""Strict settings for every test: four CPU devices, rank promotion raises (warnings: see pyproject).

With JOINTRD_TEST_PLATFORM=cuda the golden tests run on a GPU; others ask for four devices.

Arrays have the shapes that the annotations in method/ say, or the call is an error.
"""

import importlib
import os
import tempfile

import jax
import jaxtyping
import pytest

import tests.support.shapes  # noqa: F401 - before the hook, which looks it up

CHECKED = [f'jointrd_jax.method.{module}' for module in ('joint', 'layers', 'losses', 'networks', 'pooling')]
with jaxtyping.install_import_hook(CHECKED, 'tests.support.shapes.checked'):
    for name in CHECKED:
        importlib.import_module(name)
    from jointrd_jax.system import runtime
    from tests.support.configs import QUICK_FLAGS, QuietReporter, tiny_config

PLATFORM = os.environ.get('JOINTRD_TEST_PLATFORM', 'cpu')
if PLATFORM == 'cpu':
    os.environ['XLA_FLAGS'] = f'{QUICK_FLAGS} --xla_force_host_platform_device_count=4'
    os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'
    jax.config.update('jax_disable_most_optimizations', True)
else:
    jax.config.update('jax_default_matmul_precision', 'highest')  # float32 is TF32 on a GPU by default
os.environ['JAX_PLATFORMS'] = PLATFORM
jax.config.update('jax_platforms', PLATFORM)
os.environ['WANDB_MODE'] = 'offline'  # nobody is logged in here
# One compilation cache for a whole run, also for the processes that tests start: small programs too, whose compilation
# would be most of the time.
os.environ.setdefault('JOINTRD_CACHE_DIR', tempfile.mkdtemp(prefix='jointrd-test-cache-'))
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)

jax.config.update('jax_numpy_rank_promotion', 'raise')
runtime.configure()


@pytest.fixture
def quiet():
    """A reporter that keeps its lines in `.lines`."""
    return QuietReporter('test')


@pytest.fixture(scope='session')
def watched_run(tmp_path_factory):
    """A tiny finished JointRD run that wrote all that can be watched; its teacher lies in it. Read only."""
    from jointrd_jax.train import loop

    path = tmp_path_factory.mktemp('watched') / 'jointrd'
    shown = dict(log__gradients=1, log__tensorboard=1, log__histograms=2)
    config = tiny_config(model__stage_sizes=(1, 1, 1), batch_size=128, eval_hybrids=True, **shown)
    loop.run(config, path, QuietReporter('watched'))
    return path

"""Strict settings for every test: four CPU devices, rank promotion raises (warnings: see pyproject)."""

import importlib.util
import os
import tempfile
from pathlib import Path

import jax
import pytest

from jointrd_jax import runtime
from jointrd_jax.progress import Reporter

# Most of the tests' time is compilation. test_main trains with optimised programs, as users do.
QUICK_FLAGS = '--xla_cpu_use_fusion_emitters=false' if jax.__version__.startswith('0.10.') else ''
os.environ['XLA_FLAGS'] = f'{QUICK_FLAGS} --xla_force_host_platform_device_count=4'
os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'
jax.config.update('jax_disable_most_optimizations', True)
os.environ['JAX_PLATFORMS'] = 'cpu'
jax.config.update('jax_platforms', 'cpu')
# One compilation cache for a whole run, also for the processes that tests start.
os.environ.setdefault('JOINTRD_CACHE_DIR', tempfile.mkdtemp(prefix='jointrd-test-cache-'))

ROOT = Path(__file__).parents[1]

jax.config.update('jax_numpy_rank_promotion', 'raise')
runtime.configure()


def shipped_config(name: str, **overrides):
    """The config in configs/NAME.py with fields overridden ('model.width' is written model__width)."""
    spec = importlib.util.spec_from_file_location(name, ROOT / 'configs' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.update_from_flattened_dict({key.replace('__', '.'): value for key, value in overrides.items()})
    return config


TINY = dict(model__stage_sizes=(1, 1, 1), model__width=4, epochs=2, eval_batch_size=256, checkpoint__every_steps=0)


def tiny_config(**overrides):
    """configs/digits.py shrunk to seconds."""
    return shipped_config('digits', **{**TINY, **overrides})


@pytest.fixture
def quiet():
    """A reporter that keeps its lines in `.lines`."""
    return QuietReporter('test')


class QuietReporter(Reporter):
    def __init__(self, label, *_):
        import io

        from rich.console import Console

        super().__init__(label, Console(file=io.StringIO(), width=200))

    @property
    def lines(self) -> str:
        return self.console.file.getvalue()


@pytest.fixture(scope='session')
def watched_run(tmp_path_factory):
    """A tiny finished JointRD run that wrote all that can be watched; its teacher lies in it. Read only."""
    from jointrd_jax import train

    path = tmp_path_factory.mktemp('watched') / 'jointrd'
    shown = dict(log__gradients=1, log__tensorboard=1, log__histograms=2, log__images=4)
    config = tiny_config(batch_size=128, eval_hybrids=True, **shown)
    train.run(config, path, QuietReporter('watched'))
    return path

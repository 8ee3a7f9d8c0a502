"""The shipped configs, shrunk by overrides; a reporter that keeps its lines."""

import importlib
import io
from pathlib import Path

import jax
from rich.console import Console

from jointrd_jax.train.progress import Reporter

ROOT = Path(__file__).parents[2]
# Most of the tests' time is compilation. test_main trains with optimised programs, as users do.
FAST_COMPILE = '--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1'
# The CPU backend aborts the process where a device's thread comes a minute late to an all-reduce, as it can where many
# processes share two cores.
PATIENT = '--xla_cpu_collective_call_terminate_timeout_seconds=600'
QUICK_FLAGS = f'{FAST_COMPILE} {PATIENT}' if jax.__version__.startswith('0.10.') else PATIENT
TINY = dict(model__stage_sizes=(1, 1), model__width=4, epochs=2, eval_batch_size=256, checkpoint__every_steps=0)


def shipped_config(name: str, **overrides):
    """The config in configs/NAME.py with fields overridden ('model.width' is written model__width)."""
    config = importlib.import_module(f'jointrd_jax.configs.{name}').get_config()
    config.update_from_flattened_dict({key.replace('__', '.'): value for key, value in overrides.items()})
    return config


def tiny_config(**overrides):
    """configs/digits.py shrunk to seconds."""
    return shipped_config('digits', **{**TINY, **overrides})


class QuietReporter(Reporter):
    """A reporter that keeps its lines in `.lines`."""

    def __init__(self, label, *_):
        super().__init__(label, Console(file=io.StringIO(), width=200))

    @property
    def lines(self) -> str:
        return self.console.file.getvalue()

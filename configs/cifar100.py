"""JointRD on CIFAR-100: as configs/cifar10.py.

Command   python -m jointrd_jax.prepare cifar100 --data_dir DATA
          python -m jointrd_jax.main --config configs/cifar100.py --workdir runs/cifar100 --config.dataset.data_dir=DATA
Hardware  one GPU; time unmeasured
Accuracy  unmeasured
"""

import importlib.util
from pathlib import Path


def get_config():
    spec = importlib.util.spec_from_file_location('cifar10', Path(__file__).with_name('cifar10.py'))
    cifar10 = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cifar10)
    config = cifar10.get_config()
    config.dataset.name = 'cifar100'
    return config

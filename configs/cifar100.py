"""JointRD on CIFAR-100: as configs/cifar10.py.

Command   python -m jointrd_jax.prepare cifar100 --data_dir DATA
          python -m jointrd_jax.main --config configs/cifar100.py --workdir runs/cifar100 --config.dataset.data_dir=DATA
Hardware  one GPU; time unmeasured
Accuracy  unmeasured
"""

from jointrd_jax.configs import cifar10


def get_config():
    config = cifar10.get_config()
    config.dataset.name = 'cifar100'
    return config

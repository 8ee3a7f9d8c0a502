"""JointRD on CIFAR-10: the recipe of the authors' released scripts, for a student without any shortcut.

Paper     Li et al., NeurIPS 2020
Command   python -m jointrd_jax.prepare cifar10 --data_dir DATA
          python -m jointrd_jax.main --config configs/cifar10.py --workdir runs/cifar10 --config.dataset.data_dir=DATA
Hardware  one GPU; time unmeasured
Accuracy  unmeasured here. The authors' released plain nets: 18 layers 95.4 %, 34: 95.0 %, 50: 94.5 % top-1
          (theirs keep the projections and are Dirac-parametrised: add --config.model.shortcuts=projection
          --config.model.reparam=dirac)
"""

from jointrd_jax import config as base


def get_config():
    config = base.default()
    config.epochs = 200
    config.batch_size = 128
    config.eval_batch_size = 1000
    config.model.depth = 18
    config.mix.eta = 0.5
    config.mix.fraction = 0.3  # 60 of 200 epochs
    config.optimizer.learning_rate = 0.1
    config.optimizer.schedule = 'step'
    config.optimizer.drop_fractions = (0.5, 0.75)  # epochs 100 and 150
    config.optimizer.weight_decay = 5e-4
    config.dataset.name = 'cifar10'
    config.dataset.crop_padding = 4
    config.dataset.flip = True
    return config

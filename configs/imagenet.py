"""JointRD on ImageNet: the recipe of the authors' released scripts, for a student without any shortcut.

Paper     Li et al., NeurIPS 2020. Their student keeps its projections: add --config.model.shortcuts=projection
Command   python -m jointrd_jax.prepare imagenet2012 --data_dir DATA     (names the two tar files it needs)
          python -m jointrd_jax.main --config configs/imagenet.py --workdir runs/imagenet --config.dataset.data_dir=DATA
Hardware  several GPUs or a TPU slice; time unmeasured
Accuracy  unmeasured here
"""

from jointrd_jax import config as base


def get_config():
    config = base.default()
    config.epochs = 120
    config.batch_size = 512
    config.eval_batch_size = 512
    config.dtype = 'bfloat16'
    config.model.depth = 50
    config.model.stem = 'imagenet'
    config.model.reparam = 'dirac'
    config.mix.eta = 5e-3
    config.mix.fraction = 0.5  # 60 of 120 epochs
    config.distill.weight = 1e-4
    config.optimizer.learning_rate = 0.2
    config.optimizer.schedule = 'step'
    config.optimizer.drop_fractions = (0.25, 0.5, 0.75)  # epochs 30, 60 and 90
    config.optimizer.weight_decay = 1e-4
    config.dataset.name = 'imagenet2012'
    config.dataset.flip = True
    config.checkpoint.every_steps = 1000
    return config

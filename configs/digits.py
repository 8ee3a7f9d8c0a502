"""JointRD on handwritten digits: a 34-layer network without a shortcut reaches its ResNet.

Paper     Li et al., NeurIPS 2020; scikit-learn's 1,797 real 8x8 images, no download
Command   python -m jointrd_jax.main --config configs/digits.py --workdir runs/digits
Hardware  two CPU cores; README's table has time and accuracies as measured
"""

from jointrd_jax import config as base


def get_config():
    config = base.default()
    config.epochs = 64
    config.batch_size = 32
    config.eval_batch_size = 512
    config.model.depth = 34
    config.model.width = 8
    config.mix.eta = 0.5
    config.mix.fraction = 0.3
    config.optimizer.learning_rate = 0.1
    config.optimizer.schedule = 'cosine'
    config.optimizer.warmup_fraction = 0.05
    config.optimizer.weight_decay = 5e-4
    config.dataset.name = 'digits'
    config.dataset.crop_padding = 1
    config.checkpoint.every_steps = 400  # ten epochs
    return config

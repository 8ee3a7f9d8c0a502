"""JointRD on handwritten digits: a 34-layer network without a shortcut reaches its ResNet."""

from jointrd_jax import config as base


def get_config():
    config = base.default()
    config.model.width = 8
    config.optimizer.learning_rate = 0.2
    config.optimizer.warmup_epochs = 0.05
    config.dataset.crop_padding = 1
    config.checkpoint.every_steps = 400
    config.eval_batch_size = 512
    return config

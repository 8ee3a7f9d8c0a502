"""Which source of images a config names."""

import ml_collections

from jointrd_jax.data.base import Dataset
from jointrd_jax.errors import UserError, require


def load(config: ml_collections.ConfigDict) -> Dataset:
    """The dataset named by `config.dataset.name`: 'digits', 'folder', or any prepared TFDS image-classification set.

    Raises:
      UserError: an unknown or unprepared dataset, with the command that prepares it; or the extra [data] is needed
        and not installed.
    """
    if config.dataset.fold and config.dataset.name not in ('digits', 'folder'):
        raise UserError(
            f'config.dataset.fold={config.dataset.fold} is for digits and folders; {config.dataset.name} has splits of '
            'its own (config.dataset.train_split, eval_split)'
        )
    if config.dataset.name == 'digits':
        from jointrd_jax.data import digits

        return digits.load(config)
    module = 'folder' if config.dataset.name == 'folder' else 'tfds'
    return require(f'jointrd_jax.data.{module}', 'data').load(config)


def has_test_images(config: ml_collections.ConfigDict) -> bool:
    """Whether the dataset has images to evaluate on of its own, so that none need be held out of the training images.

    False only where `config.dataset.validation_size` holds some out of a folder that has none.
    """
    if config.dataset.name != 'folder' or not config.dataset.validation_size:
        return True
    return require('jointrd_jax.data.folder', 'data').has_test_images(config.dataset)

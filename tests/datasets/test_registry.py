"""The light install: what reads images from disk is an extra, and is named where it is missing."""

import sys

import pytest

from jointrd_jax import data
from jointrd_jax.errors import UserError
from tests.support.configs import shipped_config


@pytest.mark.parametrize(('name', 'missing'), [('folder', 'grain'), ('cifar10', 'cv2')])
def test_the_extra_of_folders_and_tfds_is_named(name, missing, monkeypatch, tmp_path):
    for module in [module for module in sys.modules if module.startswith('jointrd_jax.data.')]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, missing, None)
    config = shipped_config('cifar10', dataset__name=name, dataset__data_dir=str(tmp_path))
    with pytest.raises(UserError, match=rf"{missing} is not installed.*pip install 'jointrd_jax\[data\]'"):
        data.load(config)

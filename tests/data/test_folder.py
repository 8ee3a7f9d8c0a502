import re

import numpy as np
import pytest
import real_data

from jointrd_jax import data
from jointrd_jax.errors import UserError


def test_train_and_val_with_sorted_classes(tmp_path):
    real_data.folder(tmp_path, train=6, val=3, classes=('dog', 'ape', 'cat'))
    (tmp_path / 'train' / 'ape' / 'notes.txt').write_text('not an image')
    (tmp_path / 'train' / '.cache').mkdir()
    dataset = data.load(real_data.config('folder', tmp_path))
    assert dataset.classes == ('ape', 'cat', 'dog')
    assert (dataset.train_size, dataset.eval_size) == (6, 3)
    folders = [dataset.train_source.describe(i).split('/')[-2] for i in range(6)]
    assert folders == ['ape', 'ape', 'cat', 'cat', 'dog', 'dog']
    assert list(dataset.train_source.labels) == [0, 0, 1, 1, 2, 2]


def test_a_single_folder_is_split_class_by_class_and_always_alike(tmp_path):
    real_data.folder(tmp_path, train=14, val=2)
    root = tmp_path / 'train'
    splits = [data.load(real_data.config('folder', root, eval_fraction=0.3)) for _ in range(2)]
    for dataset in splits:
        assert (dataset.train_size, dataset.eval_size) == (10, 4)
        assert np.bincount(dataset.eval_source.labels).tolist() == [2, 2]
        both = {*dataset.train_source.paths, *dataset.eval_source.paths}
        assert len(both) == 14
    assert np.array_equal(splits[0].eval_source.paths, splits[1].eval_source.paths)
    held = data.load(real_data.config('folder', root, validation_size=5))
    assert (held.train_size, held.eval_size) == (9, 5)


def test_unusual_file_names(tmp_path):
    real_data.folder(tmp_path, train=4)
    directory = tmp_path / 'train' / 'cat'
    (directory / '000.jpg').rename(directory / 'Ä b%20[1].JPEG')
    dataset = data.load(real_data.config('folder', tmp_path))
    assert next(dataset.train_batches(0))['image'].shape == (4, 64, 64, 3)


def bad_folders(root):
    """(what is wrong, how to make it so, what the error says)"""
    cat, dog = root / 'train' / 'cat', root / 'val' / 'dog'
    return {
        'no such directory': (lambda: root.rename(root.parent / 'moved'), f"'{root}' is not a directory"),
        'no val': (lambda: (root / 'val').rename(root / 'test'), f'{root} has train but no val'),
        'another class': (lambda: dog.rename(root / 'val' / 'fox'), 'only in train: dog; only in val: fox'),
        'an empty class': (lambda: [file.unlink() for file in cat.iterdir()], f'{cat} holds no images'),
        'no classes': (lambda: [d.rename(root / d.name) for d in (root / 'val').iterdir()], 'val has no class folders'),
    }


@pytest.mark.parametrize('what', ['no such directory', 'no val', 'another class', 'an empty class', 'no classes'])
def test_a_bad_folder_is_one_clear_line(tmp_path, what):
    root = real_data.folder(tmp_path / 'photos')
    make, message = bad_folders(root)[what]
    make()
    with pytest.raises(UserError, match=re.escape(message)):
        data.load(real_data.config('folder', root))


def test_a_class_of_one_image_cannot_be_split(tmp_path):
    real_data.folder(tmp_path, train=3)
    with pytest.raises(UserError, match='dog: one image cannot be split'):
        data.load(real_data.config('folder', tmp_path / 'train'))

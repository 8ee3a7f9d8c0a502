import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from jointrd_jax import data
from jointrd_jax.errors import UserError
from jointrd_jax.train import teacher
from tests.support import real_data


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


def test_images_are_found_at_any_depth(tmp_path):
    """As torchvision's ImageFolder, links followed; hidden files and folders (macOS's ._FILE) are passed over."""
    root = real_data.folder(tmp_path / 'photos', train=8)
    cat, dog = root / 'train' / 'cat', root / 'train' / 'dog'
    for source, target in (('002.jpg', '2024/a/002.jpg'), ('004.jpg', '2023/004.JPG'), ('006.jpg', '.old/006.jpg')):
        (cat / target).parent.mkdir(parents=True)
        (cat / source).rename(cat / target)
    (cat / '._000.jpg').write_bytes(b'not an image')
    (cat / 'named.jpg').mkdir()
    dog.rename(tmp_path / 'dogs')
    dog.symlink_to(tmp_path / 'dogs')
    (tmp_path / 'more').mkdir()
    (dog / '007.jpg').rename(tmp_path / 'more' / '007.jpg')
    (dog / 'linked').symlink_to(tmp_path / 'more')
    dataset = data.load(real_data.config('folder', root))
    expected = ['cat/000.jpg', 'cat/2023/004.JPG', 'cat/2024/a/002.jpg']
    expected += ['dog/001.jpg', 'dog/003.jpg', 'dog/005.jpg', 'dog/linked/007.jpg']
    assert [path.decode() for path in dataset.train_source.paths] == expected
    assert dataset.train_source.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert next(dataset.train_batches(0))['image'].shape == (4, 64, 64, 3)
    (cat / 'loop').symlink_to(cat)
    with pytest.raises(UserError, match='cannot be read .Too many levels of symbolic links'):
        data.load(real_data.config('folder', root))


def test_a_folder_is_called_the_same_wherever_it_lies(tmp_path, monkeypatch):
    root = real_data.folder(tmp_path / 'photos')
    names = [data.load(real_data.config('folder', root)).name]
    monkeypatch.chdir(tmp_path)
    names += [data.load(real_data.config('folder', spelled)).name for spelled in ('photos', './photos/../photos')]
    root.rename(tmp_path / 'moved')
    names.append(data.load(real_data.config('folder', tmp_path / 'moved')).name)
    assert len(set(names)) == 1 and re.fullmatch(r'folder:\w{12} \(2 classes\)', names[0])
    moved = tmp_path / 'moved'
    for file, other in (('val/cat/000.jpg', 'val/cat/001.jpg'), ('train/cat/000.jpg', 'train/dog/000.jpg')):
        (moved / file).rename(moved / other)
        names.append(data.load(real_data.config('folder', moved)).name)
    assert len(set(names)) == 3


def test_a_teacher_is_held_to_its_record_however_the_folder_is_spelled(tmp_path, monkeypatch):
    real_data.folder(tmp_path / 'photos')
    there = data.load(real_data.config('folder', tmp_path / 'photos'))
    record = {'last_top1': 99.0, 'eval_images': [there.name, there.eval_size]}
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match='reaches 10.00 % top-1 here but its summary records 99.00 %'):
        here = data.load(real_data.config('folder', 'photos'))
        teacher.check_record(teacher.Teacher(None, None, 'run', record, ''), 10.0, 'last', here)


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
        'one class': (
            lambda: [shutil.rmtree(root / split / 'dog') for split in ('train', 'val')],
            'train should have a folder for each of two or more classes and has cat;',
        ),
        'splits by other names': (
            lambda: [(root / a).rename(root / b) for a, b in (('train', 'training'), ('val', 'test'))],
            'has test, training; images belong into DIR/train/CLASS/ and DIR/val/CLASS/',
        ),
        'no classes': (
            lambda: [folder.rename(root / folder.name) for folder in (root / 'val').iterdir()],
            'val should have a folder for each of two or more classes and has none',
        ),
    }


@pytest.mark.parametrize('what', bad_folders(Path()))
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

import itertools
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jointrd_jax import data
from jointrd_jax.errors import UserError
from jointrd_jax.runs.summary import Summary
from jointrd_jax.train import teacher
from tests.support import real_data
from tests.support.configs import shipped_config


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
    with pytest.raises(UserError, match='cat/loop leads back to a folder that holds it'):
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
    record = Summary(procedure='resnet', wall_seconds=0.0, last_top1=99.0, eval_images=[there.name, there.eval_size])
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
        'no train': (lambda: shutil.rmtree(root / 'train'), f'{root} has val but no train'),
        'another class': (
            lambda: dog.rename(root / 'val' / 'fox'),
            '(not in val: dog; not in train: fox); make them equal',
        ),
        'classes that differ much': (
            lambda: [dog.rename(root / 'val' / 'Dog'), cat.rename(root / 'train' / 'cat '), (root / 'val/ox').mkdir()],
            "('cat ' in train is 'cat' in val, which differs by white space; "
            "'dog' in train is 'Dog' in val, which differs by case); make them equal, or set dataset.classes=train",
        ),
        'a class in another normal form': (
            lambda: [cat.rename(root / 'train/caf\u00e9'), (root / 'val/cat').rename(root / 'val/cafe\u0301')],
            r"('caf\xe9' in train is 'cafe\u0301' in val, which differs by Unicode normal form)",
        ),
        'an empty class': (lambda: [file.unlink() for file in cat.iterdir()], '(empty in train: cat); make them equal'),
        'a class empty in val': (
            lambda: [file.unlink() for file in dog.iterdir()],
            '(empty in val: dog); make them equal, or set dataset.classes=train to evaluate on those classes of train',
        ),
        'an unfinished class': (
            lambda: [shutil.rmtree(root / 'val'), (root / 'train/ox').mkdir(), (root / 'train/ox/a.txt').touch()],
            'no images in ox (1 other file passed over: .txt 1); remove folders that are not classes, or set '
            'dataset.classes=train',
        ),
        'one class': (
            lambda: [shutil.rmtree(root / split / 'dog') for split in ('train', 'val')],
            'train needs a folder for each of at least two classes; it has: cat;',
        ),
        'images of one class': (
            lambda: [file.unlink() for name in ('train', 'val') for file in (root / name / 'dog').iterdir()],
            '(empty in train: dog); make them equal',
        ),
        'a name that is not UTF-8': (
            lambda: cat.rename(os.fsdecode(os.fsencode(cat.parent) + b'/caf\xe9')),
            r"train: the class folder b'caf\xe9' has a name that is not UTF-8",
        ),
        'a name of two lines': (lambda: cat.rename(root / 'train/cat\nx'), r"the class folder b'cat\nx' has a name"),
        'images beside masks': (
            lambda: [(root / 'train').rename(root / 'images'), (root / 'val').rename(root / 'masks')],
            f'{root}: images, masks are not class folders; put images into DIR/train/CLASS/',
        ),
        'folds': (
            lambda: [(root / 'train').rename(root / 'fold_0'), (root / 'val').rename(root / 'fold_1')],
            f'{root}: fold_0, fold_1 are folds, not classes; name the folders to train and to evaluate on with',
        ),
        'folders that are all alike': (
            lambda: [(root / 'train').rename(root / 'sketch'), (root / 'val').rename(root / 'photo')],
            f'{root}: photo, sketch hold no images themselves and all hold the folders cat, dog, so they cannot be '
            'classes',
        ),
        'images in splits without classes': (
            lambda: [file.rename(file.parents[1] / f'{file.parent.name}{file.name}') for file in root.rglob('*.jpg')]
            + [folder.rmdir() for folder in root.glob('*/*') if folder.is_dir()],
            f'{root}: no class folders in train, val; put images',
        ),
        'val without class folders': (
            lambda: [file.rename(root / 'val' / f'{file.parent.name}.jpg') for file in (root / 'val').rglob('*.jpg')]
            + [folder.rmdir() for folder in root.glob('val/*') if folder.is_dir()],
            f'{root}/val has no class folders, unlike {root}/train: sort its images into class folders, or set '
            'dataset.validation_size',
        ),
        'classes beside train': (
            lambda: [folder.rename(root / folder.name) for folder in (root / 'val').iterdir()],
            f'{root}: train holds folders as a split does, but cat, dog beside it hold images',
        ),
        'two folders to train on': (
            lambda: shutil.copytree(root / 'train', root / 'Train'),
            f'{root} has Train, train: choose one with dataset.train_split',
        ),
        'a TFDS dataset': (
            lambda: shutil.copy(real_data.cifar10(root.parent / 'tfds') / 'dataset_info.json', root),
            f'{root} is a prepared TFDS dataset, not a folder of images: set dataset.name to',
        ),
        'only broken links': (
            lambda: [(shutil.rmtree(folder), folder.symlink_to('/nowhere')) for folder in [*root.glob('*/*')]],
            f'{root}: no class folders in train, val;',
        ),
    }  # fmt: skip


@pytest.mark.parametrize('what', bad_folders(Path()))
def test_a_bad_folder_is_one_clear_line(tmp_path, what):
    root = real_data.folder(tmp_path / 'photos')
    make, message = bad_folders(root)[what]
    make()
    with pytest.raises(UserError, match=re.escape(message)):
        data.load(real_data.config('folder', root))


NAMES = [
    ('Training', 'Testing'), ('TRAIN', 'TEST'), ('Train', 'Valid'), ('Train', 'val'), ('training', 'validation'),
    ('training_set', 'test_set'), ('TrainingSet', 'TestSet'), ('seg_train', 'seg_test'), ('train_images', 'val_images'),
    ('train', 'dev'), ('train', 'eval'), ('train2017', 'val2017'), ('asl_alphabet_train', 'asl_alphabet_test'),
    ('trainset', 'valset'), ('train/train', 'test/test'), ('seg_train/seg_train', 'seg_test/seg_test'),
    ('archive/train', 'archive/test'), ('my data/Training Set', 'my data/Validation Set'),
]  # fmt: skip


@pytest.mark.parametrize('names', NAMES)
def test_splits_by_any_usual_name(tmp_path, names, caplog):
    source = real_data.folder(tmp_path / 'source')
    for split, name in zip(('train', 'val'), names):
        shutil.copytree(source / split, tmp_path / 'photos' / name)
    dataset = data.load(real_data.config('folder', tmp_path / 'photos'))
    assert dataset.classes == ('cat', 'dog') and (dataset.train_size, dataset.eval_size) == (6, 2)
    assert dataset.name == data.load(real_data.config('folder', source)).name
    assert f'{tmp_path}/photos: training on {names[0]}, evaluating on {names[1]}' in caplog.text


@pytest.mark.parametrize('names', [('train', 'val'), ('Training', 'Testing')])
def test_the_recipe_for_photographs_reads_them(tmp_path, names):
    root = real_data.folder(tmp_path / 'photos')
    for old, new in zip(('train', 'val'), names):
        (root / old).rename(root / new)
    fields = dict(dataset__name='folder', dataset__data_dir=str(root), batch_size=4, dataset__workers=0)
    dataset = data.load(shipped_config('imagenet', **fields))
    assert (dataset.train_size, dataset.eval_size) == (6, 2)


def test_what_is_evaluated_on_among_several(tmp_path):
    root = real_data.folder(tmp_path / 'photos')
    shutil.copytree(root / 'train', root / 'test')
    (root / 'docs').mkdir()
    assert data.load(real_data.config('folder', root)).eval_size == 2  # val comes before test
    chosen = data.load(real_data.config('folder', root, eval_split='test'))
    assert (chosen.train_size, chosen.eval_size) == (6, 6)
    assert (
        data.load(real_data.config('folder', root, train_split='val', eval_split='train', batch_size=2)).train_size == 2
    )
    assert data.load(real_data.config('folder', root, eval_split='validation')).eval_size == 2  # as TFDS calls val
    assert data.load(real_data.config('folder', root, validation_size=2)).train_size == 4
    with pytest.raises(UserError, match="dataset.eval_split='exam': .* has the folders docs, test, train, val"):
        data.load(real_data.config('folder', root, eval_split='exam'))
    for folder in ('fold_0', 'fold_1'):
        shutil.copytree(root / 'train', tmp_path / 'folds' / folder)
    folds = data.load(real_data.config('folder', tmp_path / 'folds', train_split='fold_1', eval_split='fold_0'))
    assert (folds.train_size, folds.eval_size, folds.classes) == (6, 6, ('cat', 'dog'))


def test_a_train_folder_alone_and_a_test_folder_without_labels(tmp_path, caplog):
    root = real_data.folder(tmp_path / 'photos', train=14)
    shutil.rmtree(root / 'val')
    (root / 'test').mkdir()
    shutil.copy(root / 'train/cat/000.jpg', root / 'test')
    for fields, sizes in (({'eval_fraction': 0.3}, (10, 4)), ({'validation_size': 5}, (9, 5))):
        dataset = data.load(real_data.config('folder', root, **fields))
        assert (dataset.train_size, dataset.eval_size) == sizes and dataset.classes == ('cat', 'dog')
    assert 'training on train, images of it are held out for evaluation; not read: test' in caplog.text


def test_classes_may_be_called_as_splits(tmp_path):
    real_data.folder(tmp_path / 'flat', train=8, classes=('bus', 'test tube', 'train', 'val'))
    assert data.load(real_data.config('folder', tmp_path / 'flat/train')).classes == (
        'bus',
        'test tube',
        'train',
        'val',
    )
    for name in ('bus', 'train'):
        for year, file in (('2023', '0.jpg'), ('2024', '1.jpg')):
            path = tmp_path / 'deep' / name / f'{year} {name}' / file
            path.parent.mkdir(parents=True)
            shutil.copy(real_data.images('imagenet')[len(year + name) % 7][0], path)
    assert data.load(real_data.config('folder', tmp_path / 'deep', batch_size=2)).classes == ('bus', 'train')


def test_a_folder_inside_every_class_is_no_split(tmp_path):
    """Tiny ImageNet is CLASS/images/*.JPEG."""
    root = real_data.folder(tmp_path)
    for folder in [*root.glob('*/*')]:
        (folder / 'images').mkdir()
        for file in folder.glob('*.jpg'):
            file.rename(folder / 'images' / file.name)
    assert data.load(real_data.config('folder', root)).classes == ('cat', 'dog')


def test_evaluating_on_the_classes_there_are(tmp_path, caplog):
    root = real_data.folder(tmp_path, train=9, val=6, classes=('ape', 'cat', 'dog'))
    shutil.rmtree(root / 'val/cat')
    (root / 'val/dog').rename(root / 'val/fox')
    (root / 'val/dog').mkdir()
    (root / 'train/unfinished').mkdir()
    dataset = data.load(real_data.config('folder', root, classes='train'))
    assert dataset.classes == ('ape', 'cat', 'dog') and (dataset.train_size, dataset.eval_size) == (9, 2)
    assert 'no images to evaluate on of cat, dog' in caplog.text
    assert 'no classes of training, not evaluated on: fox' in caplog.text
    shutil.rmtree(root / 'val')
    assert data.load(real_data.config('folder', root, classes='train')).eval_size == 3
    assert 'folders without images, no classes: unfinished' in caplog.text


def test_what_systems_leave_is_no_data(tmp_path, caplog):
    root = real_data.folder(tmp_path / 'photos', train=8, val=4)
    expected = data.load(real_data.config('folder', root)).name
    photo = root / 'train/cat/000.jpg'
    for place in (
        '@eaDir/000.jpg',
        '__MACOSX',
        '.ipynb_checkpoints',
        '#recycle',
        'lost+found',
        '$RECYCLE.BIN',
        '@Recycle',
    ):
        for folder in (root, root / 'train', root / 'train/cat', root / 'val/dog'):
            (folder / place).mkdir(parents=True)
            shutil.copy(photo, folder / place / 'SYNOPHOTO_THUMB_M.jpg')
    for name in ('Thumbs.db', 'desktop.ini', '.DS_Store', '._000.jpg'):
        (root / 'train/cat' / name).write_bytes(b'x')
    assert data.load(real_data.config('folder', root)).name == expected
    assert not caplog.text


def test_files_passed_over_are_counted_by_their_endings(tmp_path, caplog):
    root = real_data.folder(tmp_path / 'photos')
    for name in (
        'train/cat/a.txt',
        'train/cat/b.TXT',
        'val/dog/c.heic',
        'train/d.csv',
        'train/dog/noending',
        'val/e.jpg',
    ):
        (root / name).touch()
    (root / 'train/ox').symlink_to('/nowhere')
    data.load(real_data.config('folder', root))
    message = f'{root}: 7 other files passed over: .txt 2, '
    assert message in caplog.text
    for part in ('.heic 1', '.csv 1', 'without ending 1', 'images beside the class folders 1', 'broken links 1'):
        assert part in caplog.text


def test_every_usual_ending_is_read(tmp_path):
    photo = Image.open(real_data.images('imagenet')[0][0]).convert('RGB').reduce(4)
    kinds = {
        'jpg': 'JPEG', 'jpeg': 'JPEG', 'jpe': 'JPEG', 'jfif': 'JPEG', 'png': 'PNG', 'apng': 'PNG', 'gif': 'GIF',
        'avif': 'AVIF', 'jp2': 'JPEG2000', 'webp': 'WEBP', 'bmp': 'BMP', 'tif': 'TIFF', 'TIFF': 'TIFF', 'ppm': 'PPM',
    }  # fmt: skip
    for name in ('cat', 'dog'):
        (tmp_path / name).mkdir()
        for suffix, kind in kinds.items():
            photo.save(tmp_path / name / f'{suffix}.{suffix}', kind)
    dataset = data.load(real_data.config('folder', tmp_path, in_memory='never', validation_size=4))
    assert dataset.train_size + dataset.eval_size == 2 * len(kinds)
    assert next(dataset.train_batches(0))['image'].shape == (4, 64, 64, 3)


def test_numbers_sort_as_numbers_and_lookalikes_are_named(tmp_path, caplog):
    real_data.folder(tmp_path / 'a', train=12, val=12, classes=('9', '10', '-1', '2.5', 'x', '100'))
    assert data.load(real_data.config('folder', tmp_path / 'a')).classes == ('-1', '2.5', '9', '10', '100', 'x')
    real_data.folder(tmp_path / 'b', train=6, val=3, classes=('Cat', 'cat', 'dog'))
    assert data.load(real_data.config('folder', tmp_path / 'b')).classes == ('Cat', 'cat', 'dog')
    assert "white space or Unicode normal form only: 'Cat', 'cat'" in caplog.text


def test_a_file_name_of_any_bytes(tmp_path):
    root = real_data.folder(tmp_path / 'photos')
    for name in (b'/caf\xe9.jpg', b'/two\nlines.jpg'):
        photo = next((root / 'train/cat').glob('0*.jpg'))
        photo.rename(os.fsdecode(os.fsencode(root / 'train/cat') + name))
    dataset = data.load(real_data.config('folder', root))
    assert next(dataset.train_batches(0))['image'].shape == (4, 64, 64, 3)
    (bad,) = (root / 'train/cat').glob('caf*')
    bad.write_bytes(b'')
    with pytest.raises(UserError, match=r'train/cat/caf\\xe9.jpg \(class cat\): empty') as error:
        list(itertools.islice(data.load(real_data.config('folder', root)).train_batches(0), 3))
    str(error.value).encode()


def test_a_class_of_one_image_cannot_be_split(tmp_path):
    real_data.folder(tmp_path, train=3)
    with pytest.raises(UserError, match='dog: one image cannot be split'):
        data.load(real_data.config('folder', tmp_path / 'train'))


def test_folds_evaluate_on_every_image_once(tmp_path):
    root = real_data.folder(tmp_path, train=14) / 'train'
    folds = [data.load(real_data.config('folder', root, fold=f'{k}/3')) for k in (1, 2, 3)]
    assert [(d.train_size, d.eval_size) for d in folds] == [(9, 5), (9, 5), (10, 4)]
    every = sorted(path for fold in folds for path in fold.eval_source.paths)
    assert every == sorted(data.load(real_data.config('folder', root, validation_size=1)).train_source.paths)
    assert len({fold.name for fold in folds}) == 3 and folds[0].name.endswith(':fold 1/3')
    with pytest.raises(
        UserError, match=f'dataset.fold=1/3: {tmp_path} has images to evaluate on of its own, in {tmp_path}/val'
    ):
        data.load(real_data.config('folder', tmp_path, fold='1/3'))


def test_images_that_were_held_out_stay_so_where_there_are_no_others(tmp_path):
    """An export is verified on test images: never on a split that mixes in images of training."""
    root = real_data.folder(tmp_path / 'photos', train=14)
    assert data.has_test_images(real_data.config('folder', root, validation_size=4))
    assert not data.has_test_images(real_data.config('folder', root / 'train', validation_size=4))
    assert data.has_test_images(real_data.config('folder', root / 'train'))  # eval_fraction: always the same images
    shutil.rmtree(root / 'val')
    assert not data.has_test_images(real_data.config('folder', root, validation_size=4))

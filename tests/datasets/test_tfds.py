import io
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jointrd_jax import data
from jointrd_jax.data.base import InMemory
from jointrd_jax.data.streaming import Streaming
from jointrd_jax.errors import UserError
from tests.support import real_data
from tests.support.configs import ROOT, shipped_config

FORMATS = ('array_record', 'tfrecord')


@pytest.mark.parametrize('file_format', FORMATS)
def test_cifar10_goes_in_memory_with_the_authors_constants(tmp_path, file_format):
    real_data.cifar10(tmp_path, file_format=file_format)
    dataset = data.load(real_data.config('cifar10', tmp_path))
    assert isinstance(dataset, InMemory)
    assert dataset.name == 'cifar10/3.0.2' and dataset.image_shape == (32, 32, 3)
    assert (dataset.train_size, dataset.eval_size, len(dataset.classes)) == (16, 4, 10)
    files = real_data.images('cifar10')
    assert np.array_equal(dataset.device_arrays['images'], [real_data.pixels(path).ravel() for path, _ in files])
    assert list(dataset.device_arrays['labels']) == [label for _, label in files]
    assert dataset.mean == (0.49139968, 0.48215827, 0.44653124)


@pytest.mark.parametrize('file_format', FORMATS)
def test_imagenet_is_streamed(tmp_path, file_format):
    real_data.imagenet(tmp_path, file_format=file_format)
    dataset = data.load(real_data.config('imagenet2012', tmp_path))
    assert isinstance(dataset, Streaming)
    assert (dataset.name, dataset.train_size, dataset.eval_size) == ('imagenet2012/5.0.0', 14, 6)
    assert dataset.image_shape == (64, 64, 3) and len(dataset.classes) == 1000
    labels = [label for _, label in real_data.images('imagenet')]
    seen = [next_labels for batch in dataset.eval_batches() for next_labels in batch['label'][batch['mask']]]
    assert seen == labels[14:]


def test_a_grey_dataset_with_named_classes_and_its_own_statistics(tmp_path):
    files = real_data.images('cifar10')
    pixels = [np.asarray(Image.open(path).convert('L')) for path, _ in files]
    grey = [
        {'image': io.BytesIO(real_data.png(Image.fromarray(image))), 'label': 'odd' if label % 2 else 'even'}
        for image, (_, label) in zip(pixels, files)
    ]
    real_data.write_tfds(
        tmp_path, 'mine', {'train': [grey[:14]], 'test': [grey[14:]]}, shape=(32, 32, 1), classes=['odd', 'even']
    )
    dataset = data.load(real_data.config('mine', tmp_path))
    assert dataset.classes == ('odd', 'even') and dataset.image_shape == (32, 32, 1)
    assert np.array_equal(dataset.device_arrays['images'], [image.ravel() for image in pixels])
    train = np.stack(pixels[:14]) / 255
    assert np.allclose(dataset.mean, train.mean()) and np.allclose(dataset.std, train.std())


def test_in_memory_or_streamed_by_choice(tmp_path):
    real_data.cifar10(tmp_path)
    real_data.imagenet(tmp_path)
    never = data.load(real_data.config('cifar10', tmp_path, in_memory='never', image_size=32, resize=32))
    assert isinstance(never, Streaming)
    (first, *_) = never.eval_batches()
    assert np.array_equal(first['image'], [real_data.pixels(path) for path, _ in real_data.images('cifar10')[16:]])
    with pytest.raises(UserError, match=r'in_memory=always: the images of imagenet2012/5.0.0 have no common size'):
        data.load(real_data.config('imagenet2012', tmp_path, in_memory='always'))


def test_splits_by_name_slice_and_held_out_images(tmp_path):
    real_data.imagenet(tmp_path)
    dataset = data.load(real_data.config('imagenet2012', tmp_path, train_split='train[:50%]', eval_split='train[50%:]'))
    labels = [label for _, label in real_data.images('imagenet')]
    assert (dataset.train_size, dataset.eval_size) == (7, 7)
    assert [dataset.train_source[i][1] for i in range(7)] == labels[:7]
    assert [dataset.eval_source[i][1] for i in range(7)] == labels[7:14]
    held = data.load(real_data.config('imagenet2012', tmp_path, validation_size=4))
    assert (held.train_size, held.eval_size) == (10, 4)
    assert sorted([*held.train_indices, *held.eval_indices]) == list(range(14))
    with pytest.raises(UserError, match=r"eval_split='test': imagenet2012/5.0.0 has the splits train, validation"):
        data.load(real_data.config('imagenet2012', tmp_path, eval_split='test'))


def test_the_version_is_the_highest_prepared_one_that_fits(tmp_path):
    for version in ('3.0.2', '3.0.10', '2.9.9'):
        real_data.cifar10(tmp_path, version=version)
    (tmp_path / 'cifar10' / 'incomplete.ABC_4.0.0').mkdir()
    (tmp_path / 'cifar10' / 'incomplete.ABC_4.0.0' / 'dataset_info.json').write_text('{}')
    for spec, expected in (
        ('cifar10', '3.0.10'),
        ('cifar10:2.*.*', '2.9.9'),
        ('cifar10:3.0.2', '3.0.2'),
        ('cifar10/2.9.9', '2.9.9'),
    ):
        assert data.load(real_data.config(spec, tmp_path)).name == f'cifar10/{expected}'
    with pytest.raises(UserError, match=re.escape("'cifar10:4.*.*', version 4.*.*, is not prepared")) as error:
        data.load(real_data.config('cifar10:4.*.*', tmp_path))
    assert 'versions there: 2.9.9, 3.0.10, 3.0.2' in str(error.value)


def test_configurations_of_a_dataset(tmp_path):
    real_data.cifar10(tmp_path, config='plain')
    assert data.load(real_data.config('cifar10', tmp_path)).name == 'cifar10/plain/3.0.2'
    real_data.cifar10(tmp_path, config='noisy')
    for spec in ('cifar10/noisy', 'cifar10/noisy:3.0.2', 'cifar10/noisy/3.0.2'):
        assert data.load(real_data.config(spec, tmp_path)).name == 'cifar10/noisy/3.0.2'
    with pytest.raises(UserError, match='choose one of cifar10/noisy, cifar10/plain'):
        data.load(real_data.config('cifar10', tmp_path))


def test_an_unprepared_dataset_names_all_that_is_needed(tmp_path):
    with pytest.raises(UserError) as error:
        data.load(real_data.config('imagenet2012', tmp_path))
    for part in (
        "'imagenet2012', version any", str(tmp_path / 'imagenet2012'), 'versions there: none',
        'ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar', str(tmp_path / 'downloads' / 'manual'),
        f'python -m jointrd_jax.prepare imagenet2012 --data_dir {tmp_path}',
    ):  # fmt: skip
        assert part in str(error.value)


@pytest.mark.parametrize(
    ('name', 'match'),
    [
        ('cifar01', 'nor one of TFDS; did you mean cifar10'),
        ('foldr', 'did you mean folder'),
        ('cifar10/', 'not of the form'),
        ('../x', 'not of the form'),
    ],
)
def test_an_unknown_name_gets_a_suggestion(tmp_path, name, match):
    with pytest.raises(UserError, match=match):
        data.load(real_data.config(name, tmp_path))


def test_neither_tensorflow_nor_the_network_is_touched(tmp_path):
    real_data.cifar10(tmp_path, file_format='tfrecord')
    script = f"""
import socket, sys
def refuse(*args, **kwargs): raise AssertionError('the network was asked for')
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from jointrd_jax import data
from jointrd_jax.errors import UserError
from tests.support import real_data
print(data.load(real_data.config('cifar10', {str(tmp_path)!r})).name)
try:
    data.load(real_data.config('cifar100', {str(tmp_path)!r}))
except UserError as error:
    print(error)
assert 'tensorflow' not in sys.modules
"""
    done = subprocess.run([sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == 'cifar10/3.0.2' and 'jointrd_jax.prepare cifar100' in second


@pytest.mark.parametrize('file_format', FORMATS)
@pytest.mark.parametrize('fault', ['missing', 'cut off', 'empty', 'junk'])
def test_a_damaged_shard_is_named_before_training(tmp_path, file_format, fault):
    directory = real_data.imagenet(tmp_path, file_format=file_format)
    shard = directory / f'imagenet2012-train.{file_format}-00001-of-00003'
    content = shard.read_bytes()
    if fault == 'missing':
        shard.unlink()
    else:
        shard.write_bytes({'cut off': content[: len(content) // 2], 'empty': b'', 'junk': b'x' * len(content)}[fault])
    with pytest.raises(UserError, match=re.escape(str(shard))):
        data.load(real_data.config('imagenet2012', tmp_path))


def test_wrong_bytes_inside_a_shard_name_the_record(tmp_path):
    for file_format in FORMATS:
        directory = real_data.cifar10(tmp_path / file_format, file_format=file_format)
        shard = directory / f'cifar10-train.{file_format}-00000-of-00002'
        content = bytearray(shard.read_bytes())
        at = content.index((real_data.images('cifar10')[3][0]).read_bytes()[:200]) + 150
        content[at] ^= 0xFF
        shard.write_bytes(content)
        with pytest.raises(UserError, match=f'{re.escape(str(shard))}, record 3: (its checksum|the shard is damaged)'):
            data.load(real_data.config('cifar10', tmp_path / file_format))


def test_a_label_out_of_range_names_record_and_split(tmp_path):
    feature = tfds.features.ClassLabel(num_classes=1000)
    wider = {'image': tfds.features.Image(shape=(None, None, 3), encoding_format='jpeg'), 'label': feature}
    directory = real_data.imagenet(tmp_path, features=wider)
    info = (directory / 'features.json').read_text()
    (directory / 'features.json').write_text(info.replace('"numClasses": "1000"', '"numClasses": "900"'))
    with pytest.raises(
        UserError,
        match=r"record \d+: label \d+ in split 'train' is out of range for 900 classes; set dataset.train_split",
    ):
        for _ in data.load(real_data.config('imagenet2012', tmp_path)).train_batches(0):
            pass


def test_imagenet_is_evaluated_on_its_labelled_split(tmp_path):
    """imagenet2012 5.1.0 may be prepared with its test images, all of label -1."""
    found = real_data.examples('imagenet')
    unlabelled = [{**example, 'label': -1} for example in real_data.examples('imagenet')[:4]]
    real_data.write_tfds(
        tmp_path, 'imagenet2012', {'train': [found[:14]], 'validation': [found[14:]], 'test': [unlabelled]},
        version='5.1.0', shape=(None, None, 3), encoding='jpeg', classes=1000,
    )  # fmt: skip
    fields = dict(dataset__data_dir=str(tmp_path), batch_size=4, dataset__workers=0)
    for options in ({}, {'dataset__eval_split': ''}):
        dataset = data.load(shipped_config('imagenet', **fields, **options))
        assert (dataset.name, dataset.eval_size) == ('imagenet2012/5.1.0', 6)
    with pytest.raises(UserError, match=r"label -1 in split 'test' .*; set dataset.eval_split to a labelled split"):
        data.load(shipped_config('imagenet', **fields, dataset__eval_split='test'))


@pytest.mark.parametrize('in_memory', ['auto', 'never'])
@pytest.mark.parametrize(('channels', 'kind'), [(4, np.uint8), (1, np.uint16)])
def test_pixels_that_are_not_8_bit_grey_or_colour_are_refused(tmp_path, channels, kind, in_memory):
    pixels = np.random.default_rng(0).integers(0, np.iinfo(kind).max, (8, 8, channels), dtype=kind)
    images = [{'image': io.BytesIO(real_data.png(Image.fromarray(pixels.squeeze()))), 'label': 0}] * 8
    features = {
        'image': tfds.features.Image(shape=(8, 8, channels), dtype=kind, encoding_format='png'),
        'label': tfds.features.ClassLabel(num_classes=2),
    }
    real_data.write_tfds(tmp_path, 'deep', {'train': [images], 'test': [images]}, features=features)
    message = f'the images of deep/3.0.2 are {np.dtype(kind)} with {channels} channels; only uint8 with 1 or 3'
    with pytest.raises(UserError, match=message):
        data.load(real_data.config('deep', tmp_path, in_memory=in_memory))


@pytest.mark.parametrize(
    ('features', 'match'),
    [
        ({'text': tfds.features.Text()}, 'needs an image feature and has text'),
        ({'image': tfds.features.Image()}, 'needs a class label feature and has image'),
        ({'a': tfds.features.Image(), 'b': tfds.features.Image()}, r'an image feature \(one, not several\)'),
    ],
)
def test_a_dataset_for_something_else(tmp_path, features, match):
    real_data.write_tfds(tmp_path, 'other', {'train': [[]], 'test': [[]]}, features=features, supervised=None)
    with pytest.raises(UserError, match=match):
        data.load(real_data.config('other', tmp_path))


def test_an_empty_or_missing_split(tmp_path):
    found = real_data.examples('cifar10')
    real_data.write_tfds(tmp_path, 'empty', {'train': [found], 'test': [[]]})
    with pytest.raises(UserError, match=r"split 'test' of empty/3.0.2 is empty"):
        data.load(real_data.config('empty', tmp_path))
    real_data.write_tfds(tmp_path, 'single', {'train': [real_data.examples('cifar10')]})
    with pytest.raises(UserError, match=r'single/3.0.2 has no split test or validation but train; set dataset'):
        data.load(real_data.config('single', tmp_path))
    held = data.load(real_data.config('single', tmp_path, validation_size=5))
    assert (held.train_size, held.eval_size) == (15, 5)


def test_damaged_metadata_is_named(tmp_path):
    directory = real_data.cifar10(tmp_path)
    (directory / 'dataset_info.json').write_text('{')
    with pytest.raises(UserError, match=re.escape(f'{directory}: its metadata cannot be read')):
        data.load(real_data.config('cifar10', tmp_path))


def test_a_bad_image_in_memory_names_the_record(tmp_path):
    found = real_data.examples('cifar10')
    found[2]['image'] = io.BytesIO(found[2]['image'].read()[:300])
    real_data.write_tfds(tmp_path, 'cut', {'train': [found], 'test': [real_data.examples('cifar10')]})
    with pytest.raises(
        UserError, match=r'cut-train.array_record-00000-of-00001, record 2 .class 8.: cannot be decoded'
    ):
        data.load(real_data.config('cut', tmp_path))


def test_a_directory_that_is_not_what_holds_the_datasets_is_called_what_it_is(tmp_path):
    version = real_data.cifar10(tmp_path / 'data')
    for place in (version.parent, version):
        with pytest.raises(UserError, match=rf'data_dir={place} is too deep.*; set dataset.data_dir={tmp_path}/data$'):
            data.load(real_data.config('cifar10', place))
    with pytest.raises(
        UserError, match=rf'not in {tmp_path} but in {tmp_path}/data; set dataset.data_dir={tmp_path}/d'
    ):
        data.load(real_data.config('cifar10', tmp_path))
    with pytest.raises(UserError, match=f'data_dir={tmp_path}/nowhere is not a directory'):
        data.load(real_data.config('cifar10', tmp_path / 'nowhere'))
    with pytest.raises(
        UserError, match='is a prepared TFDS dataset, not a folder of images: set dataset.name to cifar10'
    ):
        data.load(real_data.config('folder', version))
    (version / 'dataset_info.json').rename(tmp_path / 'info')
    message = rf'{version} has no dataset_info.json, so it was copied in part or its preparation did not end; copy it'
    with pytest.raises(UserError, match=message):
        data.load(real_data.config('cifar10', tmp_path / 'data'))
    (tmp_path / 'info').rename(version / 'dataset_info.json')
    (version / 'features.json').unlink()
    with pytest.raises(UserError, match=f'{version}: its metadata cannot be read'):
        data.load(real_data.config('cifar10', tmp_path / 'data'))

"""Data sets in object stores on loopback: TFDS's in both file formats, and class folders."""

import numpy as np
import pytest

from jointrd_jax import data
from jointrd_jax.data import bucket_copy
from jointrd_jax.errors import UserError
from jointrd_jax.system import buckets
from tests.support import buckets as stores, real_data


@pytest.fixture(scope='module', params=['s3', 'gs'])
def bucket(request):
    with stores.running(request.param) as store:
        yield store.make_bucket('datasets')


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('JOINTRD_CACHE_DIR', str(tmp_path / 'cache'))
    return tmp_path / 'cache'


def first_batch(config):
    dataset = data.load(config)
    batch = next(iter(dataset.train_batches(0)))
    dataset.close()
    return dataset, batch


@pytest.mark.parametrize('file_format', ['array_record', 'tfrecord'])
def test_prepared_datasets(bucket, cache, tmp_path, file_format):
    made = {
        'cifar10': real_data.cifar10(tmp_path / 'here', file_format=file_format),
        'imagenet2012': real_data.imagenet(tmp_path / 'here', file_format=file_format),
    }
    there = buckets.place(f'{bucket}/{file_format}')
    buckets.send(tmp_path / 'here', there)
    for name, directory in made.items():
        local, wanted = first_batch(real_data.config(name, tmp_path / 'here'))
        config = real_data.config(name, there)
        remote, found = first_batch(config)
        assert (remote.name, remote.classes, remote.train_size) == (local.name, local.classes, local.train_size)
        for key in wanted:
            np.testing.assert_array_equal(found[key], wanted[key])
        for key in local.device_arrays:
            np.testing.assert_array_equal(remote.device_arrays[key], local.device_arrays[key])
        copy = cache / 'data' / str(there).replace('://', '/') / directory.relative_to(tmp_path / 'here')
        copies = [copy / path.name for path in directory.iterdir() if path.name[0] != '.']  # no index
        before = {path: path.stat().st_mtime_ns for path in copies}
        copies[0].write_bytes(copies[0].read_bytes()[:-1])  # as an interrupted copy leaves it
        first_batch(config)
        after = {path: path.stat().st_mtime_ns for path in copies}
        assert [path for path in copies if after[path] != before[path]] == copies[:1]


def test_class_folders(bucket, cache, tmp_path):
    real_data.folder(tmp_path / 'images')
    buckets.send(tmp_path / 'images', buckets.place(f'{bucket}/images'))
    config = real_data.config('folder', f'{bucket}/images')
    dataset, _ = first_batch(config)
    assert dataset.name == data.load(real_data.config('folder', tmp_path / 'images')).name


@pytest.mark.parametrize(
    'name, path, message',
    [
        ('cifar10', 'nothing', 'is not a directory|not prepared|nothing of that name'),
        ('folder', 'nothing', 'nothing of that name'),
    ],
)
def test_what_is_not_there_is_one_line(bucket, cache, name, path, message):
    for place in (f'{bucket}/{path}', f'{bucket.partition("://")[0]}://no-such-bucket/{path}'):
        with pytest.raises(UserError, match=message + '|no such bucket') as error:
            data.load(real_data.config(name, place))
        assert '\n' not in str(error.value) and place.partition('://')[2].split('/')[0] in str(error.value)
    assert not cache.exists()


def test_a_disk_that_is_too_small_is_one_line(bucket, cache, monkeypatch, tmp_path):
    place = buckets.place(f'{bucket}/large')
    buckets.put(place / 'x', bytes(10))
    monkeypatch.setattr(bucket_copy.shutil, 'disk_usage', lambda path: type('usage', (), {'free': 9}))
    with pytest.raises(UserError, match='has room for.*JOINTRD_CACHE_DIR'):
        bucket_copy.local(place)

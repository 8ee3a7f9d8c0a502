import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from jointrd_jax import data
from jointrd_jax.data import tfrecord
from jointrd_jax.data.images import BadImage
from jointrd_jax.errors import UserError
from tests.support import real_data

WRITTEN = Path(real_data.__file__).parent / 'tensorflow_written'
RECORDS = [bytes([n]) * size for n, size in enumerate((0, 1, 17, 4096, 100_000))]


@pytest.fixture
def shard(tmp_path) -> Path:
    path = tmp_path / 'some.tfrecord-00000-of-00001'
    real_data.write_tfrecord(path, RECORDS)
    return path


def damage(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)


def test_reads_what_tensorflow_wrote(tmp_path):
    shutil.copytree(WRITTEN, tmp_path, dirs_exist_ok=True)
    dataset = data.load(real_data.config('cifar_sample', tmp_path))
    expected = real_data.images('cifar10')
    assert np.array_equal(
        dataset.device_arrays['images'], [real_data.pixels(path).ravel() for path, _ in expected_order(dataset)]
    )
    assert sorted(dataset.device_arrays['labels'][:16]) == sorted(label for _, label in expected[:16])
    assert (dataset.train_size, dataset.eval_size) == (16, 4)


def expected_order(dataset):
    """The fixture's files in the order of TFDS's shuffled shards, found by their pixels."""
    files = {real_data.pixels(path).tobytes(): (path, label) for path, label in real_data.images('cifar10')}
    found = [files[image.tobytes()] for image in dataset.device_arrays['images']]
    assert [label for _, label in found] == list(dataset.device_arrays['labels'])
    assert len({path for path, _ in found}) == 20
    return found


def test_random_access_over_parts_of_shards(tmp_path, shard):
    other = tmp_path / 'other'
    real_data.write_tfrecord(other, RECORDS[::-1])
    records = tfrecord.TFRecordFiles([(str(shard), 1, 3), (str(other), 0, 5)])
    expected = RECORDS[1:4] + RECORDS[::-1]
    assert len(records) == len(expected)
    for i in np.random.default_rng(0).permutation(len(expected)):
        assert records[int(i)] == expected[i]
    assert records.describe(1) == f'{shard}, record 2'
    copied = pickle.loads(pickle.dumps(records))
    assert [copied[i] for i in range(len(copied))] == expected


def test_more_shards_than_may_be_open(tmp_path, monkeypatch):
    monkeypatch.setattr(tfrecord, 'MAX_OPEN', 2)
    for n in range(5):
        real_data.write_tfrecord(tmp_path / str(n), [bytes([n])])
    records = tfrecord.TFRecordFiles([(str(tmp_path / str(n)), 0, 1) for n in range(5)])
    assert [records[i] for i in (0, 1, 2, 3, 4, 0, 4, 2)] == [bytes([n]) for n in (0, 1, 2, 3, 4, 0, 4, 2)]
    assert len(records.files) == 2


def test_the_index_is_built_once_and_again_when_stale(shard, monkeypatch):
    scans = []
    scan = tfrecord.scan
    monkeypatch.setattr(tfrecord, 'scan', lambda path: scans.append(path) or scan(path))
    for _ in range(3):
        assert len(tfrecord.index([str(shard)])[0]) == len(RECORDS) + 1
    assert len(scans) == 1
    real_data.write_tfrecord(shard, RECORDS[:3])
    assert len(tfrecord.index([str(shard)])[0]) == 4
    assert len(scans) == 2
    (cached,) = shard.parent.glob('.index-*')
    cached.write_bytes(cached.read_bytes()[:100])
    assert len(tfrecord.index([str(shard)])[0]) == 4
    assert len(scans) == 3
    assert len(list(shard.parent.iterdir())) == 2  # no temporary file is left


def test_the_index_of_a_read_only_directory_goes_to_the_users_cache(tmp_path, shard, monkeypatch):
    """Root may write anywhere, so the directory is made unwritable by having the file's name taken by a directory."""
    monkeypatch.setenv('JOINTRD_CACHE_DIR', str(tmp_path / 'cache'))
    tfrecord.index([str(shard)])
    (beside,) = shard.parent.glob('.index-*')
    beside.unlink()
    beside.mkdir()
    assert len(tfrecord.index([str(shard)])[0]) == len(RECORDS) + 1
    (cached,) = (tmp_path / 'cache').iterdir()
    monkeypatch.setattr(tfrecord, 'scan', None)
    assert len(tfrecord.index([str(shard)])[0]) == len(RECORDS) + 1
    monkeypatch.undo()
    monkeypatch.setenv('JOINTRD_CACHE_DIR', str(shard))  # nothing can be written: said, and no reason to stop
    cached.unlink()
    assert len(tfrecord.index([str(shard)])[0]) == len(RECORDS) + 1


@pytest.mark.parametrize('missing', [1, 4, 5000, 100_015])
def test_a_cut_off_shard_is_found_before_training(shard, missing):
    os.truncate(shard, shard.stat().st_size - missing)
    with pytest.raises(UserError, match=re.escape(f'{shard}: cut off in record 4')):
        tfrecord.index([str(shard)])


def test_a_shard_that_ends_early_between_records(shard):
    os.truncate(shard, shard.stat().st_size - 100_016)
    with pytest.raises(UserError, match='holds 4 records where the dataset has at least 5'):
        tfrecord.TFRecordFiles([(str(shard), 0, 5)])


def test_a_wrong_length_is_found_before_training(shard):
    damage(shard, 16 + 3)
    with pytest.raises(UserError, match=re.escape(f'{shard}: record 1, byte 16: the checksum of its length is wrong')):
        tfrecord.index([str(shard)])


def test_wrong_data_is_found_when_it_is_read(shard):
    damage(shard, 16 + 17 + 12 + 5)
    records = tfrecord.TFRecordFiles([(str(shard), 0, 5)])
    assert records[1] == RECORDS[1] and records[3] == RECORDS[3]
    with pytest.raises(BadImage, match='its checksum is wrong'):
        records[2]


@pytest.mark.parametrize(('directory', 'reason'), [(False, 'No such file or directory'), (True, 'Is a directory')])
def test_a_shard_that_vanishes_after_it_was_indexed(shard, directory, reason):
    records = tfrecord.TFRecordFiles([(str(shard), 0, 5)])
    shard.unlink()
    if directory:  # can be opened, but not read
        shard.mkdir()
    with pytest.raises(BadImage, match=re.escape(f'cannot be read ({reason})')):
        records[2]


def test_a_missing_shard_is_named(shard):
    shard.unlink()
    with pytest.raises(UserError, match=re.escape(f'{shard}: cannot be read (No such file')):
        tfrecord.index([str(shard)])

import gc
import itertools
import os
import re
import signal
import time
from multiprocessing import shared_memory

import jax
import jax.numpy as jnp
import numpy as np
import psutil
import pytest

from jointrd_jax import data
from jointrd_jax.data import streaming
from jointrd_jax.errors import UserError
from tests.support import real_data


@pytest.fixture(scope='module')
def imagenet(tmp_path_factory):
    root = tmp_path_factory.mktemp('imagenet')
    for file_format in ('array_record', 'tfrecord'):
        real_data.imagenet(root / file_format, file_format=file_format)
    real_data.folder(root / 'folder', train=14, val=6)
    return root


def load(imagenet, kind='array_record', **fields):
    name = 'folder' if kind == 'folder' else 'imagenet2012'
    return data.load(real_data.config(name, imagenet / kind, **fields))


def take(dataset, count, start=0):
    batches = list(itertools.islice(dataset.train_batches(start), count))
    dataset.close()
    return batches


def workers_alive():
    return [child for child in psutil.Process().children() if 'spawn_main' in ' '.join(child.cmdline())]


def assert_same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b):
        assert x.keys() == y.keys()
        assert all(np.array_equal(x[key], y[key]) for key in x)


@pytest.mark.parametrize('kind', ['array_record', 'tfrecord', 'folder'])
def test_every_epoch_shows_every_image_once_in_another_order(imagenet, kind):
    dataset = load(imagenet, kind, batch_size=7)
    labels = [list(batch['label']) for batch in take(dataset, 4)]
    every = sorted(dataset.train_source[i][1] for i in range(14))
    assert sorted(labels[0] + labels[1]) == sorted(labels[2] + labels[3]) == every
    assert labels[0] + labels[1] != labels[2] + labels[3]


def test_formats_and_chunk_sizes_give_the_same_batches(imagenet, monkeypatch):
    expected = take(load(imagenet), 4)
    assert_same(take(load(imagenet, 'tfrecord'), 4), expected)
    monkeypatch.setattr(streaming, 'CHUNK', 3)
    assert_same(take(load(imagenet), 4), expected)


def test_another_seed_gives_other_batches(imagenet):
    a, b = take(load(imagenet), 1)[0], take(load(imagenet, seed=1), 1)[0]
    assert not np.array_equal(a['image'], b['image'])


def test_resuming_in_the_middle_of_an_epoch(imagenet):
    whole = take(load(imagenet), 8)
    for start in (1, 3, 5):
        assert_same(take(load(imagenet), 8 - start, start), whole[start:])


def test_workers_make_the_same_batches_from_any_step(imagenet):
    expected = take(load(imagenet), 6)
    for workers in (1, 3):
        assert_same(take(load(imagenet, workers=workers), 4, start=2), expected[2:])
    assert not workers_alive()


def test_evaluation_counts_every_image_once(imagenet):
    dataset = load(imagenet, eval_batch_size=4)
    for _ in range(2):
        batches = list(dataset.eval_batches())
        assert [batch['image'].shape for batch in batches] == [(4, 64, 64, 3)] * 2
        mask = np.concatenate([batch['mask'] for batch in batches])
        labels = np.concatenate([batch['label'] for batch in batches])
        assert mask.tolist() == [True] * 6 + [False] * 2
        assert labels[mask].tolist() == [label for _, label in real_data.images('imagenet')[14:]]


def shared_blocks():
    """How many blocks of shared memory this process holds."""
    return sum(issubclass(type(one), shared_memory.SharedMemory) for one in gc.get_objects())


def test_an_evaluation_to_the_end_leaves_nothing_in_shared_memory(imagenet):
    before = shared_blocks()
    dataset = load(imagenet, eval_batch_size=4, workers=2)
    gc.disable()  # so that nothing but `close` can free what Grain keeps in a cycle of references
    try:
        assert sum(batch['mask'].sum() for batch in dataset.eval_batches()) == 6
        dataset.close()
        for _ in range(100):  # Grain unlinks it in a thread
            if (after := shared_blocks()) <= before:
                break
            time.sleep(0.1)
    finally:
        gc.enable()
    assert after <= before


@pytest.mark.parametrize('hosts', [2, 4])
def test_hosts_read_disjoint_shares_that_make_up_the_global_batch(imagenet, monkeypatch, hosts):
    fields = {'batch_size': 8, 'eval_batch_size': 4}
    expected_train, expected_eval = take(load(imagenet, **fields), 3), list(load(imagenet, **fields).eval_batches())
    shares, evals = [], []
    monkeypatch.setattr(jax, 'process_count', lambda: hosts)
    for host in range(hosts):
        monkeypatch.setattr(jax, 'process_index', lambda host=host: host)
        shares.append(take(load(imagenet, **fields), 3))
        evals.append(list(load(imagenet, **fields).eval_batches()))
    for parts, expected in ((shares, expected_train), (evals, expected_eval)):
        joined = [{key: np.concatenate([p[key] for p in step]) for key in step[0]} for step in zip(*parts)]
        assert_same(joined, expected)


def test_fetch_mirrors_and_normalises_on_the_device(imagenet):
    dataset = load(imagenet, flip=True, batch_size=14)
    (batch,) = take(dataset, 1)
    assert 0 < batch['flip'].sum() < 14
    images, labels = jax.jit(dataset.preprocess)({}, batch, jax.random.key(0))
    expected = np.where(batch['flip'][:, None, None, None], batch['image'][:, :, ::-1], batch['image']) / 255
    assert images.dtype == jnp.float32
    assert np.allclose(images, (expected - np.array(dataset.mean)) / np.array(dataset.std), atol=1e-5)
    assert np.array_equal(labels, batch['label'])
    plain, _ = jax.jit(dataset.preprocess)({}, next(dataset.eval_batches()), None)
    assert plain.shape == (4, 64, 64, 3)


def spoil(root, *numbers):
    """Cut some of the training images of a folder in half; their paths."""
    files = sorted((root / 'train').rglob('*.jpg'))
    for number in numbers:
        content = files[number].read_bytes()
        files[number].write_bytes(content[: len(content) // 2])
    return [str(files[number]) for number in numbers]


@pytest.mark.parametrize('workers', [0, 2])
def test_a_bad_image_ends_the_run_and_is_named(tmp_path, workers):
    real_data.folder(tmp_path, train=6)
    (bad,) = spoil(tmp_path, 1)
    dataset = data.load(real_data.config('folder', tmp_path, workers=workers))
    message = f'{bad} (class cat): cut off: its data ends too early; repair it, or set dataset.on_bad_image=skip'
    with pytest.raises(UserError, match=re.escape(message)):
        for _ in zip(dataset.train_batches(0), range(4)):
            pass
    dataset.close()


def test_bad_images_are_skipped_counted_and_replaced_alike_everywhere(tmp_path, caplog):
    real_data.folder(tmp_path, train=6)
    bad = spoil(tmp_path, 1, 4)
    (tmp_path / 'val' / 'cat' / '000.jpg').write_bytes(b'')
    runs = []
    for workers in (0, 2):
        dataset = data.load(real_data.config('folder', tmp_path, on_bad_image='skip', workers=workers))
        runs.append(list(itertools.islice(dataset.train_batches(0), 6)))
        (evaluation,) = dataset.eval_batches()
        assert evaluation['mask'].sum() == dataset.eval_size - 1
        assert len(dataset.bad) == 3
        dataset.close()
    assert_same(*runs)
    assert all(batch['image'].reshape(4, -1).std(1).min() > 0 for batch in runs[0])
    for path in bad:
        assert any(path in record.getMessage() for record in caplog.records)
    assert '3 bad images skipped' in caplog.text


def test_training_images_that_all_turn_bad_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, 'MAX_BAD', 20)
    real_data.folder(tmp_path, train=6)
    dataset = data.load(real_data.config('folder', tmp_path, on_bad_image='skip'))
    spoil(tmp_path, *range(6))
    with pytest.raises(UserError, match='over 20 bad images in one chunk'):
        next(dataset.train_batches(0))


def first_image(root, kind):
    """Make the first training image unreadable; how the error begins, and how many images are left."""
    if kind == 'a missing file':
        file = min((real_data.folder(root) / 'train').rglob('*.jpg'))
        file.unlink()
        file.symlink_to('/nowhere')
        return f'{file}: cannot be read (No such file or directory)', 5
    directory = real_data.imagenet(root, file_format='tfrecord')
    shard = min(directory.glob('*train*'))
    content = bytearray(shard.read_bytes())
    content[600] ^= 0xFF
    shard.write_bytes(content)
    return f'{shard}, record 0: its checksum is wrong: the shard is damaged', 13


@pytest.mark.parametrize('kind', ['a missing file', 'a damaged record'])
def test_a_bad_first_image_is_named_or_skipped(tmp_path, kind):
    message, left = first_image(tmp_path, kind)
    config = real_data.config('folder' if 'file' in kind else 'imagenet2012', tmp_path)
    with pytest.raises(UserError, match=f'^{re.escape(message)}; repair it, or set dataset.on_bad_image=skip$'):
        data.load(config)
    config.dataset.on_bad_image = 'skip'
    dataset = data.load(config)
    assert dataset.train_size == left + 1
    seen = np.concatenate([batch['image'] for batch in take(dataset, 4)])
    assert len(seen) == 16 and dataset.bad == {0}


@pytest.mark.parametrize('workers', [0, 2])
def test_a_shard_that_vanishes_ends_the_run_and_is_named(tmp_path, workers):
    directory = real_data.imagenet(tmp_path, file_format='tfrecord')
    dataset = data.load(real_data.config('imagenet2012', tmp_path, workers=workers))
    for shard in directory.glob('*train*'):
        shard.rename(f'{shard}.gone')
    with pytest.raises(UserError, match=r'train.tfrecord-0000\d-of-00003, record \d: cannot be read .No such file'):
        for _ in zip(dataset.train_batches(0), range(8)):
            pass
    dataset.close()


@pytest.mark.parametrize('split', ['train', 'val'])
def test_a_split_of_nothing_but_bad_images_is_refused(tmp_path, split):
    real_data.folder(tmp_path)
    files = sorted((tmp_path / split).rglob('*.jpg'))
    for file in files:
        file.write_bytes(b'')
    message = f"none of the {len(files)} images of '{split}' can be used, such as {files[0]} (class cat): empty"
    with pytest.raises(UserError, match=re.escape(message)):
        data.load(real_data.config('folder', tmp_path, on_bad_image='skip'))


def test_a_worker_that_dies_ends_the_run(imagenet):
    dataset = load(imagenet, workers=2)
    batches = dataset.train_batches(0)
    next(batches)
    os.kill(workers_alive()[0].pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r'an input worker of imagenet2012/5.0.0 died .*-9.* lower dataset.workers'):
        for _ in zip(batches, range(1000)):
            pass
    dataset.close()


@pytest.mark.parametrize(
    ('fields', 'match'),
    [
        ({'batch_size': 20}, 'batch_size=20 is more than the 14 training images of imagenet2012/5.0.0'),
        ({'resize': 32}, 'dataset.resize=32 is less than dataset.image_size=64'),
        ({'validation_size': 14}, 'dataset.validation_size=14 leaves no image to train on'),
    ],
)
def test_sizes_that_do_not_fit(imagenet, fields, match):
    with pytest.raises(UserError, match=match):
        load(imagenet, **fields)

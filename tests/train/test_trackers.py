"""Event files and the tracking service, read back from disk."""

import struct
import sys
import time

import numpy as np
import pytest

from jointrd_jax.data.description import DataDescription
from jointrd_jax.errors import UserError
from jointrd_jax.runs.summary import Summary
from jointrd_jax.train import loop, trackers
from tests.support.configs import tiny_config


def events(directory):
    """Every event of a directory's event files (TFRecord framing: length, its check, data, its check)."""
    from tensorboardX.proto import event_pb2

    found = []
    for path in sorted(directory.glob('events.*')):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from('<Q', content, at)
            found.append(event_pb2.Event.FromString(content[at + 12 : at + 12 + length]))
            at += 16 + length
    return found


def batched(content, size):
    return [content[at : at + size] for at in range(0, len(content), size)]


def test_a_run_writes_event_files(watched_run):
    found = events(watched_run / trackers.TENSORBOARD)
    steps = {}
    for event in found:
        for value in event.summary.value:
            steps.setdefault(value.tag, []).append(event.step)
    for tag in ('loss', 'ce/path1', 'ce/student', 'mix', 'learning_rate', 'gradient_norm', 'top1', 'path1_top1',
                'gradient/stage1/teacher', 'gradient/stage1/student', 'gradient/stage1/share'):  # fmt: skip
        assert steps[tag] == [10, 20], tag
    assert steps['weights/stem/conv/kernel'] == [10, 20]  # first and last epoch: every second one
    images = [value.image for event in found for value in event.summary.value if value.tag == 'augmented']
    assert len(images) == 1 and images[0].encoded_image_string.startswith(b'\x89PNG')
    assert any('mix.eta' in str(event) for event in found)
    assert 'result/last_top1' in steps


def test_the_teacher_within_is_tracked_too(watched_run):
    assert events(watched_run / 'teacher' / trackers.TENSORBOARD)


def test_resumed_runs_hide_what_they_take_again(tmp_path):
    config = tiny_config(log__tensorboard=1)
    for start in (0, 40):
        tracker = trackers.TensorBoard(config, tmp_path, start)
        tracker.scalars(start + 40, {'loss': 1.0})
        tracker.close()
    assert [event.step for event in events(tmp_path / trackers.TENSORBOARD) if event.session_log.status] == [41]


@pytest.mark.parametrize('every, epochs', [(1, [1, 2, 3, 4, 5]), (2, [1, 2, 4, 5]), (4, [1, 4, 5])])
def test_interval(every, epochs, tmp_path):
    shown = trackers.Trackers(tiny_config(epochs=5, log__tensorboard=every), tmp_path, 0)
    for epoch in range(1, 6):
        shown.epoch({'epoch': epoch, 'step': epoch, 'loss': 1.0}, {'params': {}})
    shown.close()
    found = events(tmp_path / trackers.TENSORBOARD)
    assert [event.step for event in found if event.summary.value] == epochs


def test_off_by_default(tmp_path):
    assert not trackers.Trackers(tiny_config(), tmp_path, 0).all
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'setting, module, extra', [('tensorboard', 'tensorboardX', 'tensorboard'), ('tracker', 'wandb', 'wandb')]
)
def test_missing_extras_are_named_before_anything_is_made(setting, module, extra, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    config = tiny_config(**{f'log__{setting}': 1 if setting == 'tensorboard' else module})
    with pytest.raises(UserError, match=rf'{module} is not installed.*\[{extra}\]'):
        loop.run(config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_wandb_offline(tmp_path, monkeypatch):
    monkeypatch.setenv('WANDB_MODE', 'offline')
    tracker = trackers.WandB(tiny_config(), tmp_path, 0)
    tracker.scalars(40, {'loss': 1.5})
    tracker.histogram(40, 'weights/stem', np.arange(10.0))
    tracker.images(40, 'augmented', np.zeros((2, 8, 8, 1), np.uint8), ['0', '1'])
    tracker.finish(Summary(procedure='plain', last_top1=98.0, best_top1=99.0, wall_seconds=1.0))
    tracker.close()
    (record,) = tmp_path.glob('wandb/offline-run-*/*.wandb')

    def content():
        return b''.join(block[7:] for block in batched(record.read_bytes(), 32768))  # a block begins with a header

    for _ in range(600):  # wandb's own process writes the file, and may do so after finish() has returned
        if b'last_top1' in content():
            break
        time.sleep(0.1)
    assert b'mix.eta' in content() and b'last_top1' in content()


def test_to_pixels_undoes_normalisation():
    pixels = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3) * 5
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    described = DataDescription('x', ('a',), (4, 4, 3), mean, std)
    normal = (pixels / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_array_equal(described.to_uint8(normal.astype(np.float32)), pixels)

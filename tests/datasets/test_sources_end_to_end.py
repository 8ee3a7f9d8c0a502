"""Training runs on every kind of source: what they end with, stopped or not, and how they fail."""

import re
import subprocess
import sys

import pytest

from jointrd_jax.errors import UserError
from jointrd_jax.train import loop, setup
from tests.support import real_data
from tests.support.configs import ROOT, QuietReporter
from tests.support.faults import Stopping, outcome, run_with_stops, stop


def config(kind, root, **fields):
    """The smallest network, trained two epochs on a fixture."""
    made = real_data.config({'folder': 'folder', 'cifar10': 'cifar10'}.get(kind, 'imagenet2012'), root, **fields)
    made.procedure, made.epochs, made.optimizer.learning_rate = 'plain', 2, 0.01
    made.model.stage_sizes, made.model.width = (1, 1), 4
    made.dataset.image_size, made.dataset.resize, made.dataset.flip = 16, 18, True
    made.batch_size = made.eval_batch_size = 4
    return made


def fixture(kind, root):
    if kind == 'folder':
        return real_data.folder(root, train=14, val=6)
    write = real_data.cifar10 if kind == 'cifar10' else real_data.imagenet
    write(root, file_format='array_record' if kind == 'cifar10' else kind)
    return root


@pytest.mark.parametrize(('kind', 'evaluated'), [('cifar10', 4), ('array_record', 6), ('tfrecord', 6), ('folder', 6)])
def test_a_run_on_each_kind_of_source(tmp_path, kind, evaluated):
    summary = loop.run(config(kind, fixture(kind, tmp_path / 'data')), tmp_path / 'run')
    assert summary.eval_images[1] == evaluated
    assert summary.steps == 2 * (4 if kind == 'cifar10' else 3)
    assert 0 <= summary.last_top1 <= 100


class CutOff(QuietReporter):
    """Ends the run at a step, as a kill would: nothing is saved after the last checkpoint."""

    def __init__(self, at):
        super().__init__('cut off')
        self.at = at

    def step(self, step):
        if step == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize(('procedure', 'workers'), [('plain', 2), ('jointrd', 0)])
def test_cut_off_and_stopped_in_an_epoch_and_continued(tmp_path, procedure, workers):
    """The same weights, metrics lines and best checkpoint as undisturbed, under any workers and in another place."""
    root = fixture('folder', tmp_path / 'data')
    made = config('folder', root)
    made.procedure, made.mix.taps, made.checkpoint.every_steps = procedure, (0,), 2
    loop.run(made, tmp_path / 'whole', QuietReporter('whole'))
    made.dataset.workers = workers
    with pytest.raises(KeyboardInterrupt):
        loop.run(made, tmp_path / 'stopped', CutOff(4))  # of twice three steps; step 2 is kept
    made.dataset.data_dir = str(root.rename(tmp_path / 'moved'))
    _, stops = run_with_stops(made, tmp_path / 'stopped', 5)
    assert stops == 1
    assert outcome(tmp_path / 'stopped') == outcome(tmp_path / 'whole')


def test_bad_images_of_before_a_stop_are_counted(tmp_path):
    root = fixture('folder', tmp_path / 'data')
    made = config('folder', root, on_bad_image='skip')
    bad = [min((root / split).rglob('*.jpg')) for split in ('train', 'val')]
    whole = [file.read_bytes() for file in bad]
    for file in bad:
        file.write_bytes(b'')
    stop(made, tmp_path / 'run', Stopping(5))
    for file, content in zip(bad, whole):
        file.write_bytes(content)
    assert loop.run(made, tmp_path / 'run', QuietReporter('run')).skipped_images == 2


class Spoiling(QuietReporter):
    """Empties every file under a directory once the run has begun."""

    def __init__(self, directory):
        super().__init__('spoiling')
        self.directory = directory

    def step(self, step):
        for file in self.directory.rglob('*.jpg'):
            file.write_bytes(b'')


def test_evaluation_images_that_all_turn_bad_are_an_error(tmp_path):
    root = fixture('folder', tmp_path / 'data')
    made = config('folder', root, on_bad_image='skip')
    with pytest.raises(UserError, match=re.escape('none of its 6 evaluation images can be used any more')):
        loop.run(made, tmp_path / 'run', Spoiling(root / 'val'))


def test_a_bad_image_in_a_worker_is_one_line_on_standard_error(tmp_path):
    """No warning of shared memory that was left behind, and none of what TFDS says while it opens a dataset."""
    directory = real_data.imagenet(tmp_path / 'data', file_format='tfrecord')
    shard = max(directory.glob('*train*'))
    content = bytearray(shard.read_bytes())
    content[-100] ^= 0xFF
    shard.write_bytes(content)
    command = [sys.executable, '-m', 'jointrd_jax.main', '--config', 'configs/digits.py', '--workdir', tmp_path / 'run']
    fields = {
        'procedure': 'plain', 'batch_size': 4, 'eval_batch_size': 4, 'model.stage_sizes': '(1,)', 'model.width': 4,
        'dataset.name': 'imagenet2012', 'dataset.data_dir': tmp_path / 'data', 'dataset.workers': 2,
        'dataset.image_size': 16, 'dataset.resize': 18,
    }  # fmt: skip
    command += [f'--config.{name}={value}' for name, value in fields.items()]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f'error: {shard}, record 4: its checksum is wrong')


def test_a_stem_that_does_not_fit_the_images_is_pointed_out(tmp_path, caplog):
    made = config('folder', fixture('folder', tmp_path / 'data'))
    made.dataset.image_size, made.dataset.resize = 160, 160
    setup.make(made, tmp_path / 'run').dataset.close()
    assert 'stem=cifar does not shrink images, and these of 160x160 pixels make a step about 16 times' in caplog.text
    real_data.cifar10(tmp_path / 'tfds')
    made.dataset.name, made.dataset.data_dir, made.model.stem = 'cifar10', str(tmp_path / 'tfds'), 'imagenet'
    setup.make(made, tmp_path / 'run').dataset.close()
    assert 'stem=imagenet shrinks images to a quarter, which leaves few pixels of images of 32x32' in caplog.text

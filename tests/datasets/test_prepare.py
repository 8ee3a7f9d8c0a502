import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jointrd_jax import cli, data
from jointrd_jax.data import prepare
from jointrd_jax.errors import UserError
from tests.support import real_data

WRITTEN = Path(real_data.__file__).parent / 'tensorflow_written'


def command(*args) -> tuple[int, str, list[str]]:
    """(status, standard output, lines on standard error) of the command line."""
    arguments = [sys.executable, '-m', 'jointrd_jax.prepare', *map(str, args)]
    done = subprocess.run(arguments, check=False, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr.splitlines()


def test_converts_what_tensorflow_wrote_to_array_record(tmp_path):
    shutil.copytree(WRITTEN, tmp_path / 'old')
    status, output, _ = command('cifar_sample', '--data_dir', tmp_path / 'old', '--convert_to', tmp_path / 'new')
    assert status == 0
    assert f'--config.dataset.name=cifar_sample --config.dataset.data_dir={tmp_path / "new"}' in output
    old, new = (data.load(real_data.config('cifar_sample', tmp_path / name)) for name in ('old', 'new'))
    assert np.array_equal(old.device_arrays['images'], new.device_arrays['images'])
    assert np.array_equal(old.device_arrays['labels'], new.device_arrays['labels'])
    assert len(list((tmp_path / 'new').rglob('*.array_record-*'))) == 2
    with pytest.raises(UserError, match='exists already'):
        prepare.convert('cifar_sample', tmp_path / 'old', tmp_path / 'new')
    with pytest.raises(UserError, match='is stored as array_record, not as tfrecord'):
        prepare.convert('cifar_sample', tmp_path / 'new', tmp_path / 'newer')


def test_a_damaged_record_stops_the_conversion_and_leaves_nothing(tmp_path):
    directory = real_data.imagenet(tmp_path / 'old', file_format='tfrecord')
    shard = directory / 'imagenet2012-train.tfrecord-00001-of-00003'
    content = bytearray(shard.read_bytes())
    content[-1000] ^= 0xFF
    shard.write_bytes(content)
    with pytest.raises(UserError, match=f'{re.escape(str(shard))}, record 3: its checksum is wrong'):
        prepare.convert('imagenet2012', tmp_path / 'old', tmp_path / 'new')
    assert not list((tmp_path / 'new' / 'imagenet2012').iterdir())


def test_an_unwritable_target_is_named(tmp_path):
    real_data.cifar10(tmp_path / 'old', file_format='tfrecord')
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match=f'cannot write {re.escape(str(tmp_path / "file"))}'):
        prepare.convert('cifar10', tmp_path / 'old', tmp_path / 'file')


def test_imagenet_names_its_manual_files_first(tmp_path):
    status, _, lines = command('imagenet2012', '--data_dir', tmp_path)
    assert status == 2 and len(lines) == 1
    manual = str(tmp_path / 'downloads' / 'manual')
    for part in ('ILSVRC2012_img_train.tar (137.74 GiB)', 'ILSVRC2012_img_val.tar', manual):
        assert part in lines[0]


def test_says_what_it_downloads_and_names_the_missing_extra(tmp_path, monkeypatch, capsys):
    find = prepare.importlib.util.find_spec
    monkeypatch.setattr(prepare.importlib.util, 'find_spec', lambda name: None if name == 'tensorflow' else find(name))
    with pytest.raises(UserError, match=re.escape("the extra [prepare]: pip install 'jointrd_jax[prepare]'")):
        prepare.prepare('cifar10', tmp_path, 'array_record')
    assert 'cifar10/3.0.2: downloads 162.17 MiB (1 file)' in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_prepared_dataset_is_left_alone(tmp_path):
    directory = real_data.cifar10(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in directory.iterdir()}
    assert prepare.prepare('cifar10', tmp_path, 'array_record') == directory
    assert {path: path.stat().st_mtime_ns for path in directory.iterdir()} == before


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['nonsense', '--data_dir', 'x'], "TFDS cannot prepare 'nonsense'"),
        ([], 'NAME is missing'),
    ],
)
def test_a_wrong_command_is_one_line(args, message, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.run('prepare', args)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('error: ') and message in line

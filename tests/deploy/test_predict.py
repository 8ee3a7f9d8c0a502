"""`jointrd predict` and `jointrd evaluate` on real image files, by runs and by exports of them, as processes."""

import csv
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from jointrd_jax import data
from jointrd_jax.deploy import export, predict
from jointrd_jax.errors import UserError
from jointrd_jax.report import evaluate
from jointrd_jax.runs import predictions, run_directory
from jointrd_jax.train import loop
from tests.support import real_data
from tests.support.configs import QuietReporter, tiny_config


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """A run on streamed photographs, its export, and the folder."""
    place = tmp_path_factory.mktemp('photos')
    root = real_data.folder(place / 'images', train=8, val=6)
    config = tiny_config(procedure='plain', epochs=1, batch_size=4, eval_batch_size=4, model__stage_sizes=(1, 1))
    config.dataset.name, config.dataset.data_dir, config.dataset.workers = 'folder', str(root), 0
    config.dataset.image_size, config.dataset.resize = 24, 32
    loop.run(config, place / 'run', QuietReporter('photos'))
    export.export(place / 'run', place / 'export', export.Options(('onnx', 'safetensors', 'tflite'), batch=4))
    return place


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    """A run on the digits, and each of its 500 evaluation images as a PNG in a folder for its class."""
    place = tmp_path_factory.mktemp('digits')
    loop.run(tiny_config(procedure='plain', model__stage_sizes=(1, 1)), place / 'run', QuietReporter('digits'))
    dataset = data.load(tiny_config())
    rows = dataset.device_arrays['images'][dataset.train_size :].reshape(-1, 8, 8)
    labels = dataset.device_arrays['labels'][dataset.train_size :]
    for i, (image, label) in enumerate(zip(rows, labels)):
        path = place / 'images' / str(label) / f'{i:03}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return place


def jointrd(*arguments, status=0):
    done = subprocess.run([sys.executable, '-m', 'jointrd_jax', *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    return done


def evaluated(run, config=None):
    """Probabilities of all evaluation images by the pass that evaluation makes."""
    dataset = data.load(config or run.config)
    batches = list(predictions.of(dataset, run.network, run.variables))
    return np.concatenate([predictions.probabilities(b.logits)[b.mask] for b in batches])


SOURCES = ('run', 'export', 'export/network.onnx', 'export/network.safetensors', 'export/network.tflite', 'alone')


@pytest.mark.parametrize('source', SOURCES)
def test_predictions_are_those_of_evaluation(photos, tmp_path, source):
    if source == 'alone':  # only the file, which says itself how its images are prepared
        path = tmp_path / 'moved.onnx'
        path.write_bytes((photos / 'export' / 'network.onnx').read_bytes())
    else:
        path = photos / source
    run = run_directory.load(photos / 'run')
    wanted = evaluated(run)
    paths = predict.listed([str(photos / 'images' / 'val')])
    with predict.classifier(path, 'last', 4) as network:
        found = list(predict.rows(network, paths, 2, 4))
    assert [row['image'] for row in found] == [str(path) for path in paths]
    for row, chances in zip(found, wanted, strict=True):
        assert row['class'] == run.data.classes[chances.argmax()]
        shown = [entry['probability'] for entry in row['likeliest']]
        assert shown == pytest.approx(sorted(chances, reverse=True), rel=1e-3)


def test_int8_files_predict_nearly_the_same(digits):
    export.export(digits / 'run', digits / 'int8', export.Options(('tflite', 'onnx'), int8=True, calibration=32))
    paths = predict.listed([str(digits / 'images')])[::10]
    found = {}
    for name in ('network.tflite', 'network.int8.tflite', 'network.int8.onnx'):
        with predict.classifier(digits / 'int8' / name, 'last', 8) as network:
            found[name] = [row['class'] for row in predict.rows(network, paths, 1, 8)]
    exact = found.pop('network.tflite')
    for name, classes in found.items():
        assert np.mean([ours == theirs for ours, theirs in zip(classes, exact, strict=True)]) >= 0.9, name


def test_images_of_one_size_are_taken_as_they_are(digits):
    run = run_directory.load(digits / 'run')
    wanted = evaluated(run)
    paths = predict.listed([str(digits / 'images')])
    with predict.classifier(digits / 'run', 'last', 64) as network:
        found = {row['image'].rpartition('/')[2][:3]: row for row in predict.rows(network, paths, 1, 64)}
    for i, chances in enumerate(wanted):
        assert found[f'{i:03}']['probability'] == pytest.approx(chances.max(), rel=1e-4)


def test_the_command_writes_tables_csv_and_json(photos, tmp_path):
    bad = tmp_path / 'cut.jpg'
    bad.write_bytes(b'\xff\xd8\xff')
    images = photos / 'images' / 'val'
    done = jointrd('predict', photos / 'run', images, bad, '--format=csv', status=2)
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert len(rows) == len(predict.listed([str(images)])) + 1
    assert rows[-1]['error'] and not rows[-1]['class']
    assert all(0 < float(row['probability']) <= 1 for row in rows[:-1])
    assert done.stderr.strip().endswith(f'1 of {len(rows)} images could not be read; their rows say why')
    found = json.loads(jointrd('predict', photos / 'export', images, '--format=json', '--top=2').stdout)
    assert [row['class'] for row in found] == [row['class'] for row in rows[:-1]]
    assert len(found[0]['likeliest']) == 2
    assert ' %' in jointrd('predict', photos / 'run', images).stdout


@pytest.mark.parametrize(
    'source, images, message',
    [
        ('none', 'images', 'no such run or export'),
        ('run', 'none', 'no such image or folder'),
        ('images', 'images', 'neither a run directory'),
        ('run', 'export', 'holds no images'),
        ('foreign.onnx', 'images', 'is not a .onnx file, or a damaged one'),
        ('foreign.bin', 'images', 'neither a run nor an export'),
    ],
)
def test_what_cannot_predict_is_one_line(photos, source, images, message):
    for name in ('foreign.onnx', 'foreign.bin'):
        (photos / name).write_bytes(b'none')
    with pytest.raises(UserError, match=message):
        predict.run(photos / source, [str(photos / images)])


def test_a_record_counts_for_the_files_that_it_was_written_for(photos, digits, tmp_path):
    out = tmp_path / 'export'
    shutil.copytree(photos / 'export', out)
    export.export(digits / 'run', tmp_path / 'other', export.Options(('onnx', 'safetensors')))
    for name in ('network.onnx', 'network.safetensors'):
        (out / name).write_bytes((tmp_path / 'other' / name).read_bytes())
    with predict.classifier(out / 'network.onnx', 'last', 4) as network:
        assert network.classes == list(run_directory.load(digits / 'run').data.classes)
    tflite = (out / 'network.tflite').read_bytes()
    (out / 'network.tflite').write_bytes(tflite[: len(tflite) // 2])
    for name, message in (
        ('network.safetensors', 'is not the file that .* describes: export it again'),
        ('network.tflite', 'is not a .tflite file, or a damaged one'),
    ):
        with pytest.raises(UserError, match=message):
            predict.described(out / name)
    (out / 'network.onnx').unlink()
    with pytest.raises(UserError, match=r'network\.onnx is not here'):
        predict.described(out)


def test_the_weights_of_an_export_were_chosen_when_it_was_made(photos):
    with pytest.raises(UserError, match='--which=best is for a run'):
        with predict.classifier(photos / 'export', 'best', 4):
            pass


def test_evaluation_of_a_run_on_its_own_images_and_on_others(digits, photos):
    summary = run_directory.load(digits / 'run').summary
    found = json.loads(jointrd('evaluate', digits / 'run', '--format=json').stdout)
    assert (found['top1'], found['top5'], found['images']) == (summary.last_top1, summary.last_top5, 500)
    matrix = np.array(found['confusion'])
    assert matrix.sum() == 500 and 100 * matrix.trace() / 500 == pytest.approx(found['top1'])
    assert found['classes']['3']['images'] == matrix[3].sum()
    shown = jointrd('evaluate', digits / 'run').stdout
    assert f'top-1 {summary.last_top1:.2f} %' in shown
    assert 'has classes that' in jointrd(
        'evaluate', digits / 'run', '--dataset=folder', f'--data_dir={photos / "images"}', status=2
    ).stderr  # fmt: skip
    other = json.loads(
        jointrd(
            'evaluate', photos / 'run', '--dataset=folder', f'--data_dir={photos / "images"}', '--format=json'
        ).stdout
    )
    assert other['top1'] == run_directory.load(photos / 'run').summary.last_top1


def test_the_fold_of_a_run_is_one_of_its_own_images(digits, tmp_path):
    """It holds for them, also where they are named or have moved, and not for others."""
    here, moved = str(digits / 'images'), str(tmp_path / 'moved')
    shutil.copytree(here, moved)
    run = run_directory.load(digits / 'run')
    for name in ('digits', 'folder'):
        config = run.config.copy_and_resolve_references()
        config.dataset.name, config.dataset.data_dir, config.dataset.fold = name, here, '1/5'
        run_directory.save(tmp_path / name, config, run.variables, run.data, run.summary)

    def images(of, **asked):
        return evaluate.evaluate(tmp_path / of, **asked)['images']

    held_out = pytest.approx(50, abs=5)  # dataset.eval_fraction of 500
    assert images('digits') == images('digits', dataset='digits') == 360
    assert images('digits', dataset='folder') == held_out
    assert images('folder', data_dir=moved) == images('folder', dataset='folder') == 100
    assert images('folder', dataset='folder', data_dir=moved) == held_out

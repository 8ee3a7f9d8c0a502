import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest

from jointrd_jax.deploy import artifacts, export, fold as folding, graph, onnx_graph, runner, stablehlo, tflite
from jointrd_jax.errors import UserError
from jointrd_jax.method.networks import Network
from tests.support.networks import images_like, randomised, relative_difference
from tests.support.runs import digits_run

EXTRAS = {'onnx': ('onnx', 'onnxruntime'), 'tflite': ('litert_converter', 'ai_edge_litert')}
INT8 = {'onnx': 'int8', 'tflite': 'int8_tflite'}
PLAIN_OPERATORS = {'Conv', 'Relu', 'MaxPool', 'GlobalAveragePool', 'Flatten', 'Gemm'}


def installed(name):
    for module in EXTRAS.get(name, ()):
        pytest.importorskip(module)


def exported(workdir, out, *formats, **fields):
    return export.export(workdir, out, export.Options(formats, **fields), say=lambda line: None)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp('runs') / 'run'
    network, variables = digits_run(path, reparam='dirac')
    return path, network, variables


@pytest.fixture(scope='module', params=artifacts.FORMATS)
def artifact(request, run, tmp_path_factory):
    """One format of the run, exported: (format, directory, record)."""
    installed(request.param)
    out = tmp_path_factory.mktemp('exports') / request.param
    return request.param, out, exported(run[0], out, request.param, int8=request.param in INT8)


def test_an_artifact_scores_what_the_checkpoint_scores(artifact):
    name, out, record = artifact
    found = record['artifacts'][name]
    assert json.loads((out / 'export.json').read_text()) == record
    assert found['top1'] == record['checkpoint_top1']
    assert found['images'] == 500
    assert found['max_relative_difference'] < 1e-5
    expected = {'README.md', 'export.json', *(a['file'] for a in record['artifacts'].values())}
    assert {path.name for path in out.iterdir()} == expected


@pytest.mark.parametrize('artifact', ['onnx', 'tflite'], indirect=True)
def test_the_accuracy_of_int8_is_reported(artifact):
    name, out, record = artifact
    found = record['artifacts'][INT8[name]]
    assert found['images'] == 500
    assert abs(found['top1'] - record['checkpoint_top1']) < 10
    if name == 'onnx':
        assert 'QuantizeLinear' in {node.op_type for node in load_onnx(out / 'network.int8.onnx').graph.node}
    else:
        said = tflite.read_metadata((out / 'network.int8.tflite').read_bytes())
        assert said['int8_input'] == found['int8_input']
        assert said['classes'] == record['data']['classes']
        assert f'scale {found["int8_input"]["scale"]!r}' in (out / 'README.md').read_text()


def test_no_artifact_tells_of_the_machine_that_made_it(artifact, run):
    _, out, record = artifact
    here = [sys.prefix, str(Path.cwd()), str(Path.home()), tempfile.gettempdir(), str(run[0]), 'site-packages']
    for made in record['artifacts'].values():
        blob = (out / made['file']).read_bytes()
        assert [place for place in here if place.encode() in blob] == [], made['file']


def test_the_model_card_can_be_followed(artifact, run, monkeypatch):
    _, out, record = artifact
    text = (out / 'README.md').read_text()
    assert f'{record["checkpoint_top1"]:.2f} %' in text
    monkeypatch.chdir(out)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    mean, std = record['data']['mean'], record['data']['std']
    wanted = jax.jit(run[1].apply)(run[2], ((pixels / 255 - mean) / std).astype(np.float32)).logits
    blocks = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    assert len(blocks) == len(record['artifacts'])
    for block, name in zip(blocks, record['artifacts']):
        code = {'pixels': pixels}
        exec(block, code)  # of our own card
        assert relative_difference(code['logits'], np.asarray(wanted)) < (0.5 if name in INT8.values() else 1e-4)


def load_onnx(path):
    import onnx

    return onnx.load(path)


def made(network, image_shape, batch=None):
    """(graph, its ONNX model as bytes)."""
    folded = folding.fold(network, randomised(network, image_shape), image_shape)
    return folded, onnx_graph.model(folded, {'classes': ['a', 'b'], 'top1': 12.5}, batch)


@pytest.mark.parametrize('shortcuts', ['none', 'projection', 'all'])
@pytest.mark.parametrize('stem', ['cifar', 'imagenet'])
def test_onnx_holds_the_networks_operators_and_no_others(tmp_path, stem, shortcuts):
    installed('onnx')
    import onnx
    import onnxruntime

    folded, blob = made(Network((1, 2), True, 4, 7, stem, shortcuts), (48, 40, 3))
    model = onnx.load_from_string(blob)
    onnx.checker.check_model(model, full_check=True)
    allowed = PLAIN_OPERATORS if shortcuts == 'none' else PLAIN_OPERATORS | {'Add'}
    assert {node.op_type for node in model.graph.node} <= allowed
    assert model.opset_import[0].version >= 17
    assert {p.key: p.value for p in model.metadata_props} == {'classes': '["a", "b"]', 'top1': '12.5'}
    shapes = {value.name: value.type.tensor_type.shape.dim for value in model.graph.value_info}
    assert [d.dim_value for d in shapes['layer2.0.conv1'][1:]] == [8, *folded.shapes()['layer2.0.conv1'][:2]]
    session = onnxruntime.InferenceSession(blob)
    for batch in (1, 3):
        images = images_like((48, 40, 3), batch)
        found = session.run(None, {'images': images.transpose(0, 3, 1, 2)})[0]
        assert relative_difference(found, graph.apply(folded, images)) < 1e-5


def test_a_fixed_batch_is_written_into_the_file():
    installed('onnx')
    import onnx

    model = onnx.load_from_string(made(Network((1,), width=4, num_classes=3, stem_kind='cifar'), (8, 8, 3), batch=5)[1])
    assert [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [5, 3, 8, 8]


def test_stablehlo_needs_jax_alone(tmp_path):
    network = Network((1,), width=4, num_classes=3, shortcuts='none')
    folded = folding.fold(network, randomised(network, (32, 32, 3)), (32, 32, 3))
    (tmp_path / 'n.stablehlo').write_bytes(stablehlo.model(folded, 'cpu'))
    np.save(tmp_path / 'images.npy', images := images_like((32, 32, 3), 2))
    code = """if True:
        import sys, numpy, pathlib
        from jax import export
        call = export.deserialize(bytearray(pathlib.Path('n.stablehlo').read_bytes())).call
        numpy.save('logits.npy', call(numpy.load('images.npy')))
        assert not any(name.startswith(('jointrd_jax', 'flax')) for name in sys.modules)
    """
    subprocess.run([sys.executable, '-c', code], cwd=tmp_path, check=True)
    assert relative_difference(np.load(tmp_path / 'logits.npy'), graph.apply(folded, images)) < 1e-5


def test_tflite_runs_an_imagenet_stem(tmp_path):
    installed('tflite')
    network = Network((1, 1), width=4, num_classes=3, shortcuts='all')
    folded = folding.fold(network, randomised(network, (40, 48, 3)), (40, 48, 3))
    (tmp_path / 'n.tflite').write_bytes(tflite.model(folded, batch=2))
    images = images_like((40, 48, 3), 2)
    found = runner.load_tflite(str(tmp_path / 'n.tflite'))(images)
    assert relative_difference(found, graph.apply(folded, images)) < 1e-5


def test_pixels_go_in_where_asked_for(run, tmp_path):
    record = exported(run[0], tmp_path / 'out', 'stablehlo', pixels=True, batch=100)
    assert record['input'] == 'pixels 0..255'
    assert record['batch'] == 100
    assert record['operators']['conv'] == 6  # stem, two blocks of two, and the normalisation
    assert record['artifacts']['stablehlo']['top1'] == record['checkpoint_top1']


def test_the_record_finds_its_run_from_every_directory(run, tmp_path, monkeypatch):
    monkeypatch.chdir(run[0].parent)
    assert exported('run', tmp_path / 'out', 'safetensors')['run'] == str(run[0])


def test_without_a_dataset_random_images_do(tmp_path):
    digits_run(tmp_path / 'run')
    config = json.loads((tmp_path / 'run' / 'config.json').read_text())
    (tmp_path / 'run' / 'config.json').write_text(json.dumps({**config, 'dataset.name': 'nowhere'}))
    record = exported(tmp_path / 'run', tmp_path / 'out', 'safetensors', verify='random')
    assert record['checkpoint_top1'] is None
    assert 'random images' in record['verified_on']
    assert 'unmeasured' in (tmp_path / 'out' / 'README.md').read_text()


def test_files_that_take_pixels_are_compared_on_random_pixels(run, tmp_path):
    record = exported(run[0], tmp_path / 'out', 'stablehlo', pixels=True, verify='random')
    assert record['artifacts']['stablehlo']['max_relative_difference'] < 1e-5


def test_int8_that_saw_no_training_images_says_so(run, tmp_path):
    installed('onnx')
    said = []
    options = export.Options(('onnx',), int8=True, verify='random')
    record = export.export(run[0], tmp_path / 'out', options, say=said.append)
    assert record['int8_scales_from'] == 'random images'
    assert 'int8 come from random images' in said[0]
    assert 'scales of int8 come from random images' in (tmp_path / 'out' / 'README.md').read_text()


def test_an_artifact_that_computes_something_else_is_not_left_behind(run, tmp_path, monkeypatch):
    right = folding.fold_conv

    def wrong(*args):
        kernel, bias = right(*args)
        return kernel * 1.001, bias

    monkeypatch.setattr(folding, 'fold_conv', wrong)
    with pytest.raises(UserError, match=r'network\.stablehlo differs from the checkpoint'):
        exported(run[0], tmp_path / 'out', 'stablehlo')
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_its_runtime_does_not_load_is_an_error(tmp_path):
    (tmp_path / 'n.stablehlo').write_bytes(b'not one')
    with pytest.raises(RuntimeError), runner.Runner(tmp_path / 'n.stablehlo') as broken:
        broken(np.zeros((1, 8, 8, 1), np.float32))


def test_the_reason_why_a_file_does_not_run_is_the_message(run, tmp_path):
    folded, _ = made(Network((1,), width=4, num_classes=3, shortcuts='none'), (32, 32, 3))
    (tmp_path / 'n.stablehlo').write_bytes(stablehlo.model(folded, 'rocm'))
    with pytest.raises(RuntimeError, match='rocm'), runner.Runner(tmp_path / 'n.stablehlo') as broken:
        broken(images_like((32, 32, 3)))


def test_the_process_that_verifies_takes_nothing_from_the_working_directory(run, tmp_path, monkeypatch):
    installed('onnx')
    for name in ('onnxruntime.py', 'jointrd_jax.py'):
        (tmp_path / name).write_text('raise SystemExit("shadowed")')
    monkeypatch.chdir(tmp_path)
    assert exported(run[0], tmp_path / 'out', 'onnx')['artifacts']['onnx']['images'] == 500


def test_bad_options_are_refused_before_any_work(run, tmp_path):
    out = tmp_path / 'out'
    for options, message in (
        (export.Options(('onyx',)), 'onyx.*stablehlo'),
        (export.Options(()), 'no format'),
        (export.Options(('stablehlo',), int8=True), 'add onnx or tflite'),
        (export.Options(('onnx',), opset=7), 'opset=7 is not .* from 13'),
        (export.Options(('stablehlo',), verify='never'), 'test, random'),
        (export.Options(('stablehlo',), platform='rocm'), '--platform=rocm: JAX sees no such device'),
    ):
        with pytest.raises(UserError, match=message):
            export.export(run[0], out, options)
    out.mkdir()
    (out / 'other').write_text('content')
    with pytest.raises(UserError, match='not an empty directory'):
        exported(run[0], out, 'stablehlo')
    with pytest.raises(UserError, match='not a run directory'):
        exported(tmp_path / 'nothing', tmp_path / 'new', 'stablehlo')
    assert not (tmp_path / 'new').exists()


def test_a_run_without_checkpoint_is_refused(run, tmp_path):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'config.json').write_text((run[0] / 'config.json').read_text())
    with pytest.raises(UserError, match='no finished checkpoint'):
        exported(tmp_path / 'run', tmp_path / 'out', 'stablehlo')


@pytest.mark.parametrize('name', EXTRAS)
def test_a_missing_extra_is_named(run, tmp_path, monkeypatch, name):
    for module in EXTRAS[name]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf'extra \[{name}\]'):
        exported(run[0], tmp_path / 'out', name)


def test_the_command(run, tmp_path):
    command = [sys.executable, '-m', 'jointrd_jax.export', f'--workdir={run[0]}']
    asked = ['--format=safetensors', f'--out={tmp_path / "out"}']
    done = subprocess.run([*command, *asked], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'network.safetensors: top-1' in done.stdout
    done = subprocess.run([*command, '--batch=none', f'--out={tmp_path / "other"}'], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count('\n')) == (2, 1)
    assert "--batch='none' is neither dynamic nor" in done.stderr

import json
import sys

import pytest

from jointrd_jax.deploy import savings
from jointrd_jax.errors import UserError


@pytest.fixture(scope='module')
def report(tmp_path_factory):
    for module in ('onnx', 'onnxruntime', 'matplotlib'):
        pytest.importorskip(module)
    out = tmp_path_factory.mktemp('reports') / 'report'
    return out, savings.run(['resnet18'], 'cifar', out, rounds=2, width=2, say=lambda line: None)


def test_the_report_has_every_network_and_figure(report):
    out, result = report
    assert {path.name for path in out.iterdir()} == {'report.md', 'report.json', 'memory.png', 'latency.png'}
    assert json.loads((out / 'report.json').read_text())['models'] == result['models']
    found = result['models']['resnet18']
    assert list(found) == ['ResNet', 'projection', 'plain', 'removed']
    assert [one['operators'].get('add', 0) for one in found.values()] == [8, 3, 0, 0]
    assert found['removed']['parameters'] > found['ResNet']['parameters'] > found['plain']['parameters']
    assert found['plain']['latency']['ONNX Runtime']['ratio'] > 0
    assert 0 < found['plain']['shortcut_share'] + found['ResNet']['shortcut_share'] < 1
    text = (out / 'report.md').read_text()
    assert text.count('| resnet18 | plain |') == 4
    assert found['plain']['predicted_bytes']['tflite_micro int8'] * 4 == found['plain']['peak_bytes']['nothing']
    assert 'in_place, 1 byte: vela, rknn' in text
    assert 'up to 1.4x faster' in text


def test_onnx_runtimes_arena_holds_what_liveness_says(report):
    found = report[1]['models']['resnet18']
    for name in ('ResNet', 'plain'):
        peaks = found[name]['peak_bytes']
        assert peaks['accumulate'] * 0.5 <= found[name]['arena_bytes']['extended'] <= peaks['nothing'] * 2


def test_ratios_come_with_their_spread():
    pair = savings.in_pairs(lambda: sum(range(20000)), lambda: sum(range(5000)), rounds=9)
    assert 2 < pair['ratio'] < 8
    assert pair['ratio_low'] <= pair['ratio'] <= pair['ratio_high']


def test_bad_input_is_one_clear_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match='resnet18, resnet34, resnet50'):
        savings.run(['resnet19'], 'cifar', None, 2)
    with pytest.raises(UserError, match='no model'):
        savings.run([], 'cifar', None, 2)
    (tmp_path / 'file').write_text('')
    pytest.importorskip('onnxruntime')
    with pytest.raises(UserError, match='not an empty directory'):
        savings.run(['resnet18'], 'cifar', tmp_path, 2)
    monkeypatch.setitem(sys.modules, 'onnx', None)
    with pytest.raises(UserError, match=r'extra \[onnx\]'):
        savings.run(['resnet18'], 'cifar', None, 2)

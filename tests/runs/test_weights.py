import json
import pickle
import struct

import jax
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings, strategies as st

from jointrd_jax.data.description import DataDescription
from jointrd_jax.errors import UserError
from jointrd_jax.method.architectures import SHORTCUTS
from jointrd_jax.method.networks import Network, create
from jointrd_jax.runs import state_dicts, weights
from tests.support.networks import images_like, randomised, relative_difference


@pytest.fixture
def torch():
    return pytest.importorskip('torch')


def small(name='resnet18', **fields):
    return create(name, width=4, num_classes=5, **fields)


def state_dict(path, change=lambda arrays: arrays, network=None):
    """A torchvision-format file as another program writes it: no metadata of ours, with batch counters."""
    network = network or small()
    arrays = weights.export_names(randomised(network, (32, 32, 3)))
    arrays = change({**arrays, 'bn1.num_batches_tracked': np.asarray(3)})
    safetensors.numpy.save_file(arrays, path)
    return path


@pytest.mark.parametrize(
    'depth, grouped',
    [(18, {}), (34, {}), (50, {}), (101, {}), (50, dict(per_group=128)), (50, dict(groups=4, per_group=32))],
)
def test_pytorch_weights_compute_what_pytorch_computes(torch, tmp_path, depth, grouped):
    from safetensors.torch import save_file

    from tests.support import torch_resnet

    theirs = torch_resnet.randomised(depth, width=8, classes=10, **grouped)
    save_file(theirs.state_dict(), tmp_path / 'resnet.safetensors')
    network, variables, data, _ = weights.load(tmp_path / 'resnet.safetensors')
    assert (network.depth, network.width, network.num_classes, network.stem_kind) == (depth, 8, 10, 'imagenet')
    assert data is None
    images = images_like((64, 64, 3), batch=2)
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    assert relative_difference(jax.jit(network.apply)(variables, images).logits, wanted) < 1e-5


@pytest.mark.parametrize('zipped', [True, False])
def test_pth_files_of_both_formats_are_read(torch, tmp_path, zipped):
    from tests.support import torch_resnet

    theirs = torch_resnet.randomised(18, width=4, classes=5).state_dict()
    torch.save(theirs, tmp_path / 'resnet.pth', _use_new_zipfile_serialization=zipped)
    ours = weights.export_names(weights.load(tmp_path / 'resnet.pth').variables)
    for name, tensor in theirs.items():
        if not name.endswith('num_batches_tracked'):
            np.testing.assert_array_equal(ours[name], tensor.numpy())


@pytest.mark.parametrize('shortcuts', SHORTCUTS)
def test_what_is_written_is_read_back(tmp_path, shortcuts):
    network = Network(
        (1, 2),
        shortcuts == 'all',
        4,
        5,
        'cifar',
        shortcuts,
        reparam='dirac' if shortcuts == 'none' else 'none',
        hidden=(4, 6, 5),
    )
    variables = randomised(network, (8, 8, 1))
    data = DataDescription('x', tuple('abcde'), (8, 8, 1), (0.5,), (0.2,))
    weights.save(tmp_path / 'w.safetensors', network, variables, data)
    loaded = weights.load(tmp_path / 'w.safetensors')
    assert loaded.network == network
    assert loaded.data == data
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)


def test_every_difference_is_listed(tmp_path):
    def change(arrays):
        arrays['fc.weight'] = np.zeros((6, 32), np.float32)
        arrays['layer2.0.conv1.weight'] = np.zeros((8, 4, 5, 5), np.float32)
        arrays['layer9.0.extra'] = np.zeros(3, np.float32)
        del arrays['layer3.1.bn2.running_mean'], arrays['layer1.0.conv2.weight']
        return arrays

    path = state_dict(tmp_path / 'w.safetensors', change)
    with pytest.raises(UserError) as error:
        weights.load(path, small())
    for difference in (
        'fc.weight is [6, 32], not [5, 32]',
        'layer2.0.conv1.weight is [8, 4, 5, 5], not [8, 4, 3, 3]',
        'layer9.0.extra is unexpected',
        'layer3.1.bn2.running_mean is missing',
        'layer1.0.conv2.weight is missing',
        'ResNet-18, width 4, imagenet stem, 5 classes',
    ):
        assert difference in str(error.value)
    assert '\n' not in str(error.value)


def test_another_architecture_is_refused(tmp_path):
    path = state_dict(tmp_path / 'w.safetensors', lambda _: {'features.0.weight': np.zeros((8, 3, 3, 3), np.float32)})
    with pytest.raises(UserError, match=r'not a torchvision ResNet.*features\.0\.weight'):
        weights.load(path)
    path = state_dict(tmp_path / 'deeper.safetensors', network=small('resnet34'))
    with pytest.raises(UserError, match=r'does not fit ResNet-18.*layer1\.2\.conv1\.weight is unexpected'):
        weights.load(path, small())


def test_values_that_are_no_weights_are_refused(tmp_path):
    def broken(arrays):
        return {**arrays, 'bn1.bias': np.full(4, np.nan, np.float32)}

    with pytest.raises(UserError, match=r'not a number, or infinite, in bn1\.bias'):
        weights.load(state_dict(tmp_path / 'nan.safetensors', broken))
    with pytest.raises(UserError, match=r'bn1\.bias is I32'):
        weights.load(state_dict(tmp_path / 'int.safetensors', lambda a: {**a, 'bn1.bias': np.zeros(4, np.int32)}))


class Harmful:
    def __reduce__(self):
        return (print, ('this code ran',))


def test_a_pickle_that_would_run_code_is_refused(torch, tmp_path, capsys):
    for name, write in (('zip', torch.save), ('plain', lambda o, path: path.write_bytes(pickle.dumps(o, protocol=2)))):
        path = tmp_path / f'{name}.pth'
        write({'conv1.weight': Harmful()}, path)
        with pytest.raises(UserError, match=r'refused: .* would run code'):
            weights.load(path)
    assert 'this code ran' not in capsys.readouterr().out


@pytest.mark.parametrize('content', [b'', b'PK\x03\x04 and so on', b'hello, world', b'\x80\x02garbage', b'\xff' * 64])
@pytest.mark.parametrize('ending', state_dicts.ENDINGS)
def test_a_file_that_is_not_what_its_ending_says_is_refused(request, tmp_path, ending, content):
    if ending != '.safetensors':
        request.getfixturevalue('torch')
    path = tmp_path / f'w{ending}'
    path.write_bytes(content)
    with pytest.raises(UserError, match=r'is not a (safetensors|PyTorch) file, or a damaged one|would run code'):
        weights.load(path)


def test_sizes_are_checked_before_anything_is_allocated(torch, tmp_path):
    header = json.dumps({'conv1.weight': {'dtype': 'F32', 'shape': [2**50], 'data_offsets': [0, 2**52]}}).encode()
    path = tmp_path / 'w.safetensors'
    path.write_bytes(struct.pack('<Q', len(header)) + header + b'four')
    with pytest.raises(UserError, match='damaged'):
        weights.load(path)
    arrays = {k: torch.from_numpy(a.copy()) for k, a in weights.export_names(randomised(small(), (32, 32, 3))).items()}
    for name in ('fc.weight', 'fc.bias'):
        arrays[name] = arrays[name][:1].expand(2**40, *arrays[name].shape[1:])
    torch.save(arrays, tmp_path / 'w.pth')
    with pytest.raises(UserError, match=r'fc\.(weight|bias) claims to be larger than the file'):
        weights.load(tmp_path / 'w.pth')


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(weights.NETWORK_FIELDS), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(about=JSON | st.fixed_dictionaries({'network': JSON, 'data': JSON}))
def test_metadata_that_lies_is_refused_or_harmless(tmp_path, about):
    network = Network((1,), False, 2, 3, 'cifar')
    path = tmp_path / 'w.safetensors'
    arrays = weights.export_names(randomised(network, (8, 8, 1)))
    path.write_bytes(safetensors.numpy.save(arrays, {state_dicts.METADATA: json.dumps(about)}))
    try:
        assert weights.load(path).network.num_classes == 3
    except UserError:
        pass


@pytest.mark.parametrize(
    'change',
    [
        {'stage_sizes': [10**9, 1 - 10**9]},
        {'width': 10**30},
        {'width': '8'},
        {'stem_kind': 'x'},
        {'hidden': [1, 2]},
        {'new': 1},
    ],
)
def test_metadata_that_describes_no_network_is_refused(tmp_path, change):
    network = Network((1,), False, 2, 3, 'cifar')
    fields = {name: getattr(network, name) for name in weights.NETWORK_FIELDS} | change
    arrays = weights.export_names(randomised(network, (8, 8, 1)))
    blob = safetensors.numpy.save(arrays, {state_dicts.METADATA: json.dumps({'network': fields})})
    (tmp_path / 'w.safetensors').write_bytes(blob)
    with pytest.raises(UserError, match='describes no network|choices were given'):
        weights.load(tmp_path / 'w.safetensors')


def test_other_paths_are_one_clear_line(tmp_path):
    with pytest.raises(UserError, match='no such weight file'):
        weights.load(tmp_path / 'none.safetensors')
    (tmp_path / 'w.npz').write_bytes(b'')
    with pytest.raises(UserError, match=r"\.safetensors, .*\.pth.* files, not '\.npz'"):
        weights.load(tmp_path / 'w.npz')


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    import sys

    (tmp_path / 'w.pth').write_bytes(b'\x80\x02')
    monkeypatch.setitem(sys.modules, 'torch', None)
    with pytest.raises(UserError, match=r'extra \[torch\]'):
        weights.load(tmp_path / 'w.pth')

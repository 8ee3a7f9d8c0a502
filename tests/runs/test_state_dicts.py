"""Weight files as training scripts leave them, each written by torch or safetensors and read back."""

import argparse
import functools
import pathlib
import subprocess
import sys
import textwrap
from collections import OrderedDict

import numpy as np
import pytest

from jointrd_jax.errors import UserError
from jointrd_jax.runs import state_dicts, weights

torch = pytest.importorskip('torch')


@functools.cache
def network():
    from tests.support import torch_resnet

    return torch_resnet.randomised(18, width=4, classes=5)


def state():
    return OrderedDict(network().state_dict())


def prefixed(prefix, arrays=None):
    return OrderedDict((prefix + name, tensor) for name, tensor in (arrays or state()).items())


def renamed(*pairs):
    def new(name):
        for old, other in pairs:
            name = name.replace(old, other)
        return name

    return OrderedDict((new(name), tensor) for name, tensor in state().items())


def each(change):
    return OrderedDict(
        (name, change(tensor) if tensor.is_floating_point() else tensor) for name, tensor in state().items()
    )


def without(*names):
    return OrderedDict((name, tensor) for name, tensor in state().items() if name not in names)


def with_head(change):
    return {**state(), 'fc.weight': change(state()['fc.weight'])}


def check(path, wanted=None, tolerance=0.0, **options):
    ours = weights.export_names(weights.load(path, **options).variables)
    for name, tensor in (wanted or state()).items():
        if not name.endswith('num_batches_tracked'):
            np.testing.assert_allclose(ours[name], tensor.detach().float().numpy(), rtol=tolerance, err_msg=name)


@pytest.mark.parametrize(
    'prefix',
    [
        'module.',
        '_orig_mod.',
        'model.',
        'backbone.',
        'encoder.',
        'module._orig_mod.',
        'model.backbone.encoder.',
        'net.',
    ],
)
def test_prefixes(tmp_path, prefix):
    torch.save(prefixed(prefix), tmp_path / 'w.pth')
    check(tmp_path / 'w.pth')


def test_what_lies_outside_the_network_is_passed_over_by_name(tmp_path):
    held = {**prefixed('model.'), 'criterion.weight': torch.ones(5), 'accuracy.confusion': torch.zeros(5, 5)}
    torch.save({'state_dict': held, 'pytorch-lightning_version': '2.0', 'callbacks': {}}, tmp_path / 'last.ckpt')
    check(tmp_path / 'last.ckpt')
    assert 'criterion.weight, accuracy.confusion' in weights.load(tmp_path / 'last.ckpt').taken


class Settings:
    """An object of a class of the training script."""

    def __init__(self):
        self.lr = 0.1


@pytest.mark.parametrize('key', ['state_dict', 'model', 'net', 'model_state_dict', 'teacher', 'weights'])
@pytest.mark.parametrize('zipped', [True, False])
def test_wrappers_with_a_scripts_other_objects(tmp_path, key, zipped):
    optimiser = torch.optim.SGD(network().parameters(), 0.1, momentum=0.9)
    others = {'epoch': 3, 'acc': np.float64(93.1), 'args': argparse.Namespace(lr=0.1), 'config': Settings(),
              'path': pathlib.Path('x'), 'curve': np.arange(3.0), 'optimizer': optimiser.state_dict()}  # fmt: skip
    torch.save({key: prefixed('module.'), **others}, tmp_path / 'w.pth', _use_new_zipfile_serialization=zipped)
    check(tmp_path / 'w.pth')


@pytest.mark.parametrize('key', ['model_ema', 'state_dict_ema', 'ema'])
def test_the_moving_average_is_taken_where_it_is_asked_for(tmp_path, key):
    average = prefixed('module.', each(lambda tensor: tensor * 0.5))
    average['n_averaged'] = torch.tensor(7)
    torch.save({'model': state(), key: average}, tmp_path / 'w.pth')
    check(tmp_path / 'w.pth')
    assert f"'model' taken, not '{key}'" in weights.load(tmp_path / 'w.pth').taken
    check(tmp_path / 'w.pth', each(lambda tensor: tensor * 0.5), ema=True)
    assert f"'{key}' taken" in weights.load(tmp_path / 'w.pth', ema=True).taken
    torch.save({'model': state()}, tmp_path / 'plain.pth')
    with pytest.raises(UserError, match=r"no moving average.*'model'"):
        weights.load(tmp_path / 'plain.pth', ema=True)


@pytest.mark.parametrize(
    'name', ['w.pt', 'W.PTH', 'best.pth.tar', 'pytorch_model.bin', 'last.ckpt', 'w.th', 'w.safetensors']
)
def test_endings(tmp_path, name):
    torch.save(state(), tmp_path / name)  # also a PyTorch file that is called .safetensors
    assert state_dicts.is_weight_file(tmp_path / name)
    check(tmp_path / name)


@pytest.mark.parametrize('ending', ['safetensors', 'SafeTensors', 'bin'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_safetensors(tmp_path, ending, dtype):
    from safetensors.torch import save_file

    halved = prefixed('module.', each(lambda tensor: tensor.to(dtype)))
    save_file(dict(halved), tmp_path / f'w.{ending}')
    check(tmp_path / f'w.{ending}', each(lambda tensor: tensor.to(dtype)))


@pytest.mark.parametrize(
    'change',
    [
        lambda t: t.half(),
        lambda t: t.bfloat16(),
        lambda t: t.double(),
        lambda t: torch.nn.Parameter(t),
        lambda t: t.clone().requires_grad_(),
        lambda t: t.to(memory_format=torch.channels_last) if t.ndim == 4 else t,
    ],
)
def test_kinds_of_tensors(tmp_path, change):
    torch.save(each(change), tmp_path / 'w.pth')
    check(tmp_path / 'w.pth', each(change))


def test_arrays_of_numpy(tmp_path):
    torch.save({name: tensor.numpy() for name, tensor in state().items()}, tmp_path / 'w.pth')
    check(tmp_path / 'w.pth')


def test_counters_of_profilers_are_no_weights(tmp_path):
    counted = {**state(), 'total_ops': torch.zeros(1), 'layer1.0.conv1.total_params': torch.zeros(1).double()}
    torch.save(counted, tmp_path / 'w.pth')
    check(tmp_path / 'w.pth')


@pytest.mark.parametrize(
    'held',
    [
        lambda: renamed(('fc.', 'linear.'), ('downsample', 'shortcut')),
        lambda: renamed(('fc.', 'fc.1.')),
        lambda: renamed(('fc.', 'head.fc.')),
        lambda: {**prefixed('backbone.', without('fc.weight', 'fc.bias')),
                 'classifier.weight': state()['fc.weight'], 'classifier.bias': state()['fc.bias']},
        lambda: with_head(lambda head: head[:, :, None, None]),
    ],
)  # fmt: skip
def test_other_names_where_nothing_else_could_be_meant(tmp_path, held):
    torch.save(held(), tmp_path / 'w.pth')
    check(tmp_path / 'w.pth')


REFUSED = {
    'sparse': (lambda: with_head(lambda t: t.to_sparse()), r'fc\.weight is sparse.*to_dense'),
    'meta': (lambda: {name: tensor.to('meta') for name, tensor in state().items()}, 'meta device'),
    'complex': (lambda: with_head(lambda t: t.to(torch.complex64)), r'fc\.weight is complex64'),
    'integers': (lambda: with_head(lambda t: t.to(torch.int8)), r'fc\.weight is int8'),
    'list': (lambda: list(state().values()), 'not a state dict.*list'),
    'nothing': (lambda: {}, 'holds nothing'),
    'bytes': (lambda: {name.encode(): tensor for name, tensor in state().items()}, 'names are bytes'),
    'headless': (lambda: without('fc.weight', 'fc.bias'), r'no head: fc\.weight and fc\.bias are missing'),
    'two heads': (lambda: {**renamed(('fc.', 'fc.1.')), 'fc.4.weight': torch.zeros(5, 5)}, r'fc\.1, fc\.4'),
    'two networks': (lambda: {'student': state(), 'teacher': state()}, "several networks.*'student', 'teacher'"),
    'two below': (lambda: {**prefixed('q.'), **prefixed('k.')}, "several networks, below 'q.', 'k.'"),
    'no network': (lambda: {'epoch': 3, 'optimizer': {}}, 'not a state dict.*epoch, optimizer'),
}


@pytest.mark.parametrize('kind', REFUSED)
def test_what_cannot_be_read_is_refused_by_name_and_reason(tmp_path, kind):
    held, reason = REFUSED[kind]
    torch.save(held(), tmp_path / 'w.pth')
    with pytest.raises(UserError, match=reason) as error:
        weights.load(tmp_path / 'w.pth')
    assert '\n' not in str(error.value)


def test_quantised_tensors_are_refused(tmp_path):
    script = textwrap.dedent("""
        import sys, torch
        quantised = torch.quantize_per_tensor(torch.zeros(4, 3, 3, 3), 0.1, 0, torch.qint8)
        torch.save({'conv1.weight': quantised}, sys.argv[1])
    """)
    subprocess.run([sys.executable, '-W', 'ignore', '-c', script, tmp_path / 'w.pth'], check=True)
    with pytest.raises(UserError, match='quantised'):
        weights.load(tmp_path / 'w.pth')


def test_programs_are_refused_with_how_to_save_their_weights(tmp_path):
    torch.save(network(), tmp_path / 'whole.pth')
    torch.save({'model': network(), 'epoch': 3}, tmp_path / 'wrapped.pth')
    for name in ('whole', 'wrapped'):
        with pytest.raises(UserError, match=r'whole module.*torch\.save\(model\.state_dict\(\)'):
            weights.load(tmp_path / f'{name}.pth')
    script = textwrap.dedent("""
        import sys, torch
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), sys.argv[1])
    """)
    subprocess.run([sys.executable, '-W', 'ignore', '-c', script, tmp_path / 'traced.pt'], check=True)
    with pytest.raises(UserError, match=r'TorchScript.*torch\.jit\.load'):
        weights.load(tmp_path / 'traced.pt')


@pytest.mark.parametrize(
    'content, reason',
    [
        (b'<!DOCTYPE html><html>404</html>', 'web page'),
        (b'\n  <html lang="en">', 'web page'),
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n', 'Git-LFS pointer.*git lfs pull'),
        (b'\x1f\x8b\x08\x00', 'gzip'),
        (b'', 'it is empty'),
    ],
)
@pytest.mark.parametrize('ending', ['pth', 'safetensors', 'pth.tar', 'bin'])
def test_files_that_hold_something_else(tmp_path, content, reason, ending):
    path = tmp_path / f'w.{ending}'
    path.write_bytes(content)
    with pytest.raises(UserError, match=reason):
        weights.load(path)


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('missing', [0.5, 0.01])  # the latter leaves the names and lacks the last numbers
def test_a_cut_file(tmp_path, zipped, missing):
    torch.save(state(), tmp_path / 'w.pth', _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / 'w.pth').read_bytes()
    (tmp_path / 'w.pth').write_bytes(whole[: int(len(whole) * (1 - missing))])
    with pytest.raises(UserError, match='not a PyTorch file, or a damaged one'):
        weights.load(tmp_path / 'w.pth')


def test_a_file_without_a_head_or_for_other_classes_serves_where_the_head_is_new(tmp_path):
    torch.save(without('fc.weight', 'fc.bias'), tmp_path / 'headless.pth')
    thousand = {**state(), 'fc.weight': torch.zeros(1000, 32), 'fc.bias': torch.zeros(1000)}
    torch.save(thousand, tmp_path / 'thousand.pth')
    asked = weights.guess_network(state_dicts.open_state_dict(tmp_path / 'thousand.pth')).clone(num_classes=3)
    body = without('fc.weight', 'fc.bias')
    for name in ('headless', 'thousand'):
        check(tmp_path / f'{name}.pth', body, network=asked, new_head=True)
    with pytest.raises(UserError, match=r'fc\.weight is \[1000, 32\], not \[3, 32\]'):
        weights.load(tmp_path / 'thousand.pth', asked)

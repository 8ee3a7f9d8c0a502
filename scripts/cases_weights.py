"""Weight files as training scripts leave them, for scripts/cases.py."""

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.torch
import torch

from jointrd_jax.errors import UserError
from jointrd_jax.method.networks import Network
from jointrd_jax.runs import torch_names, weights

Tensors = dict[str, torch.Tensor]


class Module(torch.nn.Module):
    """A module whose state dict has the names of a ResNet: what a training script has saved whole."""

    def __init__(self, tensors: Tensors):
        super().__init__()
        self.fc = torch.nn.Linear(tensors['fc.weight'].shape[1], tensors['fc.weight'].shape[0])


def tensors_of(network: Network) -> Tensors:
    """Random weights under torchvision's names."""
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), weights.template(network))
    shapes = torch_names.export_names(zeros)
    rng = np.random.default_rng(0)
    return {name: torch.from_numpy(rng.uniform(0.1, 1, a.shape).astype(np.float32)) for name, a in shapes.items()}


PLAIN = tensors_of(Network((2, 2, 2, 2), width=4, num_classes=5))
HEAD = ('fc.weight', 'fc.bias')


def below(prefix: str, held: Tensors | None = None) -> Tensors:
    return {prefix + name: tensor for name, tensor in (held or PLAIN).items()}


def renamed(*pairs: tuple[str, str]) -> Tensors:
    result = {}
    for name, tensor in PLAIN.items():
        for old, new in pairs:
            name = name.replace(old, new)
        result[name] = tensor
    return result


def each(change: Callable[[torch.Tensor], Any]) -> dict[str, Any]:
    return {name: change(tensor) for name, tensor in PLAIN.items()}


def with_head(change: Callable[[torch.Tensor], torch.Tensor]) -> Tensors:
    return {**PLAIN, 'fc.weight': change(PLAIN['fc.weight'])}


def without_head() -> Tensors:
    return {name: tensor for name, tensor in PLAIN.items() if name not in HEAD}


def traced(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), path)


def quantised(tensor: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


def cut(path: Path) -> None:
    torch.save(PLAIN, path)
    path.write_bytes(path.read_bytes()[:5000])


def in_safetensors(held: Tensors) -> Callable[[Path], None]:
    return lambda path: safetensors.torch.save_file(held, path)


LFS = b'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n'
PREFIXES = ('module.', '_orig_mod.', 'module._orig_mod.', '_orig_mod.module.', 'model.', 'backbone.', 'encoder.')
WRAPPERS = ('state_dict', 'model', 'net', 'model_state_dict', 'teacher')
ENDINGS = ('last.pt', 'best.pth.tar', 'pytorch_model.bin', 'last.ckpt', 'UPPER.PTH')

# Name of the case -> name of the file, and what is saved in it: tensors, bytes, or a function of the path.
WEIGHTS: dict[str, tuple[str, Any]] = {
    'a state dict': ('w.pth', PLAIN),
    'the old format of torch.save': ('w.pth', lambda p: torch.save(PLAIN, p, _use_new_zipfile_serialization=False)),
    **{f'names below {prefix}': ('w.pth', below(prefix)) for prefix in PREFIXES},
    **{f'wrapped as {key}': ('w.pth', {key: below('module.'), 'epoch': 3, 'best': 93.0}) for key in WRAPPERS},
    **{f'called {name}': (name, {'state_dict': PLAIN}) for name in ENDINGS},
    'with its moving average': ('w.pth', {'model': PLAIN, 'model_ema': below('module.')}),
    'with its moving average, --ema': ('w.pth', {'state_dict': PLAIN, 'state_dict_ema': PLAIN}),
    'without an average, --ema': ('w.pth', PLAIN),
    'with the arguments of its script': ('w.pth', {'model': PLAIN, 'args': argparse.Namespace(lr=0.1)}),
    'with a number of NumPy': ('w.pth', {'state_dict': PLAIN, 'best': np.float64(93.1)}),
    'with counters of a profiler': ('w.pth', {**PLAIN, 'total_ops': torch.zeros(1), 'total_params': torch.zeros(1)}),
    'fc.1 for fc': ('w.pth', renamed(('fc.', 'fc.1.'))),
    'linear for fc, shortcut for downsample': ('w.pth', renamed(('fc.', 'linear.'), ('downsample', 'shortcut'))),
    'fc as a 1x1 convolution': ('w.pth', with_head(lambda head: head[:, :, None, None])),
    'half precision': ('w.pth', each(torch.Tensor.half)),
    'bfloat16': ('w.pth', each(torch.Tensor.bfloat16)),
    'double precision': ('w.pth', each(torch.Tensor.double)),
    'float8': ('w.pth', with_head(lambda head: head.to(torch.float8_e4m3fn))),
    'parameters': ('w.pth', each(torch.nn.Parameter)),
    'tensors that require gradients': ('w.pth', each(lambda tensor: tensor.clone().requires_grad_())),
    'arrays of NumPy': ('w.pth', each(torch.Tensor.numpy)),
    'safetensors': ('w.safetensors', in_safetensors(PLAIN)),
    'safetensors, bfloat16': ('w.safetensors', in_safetensors(each(torch.Tensor.bfloat16))),
    'safetensors, names below module.': ('w.safetensors', in_safetensors(below('module.'))),
    'safetensors called .bin': ('w.bin', in_safetensors(PLAIN)),
    'sparse': ('w.pth', with_head(torch.Tensor.to_sparse)),
    'on the meta device': ('w.pth', each(lambda tensor: tensor.to('meta'))),
    'quantised': ('w.pth', with_head(quantised)),
    'complex': ('w.pth', with_head(lambda head: head.to(torch.complex64))),
    'integers': ('w.pth', with_head(lambda head: head.to(torch.int8))),
    'not a number': ('w.pth', with_head(lambda head: head * float('nan'))),
    'TorchScript': ('w.pt', traced),
    'a whole module': ('w.pth', lambda p: torch.save(Module(PLAIN), p)),
    'an HTML page': ('w.pth', b'<!DOCTYPE html><html>404</html>'),
    'a Git LFS pointer': ('w.pth', LFS),
    'a Git LFS pointer called .safetensors': ('w.safetensors', LFS),
    'an empty file': ('w.pth', b''),
    'half a file': ('w.pth', cut),
    'a list': ('w.pth', list(PLAIN.values())),
    'nothing': ('w.pth', {}),
    'names that are bytes': ('w.pth', {name.encode(): tensor for name, tensor in PLAIN.items()}),
    'without a head': ('w.pth', without_head()),
    'two networks': ('w.pth', {'student': PLAIN, 'teacher': PLAIN}),
    'a transformer': ('w.pth', {'blocks.0.attn.qkv.weight': torch.zeros(4, 4)}),
    'an ending that is none of weights': ('w.npz', b'PK\x03\x04'),
}


def weight_answer(name: str, directory: Path) -> str:
    file, held = WEIGHTS[name]
    path = directory / file
    if isinstance(held, bytes):
        path.write_bytes(held)
    elif callable(held):
        held(path)
    else:
        torch.save(held, path)
    try:
        found = weights.load(path, ema='--ema' in name)
        return 'read: ' + '; '.join(filter(None, (weights.name_of(found.network), found.taken)))
    except UserError as error:
        return f'refused: {error}'

"""Our parameter trees under PyTorch's names, and back.

Two naming schemes share everything but the prefix of stem and stages: torchvision's ResNet (`conv1`,
`bn1`, `layer1.0.conv1`, ...) and the JointRD authors' (`conv1.0`, `conv1.1`, `layers.0.0.conv1`, ...).
Kernels are OIHW there and HWIO here; the classifier is transposed. Dirac's `alpha` and `beta` keep
their names beside the convolution's `weight`; a PReLU's slope is its `weight`, as in torch.nn.PReLU. Other
parts of our blocks (`conv1_1x1`, `bn1_identity`, `act1`, `fading`) keep their names.
"""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from jointrd_jax.method.networks import Network, Variables

Scheme = Literal['torchvision', 'authors']

CONV = {'kernel': 'weight', 'alpha': 'alpha', 'beta': 'beta'}
NORM = {'scale': 'weight', 'bias': 'bias'}
NORM_STATS = {'mean': 'running_mean', 'var': 'running_var'}
ACTIVATION = {'params': {'slope': 'weight'}, 'batch_stats': {'slope': 'slope'}}
FADED = {'weight': 'weight'}
HEAD = {'kernel': 'weight', 'bias': 'bias'}


def to_torch_layout(name: str, array: Any) -> Any:
    """Our array of parameter `name` in PyTorch's layout: HWIO to OIHW, [in, out] to [out, in]."""
    if name != 'kernel':
        return array
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def from_torch_layout(name: str, array: Any) -> Any:
    """The inverse of `to_torch_layout`."""
    if name != 'kernel':
        return array
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def torch_module(path: tuple[str, str], scheme: Scheme) -> str:
    """PyTorch's name of the module at `path`, such as ('stage2_block1', 'conv1')."""
    place, layer = path
    if place == 'stem':
        if scheme == 'torchvision':
            return {'conv': 'conv1', 'bn': 'bn1'}[layer]
        return {'conv': 'conv1.0', 'bn': 'conv1.1'}[layer]
    stage, block = (int(part.lstrip('stageblock')) for part in place.split('_'))
    prefix = f'layer{stage}' if scheme == 'torchvision' else f'layers.{stage - 1}'
    layer = {'shortcut_conv': 'downsample.0', 'shortcut_bn': 'downsample.1'}.get(layer, layer)
    return f'{prefix}.{block - 1}.{layer}'


def names(variables: Variables, scheme: Scheme = 'torchvision') -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(PyTorch name, collection, path in our tree) of every array of a network's variables."""
    for collection in ('params', 'batch_stats'):
        for place, layers in variables[collection].items():
            if place == 'head':
                for leaf in layers:
                    yield f'fc.{HEAD[leaf]}', collection, (place, leaf)
                continue
            for layer, leaves in layers.items():
                if layer.startswith('act'):
                    table = ACTIVATION[collection]
                elif layer == 'fading':
                    table = FADED
                else:
                    table = NORM_STATS if collection == 'batch_stats' else CONV if 'conv' in layer else NORM
                for leaf in leaves:
                    yield f'{torch_module((place, layer), scheme)}.{table[leaf]}', collection, (place, layer, leaf)


def export_names(variables: Variables, scheme: Scheme = 'torchvision') -> dict[str, np.ndarray]:
    """A network's variables as a flat dict under PyTorch's names and layouts."""
    flat = {}
    for name, collection, path in names(variables, scheme):
        node = variables[collection]
        for key in path:
            node = node[key]
        flat[name] = np.asarray(to_torch_layout(path[-1], np.asarray(node)), order='C')
    return flat


def import_names(template: Variables, flat: dict[str, Any], scheme: Scheme = 'torchvision') -> Variables:
    """The variables of `template`'s structure with the arrays of `flat`; shapes are the caller's to check."""
    result: Variables = {'params': {}, 'batch_stats': {}}
    for name, collection, path in names(template, scheme):
        node = result[collection]
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = from_torch_layout(path[-1], np.asarray(flat[name]))
    return result


def template(network: Network, image_channels: int = 3) -> Variables:
    """Shapes (jax.ShapeDtypeStruct) of a network's variables, without computing anything."""
    return network.shapes((64, 64, image_channels))

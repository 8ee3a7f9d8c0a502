"""Weights of other people's making: torchvision-format state dicts in .safetensors and .pth files.

A file is looked at before it is loaded: names and shapes come from its header (or, for .pth, from a
load without data), are compared with the network's, and only a file that fits is read.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from jointrd_jax.data.description import DataDescription
from jointrd_jax.errors import UserError, require
from jointrd_jax.method.networks import BLOCK_CHOICES, STEMS, Network, Variables, grouped_hidden
from jointrd_jax.runs.torch_names import export_names, import_names, names, template, to_torch_layout
from jointrd_jax.system import buckets, files

ENDINGS = ('.safetensors', '.pth')
METADATA = 'jointrd_jax'  # the one entry of a .safetensors header that is ours: JSON
MARKS = {'dirac': 'conv1.alpha', 'branches': 'bn1_1x1.weight'}  # by which a parametrisation is known
IGNORED = 'num_batches_tracked'  # PyTorch's BatchNorm counts its batches; nothing here reads that

Shapes = dict[str, tuple[int, ...]]


class StateDict(NamedTuple):
    """A state dict whose arrays are still on disk.

    Attributes:
      path: the file.
      shapes: of every array, in PyTorch's layout, by name.
      read: loads the arrays as float32.
      about: what we wrote beside them ({'network': ..., 'data': ...}); {} in foreign files.
    """

    path: Path
    shapes: Shapes
    read: Callable[[], dict[str, np.ndarray]]
    about: dict[str, Any]


class Weights(NamedTuple):
    """A network read from a weight file; `data` is None in foreign files."""

    network: Network
    variables: Variables
    data: DataDescription | None


def is_weight_file(path: str | Path) -> bool:
    path = buckets.place(path)
    with buckets.answering(path):
        return path.suffix in ENDINGS and not path.is_dir()


def open_state_dict(path: str | Path) -> StateDict:
    """Look into a .safetensors or .pth file (the latter needs the extra [torch]).

    Raises:
      UserError: no such file, not what its ending says, not a state dict, or a pickle that would run code.
    """
    path = buckets.place(path)
    with buckets.answering(path):
        there = path.is_file()
    if not there:
        raise UserError(f'{path}: no such weight file')
    if path.suffix not in ENDINGS:
        ending = path.suffix or path.name
        raise UserError(f'{path}: weights are read from {" and ".join(ENDINGS)} files, not {ending!r}')
    with buckets.answering(path):
        path = buckets.local_copy(path)
    try:
        return open_safetensors(path) if path.suffix == '.safetensors' else open_pth(path)
    except OSError as error:
        raise UserError(f'cannot read {path}: {error.strerror or error}') from error


def open_safetensors(path: Path) -> StateDict:
    floats = ('F16', 'F32', 'F64')
    try:  # the library checks that the header's offsets and sizes are the file's
        with safetensors.safe_open(path, 'numpy') as file:
            about = (file.metadata() or {}).get(METADATA, '{}')
            slices = {name: file.get_slice(name) for name in file.keys() if not name.endswith(IGNORED)}
            shapes = {name: tuple(s.get_shape()) for name, s in slices.items()}
            types = {name: s.get_dtype() for name, s in slices.items()}
        about = json.loads(about)
        if not isinstance(about, dict):
            raise ValueError('no JSON object')
    except safetensors.SafetensorError as error:
        raise UserError(f'{path} is not a safetensors file, or a damaged one: {error}') from error
    except ValueError as error:
        raise UserError(f'{path}: its {METADATA} metadata cannot be read: {error}') from error
    if odd := [f'{name} is {dtype}' for name, dtype in types.items() if dtype not in floats]:
        raise UserError(f'{path}: weights must be one of {", ".join(floats)}, but {"; ".join(odd)}')

    def read() -> dict[str, np.ndarray]:
        with safetensors.safe_open(path, 'numpy') as file:
            return {name: file.get_tensor(name).astype(np.float32) for name in shapes}

    return StateDict(path, shapes, read, about)


def open_pth(path: Path) -> StateDict:
    torch = require('torch', 'torch')
    from torch._subclasses.fake_tensor import FakeTensorMode  # torch.load's documented way to load no data

    try:
        with FakeTensorMode():
            tensors = torch.load(path, weights_only=True, map_location='meta')
    except Exception as error:  # any bytes may be in there: torch raises whatever its parser stumbles on
        if 'Weights only load failed' in str(error):
            raise UserError(
                f'{path} refused: it is not a plain state dict; loading its pickle would run code of its own'
            ) from error
        raise UserError(f'{path} is not a PyTorch file, or a damaged one') from error
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in tensors.items()
    ):
        held = ', '.join(map(str, tensors)) if isinstance(tensors, dict) else type(tensors).__name__
        raise UserError(f'{path} is not a state dict (tensors by name); it holds {held}')
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(IGNORED)}
    size = path.stat().st_size
    for name, tensor in tensors.items():
        if max(tensor.untyped_storage().nbytes(), tensor.numel() * tensor.element_size()) > size:
            raise UserError(f'{path}: {name} claims to be larger than the file')
        if not tensor.is_floating_point():
            raise UserError(f'{path}: weights must be floating point, but {name} is {tensor.dtype}')
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    def read() -> dict[str, np.ndarray]:
        loaded = torch.load(path, weights_only=True, map_location='cpu')
        return {name: loaded[name].float().numpy() for name in shapes}

    return StateDict(path, shapes, read, {})


def expected_shapes(network: Network, image_channels: int = 3) -> Shapes:
    """Name and shape, in PyTorch's layout, of every array of a network."""
    variables = template(network, image_channels)
    shapes = {}
    for name, collection, path in names(variables):
        node = variables[collection]
        for key in path:
            node = node[key]
        shapes[name] = to_torch_layout(path[-1], np.broadcast_to(np.float32(0), node.shape)).shape
    return shapes


def guess_network(state: StateDict) -> Network:
    """The ResNet whose state dict this seems to be, by its names and a few shapes; `differences` decides.

    Raises:
      UserError: it has not even a ResNet's first and last layer.
    """
    shapes = state.shapes
    if len(shapes.get('conv1.weight', ())) != 4 or len(shapes.get('fc.weight', ())) != 2:
        some = ', '.join(list(shapes)[:4]) or 'nothing'
        raise UserError(f'{state.path} is not a torchvision ResNet (no conv1.weight, fc.weight); it holds {some}, ...')
    blocks = {tuple(name.split('.')[:2]) for name in shapes if name.startswith('layer')}
    stages = sorted({stage for stage, *_ in blocks})
    width, _, size, _ = shapes['conv1.weight']
    sizes = tuple(sum(stage == block[0] for block in blocks) for stage in stages) or (1,)
    bottleneck, groups, hidden = 'layer1.0.conv3.weight' in shapes, 1, ()
    grouped = shapes.get('layer1.0.conv2.weight', ())
    if bottleneck and len(grouped) == 4 and width and grouped[1]:
        groups = max(grouped[0] // grouped[1], 1)
        hidden = grouped_hidden(sizes, width, groups, grouped[0] * 64 // (width * groups))
    return Network(
        stage_sizes=sizes,
        bottleneck=bottleneck,
        groups=groups,
        hidden=hidden,
        width=width,
        num_classes=shapes['fc.weight'][0],
        stem_kind='imagenet' if size == 7 else 'cifar',
        reparam=next((kind for kind, name in MARKS.items() if f'layer1.0.{name}' in shapes), 'none'),
        activation='prelu' if 'layer1.0.act1.weight' in shapes else 'relu',
    )


def differences(found: Shapes, expected: Shapes) -> list[str]:
    """Every way in which a state dict is not the one expected: missing, unexpected and misshaped arrays."""
    faults = [f'{name} is missing' for name in expected if name not in found]
    faults += [f'{name} is unexpected' for name in found if name not in expected]
    faults += [
        f'{name} is {list(found[name])}, not {list(shape)}'
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    return faults


def name_of(network: Network) -> str:
    """What to call a network in a message: 'ResNet-18, width 64, imagenet stem, 1000 classes'."""
    families = {'all': 'ResNet', 'projection': 'projection', 'none': 'plain'}
    family = families.get(str(network.shortcuts), 'hybrid')  # a tuple of them: one per block
    return f'{family}-{network.depth}, width {network.width}, {network.stem_kind} stem, {network.num_classes} classes'


def load(path: str | Path, network: Network | None = None, image_channels: int | None = None) -> Weights:
    """Read a weight file as `network`, or as the network that it describes or seems to be.

    Raises:
      UserError: see `open_state_dict`; or it does not fit, and the message lists every difference.
    """
    state = open_state_dict(path)
    if network is None:
        network = described_network(state) or guess_network(state)
    if image_channels is None:
        image_channels = (*state.shapes.get('conv1.weight', ()), 3, 3)[1]
    try:
        expected = expected_shapes(network, image_channels)
    except (ArithmeticError, TypeError, ValueError) as error:  # a first layer without channels, and the like
        raise UserError(f'{path} holds no network that could be built: {error}') from error
    if faults := differences(state.shapes, expected):
        raise UserError(f'{path} does not fit {name_of(network)}: {"; ".join(faults)}')
    arrays = state.read()
    if broken := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
        raise UserError(f'{path}: not a number, or infinite, in {", ".join(broken)}')
    variables = import_names(template(network, image_channels), arrays)
    return Weights(network, variables, described_data(state, network, image_channels))


NETWORK_FIELDS = (
    'stage_sizes', 'bottleneck', 'width', 'num_classes', 'stem_kind', 'hidden', *BLOCK_CHOICES,
)  # fmt: skip


def described_network(state: StateDict) -> Network | None:
    """The network that a file of ours says it holds."""
    if 'network' not in state.about:
        return None
    try:
        about: dict[str, Any] = state.about['network']
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in about.items()}
        if 'dirac' in fields:  # of a file from before there were other parametrisations
            fields['reparam'] = 'dirac' if fields.pop('dirac') else 'none'
        network = Network(**fields)
        sizes = (*network.stage_sizes, *network.hidden, network.width, network.num_classes)
        if not all(isinstance(n, int) and 0 < n < 2**24 for n in sizes) or network.stem_kind not in STEMS:
            raise ValueError('its sizes are none')
        if network.num_blocks > len(state.shapes):
            raise ValueError('more blocks than arrays')
        network.check_choices()
        if not all(0 <= float(slope) <= 1 for slope in network.per_block(network.slope)):
            raise ValueError('its slope is none')
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f'{state.path}: its {METADATA} metadata describes no network: {error}') from error
    return network


def described_data(state: StateDict, network: Network, channels: int) -> DataDescription | None:
    """What a file of ours says its network was trained on."""
    about = state.about.get('data')
    if about is None:
        return None
    data = DataDescription.from_json(about, f'{state.path}: its {METADATA} metadata')
    if len(data.classes) != network.num_classes or data.image_shape[-1] != channels:
        raise UserError(f'{state.path}: its {METADATA} metadata describes data that do not fit its network')
    return data


def save(path: str | Path, network: Network, variables: Variables, data: DataDescription | None = None) -> None:
    """Write a network as .safetensors under torchvision's names, with a description that `load` reads back.

    Raises:
      UserError: it cannot be written.
    """
    about = {'network': {field: getattr(network, field) for field in NETWORK_FIELDS}, 'data': data and data.to_json()}
    blob = safetensors.numpy.save(export_names(variables), {METADATA: json.dumps(about), 'format': 'pt'})
    files.write_atomically(buckets.place(path), blob)

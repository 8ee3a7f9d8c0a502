"""Networks in weight files: which one a state dict is, whether it fits, its variables; and how ours are written.

Names and shapes (see `state_dicts`) are compared with the network's, and only a file that fits is read.
"""

import json
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

from jointrd_jax.data.description import DataDescription
from jointrd_jax.errors import UserError
from jointrd_jax.method.architectures import STEMS
from jointrd_jax.method.networks import BLOCK_CHOICES, Network, Variables, grouped_hidden
from jointrd_jax.runs import foreign_names
from jointrd_jax.runs.foreign_names import Shapes
from jointrd_jax.runs.state_dicts import METADATA, StateDict, open_state_dict
from jointrd_jax.runs.torch_names import export_names, import_names, names, template, to_torch_layout
from jointrd_jax.system import buckets, files

HEADER = struct.Struct('<Q')  # of a .safetensors file: the length of the JSON that follows
MARKS = {'dirac': 'conv1.alpha', 'branches': 'bn1_1x1.weight'}  # a name that only this parametrisation has


class Weights(NamedTuple):
    """A network read from a weight file.

    Attributes:
      network: the module.
      variables: {'params', 'batch_stats'}, host arrays.
      data: as in `run_directory.Run`; None in foreign files.
      taken: which of the file's parts it is, where the file has several; else ''.
    """

    network: Network
    variables: Variables
    data: DataDescription | None
    taken: str = ''


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
    if foreign_names.missing_head(shapes):
        raise UserError(
            f'{state.path} has no head: fc.weight and fc.bias are missing from the {len(shapes)} arrays of a ResNet '
            'in it; save the whole network, with its classifier'
        )
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
    families = {'all': 'ResNet', 'projection': 'projection', 'fading': 'fading', 'none': 'plain'}
    family = families.get(str(network.shortcuts), 'hybrid')  # a tuple of them: one per block
    return f'{family}-{network.depth}, width {network.width}, {network.stem_kind} stem, {network.num_classes} classes'


def with_blank_head(state: StateDict, classes: int) -> StateDict:
    """A state dict without a classifier, with one of zeros."""
    width = max((shape[0] for name, shape in state.shapes.items() if name.startswith('layer')), default=1)
    head = {'fc.weight': (classes, width), 'fc.bias': (classes,)}

    def read() -> dict[str, np.ndarray]:
        return state.read() | {name: np.zeros(shape, np.float32) for name, shape in head.items()}

    return state._replace(shapes=state.shapes | head, read=read)


def load(
    path: str | Path,
    network: Network | None = None,
    image_channels: int | None = None,
    *,
    ema: bool = False,
    new_head: bool = False,
) -> Weights:
    """Read a weight file: as `network`, or else as the network that its metadata or its names and shapes describe.

    Args:
      path: the file.
      network: what the file must hold; None: any network.
      image_channels: of the images that the network must take; None: any number.
      ema: take the exponential moving average of the weights that the file holds beside them.
      new_head: the caller does not want the classifier: it may be for other classes than `network`'s, or not there.

    Raises:
      UserError: see `open_state_dict`; or the file does not fit, and the message lists every difference.
    """
    state = open_state_dict(path, ema)
    if new_head and foreign_names.missing_head(state.shapes):
        state = with_blank_head(state, network.num_classes if network else 1)
    guessed = described_network(state) or guess_network(state)
    if network and new_head:
        network = network.clone(num_classes=guessed.num_classes)
    network = network or guessed
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
    return Weights(network, variables, described_data(state, network, image_channels), state.taken)


NETWORK_FIELDS = (
    'stage_sizes', 'bottleneck', 'width', 'num_classes', 'stem_kind', 'hidden', *BLOCK_CHOICES,
)  # fmt: skip


def described_network(state: StateDict) -> Network | None:
    """The network that the metadata of a file of ours describe; None for foreign files."""
    if 'network' not in state.about:
        return None
    try:
        about: dict[str, Any] = state.about['network']
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in about.items()}
        if 'dirac' in fields:  # of a file from before there were other parametrisations
            fields['reparam'] = 'dirac' if fields.pop('dirac') else 'none'
        network = Network(**fields)
        sizes = (*network.stage_sizes, *network.hidden, network.width, network.num_classes)
        if not all(isinstance(n, int) and 0 < n < 2**24 for n in sizes):
            raise ValueError('its sizes are not whole numbers from 1 to 2^24 - 1')
        if network.stem_kind not in STEMS:
            raise ValueError(f'its stem_kind is not one of {", ".join(STEMS)}')
        if network.num_blocks > len(state.shapes):
            raise ValueError('more blocks than arrays')
        network.check_choices()
        if not all(0 <= float(slope) <= 1 for slope in network.per_block(network.slope)):
            raise ValueError('its slope is not between 0 and 1')
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f'{state.path}: its {METADATA} metadata describes no network: {error}') from error
    return network


def described_data(state: StateDict, network: Network, channels: int) -> DataDescription | None:
    """The data that the metadata of a file of ours describe; None for foreign files.

    Raises:
      UserError: they do not fit the network, or are damaged.
    """
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
    files.write_atomically(buckets.place(path), in_order(blob))


def in_order(blob: bytes) -> bytes:
    """A .safetensors file with its header's keys sorted; the library writes metadata in an order that varies."""
    (length,) = HEADER.unpack_from(blob)
    header, arrays = json.loads(blob[HEADER.size : HEADER.size + length]), blob[HEADER.size + length :]
    text = json.dumps(header, sort_keys=True, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % HEADER.size)  # arrays stay aligned
    return HEADER.pack(len(text)) + text + arrays

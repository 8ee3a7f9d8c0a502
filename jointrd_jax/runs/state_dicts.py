"""State dicts in weight files of other programs: .safetensors and what torch.save writes.

A file is looked at before it is loaded: names and shapes come from its header (or, for PyTorch's formats, from a load
without data). No code in a file is ever run: torch.load reads with `weights_only`, and objects of other classes that
lie beside the weights (a script's arguments, its optimiser) become inert stand-ins.
"""

import json
import logging
import mmap
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  # makes bfloat16 known to numpy
import numpy as np
import safetensors

from jointrd_jax.errors import UserError, require
from jointrd_jax.runs import foreign_names
from jointrd_jax.runs.foreign_names import Shapes
from jointrd_jax.system import buckets

PYTORCH = ('.pth', '.pt', '.pth.tar', '.tar', '.bin', '.ckpt', '.th')
ENDINGS = ('.safetensors', *PYTORCH)
METADATA = 'jointrd_jax'  # the one entry of a .safetensors header that is ours: JSON
FLOATS = {'F16': np.float16, 'BF16': None, 'F32': np.float32, 'F64': np.float64}  # of .safetensors
WRAPPERS = ('state_dict', 'model_state_dict', 'model_state', 'model', 'net', 'network', 'module', 'weights', 'params')
OTHERS = 200  # classes beside the weights that are stood in for
DEPTH = 4  # of dicts within dicts
# Python's own modules whose classes do nothing when they are made. Any other of its modules in a pickle is refused.
HARMLESS = {'argparse', 'collections', 'dataclasses', 'datetime', 'decimal', 'enum', 'fractions', 'functools',
            'pathlib', 'types', 'typing', 'uuid', '_codecs'}  # fmt: skip
CONTENTS = (  # of files that are not what they are called
    (rb'\s*<(!doctype|html|\?xml|head)', 'a web page, such as a failed download leaves; fetch the file itself'),
    (rb'version https://git-lfs', "a Git-LFS pointer, not the file it stands for; fetch that with 'git lfs pull'"),
    (rb'\x1f\x8b', 'a gzip archive; unpack it first'),
    (rb'\x89HDF', 'an HDF5 file, such as Keras writes; save the weights as .safetensors'),
    (rb'.{257}ustar', 'a tar archive; unpack it first'),
    (rb'\s*[{\[]\s*["}\]]', 'JSON text'),
    (rb'$', 'empty'),
)


class StateDict(NamedTuple):
    """A state dict whose arrays are still on disk.

    Attributes:
      path: the file.
      shapes: of every array, in PyTorch's layout, by torchvision's name.
      read: loads the arrays as float32.
      about: the metadata that `weights.save` wrote ({'network': ..., 'data': ...}); {} in foreign files.
      taken: which of the file's parts this is, where it has several; '' for all of a plain file.
    """

    path: Path
    shapes: Shapes
    read: Callable[[], dict[str, np.ndarray]]
    about: dict[str, Any]
    taken: str = ''


def is_weight_file(path: str | Path) -> bool:
    """Whether `path` is a file; or, if nothing is there, whether it ends as a weight file does."""
    path = buckets.place(path)
    with buckets.answering(path):
        return not path.is_dir() and (path.is_file() or path.name.lower().endswith(ENDINGS))


def open_state_dict(path: str | Path, ema: bool = False) -> StateDict:
    """Read the names and shapes in a weight file (all but .safetensors need the extra [torch]).

    Args:
      path: the file.
      ema: take the exponential moving average that it holds beside the weights.

    Raises:
      UserError: no such file, not what its ending says, not a state dict, or a pickle that would run code.
    """
    path = buckets.place(path)
    with buckets.answering(path):
        there = path.is_file()
    if not there:
        raise UserError(f'{path}: no such weight file')
    if not path.name.lower().endswith(ENDINGS):
        ending = path.suffix or path.name
        raise UserError(f'{path}: weights are read from {", ".join(ENDINGS)} files, not {ending!r}')
    with buckets.answering(path):
        path = buckets.local_copy(path)
    try:
        with open(path, 'rb') as file:
            head = file.read(512)
    except OSError as error:
        raise UserError(f'cannot read {path}: {error.strerror or error}') from error
    is_pickle = head.startswith((b'PK\x03\x04', b'\x80'))
    as_safetensors = head[8:9] == b'{' or (path.name.lower().endswith('.safetensors') and not is_pickle)
    kind = 'safetensors' if as_safetensors else 'PyTorch'
    for pattern, what in CONTENTS:
        if re.match(pattern, head, re.IGNORECASE | re.DOTALL):
            raise UserError(f'{path} is not a {kind} file, or a damaged one: it is {what}')
    opened = open_safetensors(path) if as_safetensors else open_pickle(path, ema)
    if as_safetensors and ema:
        raise UserError(f'{path}: a safetensors file holds a single network, so there is no moving average for --ema')
    return opened if opened.about else renamed(opened)


def renamed(state: StateDict) -> StateDict:
    """A foreign state dict under torchvision's names."""
    try:
        table, outside = foreign_names.torchvision_names(state.shapes)
    except UserError as error:
        raise UserError(f'{state.path}: {error}') from error
    if len(set(table.values())) < len(table):
        twice = next(name for name in table.values() if list(table.values()).count(name) > 1)
        raise UserError(f'{state.path}: several of its arrays would all be named {twice}')

    def shape(name: str) -> tuple[int, ...]:  # a classifier that is a 1x1 convolution is a matrix
        found = state.shapes[name]
        return found[:2] if table[name] == 'fc.weight' and found[2:] == (1, 1) else found

    def read() -> dict[str, np.ndarray]:
        arrays = state.read()
        return {new: arrays[name].reshape(shape(name)) for name, new in table.items()}

    passed = f'passed over beside it: {", ".join(outside[:5])}{", ..." if len(outside) > 5 else ""}' if outside else ''
    taken = '; '.join(part for part in (state.taken, passed) if part)
    return state._replace(shapes={new: shape(name) for name, new in table.items()}, read=read, taken=taken)


def open_safetensors(path: Path) -> StateDict:
    try:  # the library checks that the header's offsets and sizes are the file's
        with safetensors.safe_open(path, 'numpy') as file:
            about = (file.metadata() or {}).get(METADATA, '{}')
            slices = {name: file.get_slice(name) for name in file.keys() if not foreign_names.is_counter(name)}
            shapes = {name: tuple(s.get_shape()) for name, s in slices.items()}
            types = {name: s.get_dtype() for name, s in slices.items()}
        about = json.loads(about)
        if not isinstance(about, dict):
            raise ValueError('no JSON object')
    except safetensors.SafetensorError as error:
        raise UserError(f'{path} is not a safetensors file, or a damaged one: {error}') from error
    except ValueError as error:
        raise UserError(f'{path}: its {METADATA} metadata cannot be read: {error}') from error
    if odd := [f'{name} is {dtype}' for name, dtype in types.items() if dtype not in FLOATS]:
        raise UserError(f'{path}: weights must be one of {", ".join(FLOATS)}, but {"; ".join(odd)}')

    def read() -> dict[str, np.ndarray]:
        with safetensors.safe_open(path, 'numpy') as file:
            return {name: file.get_tensor(name).astype(np.float32) for name in shapes}

    return StateDict(path, shapes, read, about)


class StandIn(dict):
    """In place of an object of a class that is not a tensor's: accepts every argument and state, and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> 'StandIn':
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any):
        super().__init__()

    def __setstate__(self, _: Any) -> None: ...


def numpy_globals() -> list[Any]:
    """What a pickled numpy array or number is made of, under its names in numpy 1 and 2."""
    made = {'_reconstruct': np.array(0.0).__reduce__()[0], 'scalar': np.float64(0).__reduce__()[0]}
    kinds = {type(np.dtype(kind)) for kind in 'efdbhilqBHILQ?'}
    functions = [
        (function, f'numpy.{core}.multiarray.{name}') for core in ('core', '_core') for name, function in made.items()
    ]
    return [*functions, np.ndarray, np.dtype, *kinds]


def load_pickle(path: Path, torch: ModuleType, **options: Any) -> tuple[Any, list[str]]:
    """What torch.load makes of `path`, and the names of the classes that were stood in for.

    Raises:
      UserError: it would run code.
      Exception: of any type that torch raises, since the file may hold any bytes.
    """
    others: list[str] = []
    while True:
        stand_ins = [(type('StandIn', (StandIn,), {}), name) for name in others]
        try:
            with torch.serialization.safe_globals([*numpy_globals(), *stand_ins]), warnings.catch_warnings():
                warnings.simplefilter('ignore')  # of torch, about its own storages and TorchScript
                with open(path, 'rb') as file:  # not the path: torch would go by its ending
                    return torch.load(file, weights_only=True, **options), others
        except Exception as error:
            unknown = re.search(r'GLOBAL (\S+) was not an allowed global', str(error))
            name = unknown[1] if unknown else ''
            root = name.partition('.')[0]
            own = root in sys.stdlib_module_names or name == root  # torch names what is built in without its module
            runs_code = 'is blocked' in str(error) or bool(name and own and root not in HARMLESS)
            if runs_code or (name and len(others) >= OTHERS):
                raise UserError(
                    f'{path} refused: it is not a plain state dict; loading its pickle would run code of its own'
                    + (f' ({name})' if name else '')
                ) from error
            if not name or name in others:
                raise
            others.append(name)


def open_pickle(path: Path, ema: bool) -> StateDict:
    torch = require('torch', 'torch')
    from torch._subclasses.fake_tensor import FakeTensorMode  # torch.load's documented way to load no data

    def load(place: str) -> tuple[Any, list[str]]:
        try:
            return load_pickle(path, torch, map_location=place)
        except UserError:
            raise
        except Exception as error:
            raise UserError(unreadable(path, error)) from error

    logging.getLogger('torch._subclasses.fake_tensor').disabled = True  # it prints a traceback for a damaged file
    with FakeTensorMode():
        tree, others = load('meta')
    where, taken = choose(path, tree, others, ema, torch)
    arrays = {name: value for name, value in at(tree, where).items() if is_array(value, torch)}
    tensors = {name: tensor for name, tensor in arrays.items() if not foreign_names.is_counter(name)}
    size = path.stat().st_size
    for name, tensor in tensors.items():
        if reason := unusable(tensor, size, path, torch):
            raise UserError(f'{path}: {name} {reason}')
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    def read() -> dict[str, np.ndarray]:
        loaded = at(load('cpu')[0], where)
        for name in shapes:
            if isinstance(loaded[name], torch.Tensor) and loaded[name].is_meta:
                raise UserError(f'{path}: {name} is on the meta device: it has a shape and no values')
        return {name: as_numpy(loaded[name], torch) for name in shapes}

    return StateDict(path, shapes, read, {}, taken)


def as_numpy(tensor: Any, torch: ModuleType) -> np.ndarray:
    if isinstance(tensor, torch.Tensor):
        return tensor.detach().float().contiguous().numpy()
    return np.asarray(tensor, np.float32)


def is_array(value: Any, torch: ModuleType) -> bool:
    return isinstance(value, torch.Tensor | np.ndarray)


def unreadable(path: Path, error: Exception) -> str:
    """Why torch.load could not read a file."""
    text = str(error)
    if 'TorchScript' in text:
        return (
            f'{path} is a TorchScript program, not a state dict; save its weights: '
            f"torch.save(torch.jit.load('{path.name}').state_dict(), 'weights.pth')"
        )
    if 'quantized' in text.lower():
        return f'{path} holds quantised tensors; save the float weights from before quantisation'
    return f'{path} is not a PyTorch file, or a damaged one'


def unusable(tensor: Any, size: int, path: Path, torch: ModuleType) -> str:
    """Why a tensor cannot be weights; '' if it can."""
    if isinstance(tensor, np.ndarray):
        return '' if tensor.dtype.kind == 'f' else f'is {tensor.dtype}; weights must be floating point'
    if tensor.layout != torch.strided:
        return f'is sparse ({str(tensor.layout).removeprefix("torch.")}); save it with .to_dense()'
    if tensor.is_quantized:
        return 'is quantised; save the float weights from before quantisation'
    if tensor.is_complex():
        return f'is {str(tensor.dtype).removeprefix("torch.")}: complex; weights must be real floating point'
    if not tensor.is_floating_point():
        return f'is {str(tensor.dtype).removeprefix("torch.")}; weights must be floating point'
    if max(tensor.untyped_storage().nbytes(), tensor.numel() * tensor.element_size()) > size:
        with open(path, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(b'_rebuild_meta_tensor') >= 0:
                return 'is on the meta device: it has a shape and no values'
        return 'claims to be larger than the file'
    return ''


def at(tree: Any, where: tuple[str, ...]) -> dict[str, Any]:
    for key in where:
        tree = tree[key]
    return tree


def state_dicts(tree: Any, torch: ModuleType, where: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The place, as keys from the top, of every dict of arrays in nested dicts that has a convolution among them."""
    if not isinstance(tree, dict) or len(where) > DEPTH:
        return
    if any(isinstance(name, str) and is_array(value, torch) and value.ndim == 4 for name, value in tree.items()):
        yield where
        return
    for key, value in tree.items():
        if isinstance(key, str) and not key.startswith('optim'):
            yield from state_dicts(value, torch, (*where, key))


def is_average(where: tuple[str, ...]) -> bool:
    return any(re.search(r'(^|_|\.)(ema|swa|averaged?)(_|\.|$)', key.lower()) for key in where)


def choose(path: Path, tree: Any, others: list[str], ema: bool, torch: ModuleType) -> tuple[tuple[str, ...], str]:
    """The place of the state dict to take, as keys from the top, and a message if there was a choice (else '').

    Raises:
      UserError: there is none, or several that could be.
    """
    found = list(state_dicts(tree, torch))
    averages, plain = [w for w in found if is_average(w)], [w for w in found if not is_average(w)]
    if not found:
        raise UserError(no_state_dict(path, tree, others, torch))
    if ema and not averages:
        raise UserError(f'{path} holds no moving average (--ema); it holds {", ".join(map(dotted, plain))}')
    wanted = averages if ema else plain or averages
    if len(wanted) > 1:
        known = [where for where in wanted if where and where[-1] in WRAPPERS]
        if len(known) != 1:
            raise UserError(
                f'{path} holds several networks ({", ".join(map(dotted, wanted))}); save the one meant alone, '
                f"as in torch.save(torch.load('{path.name}', weights_only=False){index(wanted[0])}, 'weights.pth')"
            )
        wanted = known
    taken, left = wanted[0], [where for where in found if where != wanted[0]]
    if not left:
        return taken, ''
    beside = ', '.join(
        dotted(w) + (' (its moving average: jointrd convert --ema)' if is_average(w) and not ema else '') for w in left
    )
    return taken, f'{dotted(taken)} taken, not {beside}'


def dotted(where: tuple[str, ...]) -> str:
    return repr('.'.join(where)) if where else 'the state dict at its top'


def index(where: tuple[str, ...]) -> str:
    return ''.join(f'[{key!r}]' for key in where)


def no_state_dict(path: Path, tree: Any, others: list[str], torch: ModuleType) -> str:
    """The error message for a file without a state dict: what it holds instead."""
    modules = isinstance(tree, StandIn) or any(name.startswith('torch.nn.modules') for name in others)
    if modules:
        return (
            f'{path} refused: it is a whole module, whose class is code that loading would run; where that class is at '
            f"hand: model = torch.load('{path.name}', weights_only=False); "
            "torch.save(model.state_dict(), 'weights.pth')"
        )
    if isinstance(tree, dict) and any(isinstance(key, bytes) for key in tree):
        return f'{path} is not a state dict: its names are bytes, not text'
    if isinstance(tree, dict) and any(is_array(value, torch) for value in tree.values()):
        held = ', '.join(list(map(str, tree))[:4])
        return f'{path} is not a torchvision ResNet (no conv1.weight, fc.weight); it holds {held}, ...'
    held = (', '.join(map(str, list(tree)[:8])) or 'nothing') if isinstance(tree, dict) else f'a {type(tree).__name__}'
    return f'{path} is not a state dict (tensors by name); it holds {held}'

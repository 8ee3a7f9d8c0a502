"""State dicts as training scripts write them, brought under torchvision's names.

Wrappers put a prefix before every name (`module.`, `_orig_mod.`, `model.`, `backbone.`, also combined), profilers
add counters, and other code calls the classifier `linear` and a projection `shortcut`. Names and shapes alone decide
what is done here; where they leave a choice, an error says so.
"""

import re
from collections.abc import Iterable

from jointrd_jax.errors import UserError

Shapes = dict[str, tuple[int, ...]]

COUNTERS = ('num_batches_tracked', 'total_ops', 'total_params', 'n_averaged')  # of PyTorch, THOP and AveragedModel
BODY = re.compile(r'(conv1|bn1|layer\d+)\.')
PROJECTION = re.compile(r'(layer\d+\.\d+)\.(?:downsample|shortcut|skip|identity_downsample)\.(0|1|conv|bn)\.')
PROJECTION_PARTS = {'conv': '0', 'bn': '1'}
STEM = 'conv1.weight'


def is_counter(name: str) -> bool:
    """Whether an array is a counter that a tool added, and not part of the network."""
    return name.rpartition('.')[2] in COUNTERS


def networks_in(shapes: Shapes) -> list[str]:
    """The prefixes below which a ResNet's first convolution and first stage lie; '' for plain names."""
    stems = [name.removesuffix(STEM) for name, shape in shapes.items() if name.endswith(STEM) and len(shape) == 4]
    return [
        prefix
        for prefix in stems
        if (not prefix or prefix.endswith('.'))
        and not re.search(r'(^|\.)layer\d+\.', prefix)
        and any(name.startswith(f'{prefix}layer1.') for name in shapes)
    ]


def torchvision_names(shapes: Shapes) -> tuple[dict[str, str], list[str]]:
    """{name in the file: torchvision's name}, and the arrays that belong to no part of the network.

    Names without a ResNet among them come back as they are.

    Raises:
      UserError: several networks, or several layers that could be the classifier.
    """
    shapes = {name: shape for name, shape in shapes.items() if not is_counter(name)}
    prefixes = networks_in(shapes)
    if not prefixes:
        return {name: name for name in shapes}, []
    if len(prefixes) > 1:
        raise UserError(f'it holds several networks, below {", ".join(map(repr, prefixes))}; save the one meant alone')
    prefix = prefixes[0]
    inside = {name: name.removeprefix(prefix) for name in shapes if name.startswith(prefix)}
    found = {name: projection(inner) for name, inner in inside.items()}
    outside = [name for name in shapes if name not in inside]
    head = head_module({inner: shapes[name] for name, inner in inside.items()})
    if head is not None:
        found = {name: rename(inner, head) for name, inner in found.items()}
    elif (head := head_module({name: shapes[name] for name in outside})) is not None:
        found |= {name: rename(name, head) for name in outside if name.startswith(f'{head}.')}
        outside = [name for name in outside if name not in found]
    return found, outside


def projection(name: str) -> str:
    """A block's projection under torchvision's name."""
    return PROJECTION.sub(lambda m: f'{m[1]}.downsample.{PROJECTION_PARTS.get(m[2], m[2])}.', name)


def rename(name: str, head: str) -> str:
    return f'fc.{name.removeprefix(head + ".")}' if name.startswith(f'{head}.') else name


def head_module(shapes: Shapes) -> str | None:
    """The module that is the classifier: a matrix, or a 1x1 convolution, that is not of stem or stages.

    Raises:
      UserError: there are several.
    """
    if 'fc.weight' in shapes:
        return 'fc'
    heads = [
        name.removesuffix('.weight')
        for name, shape in shapes.items()
        if name.endswith('.weight') and not BODY.match(name) and (len(shape) == 2 or shape[2:] == (1, 1))
    ]
    if len(heads) > 1:
        raise UserError(f'several layers could be the classifier ({", ".join(heads)}); a ResNet here has one, fc')
    return heads[0] if heads else None


def missing_head(names: Iterable[str]) -> bool:
    """Whether torchvision's names hold a ResNet's body but no classifier."""
    return STEM in names and not any(name.startswith('fc.') for name in names)

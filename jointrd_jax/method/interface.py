"""What the method asks of a network, so that networks of your own can be trained by it (examples/own_network.py)."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, Self, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Array, Float

AnyArray = Array | np.ndarray  # of arguments: what was read from files is NumPy's
Variables = dict[str, Any]
T = TypeVar('T')


def required(value: T | None, what: str) -> T:
    """`value`; if it is None, a ValueError says that the method at hand needs `what`."""
    if value is None:
        raise ValueError(f'this method needs {what}')
    return value


class Outputs(NamedTuple):
    """What a network returns for a batch: logits [B, classes] and feature maps, each before its ReLU."""

    logits: Float[Array, 'B classes']
    features: Float[Array, 'B h w C']  # the last block's output
    taps: tuple[Float[Array, 'B _ _ _'], ...] = ()  # the maps at the block boundaries asked for


@runtime_checkable
class StagedNetwork(Protocol):
    """A Flax module made of a stem, `num_blocks` blocks and a head.

    Teacher and student may be any two such modules whose feature maps at the taps have the same shape. A block
    boundary is numbered by the blocks before it: 0 is after the stem, `num_blocks` before the head. Running
    statistics are kept in the collection 'batch_stats'.
    """

    @property
    def num_blocks(self) -> int: ...

    def __call__(self, x: Float[AnyArray, 'B H W C'], train: bool = False, taps: Sequence[int] = ()) -> Outputs:
        """Images [B, H, W, C] through the whole network, with the maps at the boundaries `taps` (ascending)."""
        ...

    def run_blocks(
        self, h: Float[AnyArray, 'B _ _ _'], start: int, stop: int, train: bool = False
    ) -> Float[Array, 'B _ _ _']:
        """The feature map at boundary `start` to the one at boundary `stop`."""
        ...

    def run_head(self, h: Float[AnyArray, 'B h w C']) -> Float[Array, 'B classes']:
        """The last feature map to logits [B, classes]."""
        ...

    # Of every flax.linen.Module:
    def init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any: ...

    def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any: ...

    def bind(self, variables: Any, *args: Any, **kwargs: Any) -> Self: ...

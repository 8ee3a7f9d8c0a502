"""Which datasets are kept on the device whole, and how they are loaded: images of one size, decoded once."""

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import ml_collections
import numpy as np

from jointrd_jax.data import images, normalisation
from jointrd_jax.data.base import InMemory
from jointrd_jax.data.normalisation import MeanStd
from jointrd_jax.data.sources import Source, read
from jointrd_jax.errors import UserError

MAX_BYTES = 2**30  # of pixels, up to which 'auto' keeps a dataset on the device
SMALL = 128  # pixels a side, up to which 'auto' does; larger photographs are better cropped at random and resized
AT_ONCE = 256  # images whose headers are read before sizes are compared

Decoded = tuple[np.ndarray, np.ndarray, list[int]]  # images uint8 [N, H, W, C], labels [N], numbers of the bad ones


def wanted(settings: ml_collections.ConfigDict, size: tuple[int | None, int | None], count: int, name: str) -> bool:
    """Whether `count` images of `size` (H, W; None where they differ) go on the device, by config.dataset.in_memory.

    Raises:
      UserError: it is 'always', and they have no common size.
    """
    if settings.in_memory == 'never':
        return False
    if size[0] is None or size[1] is None:
        if settings.in_memory == 'always':
            raise UserError(f'dataset.in_memory=always: the images of {name} have no common size')
        return False
    channels = 1 if settings.grey == 'always' else 3
    height, width = size[0], size[1]
    small = max(height, width) <= SMALL and count * height * width * channels <= MAX_BYTES
    return settings.in_memory == 'always' or small


def common_size(sources: Sequence[Source]) -> tuple[int | None, int | None]:
    """(height, width) of all images that can be opened; (None, None) as soon as two differ."""

    def size_of(place: tuple[Source, int]) -> tuple[int, int] | None:
        try:
            image = images.Encoded(place[0][place[1]][0])
        except images.BadImage:
            return None
        return image.height, image.width

    every: Iterator[tuple[Source, int]] = ((source, i) for source in sources for i in range(len(source)))
    sizes: set[tuple[int, int]] = set()
    with ThreadPoolExecutor() as pool:
        while some := list(itertools.islice(every, AT_ONCE)):
            sizes.update(size for size in pool.map(size_of, some) if size)
            if len(sizes) > 1:
                break
    return sizes.pop() if len(sizes) == 1 else (None, None)


def load(
    name: str,
    train: Source,
    evaluation: Source | None,
    shape: tuple[int, int, int | None],
    usual: MeanStd | None,
    config: ml_collections.ConfigDict,
) -> InMemory:
    """Decode everything once.

    Args:
      evaluation: may be None where config.dataset.validation_size holds out training images.
      shape: (H, W, C) of every image; C is None where it is not known: 1 if all are grey, else 3. What
        config.dataset.grey says comes first.
      usual: the mean and standard deviation that 'auto' stands for; None: measured on the training images.

    Raises:
      UserError: a bad image that is not to be skipped, or a split in which all are bad.
    """
    height, width, known = shape
    channels = {'always': 1, 'never': 3}.get(config.dataset.grey, known)
    splits = []
    for source in (train, evaluation) if evaluation else (train,):
        splits.append(decode_all(source, (height, width, channels or 3), config.dataset.on_bad_image == 'skip'))
    if channels is None and all(is_grey(pixels) for pixels, _, _ in splits):
        splits = [(pixels[..., :1], labels, bad) for pixels, labels, bad in splits]
    pixels, labels, _ = splits[0]
    mean, std = normalisation.mean_and_std(
        config.dataset, pixels.shape[-1], usual, lambda: normalisation.measured([normalisation.histogram(pixels)])
    )
    dataset = InMemory(name, train.classes, (pixels, labels), splits[1][:2] if evaluation else None, mean, std, config)
    for first, (_, _, bad) in zip((0, len(train)), splits):
        dataset.bad.update(first + i for i in bad)
    return dataset


def decode_all(source: Source, shape: tuple[int, int, int], skip_bad: bool) -> Decoded:
    """A whole split, without its bad images.

    Raises:
      UserError: a bad image, unless `skip_bad`; or all are bad.
    """
    pixels, labels = np.empty((len(source), *shape), np.uint8), np.empty(len(source), np.int32)

    def decode(i: int) -> str | None:
        found, message = read(source, i, lambda data: images.whole(data, shape), skip_bad)
        if found:
            pixels[i], labels[i] = found
        return message

    with ThreadPoolExecutor() as pool:
        messages = list(pool.map(decode, range(len(source)), chunksize=256))
    bad = [i for i, message in enumerate(messages) if message]
    if len(bad) == len(source):
        raise UserError(f'none of the {len(bad)} images of {source.name!r} can be used, such as {messages[0]}')
    return (np.delete(pixels, bad, 0), np.delete(labels, bad, 0), bad) if bad else (pixels, labels, bad)


def is_grey(pixels: np.ndarray) -> bool:
    """Whether the three channels of all images [N, H, W, 3] are the same."""
    return all(np.array_equal(pixels[..., 0], pixels[..., c]) for c in (1, 2))

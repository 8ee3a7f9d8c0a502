"""What images are normalised by: config.dataset.mean and config.dataset.std, per channel, of pixels scaled to 0..1."""

import functools
from collections.abc import Callable, Iterable

import ml_collections
import numpy as np

from jointrd_jax.config import channel_numbers
from jointrd_jax.errors import UserError

Channels = tuple[float, ...]
MeanStd = tuple[Channels, Channels]

IMAGENET: MeanStd = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # as torchvision and the authors


def mean_and_std(
    settings: ml_collections.ConfigDict, channels: int, usual: MeanStd | None, measure: Callable[[], MeanStd]
) -> MeanStd:
    """The mean and standard deviation that `settings` (config.dataset) ask for.

    Args:
      channels: of the images, 1 or 3.
      usual: what 'auto' stands for; None, or constants of another number of channels: what is measured.
      measure: gives the values of the training images; called where they are needed only.

    Raises:
      UserError: another number of values than there are channels.
    """
    measure = functools.cache(measure)
    usual = usual if usual and len(usual[0]) == channels else None

    def chosen(which: int, field: str, text: str) -> Channels:
        numbers = channel_numbers(text)
        if numbers:
            if len(numbers) not in (1, channels):
                raise UserError(
                    f'config.dataset.{field}={text} has {len(numbers)} values, but the images have {channels} '
                    f'channel{"s" * (channels > 1)}'
                )
            return numbers * (channels // len(numbers))
        if text == 'imagenet':
            return IMAGENET[which] if channels == 3 else (float(np.mean(IMAGENET[which])),)
        return usual[which] if text == 'auto' and usual else measure()[which]

    return chosen(0, 'mean', settings.mean), chosen(1, 'std', settings.std)


def histogram(pixels: np.ndarray) -> np.ndarray:
    """[C, 256]: how often each value occurs in uint8 pixels [..., C]."""
    return np.stack([np.bincount(pixels[..., c].ravel(), minlength=256) for c in range(pixels.shape[-1])])


def measured(histograms: Iterable[np.ndarray]) -> MeanStd:
    """Mean and standard deviation per channel of all the images whose histograms these are.

    A channel that never changes gets the standard deviation 1: it is zero everywhere whatever it is divided by.
    """
    values, total = np.arange(256) / 255, np.sum(list(histograms), 0)
    mean = tuple(float(np.average(values, weights=counts)) for counts in total)
    deviations = [float(np.average((values - m) ** 2, weights=counts)) for m, counts in zip(mean, total)]
    return mean, tuple(float(np.sqrt(d)) or 1.0 for d in deviations)

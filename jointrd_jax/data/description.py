"""What must be known of the data that a network was trained on: kept in checkpoints, weight files and exports."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from jointrd_jax.system import forms

MAX_SIDE = 1 << 16  # of images
NORMALISATION = '(pixel / 255 - mean) / std'

FORMS: dict[str, Callable[[Any], bool]] = {
    'dataset': forms.is_text,
    'classes': lambda value: forms.is_list(forms.is_text)(value) and bool(value),
    'image_shape': lambda value: (
        forms.is_list(forms.is_count)(value) and len(value) == 3 and all(0 < n <= MAX_SIDE for n in value)
    ),
    'mean': forms.is_list(forms.is_number),
    'std': forms.is_list(forms.is_number),
    'resize': forms.optional(forms.is_count),
}


@dataclasses.dataclass(frozen=True)
class DataDescription:
    """The data that a network was trained on, and how its input is made of pixels.

    Attributes:
      dataset: its name, with its version where it has one.
      classes: names in label order.
      image_shape: (H, W, C) as the network sees it.
      mean: per channel, of images scaled to 0..1.
      std: the same; the network's input is (pixel / 255 - mean) / std.
      resize: what the shorter side of an image is resized to, in pixels, before its centre is cut out; None where
        images are taken as they are (or it was not recorded).
    """

    dataset: str
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None = None

    @classmethod
    def from_json(cls, value: Any, where: object) -> 'DataDescription':
        """The description that `to_json` wrote.

        Raises:
          UserError: `value` is not one; the message begins with `where`.
        """
        value = {'resize': None, **value} if isinstance(value, dict) else value
        fields = forms.check(value, FORMS, where, 'what its network was trained on')
        channels = fields['image_shape'][-1]
        per_channel = {'mean': lambda v: len(v) == channels, 'std': lambda v: len(v) == channels and all(v)}
        forms.check(fields, per_channel, where, 'what its network was trained on')
        known: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
        return cls(**known)

    def to_json(self) -> dict[str, Any]:
        return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}

    def normalised(self, pixels: np.ndarray) -> np.ndarray:
        """The network's input (float32) for pixels 0..255 [..., C]."""
        scaled = pixels.astype(np.float32) / 255
        return (scaled - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)

    def to_pixels(self, images: np.ndarray) -> np.ndarray:
        """Normalised images [..., C] as whole numbers (float32), which are 0..255 where they were made of pixels."""
        return np.round((images * np.asarray(self.std, np.float32) + np.asarray(self.mean, np.float32)) * 255)

    def to_uint8(self, images: np.ndarray) -> np.ndarray:
        """Normalised images [..., C] as uint8 pixels, for showing them."""
        return self.to_pixels(images).clip(0, 255).astype(np.uint8)

    @property
    def normalisation(self) -> str:
        """The expression that makes the network's input of uint8 `pixels`, for documentation."""
        mean, std = (list(map(float, values)) for values in (self.mean, self.std))
        return f'(pixels.astype(np.float32) / 255 - np.float32({mean})) / np.float32({std})'

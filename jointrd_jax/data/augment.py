"""Augmentation and normalisation inside the jitted step: uint8 images in, float images out."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def crop_and_flip(images: jax.Array, key: jax.Array, *, padding: int = 0, flip: bool = False) -> jax.Array:
    """Shift each image by up to `padding` pixels (zeros move in) and mirror half of them.

    One gather does both; equal to torchvision's RandomCrop(size, padding) and RandomHorizontalFlip.

    Args:
      images: [B, H, W, C] uint8.
      key: the batch's random key.

    Returns:
      [B, H, W, C] uint8.
    """
    if not padding and not flip:
        return images
    batch, height, width = images.shape[:3]
    shift_key, flip_key = jax.random.split(key)
    shift = jax.random.randint(shift_key, (batch, 2), -padding, padding + 1)
    rows = jnp.arange(height)[None] + shift[:, :1]
    columns = jnp.broadcast_to(jnp.arange(width), (batch, width))
    if flip:
        mirrored = jax.random.bernoulli(flip_key, shape=(batch, 1))
        columns = jnp.where(mirrored, width - 1 - columns, columns)
    columns = columns + shift[:, 1:]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    rows, columns = jnp.clip(rows, 0, height - 1), jnp.clip(columns, 0, width - 1)
    moved = images[jnp.arange(batch)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return jnp.where(inside[..., None], moved, 0)


def mirror(images: jax.Array, flip: jax.Array) -> jax.Array:
    """images [B, H, W, C], mirrored left to right where flip [B] is True."""
    return jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)


def cutout(images: jax.Array, key: jax.Array, size: int) -> jax.Array:
    """Zero one size x size square per image, its centre uniform over the image (DeVries & Taylor, 2017).

    Args:
      images: [B, H, W, C] normalised, so that zero is the mean.
    """
    if not size:
        return images
    batch, height, width = images.shape[:3]
    row_key, column_key = jax.random.split(key)

    def outside(axis_key, length):
        start = jax.random.randint(axis_key, (batch, 1), 0, length) - size // 2
        position = jnp.arange(length)[None]
        return (position < start) | (position >= start + size)

    keep = outside(row_key, height)[:, :, None] | outside(column_key, width)[:, None, :]
    return jnp.where(keep[..., None], images, 0)


def normalise(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """uint8 [..., C] to float32 (x / 255 - mean) / std per channel."""
    shape = (1,) * (images.ndim - 1) + (-1,)
    offset, scale = (jnp.asarray(v, jnp.float32).reshape(shape) for v in (mean, std))
    return (images.astype(jnp.float32) / 255 - offset) / scale

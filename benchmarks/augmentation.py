"""CIFAR augmentation (pad-4 crop and mirroring of 32x32 images) by three implementations: images per CPU-second.

python benchmarks/augmentation.py
"""

import os

os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=1'

import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jointrd_jax.data import augment

SIZE, BATCH, STEPS, ROUNDS, PADDING = 10_000, 512, 40, 7, 4


def gather(images, index, key):
    """Ours: the images' rows, then one gather that crops and mirrors."""
    picked = images.reshape(len(images), -1)[index].reshape(-1, *images.shape[1:])
    return augment.crop_and_flip(picked, key, padding=PADDING, flip=True)


def pad_and_slice(images, index, key):
    """Pad the batch, then a dynamic slice per image, then mirror."""
    shift_key, flip_key = jax.random.split(key)
    padded = jnp.pad(images[index], ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0)))
    shift = jax.random.randint(shift_key, (len(index), 2), 0, 2 * PADDING + 1)
    cut = jax.vmap(lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1], 0), (32, 32, 3)))(padded, shift)
    flip = jax.random.bernoulli(flip_key, shape=(len(index),))
    return augment.mirror(cut, flip)


def on_the_host(images, index, rng):
    """numpy, image by image, as a data loader would."""
    padded = np.pad(images[index], ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0)))
    out = np.empty((len(index), 32, 32, 3), np.uint8)
    for row, ((y, x), flip) in enumerate(
        zip(rng.integers(0, 2 * PADDING + 1, (len(index), 2)), rng.random(len(index)))
    ):
        image = padded[row, y : y + 32, x : x + 32]
        out[row] = image[:, ::-1] if flip < 0.5 else image
    return out


def main() -> None:
    rng = np.random.default_rng(0)
    host = rng.integers(0, 256, (SIZE, 32, 32, 3), np.uint8)
    device = jnp.asarray(host)
    index = [rng.integers(0, SIZE, BATCH, np.int32) for _ in range(STEPS)]
    keys = list(jax.random.split(jax.random.key(0), STEPS))
    compiled = {name: jax.jit(f) for name, f in (('gather', gather), ('pad and slice', pad_and_slice))}
    runs: dict[str, Callable[[], list]] = {
        name: lambda f=f: [f(device, i, k).block_until_ready() for i, k in zip(index, keys)]
        for name, f in compiled.items()
    }
    runs['numpy on the host'] = lambda: [on_the_host(host, i, rng) for i in index]
    rates = {name: [] for name in runs}
    for number in range(ROUNDS + 1):  # the first compiles
        for name, run in runs.items():
            started = time.process_time()
            run()
            if number:
                rates[name].append(STEPS * BATCH / (time.process_time() - started))
    for name, values in rates.items():
        print(f'{name:18} median {statistics.median(values):9,.0f} images per CPU-second, best {max(values):9,.0f}')


if __name__ == '__main__':
    main()

import jax
import jax.numpy as jnp
import numpy as np

from jointrd_jax.data import augment

IMAGES = np.arange(1, 1 + 6 * 5 * 4 * 2, dtype=np.uint8).reshape(6, 5, 4, 2)


def crops(image, padding):
    """Every crop of the zero-padded image, by (row, column)."""
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    height, width = image.shape[:2]
    span = range(2 * padding + 1)
    return {(i, j): padded[i : i + height, j : j + width] for i in span for j in span}


def test_every_result_is_a_crop_or_its_mirror_and_all_occur():
    images = jnp.asarray(IMAGES)[jnp.array([3] * 600)]
    got = np.asarray(augment.crop_and_flip(images, jax.random.key(0), padding=1, flip=True))
    allowed = {}
    for mirrored in (False, True):
        source = IMAGES[3][:, ::-1] if mirrored else IMAGES[3]
        allowed |= {crop.tobytes(): (mirrored, at) for at, crop in crops(source, 1).items()}
    seen = [allowed[image.tobytes()] for image in got]
    assert set(seen) == set(allowed.values()) and len(set(seen)) == 18
    assert 0.4 < np.mean([mirrored for mirrored, _ in seen]) < 0.6


def test_without_padding_and_flip_nothing_changes():
    np.testing.assert_array_equal(augment.crop_and_flip(jnp.asarray(IMAGES), jax.random.key(0)), IMAGES)


def test_cutout_is_one_square_with_its_centre_inside():
    images = jnp.ones((500, 8, 8, 1))
    holes = 1 - np.asarray(augment.cutout(images, jax.random.key(0), 4))[..., 0]
    areas = holes.sum((1, 2))
    assert areas.max() == 16 and areas.min() == 4
    rows, columns = holes.any(2).sum(1), holes.any(1).sum(1)
    np.testing.assert_array_equal(rows * columns, areas)


def test_normalise():
    pixels = np.array([[[[0, 255]]]], np.uint8)
    np.testing.assert_allclose(augment.normalise(pixels, (0.5, 0.5), (0.5, 0.25)), [[[[-1, 2]]]])

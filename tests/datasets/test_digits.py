import jax
import numpy as np
import pytest

from jointrd_jax import data
from jointrd_jax.data import digits
from jointrd_jax.errors import UserError
from tests.support.configs import tiny_config


def images_of(dataset, batches, key=None):
    return [dataset.preprocess(dataset.device_arrays, batch, key) for batch in batches]


def test_every_image_once_per_evaluation():
    dataset = data.load(tiny_config(eval_batch_size=96))
    batches = list(dataset.eval_batches())
    seen = np.concatenate([b['index'][b['mask']] for b in batches])
    assert len(seen) == len(set(seen)) == dataset.eval_size == 500
    assert dataset.train_size == 1297 and len(dataset.device_arrays['labels']) == 1797
    assert {len(b['index']) for b in batches} == {96}


def test_epochs_are_permutations_and_restart_at_any_step():
    dataset = data.load(tiny_config())
    batches = [b['index'] for b, _ in zip(dataset.train_batches(0), range(90))]
    epoch = np.concatenate(batches[:40])
    assert len(set(epoch)) == len(epoch) and epoch.max() < dataset.train_size
    assert not np.array_equal(batches[0], batches[40])
    for start in (0, 7, 39, 40, 63):
        np.testing.assert_array_equal(next(dataset.train_batches(start))['index'], batches[start])


def test_validation_images_come_from_the_training_images():
    config = tiny_config(dataset__validation_size=200)
    held_out, whole = data.load(config), data.load(tiny_config())
    assert (held_out.train_size, held_out.eval_size) == (1097, 200)
    all_train = {image.tobytes() for image in whole.device_arrays['images'][:1297]}
    assert all(image.tobytes() in all_train for image in held_out.device_arrays['images'])
    config.dataset.validation_size = 1297
    with pytest.raises(UserError, match='leaves none of the 1297'):
        data.load(config)


def test_normalised_and_augmented_by_key_alone():
    dataset = data.load(tiny_config(dataset__cutout=3))
    batch = next(dataset.train_batches(0))
    (plain, labels), (a, _), (b, _), (c, _) = (
        dataset.preprocess(dataset.device_arrays, batch, key) for key in (None, *(jax.random.key(i) for i in (1, 1, 2)))
    )
    assert plain.shape == (32, 8, 8, 1) and plain.dtype == np.float32 and labels.dtype == np.int32
    assert abs(float(plain.mean())) < 0.2 and 0.8 < float(plain.std()) < 1.2
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


def test_read_as_scikit_learn_reads_them():
    from sklearn.datasets import load_digits

    images, labels = digits.read()
    np.testing.assert_array_equal(images, load_digits().images)
    np.testing.assert_array_equal(labels, load_digits().target)

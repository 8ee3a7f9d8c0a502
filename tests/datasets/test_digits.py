import jax
import numpy as np
import pytest

from jointrd_jax import config as config_lib, data
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
    with pytest.raises(UserError, match='leaves no image to train on: digits has 1297'):
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


def test_each_image_is_evaluated_on_in_one_fold():
    everything = np.concatenate([data.load(tiny_config()).device_arrays['images'].reshape(-1, 64)])
    seen = []
    for k in range(1, 4):
        dataset = data.load(tiny_config(dataset__fold=f'{k}/3'))
        assert dataset.name == f'digits:fold {k}/3' and dataset.train_size + dataset.eval_size == 1797
        images = dataset.device_arrays['images'].reshape(-1, 64)
        seen.append(images[dataset.train_size :])
        np.testing.assert_array_equal(np.sort(images, 0), np.sort(everything, 0))
    np.testing.assert_array_equal(*(np.sort(np.concatenate(part), 0) for part in (seen, [everything])))


def test_a_fold_may_hold_out_validation_images_too():
    dataset = data.load(tiny_config(dataset__fold='1/5', dataset__validation_size=100))
    assert (dataset.train_size, dataset.eval_size) == (1797 - 360 - 100, 100)


@pytest.mark.parametrize('fold', ['0/5', '6/5', '1/1', '1', 'a/b', '1/101', '1/5/5'])
def test_what_is_no_fold_is_refused(fold):
    with pytest.raises(UserError, match='dataset.fold'):
        config_lib.validate(tiny_config(dataset__fold=fold))


def test_a_dataset_with_splits_of_its_own_has_no_folds():
    with pytest.raises(UserError, match='cifar10 has splits of its own'):
        data.load(tiny_config(dataset__fold='1/5', dataset__name='cifar10'))

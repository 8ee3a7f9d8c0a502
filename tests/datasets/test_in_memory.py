"""Small images of one size: a folder of them is kept on the device as a TFDS dataset is."""

import io
import itertools

import jax
import numpy as np
import pytest
from PIL import Image

from jointrd_jax import data
from jointrd_jax.data.base import InMemory
from jointrd_jax.data.streaming import Streaming
from jointrd_jax.errors import UserError
from tests.support import real_data


def small_folder(root, grey=False, train=16):
    """The 20 CIFAR-10 images as PNGs in class folders, as Kaggle has them; the pixels of the training images."""
    pixels = []
    for number, (path, _) in enumerate(real_data.images('cifar10')):
        image = Image.open(path).convert('L' if grey else 'RGB')
        target = root / ('train' if number < train else 'val') / str(number % 2) / f'{number:03}.png'
        target.parent.mkdir(parents=True, exist_ok=True)
        image.save(target)
        if number < train:
            pixels.append(np.asarray(image))
    return np.stack(pixels)


def load(root, **fields):
    return data.load(real_data.config('folder', root, **fields))


def test_small_images_in_colour_are_kept_on_the_device_as_they_are(tmp_path):
    pixels = small_folder(tmp_path)
    dataset = load(tmp_path)
    assert isinstance(dataset, InMemory) and dataset.image_shape == (32, 32, 3)
    assert (dataset.train_size, dataset.eval_size, dataset.classes) == (16, 4, ('0', '1'))
    order = [*range(0, 16, 2), *range(1, 16, 2)]
    assert np.array_equal(dataset.device_arrays['images'][:16], pixels[order].reshape(16, -1))
    assert dataset.device_arrays['labels'].tolist() == [0] * 8 + [1] * 8 + [0, 0, 1, 1]
    assert np.allclose(dataset.mean, pixels.mean((0, 1, 2)) / 255)
    assert np.allclose(dataset.std, pixels.std((0, 1, 2)) / 255)


def test_grey_where_all_are_grey(tmp_path):
    pixels = small_folder(tmp_path, grey=True)
    dataset = load(tmp_path)
    assert dataset.image_shape == (32, 32, 1)
    assert np.allclose(dataset.mean, pixels.mean() / 255) and np.allclose(dataset.std, pixels.std() / 255)
    assert load(tmp_path, grey='never').image_shape == (32, 32, 3)
    colour = tmp_path / 'val/1/019.png'
    colour.write_bytes(real_data.images('cifar10')[0][0].read_bytes())
    assert load(tmp_path).image_shape == (32, 32, 3)
    assert load(tmp_path, grey='always').image_shape == (32, 32, 1)


def test_augmented_by_the_same_fields_as_tfds_sets(tmp_path):
    small_folder(tmp_path)
    dataset = load(tmp_path, crop_padding=4, flip=True, cutout=8, batch_size=16)
    batch = next(dataset.train_batches(0))
    images, labels = jax.jit(dataset.preprocess)(dataset.device_arrays, batch, jax.random.key(0))
    plain, _ = jax.jit(dataset.preprocess)(dataset.device_arrays, batch, None)
    assert images.shape == (16, 32, 32, 3) and sorted(labels.tolist()) == [0] * 8 + [1] * 8
    assert all((np.asarray(image) == 0).all(-1).any() for image in images)  # the cut-out squares
    assert not np.allclose(images, plain)


def one_gather(images, index, key, padding):
    """Crops and mirrors of `images` [N, H, W, C] at `index`, each pixel fetched from the whole set by itself."""
    batch, height, width = len(index), *images.shape[1:3]
    shift_key, flip_key = jax.random.split(key)
    shift = np.asarray(jax.random.randint(shift_key, (batch, 2), -padding, padding + 1))
    mirrored = np.asarray(jax.random.bernoulli(flip_key, shape=(batch, 1)))
    columns = np.where(mirrored, np.arange(width)[::-1], np.arange(width)) + shift[:, 1:]
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    rows = np.arange(height) + shift[:, :1]
    return padded[index[:, None, None], padding + rows[:, :, None], padding + columns[:, None, :]]


def test_rows_gathered_first_are_the_pixels_of_one_gather_of_the_whole_set(tmp_path):
    pixels = small_folder(tmp_path)[[*range(0, 16, 2), *range(1, 16, 2)]]
    dataset = load(tmp_path, crop_padding=4, flip=True, batch_size=16)
    batch, key = next(dataset.train_batches(0)), jax.random.key(3)
    images, _ = jax.jit(dataset.preprocess)(dataset.device_arrays, batch, key)
    expected = one_gather(pixels, batch['index'], jax.random.split(key)[0], 4)
    found = np.asarray(images) * np.asarray(dataset.std) + np.asarray(dataset.mean)
    np.testing.assert_array_equal(np.rint(255 * found), expected)


def test_streamed_where_they_differ_are_large_or_by_choice(tmp_path):
    small_folder(tmp_path / 'small')
    assert isinstance(load(tmp_path / 'small', in_memory='never'), Streaming)
    photos = real_data.folder(tmp_path / 'photos', train=14, val=6)
    assert isinstance(load(photos), Streaming)
    with pytest.raises(
        UserError, match=r'in_memory=always: the images of folder:\w+ \(2 classes\) have no common size'
    ):
        load(photos, in_memory='always')
    for file in photos.rglob('*.jpg'):
        Image.open(file).convert('RGB').resize((150, 150)).save(file)
    assert isinstance(load(photos), Streaming)
    assert load(photos, in_memory='always').image_shape == (150, 150, 3)
    one = tmp_path / 'small/train/0/008.png'
    Image.open(one).resize((31, 32)).save(one)
    assert isinstance(load(tmp_path / 'small'), Streaming)


def test_held_out_images_and_a_folder_without_splits(tmp_path):
    small_folder(tmp_path, train=20)
    held = load(tmp_path, validation_size=5)
    assert isinstance(held, InMemory) and (held.train_size, held.eval_size) == (15, 5)
    shared = load(tmp_path / 'train', eval_fraction=0.2)
    assert isinstance(shared, InMemory) and (shared.train_size, shared.eval_size) == (16, 4)


def test_bad_images_are_named_or_left_out_and_counted(tmp_path):
    small_folder(tmp_path)
    bad = [tmp_path / 'train/0/002.png', tmp_path / 'val/1/019.png']
    bad[0].write_bytes(bad[0].read_bytes()[:-60])
    with pytest.raises(UserError, match=f'{bad[0]} .class 0.: cannot be decoded .*; repair it, or set'):
        load(tmp_path)
    bad[1].write_bytes(b'')
    dataset = load(tmp_path, on_bad_image='skip')
    assert isinstance(dataset, InMemory) and (dataset.train_size, dataset.eval_size) == (15, 3)
    assert dataset.bad_anywhere() == [1, 19]
    assert np.asarray(dataset.device_arrays['images']).std(1).min() > 0
    for file in (tmp_path / 'val').rglob('*.png'):
        file.write_bytes(b'')
    with pytest.raises(
        UserError, match="none of the 4 images of 'val' can be used, such as .*val/0/016.png .class 0.: e"
    ):
        load(tmp_path, on_bad_image='skip')


def test_a_tfds_dataset_leaves_bad_images_out_too(tmp_path):
    found = real_data.examples('cifar10')
    directory = real_data.write_tfds(tmp_path, 'mine', {'train': [found[:16]], 'test': [found[16:]]})
    shard = next(directory.glob('*test*'))
    content = shard.read_bytes()
    at = content.index(b'IDAT') + 40
    shard.write_bytes(content[:at] + bytes(30) + content[at + 30 :])
    with pytest.raises(UserError, match=r'mine-test.array_record-00000-of-00001, record 0'):
        data.load(real_data.config('mine', tmp_path))
    dataset = data.load(real_data.config('mine', tmp_path, on_bad_image='skip'))
    assert dataset.eval_size == 3 and dataset.bad == {16}


NUMBERS = {'mean': '0.5,0.4,0.3', 'std': '0.25'}


@pytest.mark.parametrize('in_memory', ['auto', 'never'])
def test_mean_and_std_by_choice(tmp_path, in_memory):
    pixels = small_folder(tmp_path)
    sizes = dict(in_memory=in_memory, image_size=32, resize=32)
    chosen = load(tmp_path, **sizes, **NUMBERS)
    assert chosen.mean == (0.5, 0.4, 0.3) and chosen.std == (0.25, 0.25, 0.25)
    imagenet = load(tmp_path, **sizes, mean='imagenet', std='imagenet')
    assert (imagenet.mean, imagenet.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    measured = load(tmp_path, **sizes, mean='measured', std='measured')
    assert np.allclose(measured.mean, pixels.mean((0, 1, 2)) / 255)
    assert np.allclose(measured.std, pixels.std((0, 1, 2)) / 255)
    grey = load(tmp_path, **sizes, grey='always', mean='imagenet', std='0.3')
    assert (
        grey.image_shape == (32, 32, 1) and grey.std == (0.3,) and np.allclose(grey.mean, (0.485 + 0.456 + 0.406) / 3)
    )
    with pytest.raises(UserError, match='mean=0.5,0.4,0.3 has 3 values, but the images have 1 channel'):
        load(tmp_path, **sizes, grey='always', mean='0.5,0.4,0.3')
    batch = next(chosen.eval_batches())
    images, _ = chosen.preprocess(chosen.device_arrays, batch, None)
    last = np.asarray(Image.open(tmp_path / 'val/0/016.png'))
    assert np.allclose(images[0], (last / 255 - np.array([0.5, 0.4, 0.3])) / 0.25, atol=1e-5)


def test_streamed_grey_images_and_their_crops(tmp_path):
    photos = real_data.folder(tmp_path)
    dataset = load(photos, grey='always', mean='measured', std='measured', crop_scale=0.9)
    assert dataset.image_shape == (64, 64, 1) and len(dataset.mean) == 1
    (batch,) = itertools.islice(dataset.train_batches(0), 1)
    assert batch['image'].shape == (4, 64, 64, 1)
    smaller = load(photos, grey='always')
    assert not np.array_equal(next(smaller.train_batches(0))['image'], batch['image'])


def test_a_channel_that_never_changes_is_divided_by_one(tmp_path):
    for split in ('train', 'val'):
        for name in ('a', 'b'):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(4):
                red = np.zeros((8, 8, 3), np.uint8)
                red[..., 0] = np.arange(64).reshape(8, 8) + number
                data_of = io.BytesIO(real_data.png(Image.fromarray(red)))
                (tmp_path / split / name / f'{number}.png').write_bytes(data_of.getvalue())
    dataset = load(tmp_path)
    assert dataset.mean[1:] == (0, 0) and dataset.std[1:] == (1, 1) and dataset.std[0] > 0

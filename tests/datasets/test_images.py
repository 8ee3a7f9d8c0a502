import functools
import io
import math

import numpy as np
import pytest
from hypothesis import given, strategies as st
from PIL import Image

from jointrd_jax.data import images
from tests.support import real_data

PHOTO, _ = real_data.images('imagenet')[10]  # 1024x683


def close(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference of two uint8 images."""
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 2**31))
def test_a_random_box_is_as_torchvision_defines_it(height, width, seed):
    top, left, h, w = images.random_box(height, width, np.random.default_rng(seed))
    assert 0 <= top and 0 < h and top + h <= height
    assert 0 <= left and 0 < w and left + w <= width
    if min(height, width) >= 100 and 3 / 4 < width / height < 4 / 3:  # rounding aside
        assert 0.07 < h * w / (height * width) <= 1
        assert 0.73 < w / h < 1.37


def test_random_boxes_cover_scales_ratios_and_places_evenly():
    rng = np.random.default_rng(0)
    boxes = np.array([images.random_box(1000, 1000, rng) for _ in range(4000)], float)
    top, left, h, w = boxes.T
    area, ratio = h * w / 1e6, np.log(w / h)
    assert abs(ratio.mean()) < 0.02 and abs(np.abs(ratio).max() - math.log(4 / 3)) < 0.01
    assert area.min() < 0.1 and area.max() > 0.95
    free = (h < 990) & (w < 990)
    for start, length in ((top, h), (left, w)):
        assert abs((start[free] / (1000 - length[free])).mean() - 0.5) < 0.03


@pytest.mark.parametrize(('height', 'width', 'box'), [(10, 1000, (0, 493, 10, 13)), (1000, 10, (493, 0, 13, 10))])
def test_a_very_long_image_falls_back_to_its_centre(height, width, box):
    assert images.random_box(height, width, np.random.default_rng(0)) == box


def test_a_scaled_decode_is_the_same_crop():
    data = PHOTO.read_bytes()
    for seed in range(4):
        scaled = images.random_resized_crop(data, 48, np.random.default_rng(seed))
        top, left, h, w = images.random_box(683, 1024, np.random.default_rng(seed))
        exact = Image.open(PHOTO).convert('RGB').resize(
            (48, 48), Image.Resampling.BILINEAR, box=(left, top, left + w, top + h)
        )  # fmt: skip
        moved = Image.open(PHOTO).convert('RGB').resize((48, 48), box=(0, 0, 1024 - left, 683 - top))
        # Pillow smooths more when it shrinks, so they are not equal, but the same crop.
        assert close(scaled, np.asarray(exact)) < min(12, 0.5 * close(scaled, np.asarray(moved)))


@pytest.mark.parametrize('size', [(224, 256), (64, 73), (32, 32)])
def test_a_centre_crop_is_torchvisions(size):
    size, resize = size
    for path, _ in real_data.images('imagenet')[8:12]:
        image = Image.open(path).convert('RGB')
        width, height = (resize * side // min(image.size) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        top, left = round((height - size) / 2), round((width - size) / 2)
        expected = np.asarray(image)[top : top + size, left : left + size]
        assert close(images.centre_crop(path.read_bytes(), size, resize), expected) < 0.5


@functools.cache
def variants():
    image = Image.open(PHOTO).convert('RGB').reduce(4)
    return {
        'baseline': (real_data.jpeg(image), image),
        'progressive': (real_data.jpeg(image, progressive=True), image),
        '4:4:4': (real_data.jpeg(image, subsampling=0), image),
        'grey': (real_data.jpeg(image.convert('L')), image.convert('L').convert('RGB')),
        'CMYK': (real_data.jpeg(image.convert('CMYK'), quality=95), image),
        'PNG': (real_data.png(image), image),
        'PNG with alpha': (real_data.png(image.convert('RGBA')), image),
        'grey PNG': (real_data.png(image.convert('L')), image.convert('L').convert('RGB')),
    }


def test_every_kind_of_file_decodes_to_rgb():
    for kind, (data, image) in variants().items():
        pixels = images.Encoded(data).pixels()
        assert pixels.shape == (171, 256, 3) and pixels.dtype == np.uint8, kind
        assert close(pixels, np.asarray(image)) < 4, kind
        assert images.random_resized_crop(data, 32, np.random.default_rng(0)).shape == (32, 32, 3), kind


def test_stray_bytes_between_markers_are_passed_over():
    image = Image.open(PHOTO).convert('RGB')
    data = real_data.jpeg(image, progressive=True)
    at = data.rindex(b'\xff\xc4')
    assert close(images.Encoded(data[:at] + b'\x00\x11\x22' + data[at:]).pixels(), np.asarray(image)) < 4


@pytest.mark.parametrize('share', [0.02, 0.5, 0.999])
@pytest.mark.parametrize('kind', ['baseline', 'progressive', 'PNG', 'CMYK'])
def test_a_cut_off_image_is_bad(kind, share):
    data = variants()[kind][0]
    with pytest.raises(images.BadImage, match=r'cut off|not an image|cannot be decoded'):
        images.Encoded(data[: int(len(data) * share)]).pixels()


@pytest.mark.parametrize('data', [b'', b'<html>not found</html>', b'\xff\xd8\xff', b'\x89PNG\r\n\x1a\n' + bytes(20)])
def test_what_is_no_image_is_bad(data):
    with pytest.raises(images.BadImage, match=r'not an image|empty'):
        images.Encoded(data)


def test_more_than_8_bits_are_refused_and_not_cut_down():
    deep = Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64))
    tiff = io.BytesIO()
    Image.fromarray(np.ones((8, 8), np.float32)).save(tiff, 'TIFF')
    for data in (real_data.png(deep), tiff.getvalue()):
        with pytest.raises(images.BadImage, match='more than 8 bits per channel'):
            images.Encoded(data)


def test_an_image_bomb_is_refused_by_its_header():
    bomb = real_data.png(Image.new('1', (12_000, 12_000)))  # 18 kB that would take 430 MB
    small = real_data.jpeg(Image.new('RGB', (16, 16)))
    at = small.index(b'\xff\xc0') + 5
    for data in (bomb, small[:at] + b'\xff\xdc\xff\xdc' + small[at + 4 :]):
        with pytest.raises(images.BadImage, match='more than the 100,000,000 accepted'):
            images.Encoded(data)


def test_whole_images_keep_their_size_and_channels():
    path, _ = real_data.images('cifar10')[0]
    assert np.array_equal(images.whole(path.read_bytes(), (32, 32, 3)), real_data.pixels(path))
    grey = Image.open(path).convert('L')
    assert np.array_equal(images.whole(real_data.png(grey), (32, 32, 1))[..., 0], np.asarray(grey))
    with pytest.raises(images.BadImage, match='32x32 pixels where 28x28 are expected'):
        images.whole(path.read_bytes(), (28, 28, 1))

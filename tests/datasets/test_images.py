import functools
import io
import math
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, strategies as st
from PIL import ExifTags, Image

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
    with pytest.raises(images.BadImage, match=r'not an image|empty|HTML page'):
        images.Encoded(data)


def deep_images():
    """Every kind of file that holds more than 8 bits per channel, as OpenCV and Pillow write them."""
    grey = np.random.default_rng(0).integers(0, 4096, (64, 96)).astype(np.uint16)
    colour, found = np.dstack([grey] * 3), {'float TIFF': encoded(Image.fromarray(grey.astype(np.float32)), 'TIFF')}
    for kind, pixels in (('grey', grey), ('RGB', colour), ('RGBA', np.dstack([colour, grey]))):
        for suffix in ('.png', '.tiff', '.jp2'):
            found[f'{kind} {suffix}'] = cv2.imencode(suffix, pixels)[1].tobytes()
    found['grey and alpha .png'] = grey_and_alpha_png(grey)
    for name, maxval in (('10 bits', 1023), ('16 bits', 65535)):
        found[f'PGM of {name}'] = b'P5 96 64 %d\n' % maxval + grey.astype('>u2').tobytes()
        found[f'PPM of {name}'] = b'P6 96 64 %d\n' % maxval + colour.astype('>u2').tobytes()
        found[f'plain PPM of {name}'] = b'P3 96 64 %d\n' % maxval + b' '.join(b'%d' % v for v in colour.ravel() % 1024)
    for depth in (10, 12):
        options = [cv2.IMWRITE_AVIF_DEPTH, depth, cv2.IMWRITE_AVIF_SPEED, 9]
        found[f'AVIF of {depth} bits'] = cv2.imencode('.avif', colour, options)[1].tobytes()
    baseline = real_data.jpeg(Image.new('RGB', (16, 16)))
    found['JPEG of 12 bits'] = baseline.replace(b'\xff\xc0\x00\x11\x08', b'\xff\xc1\x00\x11\x0c')
    return found


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def grey_and_alpha_png(grey: np.ndarray) -> bytes:
    """PNG's colour type 4 with 16 bits, which neither library writes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))

    rows = b''.join(b'\0' + np.repeat(row, 2).astype('>u2').tobytes() for row in grey)
    header = struct.pack('>IIBBBBB', grey.shape[1], grey.shape[0], 16, 4, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')


@pytest.mark.parametrize(
    ('content', 'what'),
    [
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:0', 'a Git LFS pointer'),
        (b'\n<!DOCTYPE html><html></html>', 'an HTML page'),
        (b'<?xml version="1.0"?>\n<!-- made by hand --><svg xmlns="http://www.w3.org/2000/svg"/>', 'an SVG drawing'),
        (b'\0\0\0\x18ftypheic\0\0\0\0mif1heic' + bytes(200), 'a HEIC image'),
        (b'%PDF-1.7', 'a PDF document'),
        (b'PK\x03\x04' + bytes(40), 'a ZIP archive'),
        (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', 'not an image'),  # Pillow would start Ghostscript
    ],
)
def test_what_is_in_place_of_an_image_is_named(content, what):
    with pytest.raises(images.BadImage, match=what):
        images.Encoded(content)


def test_more_than_8_bits_are_refused_in_every_format_and_mode():
    for kind, data in deep_images().items():
        with pytest.raises(images.BadImage, match='more than 8 bits per channel .*scale it to 8 bits'):
            pytest.fail(f'{kind}: accepted as {images.Encoded(data).pixels().max()}')


def test_8_bits_and_fewer_are_read_in_every_format():
    photo = Image.open(PHOTO).convert('RGB').reduce(8)
    written = {kind: encoded(photo, kind) for kind in ('BMP', 'ICO', 'JPEG', 'JPEG2000', 'PNG', 'PPM', 'TIFF')}
    written |= {'GIF': encoded(photo, 'GIF'), 'AVIF': encoded(photo, 'AVIF', quality=95)}
    written |= {'WEBP': encoded(photo, 'WEBP', quality=95), 'MPO': encoded(photo, 'MPO', save_all=True, quality=95)}
    for mode in ('1', 'L', 'LA', 'P', 'PA', 'RGBA'):
        written[f'PNG {mode}'] = encoded(photo.convert(mode) if mode != 'PA' else photo.convert('P'), 'PNG')
    written['bitmap'] = encoded(photo.convert('1'), 'PPM')
    for kind, data in written.items():
        pixels, grey = images.Encoded(data).pixels(), kind in ('PNG 1', 'PNG L', 'PNG LA', 'bitmap')
        expected = np.asarray(photo.convert('L' if grey else 'RGB').convert('RGB').resize(pixels.shape[1::-1]))
        assert abs(float(pixels.mean()) - float(expected.mean())) < 6, kind
        assert close(pixels, expected) < {'PNG 1': 110, 'bitmap': 110, 'PNG P': 20, 'PNG PA': 20}.get(kind, 8), kind


def test_an_orientation_is_ignored_in_every_format():
    """As in torchvision; Pillow alone would turn TIFFs."""
    photo = Image.open(PHOTO).convert('RGB').reduce(8)
    for orientation in range(1, 9):
        tag = Image.Exif()
        tag[ExifTags.Base.Orientation] = orientation
        for kind in ('JPEG', 'PNG', 'TIFF', 'WEBP', 'AVIF'):
            image = images.Encoded(encoded(photo, kind, exif=tag, quality=95))
            assert (image.height, image.width) == (photo.height, photo.width), (kind, orientation)
            assert close(image.pixels(), np.asarray(photo)) < 6, (kind, orientation)


@pytest.mark.parametrize('size', [(1, 60000), (60000, 1), (3, 3001)])
def test_an_extremely_thin_image_is_bad(size):
    with pytest.raises(images.BadImage, match=f'{size[0]}x{size[1]} pixels: one side is more than 1000 times'):
        images.centre_crop(real_data.png(Image.new('RGB', size)), 224, 256)


@pytest.mark.parametrize('size', [(1, 1000), (700, 1), (20, 19000)])
def test_of_a_thin_image_only_the_centre_is_resized(size):
    """Resized whole to a shorter side of 2000, the first would have four billion pixels."""
    ramp = np.linspace(0, 255, max(size)).astype(np.uint8)
    pixels = np.repeat(ramp[:, None], min(size), 1)
    image = Image.fromarray(pixels if size[1] > size[0] else pixels.T).convert('RGB')
    crop = images.centre_crop(real_data.png(image), 64, 2000)
    assert crop.shape == (64, 64, 3)
    assert close(crop, np.full_like(crop, 127)) < 2
    for scale in (0.08, 1.0):
        assert images.random_resized_crop(real_data.png(image), 64, np.random.default_rng(0), scale).shape == crop.shape


def test_the_part_that_is_resized_is_that_of_the_whole(monkeypatch):
    expected = images.centre_crop(PHOTO.read_bytes(), 64, 73)
    monkeypatch.setattr(images, 'MAX_RESIZED', 0)
    assert close(images.centre_crop(PHOTO.read_bytes(), 64, 73), expected) < 0.1


def test_grey_crops_are_those_of_the_colours():
    colours = images.centre_crop(PHOTO.read_bytes(), 48, 60)
    grey = images.centre_crop(PHOTO.read_bytes(), 48, 60, channels=1)
    assert grey.shape == (48, 48, 1) and close(grey[..., 0], np.asarray(Image.fromarray(colours).convert('L'))) < 1
    random = images.random_resized_crop(PHOTO.read_bytes(), 48, np.random.default_rng(0), channels=1)
    assert random.shape == (48, 48, 1)
    digit = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    assert np.array_equal(images.whole(real_data.png(digit), (16, 16, 1))[..., 0], np.asarray(digit))


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

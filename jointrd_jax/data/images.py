"""Encoded images to RGB pixels on the host: decoding, random-resized crops, centre crops.

Baseline and progressive JPEGs, RGB or grey, go through libjpeg-turbo with power-of-two scaled decoding;
everything else (CMYK JPEGs, PNG whatever its file is called, ...) through Pillow. No JAX here: this
module runs in the input workers.
"""

import io
import math

import cv2
import numpy as np
import simplejpeg
from PIL import Image

MAX_PIXELS = 100_000_000  # more is a mistake or an attack: refused from the header, before any allocation
SCALE = (0.08, 1.0)  # of RandomResizedCrop: the crop's share of the image's area
RATIO = (3 / 4, 4 / 3)  # of RandomResizedCrop: width / height
TRIES = 10  # of RandomResizedCrop, before it falls back to a central crop

Box = tuple[int, int, int, int]  # top, left, height, width


class BadImage(Exception):
    """An image or record that cannot be used; its text is the reason, without the name."""


class Encoded:
    """An encoded image whose header has been read.

    Args:
      data: the file's bytes.

    Attributes:
      height: in pixels.
      width: in pixels.

    Raises:
      BadImage: not an image, larger than MAX_PIXELS, or of pixels that do not fit 8 bits.
    """

    def __init__(self, data: bytes):
        self.data = data
        self.image = None  # Pillow's, where libjpeg-turbo does not serve
        try:
            if not data.startswith(b'\xff\xd8'):
                raise ValueError
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=False)
            self.height, self.width = int(height), int(width)
            if colours not in ('YCbCr', 'Gray', 'RGB'):
                raise ValueError
        except (ValueError, KeyError):  # simplejpeg's KeyError: a header without subsampling
            self.image = open_with_pillow(data)
            self.width, self.height = self.image.size
        if self.height * self.width > MAX_PIXELS:
            raise BadImage(f'{self.width}x{self.height} pixels, more than the {MAX_PIXELS:,} accepted')

    def pixels(self, shrink: int = 1) -> np.ndarray:
        """The image as uint8 [height, width, 3]; each side divided by `shrink` (1, 2, 4, 8) where the format can."""
        if self.image is None:
            try:
                return simplejpeg.decode_jpeg(
                    self.data, 'RGB', min_factor=shrink,
                    min_height=-(-self.height // shrink), min_width=-(-self.width // shrink),
                )  # fmt: skip
            except ValueError as error:
                if 'Premature end' in str(error):
                    raise BadImage('cut off: its data ends too early') from error
        # A few of ImageNet's JPEGs have stray bytes between markers: simplejpeg stops there, Pillow passes over them.
        image = self.image or open_with_pillow(self.data)
        try:
            return np.asarray(image.convert('RGB'))
        except (OSError, ValueError, SyntaxError) as error:
            raise BadImage(f'cannot be decoded ({error})') from error


def open_with_pillow(data: bytes) -> Image.Image:
    """Pillow's image of any format it knows, its header read and its pixels not yet."""
    Image.MAX_IMAGE_PIXELS = None  # `Encoded` has the stricter check
    try:
        image = Image.open(io.BytesIO(data))
    except (OSError, ValueError, SyntaxError) as error:
        raise BadImage('empty' if not data else 'not an image') from error
    if image.mode.startswith(('I', 'F')):  # Pillow would cut all above 255 down to it
        raise BadImage('has more than 8 bits per channel')
    return image


def random_box(height: int, width: int, rng: np.random.Generator) -> Box:
    """The crop of torchvision's RandomResizedCrop with its default scale and ratio."""
    log_ratio = np.log(RATIO)
    for _ in range(TRIES):
        area = height * width * rng.uniform(*SCALE)
        ratio = math.exp(rng.uniform(*log_ratio))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(rng.integers(height - crop_height + 1))
            left = int(rng.integers(width - crop_width + 1))
            return top, left, crop_height, crop_width
    crop_height = min(height, max(1, round(width / RATIO[0])))
    crop_width = min(width, max(1, round(height * RATIO[1])))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def shrink_factor(height: int, width: int, target_height: int, target_width: int) -> int:
    """The largest power of two up to 8 that leaves both sides at least as long as the target's."""
    factor = 1
    while factor < 8 and height >= 2 * factor * target_height and width >= 2 * factor * target_width:
        factor *= 2
    return factor


def random_resized_crop(data: bytes, size: int, rng: np.random.Generator) -> np.ndarray:
    """torchvision's RandomResizedCrop(size): uint8 [size, size, 3], resized bilinearly."""
    image = Encoded(data)
    top, left, height, width = random_box(image.height, image.width, rng)
    shrink = shrink_factor(height, width, size, size)
    pixels = image.pixels(shrink)
    rows, columns = pixels.shape[0] / image.height, pixels.shape[1] / image.width
    top, bottom = int(top * rows), math.ceil((top + height) * rows)
    left, right = int(left * columns), math.ceil((left + width) * columns)
    return cv2.resize(pixels[top:bottom, left:right], (size, size), interpolation=cv2.INTER_LINEAR)


def centre_crop(data: bytes, size: int, resize: int) -> np.ndarray:
    """torchvision's Resize(resize) of the shorter side and CenterCrop(size): uint8 [size, size, 3].

    Exactly so, by Pillow and from the full-size image: accuracies are to be comparable with published ones.
    """
    image = Encoded(data)
    shorter = min(image.height, image.width)
    height, width = image.height * resize // shorter, image.width * resize // shorter
    top, left = round((height - size) / 2), round((width - size) / 2)
    resized = Image.fromarray(image.pixels()).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized)[top : top + size, left : left + size]


def whole(data: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    """The image as uint8 of exactly `shape` [H, W, 1 or 3].

    Raises:
      BadImage: also for an image of another height or width.
    """
    image = Encoded(data)
    if (image.height, image.width) != tuple(shape[:2]):
        raise BadImage(f'{image.width}x{image.height} pixels where {shape[1]}x{shape[0]} are expected')
    pixels = image.pixels()
    # Pillow and libjpeg-turbo repeat a grey image's one channel, so the first is all of it.
    return pixels if shape[2] == 3 else pixels[:, :, :1]

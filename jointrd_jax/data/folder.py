"""A directory of images: DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg, or DIR/CLASS/*.jpg to be split.

Images may lie at any depth below their class folder, as for torchvision's ImageFolder. `layout` says which folders
are splits and which classes, `class_folders` what is in them.
"""

import hashlib
import os
from collections import Counter
from pathlib import Path

import ml_collections
import numpy as np

from jointrd_jax.data import bucket_copy, class_folders, in_memory, layout
from jointrd_jax.data.base import Dataset
from jointrd_jax.data.class_folders import Tree
from jointrd_jax.data.folds import in_fold, name_of_split
from jointrd_jax.data.sources import Folder
from jointrd_jax.data.streaming import Streaming
from jointrd_jax.errors import UserError
from jointrd_jax.system import buckets
from jointrd_jax.system.notices import say_once


def load(config: ml_collections.ConfigDict) -> Dataset:
    """The images under `config.dataset.data_dir`; classes are the folders' names, sorted.

    Small images of one size are kept in memory, as those of a TFDS dataset are; others are streamed.

    Raises:
      UserError: no such directory, an empty one, an empty class, or classes that differ between train and val.
    """
    settings = config.dataset
    root = root_of(settings)
    if not settings.data_dir or not root.is_dir():
        raise UserError(
            f'dataset.data_dir={settings.data_dir!r} is not a directory; dataset.name=folder reads DIR/train/CLASS/*'
            ' and DIR/val/CLASS/*, or DIR/CLASS/*'
        )
    if (root / 'dataset_info.json').is_file():
        raise UserError(
            f'{root} is a prepared TFDS dataset, not a folder of images: set dataset.name to {root.parent.name} and '
            f'dataset.data_dir to {root.parent.parent}'
        )
    train, evaluation = read(root, settings)
    name = identity(*((train, evaluation) if evaluation else (train,)))
    if settings.fold:
        if evaluation:
            raise UserError(
                f'dataset.fold={settings.fold}: {root} has images to evaluate on of its own, in {evaluation.root}; '
                'set dataset.data_dir to a folder of all images'
            )
        evaluated = in_fold(settings.fold, len(train))
        name = name_of_split(name, 'fold', settings.fold)
        train, evaluation = part(train, ~evaluated), part(train, evaluated)
    elif settings.validation_size:
        evaluation = None
    elif evaluation is None:
        name = name_of_split(name, 'eval_fraction', settings.eval_fraction)
        train, evaluation = split(train, settings.eval_fraction)
    sources = [train, evaluation] if evaluation else [train]
    size = in_memory.common_size(sources) if settings.in_memory != 'never' else (None, None)
    if in_memory.wanted(settings, size, sum(map(len, sources)), name) and size[0] and size[1]:
        return in_memory.load(name, train, evaluation, (size[0], size[1], None), None, config)
    return Streaming(name, train, evaluation, config)


def read(root: Path, settings: ml_collections.ConfigDict) -> tuple[Folder, Folder | None]:
    """The images to train on, and those to evaluate on if they have a folder of their own."""
    try:
        held_out = settings.validation_size > 0
        splits = layout.find(root, settings.train_split, settings.eval_split, held_out)
    except OSError as error:
        raise UserError(f'{error.filename}: cannot be read ({error.strerror})') from error
    train = class_folders.scan(splits.train)
    if splits.evaluation is None:
        classes = class_folders.one_tree(train, settings.classes)
        trees = [train]
    else:
        evaluation = class_folders.scan(splits.evaluation, fewest=1)
        classes = class_folders.two_trees(train, evaluation, settings.classes)
        trees = [train, evaluation]
    for note in notes(root, splits, trees, classes):
        say_once(f'{root}: {note}')
    found = [source(tree, classes) for tree in trees]
    return found[0], found[1] if len(found) > 1 else None


def root_of(settings: ml_collections.ConfigDict) -> Path:
    """The directory of the images, on the disk."""
    with buckets.answering(settings.data_dir):
        return bucket_copy.local(buckets.place(settings.data_dir)).expanduser()


def has_test_images(settings: ml_collections.ConfigDict) -> bool:
    """Whether the folder has a split to evaluate on, whatever dataset.validation_size says."""
    root = root_of(settings)
    return root.is_dir() and layout.find(root, settings.train_split, settings.eval_split, True).has_evaluation


def source(tree: Tree, classes: tuple[str, ...]) -> Folder:
    """The images of `classes` in a tree."""
    paths = [os.fsencode(path) for name in classes for path in tree.files.get(name, [])]
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(tree.files.get(name, [])) for name in classes])
    return Folder(tree.root.name, tree.root, classes, np.array(paths), labels)


def notes(root: Path, splits: layout.Splits, trees: list[Tree], classes: tuple[str, ...]) -> list[str]:
    """Notices for the user of how a folder was read."""
    found = []
    used = [Path(os.path.relpath(tree.root, root)) for tree in trees]
    if splits.train != root:
        left = [name for name in layout.folders(root) if all(name != path.parts[0] for path in used)]
        evaluated = f'evaluating on {used[1]}' if len(used) > 1 else 'images of it are held out for evaluation'
        if used != [Path('train'), Path('val')] or any(layout.kind_of(name)[0] is None for name in left):
            found.append(f'training on {used[0]}, {evaluated}' + (f'; not read: {layout.listed(left)}' if left else ''))
    if others := class_folders.passed_over(sum((tree.others for tree in trees), Counter())):
        found.append(others)
    if twins := class_folders.twins(classes):
        found.append(f'classes whose names differ by case, white space or Unicode normal form only: {", ".join(twins)}')
    if len(trees) > 1:
        absent = [name for name in classes if not trees[1].files.get(name)]
        extra = [name for name, files in trees[1].files.items() if files and name not in classes]
        found += [f'no images to evaluate on of {layout.listed(absent)}'] if absent else []
        found += [f'no classes of training, not evaluated on: {layout.listed(extra)}'] if extra else []
    elif empty := trees[0].empty():
        found.append(f'folders without images, no classes: {layout.listed(empty)}')
    return found


def identity(*folders: Folder) -> str:
    """The name of a folder in results: the same wherever it lies, another if a file is added, removed or renamed."""
    digest = hashlib.sha256()
    for folder in folders:
        digest.update(repr((folder.classes, folder.paths.dtype, len(folder))).encode())
        digest.update(folder.paths.tobytes())  # in the order of scan; a path names its class
    return f'folder:{digest.hexdigest()[:12]} ({len(folders[0].classes)} classes)'


def split(images: Folder, fraction: float) -> tuple[Folder, Folder]:
    """The images to train on, and the same share of every class (at least one image of each on both sides) held out.

    Always the same images.

    Raises:
      UserError: a class has a single image.
    """
    evaluated = np.zeros(len(images), bool)
    rng = np.random.default_rng(0)
    for label, name in enumerate(images.classes):
        members = np.flatnonzero(images.labels == label)
        if len(members) < 2:
            raise UserError(
                f'{images.root}/{name}: one image cannot be split into training and evaluation; add some, or a '
                'folder of images to evaluate on'
            )
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        evaluated[rng.permutation(members)[:count]] = True
    return part(images, ~evaluated), part(images, evaluated)


def part(images: Folder, chosen: np.ndarray) -> Folder:
    """Those of the images where `chosen` is True."""
    return Folder(images.name, Path(images.root), images.classes, images.paths[chosen], images.labels[chosen])

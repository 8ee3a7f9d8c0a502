"""Which of a directory's folders are splits and which are classes, by their names and by what they hold.

Classes hold images. Splits hold folders and have a split's name (train, Training, seg_train, train_images, ...; doubled
as train/train too). Folders that can be neither are refused; nothing is guessed.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from jointrd_jax.data.sources import IMAGE_SUFFIXES
from jointrd_jax.errors import UserError

SPLITS = {
    'train': ('train', 'training', 'trainset', 'trainingset', 'trn'),
    'val': ('val', 'valid', 'validation', 'validate', 'dev', 'eval', 'evaluation', 'valset', 'validset', 'devset'),
    'test': ('test', 'testing', 'testset', 'tst'),
}
KIND = {word: kind for kind, words in SPLITS.items() for word in words}
# Words that may stand beside a split's in a folder's name, and names of folders that hold no class.
CONTENT = {
    'set', 'split', 'data', 'dataset', 'image', 'images', 'img', 'imgs', 'jpg', 'jpeg', 'jpegs', 'png', 'pngs',
    'folder', 'pic', 'pics', 'picture', 'pictures', 'photo', 'photos', 'raw', 'original',
}  # fmt: skip
ANNOTATIONS = {
    'mask', 'masks', 'label', 'labels', 'annotation', 'annotations', 'segmentation', 'segmentations', 'bbox', 'bboxes',
    'groundtruth', 'gt',
}  # fmt: skip
FOLD = re.compile(r'(cv|fold|split)s?[ _-]?\d+', re.IGNORECASE)
# Folders and files of systems, network storage and notebooks; what begins with a dot is hidden as well.
SYSTEM = {
    '@eadir', '@recycle', '@tmp', '@sharebin', '@recently-snapshot', '#recycle', '#snapshot', '__macosx', '__pycache__',
    '$recycle.bin', 'lost+found', 'system volume information', 'network trash folder', 'temporary items', 'thumbs.db',
    'ehthumbs.db', 'desktop.ini', 'icon\r',
}  # fmt: skip


class Splits(NamedTuple):
    """Where the class folders of a dataset are.

    Attributes:
      train: to train on.
      evaluation: to evaluate on; None if images are held out of `train`.
      has_evaluation: whether there is a folder to evaluate on, used or not.
    """

    train: Path
    evaluation: Path | None
    has_evaluation: bool


def is_data(name: str) -> bool:
    """Whether a file or folder of this name is data, not one of the operating system's."""
    return not name.startswith('.') and name.lower() not in SYSTEM


def is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def entries(directory: Path | str) -> Iterator[os.DirEntry]:
    """What lies in a directory, without the operating system's own files."""
    with os.scandir(directory) as found:
        yield from (entry for entry in found if is_data(entry.name))


def folders(directory: Path) -> list[str]:
    return sorted(entry.name for entry in entries(directory) if entry.is_dir())


def holds_images(directory: Path) -> bool:
    """Whether there is an image in `directory` itself, not only below it."""
    return any(is_image(entry.name) and not entry.is_dir() for entry in entries(directory))


def kind_of(name: str) -> tuple[str | None, frozenset[str]]:
    """('train', 'val', 'test' or None, the other words of the name)."""
    words = re.findall('[a-z]+', re.sub(r'([a-z])([A-Z])', r'\1 \2', name).lower())
    kinds = {KIND[word] for word in words if word in KIND}
    return (kinds.pop() if len(kinds) == 1 else None), frozenset(w for w in words if w not in KIND)


def listed(names: Sequence[str], most: int = 20) -> str:
    """Names in a message, in full up to `most`."""
    shown = ', '.join(name if name.isprintable() else ascii(name) for name in names[:most])
    return shown + (f' and {len(names) - most} more' if len(names) > most else '')


def find(root: Path, train: str = '', evaluation: str = '', held_out: bool = False) -> Splits:
    """The splits of `root`, or `root` itself where its folders are classes.

    Args:
      train: the folder to train on, below `root`, or what TFDS calls it ('validation' for val); '': by the names.
      evaluation: the same for the one to evaluate on.
      held_out: training images will be held out, so that no folder to evaluate on is needed.

    Raises:
      UserError: folders that are neither classes nor splits that could be told apart.
    """
    names = folders(root)
    train, evaluation = asked(root, train, 'train_split'), asked(root, evaluation, 'eval_split')
    kinds = {name: kind_of(name) for name in names}
    nested = [name for name in names if folders(root / name)]

    def called(*wanted: str) -> list[str]:
        return [name for kind in wanted for name in nested if kinds[name][0] == kind]

    trains = [train] if train else called('train')
    if trains and (evaluation or called('val', 'test')):
        first = the_one(root, trains, 'train_split', kinds)
        if held_out:
            return Splits(inner(root / first), None, True)
        chosen = evaluation or the_one(root, called('val') or called('test'), 'eval_split', kinds)
        return Splits(inner(root / first), inner(root / chosen), True)
    if evaluation and not trains:
        raise UserError(f'dataset.eval_split={evaluation!r}: {root} has no folder to train on; set dataset.train_split')
    others = [name for name in names if name not in trains and not kinds[name][0]]
    if trains and (train or not any(below(root / name) for name in others)):
        first = the_one(root, trains, 'train_split', kinds)
        unsorted = [name for name in names if kinds[name][0] == 'val' and holds_images(root / name)]
        if unsorted and not held_out:
            raise UserError(
                f'{root / unsorted[0]} has no class folders, unlike {root / first}: sort its images into class '
                'folders, or set dataset.validation_size to hold out training images'
            )
        return Splits(inner(root / first), None, False)
    only = names[0] if len(names) == 1 else None
    if only and not holds_images(root) and any(kind_of(name)[0] for name in folders(root / only)):
        return find(root / only, train, evaluation, held_out)
    if names and all(kinds[name][0] for name in names):
        if called('val', 'test') and not trains:
            raise UserError(f'{root} has {listed(names)} but no train; add it, or set dataset.train_split')
        raise UserError(f'{root}: no class folders in {listed(names)}; {WHERE}')
    beside_images = any(holds_images(root / name) for name in others)
    for name in nested:
        if kinds[name][0] and (beside_images or set(folders(root / name)) & set(names)):
            raise UserError(
                f'{root}: {name} holds folders as a split does, but {listed(others)} beside it hold images: move what '
                'does not belong there, or set dataset.train_split and dataset.eval_split'
            )
    return Splits(root, None, False)


WHERE = 'put images into DIR/train/CLASS/ and DIR/val/CLASS/, or DIR/CLASS/'


def the_one(root: Path, names: Sequence[str], field: str, kinds: dict) -> str:
    """The folder among those of one kind: the only one, or the only one with nothing else in its name.

    Raises:
      UserError: several would do.
    """
    for fitting in (names, [n for n in names if kinds[n][1] <= CONTENT], [n for n in names if not kinds[n][1]]):
        if len(fitting) == 1:
            return fitting[0]
    raise UserError(f'{root} has {listed(names)}: choose one with dataset.{field}')


def inner(split: Path) -> Path:
    """The folder in `split` if it is the only thing there and of the same kind (seg_train/seg_train), else `split`."""
    names = folders(split)
    if len(names) == 1 and kind_of(names[0])[0] == kind_of(split.name)[0] is not None and not holds_images(split):
        return inner(split / names[0])
    return split


def asked(root: Path, name: str, field: str) -> str:
    """The folder of `root` that a split's name asks for: the one called that, or the only one of its kind.

    Raises:
      UserError: there is none.
    """
    if not name or (root / name).is_dir():
        return name
    kind, others = kind_of(name)
    same = [found for found in folders(root) if kind and not others and kind_of(found)[0] == kind]
    if len(same) == 1:
        return same[0]
    raise UserError(f'dataset.{field}={name!r}: {root} has the folders {listed(folders(root)) or "none"}')


def below(directory: Path) -> bool:
    """Whether there is any image in a directory or below it."""
    found = list(entries(directory))
    return any(is_image(e.name) and not e.is_dir() for e in found) or any(
        below(Path(e.path)) for e in found if e.is_dir(follow_symlinks=False)
    )


def check_classes(root: Path, names: Sequence[str], fewest: int, others: str) -> None:
    """Refuse folders that cannot be classes.

    Args:
      names: of the folders in `root`.
      fewest: how many classes there must be at least.
      others: what else lies in `root`, in words.

    Raises:
      UserError: too few, folds, images beside masks, or folders without images that all hold the same folders.
    """
    if len(names) < fewest:
        below = folders(root / names[0]) if names else []
        raise UserError(
            f'{root} needs a folder for each {"of at least two classes" if fewest > 1 else "class"}; it has: '
            f'{listed(names) or "none"}'
            + (f', which has the folders {listed(below)}' if below else '')
            + (f' ({others})' if others else '')
            + f'; {WHERE}'
        )
    if all(FOLD.fullmatch(name) for name in names):
        raise UserError(f'{root}: {listed(names)} are folds, not classes; {CHOOSE}')
    if all(name.lower() in CONTENT | ANNOTATIONS for name in names):
        raise UserError(f'{root}: {listed(names)} are not class folders; {WHERE}')
    inside: list[set[str]] = []
    for name in names:
        if holds_images(root / name):
            return
        inside.append(set(folders(root / name)))
    common, every = set.intersection(*inside), set.union(*inside)
    if len(common) > 1 and 2 * len(common) >= len(every):
        raise UserError(
            f'{root}: {listed(names)} hold no images themselves and all hold the folders {listed(sorted(common))}, so '
            f'they cannot be classes; {CHOOSE}'
        )


CHOOSE = (
    'name the folders to train and to evaluate on with dataset.train_split and dataset.eval_split, or set '
    'dataset.data_dir to one of them'
)

"""The images below class folders: which classes there are, in which order, and whether two trees have the same."""

import collections
import decimal
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from jointrd_jax.data.layout import check_classes, entries, is_image, listed
from jointrd_jax.errors import UserError

NUMBER = re.compile(r'-?\d+(\.\d+)?', re.ASCII)
ENDING = re.compile(r'\.\w{1,8}')
SHOWN = 6  # endings of files passed over


class Tree(NamedTuple):
    """What is below a folder of class folders.

    Attributes:
      root: the folder.
      files: {class: its images as CLASS/.../FILE, sorted}, the classes in label order, empty ones too.
      others: how many files that are not images there are, by their ending.
    """

    root: Path
    files: dict[str, list[str]]
    others: collections.Counter

    def empty(self) -> list[str]:
        return [name for name, files in self.files.items() if not files]


def scan(root: Path, fewest: int = 2) -> Tree:
    """Every image below the class folders of `root`, but for hidden files and those that operating systems leave.

    Args:
      fewest: how many classes there must be at least.

    Raises:
      UserError: fewer classes, folders that cannot be classes (see `layout.check_classes`), a class whose name cannot
        be written, or a folder that cannot be read.
    """
    others: collections.Counter = collections.Counter()
    try:
        names = []
        for entry in entries(root):
            if entry.is_dir():
                names.append(entry.name)
            else:
                others[ending(entry)] += 1
        check_classes(root, sorted(names), fewest, passed_over(others))
        for name in names:
            if any(unicodedata.category(char) in ('Cc', 'Cs') for char in name):
                raise UserError(
                    f'{root}: the class folder {os.fsencode(name)!r} has a name that is not UTF-8 or holds control '
                    'characters; rename it'
                )
        files = {name: sorted(images_below(root / name, name, others, ())) for name in sorted(names, key=order)}
    except OSError as error:
        raise UserError(f'{error.filename}: cannot be read ({error.strerror})') from error
    return Tree(root, files, others)


def order(name: str) -> tuple:
    """A sort key: numbers sort as numbers (9 before 10) and before names, names by code point."""
    return (0, decimal.Decimal(name), name) if NUMBER.fullmatch(name) else (1, decimal.Decimal(0), name)


def ending(entry: os.DirEntry) -> str:
    """The ending under which a file that is passed over is counted."""
    if entry.is_symlink() and not os.path.exists(entry.path):
        return 'broken links'
    if is_image(entry.name):
        return 'images beside the class folders'
    suffix = os.path.splitext(entry.name)[1].lower()
    return suffix if ENDING.fullmatch(suffix) else 'without ending'


def images_below(directory: Path, prefix: str, others: collections.Counter, above: tuple) -> Iterator[str]:
    """The images of a directory and those below it, as PREFIX/.../FILE. Links are followed, files not opened.

    Args:
      others: other files are counted here.
      above: (device, inode) of each directory above this one.

    Raises:
      UserError: a link leads back to one of them.
    """
    stat = os.stat(directory)
    here = (stat.st_dev, stat.st_ino)
    if here in above:
        raise UserError(f'{directory} leads back to a folder that holds it; remove the link')
    for entry in entries(directory):
        path = f'{prefix}/{entry.name}'
        if is_image(entry.name) and not entry.is_dir(follow_symlinks=False):
            yield path
        elif entry.is_dir():
            yield from images_below(directory / entry.name, path, others, (*above, here))
        else:
            others[ending(entry)] += 1


def passed_over(others: collections.Counter) -> str:
    """'7 other files passed over: .jfif 5, .txt 2', or '' for none."""
    if not others:
        return ''
    most = ', '.join(f'{name} {count}' for name, count in others.most_common(SHOWN))
    more = f' and {len(others) - SHOWN} more endings' if len(others) > SHOWN else ''
    count = sum(others.values())
    return f'{count} other file{"s" if count > 1 else ""} passed over: {most}{more}'


def one_tree(tree: Tree, choice: str) -> tuple[str, ...]:
    """The classes of a folder that is trained on and evaluated on.

    Args:
      choice: config.dataset.classes; 'train': folders without images are passed over.

    Raises:
      UserError: an empty class folder with another choice, or fewer than two classes.
    """
    empty = tree.empty()
    if empty and choice != 'train':
        others = passed_over(tree.others)
        raise UserError(
            f'{tree.root}: no images in {listed(empty)}{f" ({others})" if others else ""}; remove folders that are not '
            'classes, or set dataset.classes=train to pass over folders without images'
        )
    return at_least_two(tree, [name for name, files in tree.files.items() if files])


def two_trees(train: Tree, evaluation: Tree, choice: str) -> tuple[str, ...]:
    """The classes of a folder with splits: those of `train`.

    Args:
      choice: config.dataset.classes; 'equal': `evaluation` must have images of the same classes; 'train': classes
        that it lacks are not evaluated on, others that it has are passed over.

    Raises:
      UserError: they differ; all the differences are named.
    """
    classes = [name for name, files in train.files.items() if files]
    if choice == 'equal':
        found = [name for name, files in evaluation.files.items() if files]
        missing = [name for name in classes if name not in found]
        extra = [name for name in found if name not in classes]
        differences = alike(missing, extra, train.root.name, evaluation.root.name)
        for names, tree in ((missing, evaluation), (extra, train)):
            named = [name for name in names if not any(repr_of(name) in text for text in differences)]
            absent, empty = [n for n in named if n not in tree.files], [n for n in named if n in tree.files]
            differences += [f'not in {tree.root.name}: {listed(absent)}'] if absent else []
            differences += [f'empty in {tree.root.name}: {listed(empty)}'] if empty else []
        both_empty = [name for name in train.empty() if name not in extra]
        differences += [f'empty in {train.root.name}: {listed(both_empty)}'] if both_empty else []
        if differences:
            raise UserError(
                f'{train.root.parent}: the class folders of {train.root.name} and {evaluation.root.name} differ '
                f'({"; ".join(differences)}); make them equal, or set dataset.classes=train to evaluate on those '
                f'classes of {train.root.name} that have evaluation images'
            )
    if not any(evaluation.files.get(name) for name in classes):
        raise UserError(f'{evaluation.root} has no image of a class of {train.root}')
    return at_least_two(train, classes)


def at_least_two(tree: Tree, classes: Sequence[str]) -> tuple[str, ...]:
    if len(classes) < 2:
        raise UserError(f'{tree.root} has images of {listed(classes) or "no class"} only; two classes are needed')
    return tuple(classes)


def repr_of(name: str) -> str:
    """A name in quotes, so that white space is seen, and in ASCII, so that Unicode normal forms are."""
    return ascii(name)


def alike(left: Sequence[str], right: Sequence[str], left_name: str, right_name: str) -> list[str]:
    """For a message, the pairs of names from the two sides that look the same, each with how they differ."""
    found = []
    for a in left:
        for b in right:
            for what, same in SPELLINGS:
                if same(a) == same(b):
                    found.append(
                        f'{repr_of(a)} in {left_name} is {repr_of(b)} in {right_name}, which differs by {what}'
                    )
                    break
    return found


def normal(name: str) -> str:
    return unicodedata.normalize('NFKC', name)


def without_space(name: str) -> str:
    return ''.join(normal(name).split())


SPELLINGS = (
    ('case', str.casefold),
    ('Unicode normal form', normal),
    ('white space', without_space),
    ('case, white space and Unicode normal form', lambda name: without_space(name).casefold()),
)


def twins(names: Iterable[str]) -> list[str]:
    """The classes of one folder whose names look the same."""
    names = sorted(names)
    keys = collections.Counter(without_space(name).casefold() for name in names)
    return [repr_of(name) for name in names if keys[without_space(name).casefold()] > 1]

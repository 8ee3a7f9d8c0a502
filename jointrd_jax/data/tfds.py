"""Any prepared TFDS image-classification dataset, read without TensorFlow and without the network."""

import difflib
import fnmatch
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from jointrd_jax.data import bucket_copy, in_memory
from jointrd_jax.data.base import Dataset
from jointrd_jax.data.folds import name_of_split
from jointrd_jax.data.sources import ArrayRecordFiles, Examples, Source
from jointrd_jax.data.streaming import Streaming
from jointrd_jax.data.tfrecord import TFRecordFiles
from jointrd_jax.errors import UserError
from jointrd_jax.system import buckets

# NAME, NAME/CONFIG, with :VERSION or, as TFDS writes full names, /VERSION
NAME = re.compile(r'(?P<name>\w+)(/(?!\d+\.\d+\.\d+$)(?P<config>[\w.+-]+))?([:/](?P<version>[\d.*]+))?')
VERSION = re.compile(r'\d+\.\d+\.\d+')
# The JointRD authors' constants; other in-memory datasets use their own training images'.
MEAN_STD = {
    'cifar10': ((0.49139968, 0.48215827, 0.44653124), (0.24703233, 0.24348505, 0.26158768)),
    'cifar100': ((0.50707519, 0.48654887, 0.44091785), (0.26733428, 0.25643846, 0.27615049)),
}
EVAL_SPLITS = ('test', 'validation')  # the first that there is, unless dataset.eval_split says another
UNLABELLED_TEST = ('imagenet2012',)  # from version 5.1.0 on: every label of its test split is -1
MANUAL_FILES = {'imagenet2012': ('ILSVRC2012_img_train.tar', 'ILSVRC2012_img_val.tar')}


def load(config: ml_collections.ConfigDict) -> Dataset:
    """The dataset `config.dataset.name` as prepared in `config.dataset.data_dir`.

    Its name is TFDS's: NAME, NAME/CONFIG, with :VERSION where another than the highest prepared one is
    wanted (5.*.* and the like are understood).

    Raises:
      UserError: not prepared (with the command that prepares it), damaged, or without images, labels or
        the splits asked for.
    """
    settings = config.dataset
    with buckets.answering(settings.data_dir):
        directory = bucket_copy.local(find(settings.name, settings.data_dir))
    info = read_info(directory)
    image, label = image_and_label(info)
    check_pixels(info, image)
    classes = tuple(info.features[label].names or ())

    def source(field: str, wanted: str, preferred: tuple[str, ...]) -> Source:
        split = pick_split(info, wanted, preferred, field)
        return Examples(split, classes, open_split(info, split, directory), image, label, field)

    eval_splits = EVAL_SPLITS[1:] if info.name in UNLABELLED_TEST else EVAL_SPLITS
    train = source('train_split', settings.train_split, ('train',))
    evaluation = None if settings.validation_size else source('eval_split', settings.eval_split, eval_splits)
    asked = [split for split in (settings.train_split, settings.eval_split) if split]
    name = name_of_split(info.full_name, 'splits', ' to '.join(asked))
    shape = info.features[image].shape
    if in_memory.wanted(settings, shape[:2], len(train) + (len(evaluation) if evaluation else 0), name):
        return in_memory.load(name, train, evaluation, shape, MEAN_STD.get(info.name), config)
    return Streaming(name, train, evaluation, config)


def default_directory() -> Path:
    """TFDS's default directory for datasets: $TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    return Path(os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets').expanduser()


def find(spec: str, data_dir: str) -> Path:
    """The directory of the highest prepared version of `spec` (NAME, NAME/CONFIG, with or without :VERSION)."""
    match = NAME.fullmatch(spec)
    if not match:
        raise UserError(f'dataset.name={spec!r} is not of the form NAME, NAME/CONFIG or NAME:VERSION')
    name, wanted_config, wanted = match['name'], match['config'], match['version'] or '*'
    root = buckets.place(data_dir).expanduser() if data_dir else default_directory()
    prepared: dict[str, dict[str, Path]] = {}
    for file in infos(root / name):
        *config, version = file.parent.relative_to(root / name).parts
        if VERSION.fullmatch(version):
            prepared.setdefault('/'.join(config), {})[version] = file.parent
    if wanted_config is None and len(prepared) > 1:
        raise UserError(
            f'dataset.name={spec!r}: several configurations are prepared under {root / name};'
            f' choose one of {", ".join(f"{name}/{config}" for config in sorted(prepared))}'
        )
    versions = prepared.get(wanted_config, {}) if wanted_config else next(iter(prepared.values()), {})
    if not versions and (misplaced := misplacement(root, name)):
        raise UserError(f'dataset.name={spec!r}: {misplaced}')
    fitting = [version for version in versions if fnmatch.fnmatchcase(version, wanted)]
    if not fitting:
        raise not_prepared(spec, name, wanted, root, sorted(versions))
    return versions[max(fitting, key=lambda version: [int(part) for part in version.split('.')])]


def misplacement(root: Path, name: str) -> str | None:
    """What is wrong with dataset.data_dir=`root` where it holds no prepared `name`, if that can be seen."""
    if not root.is_dir():
        return f'dataset.data_dir={root} is not a directory'
    if buckets.is_remote(root):
        return None
    above = [root, *root.absolute().parents[:3]]
    for depth, directory in enumerate(above):  # root is NAME, NAME/VERSION, NAME/CONFIG or NAME/CONFIG/VERSION
        if directory.name == name and depth < 3 and any(infos(directory)):
            return (
                f'dataset.data_dir={root} is too deep, it is {"" if not depth else "inside "}the directory of {name} '
                f'itself; set dataset.data_dir={directory.parent}'
            )
    for directory in sorted((root / name).glob('*')) + sorted((root / name).glob('*/*')):
        if VERSION.fullmatch(directory.name) and directory.is_dir():
            return (
                f'{directory} has no dataset_info.json, so it was copied in part or its preparation did not end; copy '
                f'it whole or run: {prepare_command(name, root)}'
            )
    deeper = next((d for d in sorted(root.glob(f'*/{name}')) if any(infos(d))), None)
    if deeper:
        return f'it is not in {root} but in {deeper.parent}; set dataset.data_dir={deeper.parent}'
    return None


def infos(dataset: Path) -> Iterator[Path]:
    """The metadata files of a dataset's prepared versions and configurations."""
    if buckets.is_remote(dataset):
        yield from buckets.find(dataset, 'dataset_info.json')
        return
    for pattern in ('*/dataset_info.json', '*/*/dataset_info.json'):
        yield from dataset.glob(pattern)


def not_prepared(spec: str, name: str, wanted: str, root: Path, versions: list[str]) -> UserError:
    """The error that says what is missing and how to get it; suggests names where TFDS knows none."""
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    if name not in known and not versions:
        close = difflib.get_close_matches(name, ['digits', 'folder', *known], n=3)
        hint = f'; did you mean {" or ".join(close)}?' if close else ''
        return UserError(
            f'dataset.name={spec!r} is neither digits, folder, a dataset under {root}, nor one of TFDS{hint}'
        )
    first = ''
    if name in MANUAL_FILES:
        first = f'put {" and ".join(MANUAL_FILES[name])} into {root / "downloads" / "manual"} and '
    return UserError(
        f'dataset {spec!r}, version {"any" if wanted == "*" else wanted}, is not prepared in {root / name}'
        f' (versions there: {", ".join(versions) or "none"}); {first}run: {prepare_command(spec, root)}'
    )


def prepare_command(spec: str, root: Path) -> str:
    return f'python -m jointrd_jax.prepare {spec} --data_dir {root}'


def read_info(directory: Path) -> Any:
    """TFDS's DatasetInfo of a prepared dataset, from the files beside its shards.

    Untyped, because TFDS annotates all features as their base class, without what images and labels have besides.
    """
    import tensorflow_datasets as tfds
    from absl import logging

    logging.set_verbosity(min(logging.get_verbosity(), logging.WARNING))  # TFDS logs every step
    try:
        return tfds.builder_from_directory(directory).info
    except Exception as error:  # TFDS raises whatever its parsers do
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f'{directory}: its metadata cannot be read ({reason}); prepare it again') from error


def image_and_label(info: Any) -> tuple[str, str]:
    """The names of the image feature and of the class-label feature."""
    import tensorflow_datasets as tfds

    features = dict(info.features.items()) if isinstance(info.features, tfds.features.FeaturesDict) else {}
    supervised = info.supervised_keys if len(info.supervised_keys or ()) == 2 else ()
    chosen = []
    for kind, what in ((tfds.features.Image, 'an image'), (tfds.features.ClassLabel, 'a class label')):
        names = [name for name, feature in features.items() if type(feature) is kind]
        preferred = [name for name in names if name in supervised]
        if len(preferred or names) != 1:
            raise UserError(
                f'{info.full_name} is not for image classification: it needs {what} feature'
                f'{" (one, not several)" if names else ""} and has {", ".join(sorted(features)) or "none"}'
            )
        chosen += preferred or names
    return chosen[0], chosen[1]


def check_pixels(info: Any, image: str) -> None:
    """Raise UserError for images that 8-bit RGB or grey cannot represent."""
    kind, channels = np.dtype(info.features[image].np_dtype), info.features[image].shape[-1]
    if kind != np.uint8 or channels not in (1, 3, None):
        raise UserError(
            f'the images of {info.full_name} are {kind} with {channels} channels; only uint8 with 1 or 3 can be read'
        )


def pick_split(info: Any, wanted: str, preferred: tuple[str, ...], field: str) -> str:
    """The split asked for (slices such as train[:90%] too), or the first of `preferred` that there is."""
    names = sorted(info.splits)
    split = wanted or next((name for name in preferred if name in names), None)
    if split is None:
        raise UserError(
            f'{info.full_name} has no split {" or ".join(preferred)} but {", ".join(names)}; set dataset.{field}'
            ' or hold out training images with dataset.validation_size'
        )
    try:
        size = info.splits[split].num_examples
    except (ValueError, KeyError, AssertionError) as error:
        raise UserError(f'dataset.{field}={split!r}: {info.full_name} has the splits {", ".join(names)}') from error
    if not size:
        raise UserError(f'split {split!r} of {info.full_name} is empty')
    return split


def open_split(info: Any, split: str, directory: Path) -> ArrayRecordFiles | TFRecordFiles:
    """The records of a split, whichever of the two formats they are stored in."""
    parts = [(os.fspath(part.filename), part.skip, part.take) for part in info.splits[split].file_instructions]
    readers = {'array_record': ArrayRecordFiles, 'tfrecord': TFRecordFiles}
    stored = info.file_format.value
    if stored not in readers:
        raise UserError(f'{directory}: stored as {stored}; only {" and ".join(readers)} can be read')
    return readers[stored](parts)

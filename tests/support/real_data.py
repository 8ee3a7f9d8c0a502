"""Real datasets of a few dozen real images, written as TFDS and ImageNet's folders hold them.

The images are those that come with foolbox's wheel: CIFAR-10, CIFAR-100 and ImageNet (20 each).
"""

import importlib.util
import io
import re
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from jointrd_jax import config as config_lib
from jointrd_jax.data.tfrecord import masked_crc

IMAGES = Path(importlib.util.find_spec('foolbox').submodule_search_locations[0]) / 'data'


def images(kind: str) -> list[tuple[Path, int]]:
    """(file, label) of the 20 images of 'cifar10', 'cifar100' or 'imagenet'."""
    found = sorted(IMAGES.glob(f'{kind}_*'))
    return [(path, int(re.fullmatch(r'\w+_\d+_(\d+)', path.stem)[1])) for path in found]


def pixels(path: Path) -> np.ndarray:
    """uint8 [H, W, 3], decoded by Pillow."""
    return np.asarray(Image.open(path).convert('RGB'))


def jpeg(image: Image.Image, **options) -> bytes:
    data = io.BytesIO()
    image.save(data, 'JPEG', **{'quality': 90, **options})
    return data.getvalue()


def png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, 'PNG')
    return data.getvalue()


def write_tfrecord(path: Path, records: list[bytes]) -> None:
    """One shard in TensorFlow's format."""
    with open(path, 'wb') as file:
        for data in records:
            length = len(data).to_bytes(8, 'little')
            for part in (length, data):
                file.write(part + masked_crc(part).to_bytes(4, 'little'))


def write_array_record(path: Path, records: list[bytes]) -> None:
    writer = ArrayRecordWriter(str(path), 'group_size:1')
    for data in records:
        writer.write(data)
    writer.close()


def write_tfds(
    data_dir: Path,
    name: str,
    splits: dict[str, list[list[dict]]],
    *,
    version: str = '3.0.2',
    config: str = '',
    features: dict | None = None,
    shape: tuple = (32, 32, 3),
    encoding: str = 'png',
    classes: list[str] | int = 10,
    file_format: str = 'array_record',
    supervised: tuple[str, str] | None = ('image', 'label'),
) -> Path:
    """A dataset directory as TFDS prepares it: {split: [examples of a shard, ...]} with metadata and features."""
    directory = data_dir / name / config / version
    directory.mkdir(parents=True)
    label = tfds.features.ClassLabel(**({'num_classes': classes} if isinstance(classes, int) else {'names': classes}))
    features = tfds.features.FeaturesDict(
        features or {'image': tfds.features.Image(shape=shape, encoding_format=encoding), 'label': label}
    )
    write = {'array_record': write_array_record, 'tfrecord': write_tfrecord}[file_format]
    infos = []
    for split, shards in splits.items():
        template = tfds.core.ShardedFileTemplate(
            dataset_name=name, data_dir=directory, split=split, filetype_suffix=file_format
        )
        for number, part in enumerate(shards):
            path = Path(template.sharded_filepath(shard_index=number, num_shards=len(shards)))
            write(path, [features.serialize_example(features.encode_example(example)) for example in part])
        lengths = [len(part) for part in shards]
        infos.append(tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=0, filename_template=template))
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=name, version=tfds.core.Version(version), data_dir=str(directory), module_name='tests',
        config_name=config or None,
    )  # fmt: skip
    info = tfds.core.DatasetInfo(builder=identity, features=features, supervised_keys=supervised)
    info.set_file_format(file_format)
    info.set_splits(tfds.core.splits.SplitDict(infos))
    info.write_to_directory(directory)
    return directory


def examples(kind: str, classes: int | None = None) -> list[dict]:
    """The 20 images as encoded files with labels (modulo `classes`)."""
    return [
        {'image': io.BytesIO(path.read_bytes()), 'label': label % (classes or 1000)} for path, label in images(kind)
    ]


def cifar10(data_dir: Path, **options) -> Path:
    """16 training images in two shards and 4 test images."""
    found = examples('cifar10')
    return write_tfds(data_dir, 'cifar10', {'train': [found[:10], found[10:16]], 'test': [found[16:]]}, **options)


def imagenet(data_dir: Path, **options) -> Path:
    """14 training images in three shards and 6 validation images, each under its ImageNet label."""
    found = examples('imagenet')
    splits = {'train': [found[:5], found[5:9], found[9:14]], 'validation': [found[14:]]}
    options = {'version': '5.0.0', 'shape': (None, None, 3), 'encoding': 'jpeg', 'classes': 1000, **options}
    return write_tfds(data_dir, 'imagenet2012', splits, **options)


def folder(root: Path, train: int = 6, val: int = 2, classes: tuple[str, ...] = ('cat', 'dog')) -> Path:
    """ImageNet images dealt out to class folders under train/ and val/."""
    found = [path for path, _ in images('imagenet')]
    for split, count in (('train', train), ('val', val)):
        for number in range(count):
            path = root / split / classes[number % len(classes)] / f'{number:03}.jpg'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(found[number if split == 'train' else -1 - number].read_bytes())
    return root


def config(name: str, data_dir: Path, **fields):
    """A config for reading a fixture; fields of `dataset` and, where there is none, of the config itself."""
    made = config_lib.default()
    made.dataset.name, made.dataset.data_dir = name, str(data_dir)
    made.batch_size, made.eval_batch_size, made.dataset.workers = 4, 4, 0
    made.dataset.image_size, made.dataset.resize = 64, 72
    for field, value in fields.items():
        node = made.dataset if field in made.dataset else made
        node[field] = value
    return made

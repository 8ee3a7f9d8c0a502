"""Prepare a TFDS dataset for training, or copy a prepared one to ArrayRecord.

    jointrd prepare cifar10 --data_dir DIR
    jointrd prepare imagenet2012 --data_dir DIR      (after putting its two tar files there)
    jointrd prepare imagenet2012 --data_dir DIR --convert_to DIR2

Says first what it will download and how large that is. Needs the extra [prepare] (TensorFlow); --convert_to, which
copies a dataset that is prepared as TFRECORD to ArrayRecord, only [data]. Training reads both.
"""

from pathlib import Path

from absl import flags, logging

from jointrd_jax.errors import require

POSITIONAL = ('NAME',)


def define_flags(values: flags.FlagValues) -> None:
    from jointrd_jax.data.prepare import FORMATS

    flags.DEFINE_string('data_dir', None, "Where TFDS datasets are kept; by default TFDS's own.", flag_values=values)
    flags.DEFINE_enum('file_format', 'array_record', FORMATS, 'To store it in.', flag_values=values)
    flags.DEFINE_string('convert_to', None, 'Copy TFRECORD to ArrayRecord under this directory.', flag_values=values)


def main(given: flags.FlagValues, name: str) -> None:
    from jointrd_jax.data import prepare

    default_directory = require('jointrd_jax.data.tfds', 'data' if given.convert_to else 'prepare').default_directory
    logging.set_verbosity(logging.ERROR)  # TFDS logs every step
    data_dir = Path(given.data_dir or default_directory()).expanduser().absolute()
    if given.convert_to:
        directory = prepare.convert(name, data_dir, Path(given.convert_to).expanduser().absolute())
    else:
        directory = prepare.prepare(name, data_dir, given.file_format)
    root = prepare.directory_of(directory, name)
    print(f'ready: --config.dataset.name={name} --config.dataset.data_dir={root}')

"""Writes tests/data/tensorflow_written with TensorFlow itself: python tests/data/write_with_tensorflow.py

The result is committed, so that the tests check our reader against TensorFlow's writer without needing
TensorFlow (extra [prepare]). Images: CIFAR-10's, as they come with foolbox's wheel.
"""

from pathlib import Path

import tensorflow_datasets as tfds

from tests.support import real_data


class CifarSample(tfds.core.GeneratorBasedBuilder):
    """Sixteen CIFAR-10 images for training and four for testing."""

    pkg_dir_path = Path(__file__).parent
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
        features = {'image': tfds.features.Image(shape=(32, 32, 3)), 'label': tfds.features.ClassLabel(num_classes=10)}
        features = tfds.features.FeaturesDict(features)
        return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=('image', 'label'))

    def _split_generators(self, dl_manager):
        return {'train': self._generate_examples(0, 16), 'test': self._generate_examples(16, 20)}

    def _generate_examples(self, start, stop):
        for path, label in real_data.images('cifar10')[start:stop]:
            yield path.name, {'image': path, 'label': label}


if __name__ == '__main__':
    builder = CifarSample(data_dir=Path(__file__).parent / 'tensorflow_written', file_format='tfrecord')
    builder.download_and_prepare()

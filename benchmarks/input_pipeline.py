"""The ImageNet input pipeline against tf.data: images per CPU-second, both in one run.

    python benchmarks/input_pipeline.py            needs the extras [prepare] and [test]

Data: real photographs as 500x375 JPEGs (quality 90) in TFRECORD. Ours: one Grain worker, whole (reading, CRC,
parsing, decoding, random-resized crop, batches in this process). tf.data: TFRecordDataset, the same crops
(sample_distorted_bounding_box, decode_and_crop_jpeg, bilinear resize), uint8 batches. CPU time is that of this
process and the worker. Runs alternate; medians are compared.
"""

import io
import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.support import real_data

IMAGES, BATCH, STEPS, ROUNDS = 400, 128, 8, 5


def photographs() -> list[dict]:
    """IMAGES different 500x375 JPEGs, cut out of the real ImageNet images."""
    sources = [Image.open(path).convert('RGB') for path, _ in real_data.images('imagenet')]
    made = []
    for n in range(IMAGES):
        image, shift = sources[n % len(sources)], n // len(sources)
        box = (shift, shift, image.width - 20 + shift, image.height * 3 // 4 - 20 + shift)
        data = real_data.jpeg(image.resize((500, 375), Image.Resampling.BICUBIC, box))
        made.append({'image': io.BytesIO(data), 'label': n % 1000})
    return made


def cpu_seconds() -> float:
    """Of this process and its children."""
    processes = [psutil.Process(), *psutil.Process().children()]
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def rate(batches) -> float:
    """Images per CPU-second over STEPS batches, after two of warming up."""
    for _ in itertools.islice(batches, 2):
        pass
    started = cpu_seconds()
    for _ in itertools.islice(batches, STEPS):
        pass
    return STEPS * BATCH / (cpu_seconds() - started)


def ours(root: Path) -> tuple[float, float]:
    """(images per CPU-second, memory of the worker in MB: what it holds alone)."""
    from jointrd_jax import data

    config = real_data.config(
        'imagenet2012', root, workers=1, image_size=224, resize=256, batch_size=BATCH, eval_batch_size=BATCH
    )
    dataset = data.load(config)
    result = rate(dataset.train_batches(0))
    worker = max(psutil.Process().children(), key=lambda child: child.memory_info().rss)
    memory = worker.memory_full_info().uss / 2**20
    dataset.close()
    return result, memory


def tf_data(files: list[str]) -> float:
    import tensorflow as tf

    def prepare(record):
        features = {'image': tf.io.FixedLenFeature([], tf.string), 'label': tf.io.FixedLenFeature([], tf.int64)}
        example = tf.io.parse_single_example(record, features)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(example['image']), tf.zeros([1, 0, 4]), area_range=(0.08, 1),
            aspect_ratio_range=(3 / 4, 4 / 3), max_attempts=10, use_image_if_no_bounding_boxes=True,
        )  # fmt: skip
        window = tf.stack([begin[0], begin[1], size[0], size[1]])
        image = tf.image.decode_and_crop_jpeg(example['image'], window, channels=3)
        image = tf.cast(tf.image.resize(image, (224, 224), 'bilinear'), tf.uint8)
        return {'image': image, 'label': example['label']}

    dataset = tf.data.TFRecordDataset(files).shuffle(IMAGES).repeat()
    return rate(dataset.map(prepare, num_parallel_calls=1).batch(BATCH).prefetch(1).as_numpy_iterator())


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        found = photographs()
        root = Path(directory)
        options = {'version': '5.0.0', 'shape': (None, None, 3), 'encoding': 'jpeg', 'classes': 1000}
        splits = {'train': [found], 'test': [found[:1]]}
        path = real_data.write_tfds(root, 'imagenet2012', splits, file_format='tfrecord', **options)
        sizes = [len(example['image'].getvalue()) for example in found]
        print(f'{IMAGES} JPEGs of 500x375, {statistics.fmean(sizes) / 1000:.0f} kB on average')
        rates = {'ours': [], 'tf.data': []}
        for number in range(ROUNDS):
            started = time.monotonic()
            result, memory = ours(root)
            rates['ours'].append(result)
            rates['tf.data'].append(tf_data([str(file) for file in path.glob('*train*')]))
            shown = '  '.join(f'{name} {values[-1]:.0f}' for name, values in rates.items())
            print(f'round {number + 1}: {shown} images per CPU-second ({time.monotonic() - started:.0f} s)', flush=True)
        ratios = [a / b for a, b in zip(rates['ours'], rates['tf.data'])]
        for name, values in rates.items():
            print(f'{name:8} median {statistics.median(values):.0f} images per CPU-second')
        print(f'ratio: median {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}')
        print(f'memory of a worker: {memory:.0f} MB')


if __name__ == '__main__':
    main()

"""The ImageNet input pipeline against tf.data: images per CPU-second, both in one run.

    python benchmarks/input_pipeline.py            needs the extras [prepare] and [test]
    python benchmarks/input_pipeline.py --feed     to the device, by the thread that feeds a run and without it

Data: real photographs as 500x375 JPEGs (quality 90) in TFRECORD. Ours: one Grain worker, whole (reading, CRC,
parsing, decoding, random-resized crop, batches in this process). tf.data: TFRecordDataset, the same crops
(sample_distorted_bounding_box, decode_and_crop_jpeg, bilinear resize), uint8 batches. CPU time is that of this
process and the worker. Runs alternate; medians are compared.

--feed: batches are made, put on the device (`shard_batches`) and taken by steps, as a run does. In place of
a step's computation, a thread that takes the steps in turn, as an accelerator does, waits as long as making a batch
takes here, or half as long. A step counts as having waited for input if that thread had none left when its batch came.
"""

import collections
import contextlib
import io
import itertools
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from jointrd_jax.train import feed
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
    """CPU-seconds of this process and its children."""
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
    """(images per CPU-second, memory in MB that the worker shares with no other process)."""
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


def steps(groups, seconds: float, take) -> tuple[float, float]:
    """(images per second, share of steps that waited) over STEPS steps that each take the device so many seconds."""
    late, in_flight = 0, collections.deque()
    with ThreadPoolExecutor(1) as device:
        take(groups)
        began = time.monotonic()
        for _ in range(STEPS):
            batch = take(groups)
            late += bool(in_flight) and in_flight[-1].done()
            in_flight.append(device.submit(lambda batch: time.sleep(seconds), batch))
            if len(in_flight) > feed.IN_FLIGHT:
                in_flight.popleft().result()
        while in_flight:
            in_flight.popleft().result()
        return STEPS * BATCH / (time.monotonic() - began), late / (STEPS - 1)


def compare_feeds(root: Path) -> None:
    from jointrd_jax import data
    from jointrd_jax.train import step as step_lib

    config = real_data.config(
        'imagenet2012', root, workers=1, image_size=224, resize=256, batch_size=BATCH, eval_batch_size=BATCH
    )
    mesh = step_lib.make_mesh()
    with contextlib.closing(data.load(config)) as dataset:
        numbers = itertools.count()

        def groups():
            with contextlib.closing(dataset.train_batches(100 * next(numbers))) as batches:
                for batch in batches:
                    yield step_lib.shard_batches([batch], mesh)

        with contextlib.closing(groups()) as made:
            next(made)
            began = time.monotonic()
            for _ in range(STEPS):
                next(made)
            alone = (time.monotonic() - began) / STEPS
        print(f'making a batch of {BATCH} and putting it on the device: {alone:.3f} s, {BATCH / alone:.0f} images/s')
        for number, share in itertools.product(range(ROUNDS), (1, 0.5)):
            with contextlib.closing(groups()) as made:
                without = steps(made, share * alone, next)
            with contextlib.closing(feed.Feed(groups())) as fed:
                by_thread = steps(fed, share * alone, lambda fed: fed.take())
            shown = (f'{rate:.0f} images/s, {late:.0%} waited' for rate, late in (without, by_thread))
            print(
                'round {}, steps of {:.1f} batches: without {}; by a thread {}'.format(number + 1, share, *shown),
                flush=True,
            )


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        found = photographs()
        root = Path(directory)
        options = {'version': '5.0.0', 'shape': (None, None, 3), 'encoding': 'jpeg', 'classes': 1000}
        splits = {'train': [found], 'validation': [[{**found[0], 'image': io.BytesIO(found[0]['image'].getvalue())}]]}
        path = real_data.write_tfds(root, 'imagenet2012', splits, file_format='tfrecord', **options)
        sizes = [len(example['image'].getvalue()) for example in found]
        print(f'{IMAGES} JPEGs of 500x375, {statistics.fmean(sizes) / 1000:.0f} kB on average')
        if '--feed' in sys.argv:
            return compare_feeds(root)
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

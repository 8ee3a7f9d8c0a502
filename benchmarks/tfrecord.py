"""TFRECORD: building the index against reading the file once, and random reads against ArrayRecord's.

    python benchmarks/tfrecord.py            needs the extra [test]

Wall time with the files in the page cache, so it is our code that is measured and not the disk.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from jointrd_jax.data.sources import ArrayRecordFiles
from jointrd_jax.data.tfrecord import TFRecordFiles, scan
from tests.support import real_data

RECORDS, SIZE, ROUNDS = 2000, 100_000, 7


def seconds(run) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        rng = np.random.default_rng(0)
        records = [rng.bytes(SIZE) for _ in range(RECORDS)]  # as incompressible as JPEGs
        paths = {name: Path(directory) / name for name in ('tfrecord', 'array_record')}
        real_data.write_tfrecord(paths['tfrecord'], records)
        real_data.write_array_record(paths['array_record'], records)
        order = [int(i) for i in rng.permutation(RECORDS)]
        readers = {
            'TFRECORD, checksums checked': TFRecordFiles([(str(paths['tfrecord']), 0, RECORDS)]),
            'ArrayRecord': ArrayRecordFiles([(str(paths['array_record']), 0, RECORDS)]),
        }
        times = {name: [] for name in ('building the index', 'reading the file once', *readers)}
        for _ in range(ROUNDS):
            times['building the index'].append(seconds(lambda: scan(str(paths['tfrecord']))))
            times['reading the file once'].append(seconds(paths['tfrecord'].read_bytes))
            for name, reader in readers.items():
                times[name].append(seconds(lambda reader=reader: [reader[i] for i in order]))
        print(f'{RECORDS} records of {SIZE / 1000:.0f} kB; medians of {ROUNDS}')
        for name, values in times.items():
            middle = statistics.median(values)
            print(f'{name:30} {1000 * middle:8.1f} ms   {RECORDS / middle:9,.0f} records/s')


if __name__ == '__main__':
    main()

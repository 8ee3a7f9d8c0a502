"""Feed damaged and made-up files to the readers of data and weights: each must be read or refused, in bounded memory.

    python scripts/fuzz_readers.py --inputs 100000

A fifth of the inputs each: TFRECORD shards, cached shard indexes, .safetensors files, PyTorch files, images; and every
200th a checkpoint with a changed file under a seal that fits. They start as real ones and are cut, filled, spliced and
flipped; TFRECORD lengths and the sizes in .safetensors and .npy headers are also replaced by absurd ones whose
checksums are right. Anything but the readers' own errors (UserError, BadImage) is a finding; so is a request for more
than 1.5 GB, and more than 10 s of processor time for one input. Findings are kept in --keep. Exit status 1 if there
are any.
"""

import argparse
import collections
import dataclasses
import io
import json
import os
import random
import re
import resource
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ['JAX_PLATFORMS'] = 'cpu'

import jax
import numpy as np
import safetensors.numpy
import torch
from PIL import Image

from jointrd_jax import config as config_lib
from jointrd_jax.data import images, tfrecord
from jointrd_jax.errors import UserError
from jointrd_jax.runs import checkpoint, checkpoint_places, from_config, provenance, run_directory, seal, weights
from jointrd_jax.system import files
from jointrd_jax.train import gradients, history

MEMORY = 1536 << 20  # a decoded image of images.MAX_PIXELS takes 1.1 GB for a moment
SECONDS = 10
SEALED_EVERY = 200  # inputs: a checkpoint takes a thousand times as long as the others
ABSURD = (0, 1, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**40, 2**60, 2**63 - 1, 2**63, 2**64 - 1)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """`data` after a few random changes."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at, what = rng.randrange(len(changed) + 1), rng.randrange(6)
        if what == 0:
            del changed[at:]
        elif what == 1:
            del changed[at : at + rng.randrange(1, 20)]
        elif what == 2:
            changed[at:at] = rng.randbytes(rng.randrange(1, 20))
        elif what == 3 and changed:
            changed[at % len(changed)] ^= 1 << rng.randrange(8)
        elif what == 4:
            changed[at : at + 8] = struct.pack('<Q', rng.choice(ABSURD))
        else:
            changed[at:at] = changed[rng.randrange(len(changed) + 1) :][: rng.randrange(1, 200)]
    return bytes(changed)


def absurd_numbers(data: bytes, rng: random.Random) -> bytes:
    """A text header with some of its numbers replaced."""

    def number(match: re.Match) -> bytes:
        return str(rng.choice(ABSURD)).encode() if rng.random() < 0.1 else match[0]

    return re.sub(rb'\d+', number, data)


def record(data: bytes, length: int | None = None) -> bytes:
    """A TFRECORD record; `length` claims another one, with the right checksum."""
    header = struct.pack('<Q', len(data) if length is None else length)
    return header + struct.pack('<I', tfrecord.masked_crc(header)) + data + struct.pack('<I', tfrecord.masked_crc(data))


class Shards:
    """TFRECORD shards: scanned, and every record read."""

    def __init__(self, directory: Path):
        self.path = directory / 'shard.tfrecord'

    def make(self, rng: random.Random) -> bytes:
        records = [rng.randbytes(rng.randrange(60)) for _ in range(rng.randrange(1, 6))]
        lie = rng.randrange(12)
        data = b''.join(record(r, rng.choice(ABSURD) if i == lie else None) for i, r in enumerate(records))
        return data if lie < len(records) else mutated(data, rng)

    def read(self, data: bytes) -> None:
        self.path.write_bytes(data)
        records = tfrecord.TFRecordFiles([(str(self.path), 0, len(tfrecord.scan(str(self.path))) - 1)])
        for i in range(len(records)):
            records[i]


class Indexes:
    """The cached index of a good shard."""

    def __init__(self, directory: Path):
        self.path = directory / 'indexed' / 'shard.tfrecord'
        self.path.parent.mkdir()
        self.path.write_bytes(b''.join(record(bytes(n)) for n in range(5)))
        tfrecord.TFRecordFiles([(str(self.path), 0, 5)])
        (self.file,) = self.path.parent.glob('.index-*.npz')
        self.good = self.file.read_bytes()
        with np.load(self.file) as saved:
            self.arrays = dict(saved)

    def make(self, rng: random.Random) -> bytes:
        if rng.random() < 0.4:
            return mutated(self.good, rng)
        arrays = {name: array.copy() for name, array in self.arrays.items()}
        name = rng.choice(('offsets', 'lengths'))
        if rng.random() < 0.7:
            value = rng.choice([-1, *(n for n in ABSURD if n < 2**63)])
            arrays[name][rng.randrange(len(arrays[name]))] = value
        else:
            arrays[name] = rng.choice((np.zeros(0), np.zeros((2, 2)), np.array(3), np.array(['x']), np.array([np.nan])))
        file = io.BytesIO()
        np.savez(file, **arrays)
        return file.getvalue()

    def read(self, data: bytes) -> None:
        self.file.write_bytes(data)
        records = tfrecord.TFRecordFiles([(str(self.path), 0, 5)])
        for i in range(len(records)):
            records[i]


class Safetensors:
    """Weight files: opened, compared with the network that they seem to hold, and read if they fit."""

    def __init__(self, directory: Path):
        self.path = directory / 'weights.safetensors'
        rng = np.random.default_rng(0)
        network = weights.Network((1,), width=2, num_classes=3, stem_kind='cifar', shortcuts='none')
        shapes = weights.expected_shapes(network)
        arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        self.good = safetensors.numpy.save(arrays)

    def make(self, rng: random.Random) -> bytes:
        size = struct.unpack('<Q', self.good[:8])[0]
        header, body = self.good[8 : 8 + size], self.good[8 + size :]
        if rng.random() < 0.5:
            return mutated(self.good, rng)
        header = absurd_numbers(header, rng) if rng.random() < 0.6 else mutated(header, rng)
        return struct.pack('<Q', len(header)) + header + body

    def read(self, data: bytes) -> None:
        self.path.write_bytes(data)
        weights.load(self.path)


class Pickles:
    """PyTorch files of both formats, plain and as training scripts wrap them; half the changes are in the pickle."""

    def __init__(self, directory: Path):
        self.path = directory / 'weights.pth'
        network = weights.Network((1,), width=2, num_classes=3, stem_kind='cifar', shortcuts='none')
        arrays = {name: torch.zeros(shape) for name, shape in weights.expected_shapes(network).items()}
        below = {f'module.{name}': array.half() for name, array in arrays.items()}
        self.good = []
        for held in (arrays, {'state_dict': below, 'epoch': 3, 'optimizer': {'state': {}, 'param_groups': []}}):
            for zipped in (True, False):
                file = io.BytesIO()
                torch.save(held, file, _use_new_zipfile_serialization=zipped)
                self.good.append(file.getvalue())

    def make(self, rng: random.Random) -> bytes:
        good = rng.choice(self.good)
        start, length = good.find(b'\x80\x02'), 4096  # where a pickle begins
        if rng.random() < 0.5:
            return mutated(good, rng)
        return good[:start] + mutated(good[start : start + length], rng) + good[start + length :]

    def read(self, data: bytes) -> None:
        self.path.write_bytes(data)
        weights.load(self.path, ema=len(data) % 7 == 0)


class Images:
    """Encoded images: header and pixels."""

    def __init__(self, directory: Path):
        pixels = np.random.default_rng(0).integers(0, 255, (24, 31, 3), np.uint8)
        self.good = []
        for kind in images.FORMATS:
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, kind)
            self.good.append(file.getvalue())

    def make(self, rng: random.Random) -> bytes:
        return mutated(rng.choice(self.good), rng)

    def read(self, data: bytes) -> None:
        images.Encoded(data).pixels()


class Sealed:
    """A checkpoint with one changed file under a seal that fits: what somebody who means harm would send."""

    def __init__(self, directory: Path):
        self.run = directory / 'run'
        self.run.mkdir()
        config = config_lib.default()
        config.procedure, config.model.stage_sizes, config.model.width = 'plain', (1,), 2
        about = {'dataset': 'x', 'classes': ['a', 'b'], 'image_shape': [8, 8, 1], 'mean': [0.5], 'std': [0.5]}
        variables = from_config.student(config, 2).initialise(jax.random.key(0), (8, 8, 1))
        self.config = config
        past = dataclasses.asdict(history.History(lines=['{"epoch": 1}'], gradient_samples=[{'x': 1.0}], bad=[3]))
        files.write_json(self.run / run_directory.CONFIG, config_lib.flatten(config))
        checkpoints = checkpoint.Checkpoints(self.run, keep=1)
        checkpoints.save(
            0,
            {'student': variables, 'best': variables},
            {'data': about, 'history': past, 'provenance': {'devices': '1 x cpu'}},
        )
        checkpoints.close()
        self.checkpoint = self.run / checkpoint_places.DIRECTORY / '0'
        self.good = {path: path.read_bytes() for path in sorted(self.checkpoint.rglob('*')) if path.is_file()}
        self.victim = next(iter(self.good))

    def make(self, rng: random.Random) -> bytes:
        self.victim = rng.choice([path for path in self.good if path.name != seal.SEAL])
        change = absurd_numbers if rng.random() < 0.4 else mutated
        return change(self.good[self.victim], rng)

    def read(self, data: bytes) -> None:
        self.victim.write_bytes(data)
        seal.seal(self.checkpoint)
        try:
            run_directory.load(self.run)
            meta = checkpoint.Checkpoints(self.run).meta(0)
            past = history.History.from_json(meta.get('history'), self.run)
            gradients.Probe(self.config, 10, dict).resume(past.gradient_samples)
            '\n'.join(past.lines).encode()
            if provenance.is_one(meta.get('provenance')):
                provenance.check(self.config, meta['provenance'], {'devices': '1 x cpu'}, self.run)
        finally:
            self.victim.write_bytes(self.good[self.victim])


def fuzz(inputs: int, seed: int, keep: Path | None, say: Callable[[str], None]) -> dict:
    """Feed the inputs; return how many of each kind were read and refused, and the findings."""
    warnings.simplefilter('ignore')  # Pillow's, about odd files
    counts, findings, slowest = collections.Counter(), [], 0.0
    with tempfile.TemporaryDirectory() as directory:
        kinds = [kind(Path(directory)) for kind in (Shards, Indexes, Safetensors, Pickles, Images)]
        sealed = Sealed(Path(directory))
        for kind in (*kinds, sealed):  # what is imported and compiled on first use comes before the limit
            for warm_up in range(20):
                try:
                    kind.read(kind.make(random.Random(-warm_up - 1)))
                except (UserError, images.BadImage):
                    pass
        used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
        for number in range(inputs):
            kind = sealed if number % SEALED_EVERY == SEALED_EVERY - 1 else kinds[number % len(kinds)]
            name = type(kind).__name__.lower()
            data = kind.make(random.Random(f'{seed} {number}'))
            began = time.process_time()
            try:
                kind.read(data)
                counts[f'{name} read'] += 1
            except (UserError, images.BadImage) as error:
                counts[f'{name} refused'] += 1
                if len(str(error).splitlines()) != 1 and name in ('safetensors', 'pickles'):
                    counts[f'{name} in several lines'] += 1
            except Exception as error:  # that is what is looked for
                findings.append(f'{name} {number}: {traceback.format_exception_only(error)[-1].strip()}'[:300])
                say(findings[-1])
                say(''.join(traceback.format_tb(error.__traceback__)[-2:]))
                if keep:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f'{name}-{number}').write_bytes(data)
            took = time.process_time() - began
            slowest = max(slowest, took)
            if took > SECONDS:
                findings.append(f'{name} {number}: {took:.1f} s')
    return {
        'date': time.strftime('%Y-%m-%d'), 'inputs': inputs, 'seed': seed, **dict(sorted(counts.items())),
        'slowest_seconds': round(slowest, 2), 'findings': findings,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--inputs', type=int, default=100_000)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--keep', type=Path, help='directory for the inputs that were findings')
    args = parser.parse_args()
    summary = fuzz(args.inputs, args.seed, args.keep, lambda line: print(line, file=sys.stderr, flush=True))
    print(json.dumps(summary))
    sys.exit(bool(summary['findings']))


if __name__ == '__main__':
    main()

"""How long a run with slow steps takes to answer SIGTERM: seconds, steps taken meanwhile, and what is left behind.

    python scripts/stop_latency.py [--side 256] [--workers 2]

A folder of random images of SIDE x SIDE pixels is trained on by a process of its own, whose steps are slow because the
images are large. Prints one JSON line: 'seconds' from the signal to the end of the process, 'step_seconds' (median of
the steps before it), 'steps_after' the newest step that was on disk, 'leaked' (whether shared memory was warned about).
"""

import argparse
import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

IMAGES, BATCH = 480, 8


def make_images(root: Path, side: int) -> None:
    rng = np.random.default_rng(0)
    for i in range(IMAGES):
        path = root / 'train' / 'ab'[i % 2] / f'{i}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(path)
    (root / 'val').symlink_to(root / 'train')


def measure(side: int, workers: int) -> dict:
    with tempfile.TemporaryDirectory() as directory:
        root, run = Path(directory, 'images'), Path(directory, 'run')
        make_images(root, side)
        fields = {
            'procedure': 'plain', 'model.stage_sizes': '(1,1)', 'model.width': 16, 'dataset.name': 'folder',
            'dataset.data_dir': root, 'dataset.image_size': side, 'dataset.resize': side, 'dataset.workers': workers,
            'batch_size': BATCH, 'eval_batch_size': BATCH, 'checkpoint.every_steps': 2, 'epochs': 2,
        }  # fmt: skip
        command = [sys.executable, '-m', 'jointrd_jax.main', '--config=digits', f'--workdir={run}']
        command += [f'--config.{name}={value}' for name, value in fields.items()]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        seen: dict[int, float] = {}
        while len(seen) < 4:
            if process.poll() is not None:
                sys.exit(f'the run ended: {process.communicate()[1]}')
            found = (run / 'checkpoints').iterdir() if (run / 'checkpoints').is_dir() else ()
            for step in {int(path.name) for path in found if path.name.isdigit()}:
                seen.setdefault(step, time.monotonic())
            time.sleep(0.02)
        newest, began = max(seen), time.monotonic()
        process.send_signal(signal.SIGTERM)
        error = process.communicate()[1]
        seconds = time.monotonic() - began
        stopped = re.search(r'stopped at step (\d+)', error)
        steps = sorted(seen)
        pace = [(seen[b] - seen[a]) / (b - a) for a, b in itertools.pairwise(steps)]
        return {
            'side': side, 'workers': workers, 'status': process.returncode, 'seconds': round(seconds, 2),
            'step_seconds': round(statistics.median(pace), 2), 'cores': os.cpu_count(),
            'steps_after': int(stopped[1]) - newest if stopped else None, 'leaked': 'leaked' in error,
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--side', type=int, default=256)
    parser.add_argument('--workers', type=int, default=2)
    given = parser.parse_args()
    print(json.dumps(measure(given.side, given.workers)))


if __name__ == '__main__':
    main()

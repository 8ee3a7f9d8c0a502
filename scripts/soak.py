"""Watch a real training process over thousands of steps: its memory, open files and threads must stay flat.

    python scripts/soak.py --steps 2000

Trains configs/digits.py, shrunk, with an evaluation every 40 steps and a checkpoint every 20, and
reads /proc a hundred times a second. Of each number the highest in the second and third tenth of the run
(everything is compiled, all buffers are made) is compared with the highest in the last two: memory may grow by
32 MB, open files by 8 and threads by 4. (Within a save all three rise for
a moment; that is no growth, but it must be met in both windows, so the readings lie closer than a save is long.)
Prints a JSON summary; exit status 1 beyond a limit.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMITS = {'memory_mb': 32, 'files': 8, 'threads': 4}
STEPS_PER_EPOCH = 40


def usage(pid: int) -> dict[str, float]:
    """Resident memory, open files and threads of a process."""
    status = dict(line.split(':', 1) for line in Path(f'/proc/{pid}/status').read_text().splitlines())
    return {
        'memory_mb': int(status['VmRSS'].split()[0]) / 1024,
        'files': len(os.listdir(f'/proc/{pid}/fd')),
        'threads': int(status['Threads']),
    }


def soak(steps: int, directory: Path) -> dict:
    """Train for `steps` and return the usage at the start of the watch, its highest, and how often it was read."""
    epochs = -(-steps // STEPS_PER_EPOCH)
    process = subprocess.Popen(
        [sys.executable, '-m', 'jointrd_jax.main', '--config=configs/digits.py', f'--workdir={directory / "run"}',
         '--config.procedure=plain', f'--config.epochs={epochs}', '--config.model.stage_sizes=1,1',
         '--config.model.width=4', '--config.checkpoint.every_steps=20'],
        cwd=ROOT, env={**os.environ, 'JAX_PLATFORMS': 'cpu'}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    metrics, early, late, samples = directory / 'run' / 'metrics.jsonl', {}, {}, 0
    while process.poll() is None:
        done = len(metrics.read_text().splitlines()) / epochs if metrics.exists() else 0
        highest = early if 0.1 <= done < 0.3 else late if 0.8 <= done < 1 else None
        if highest is not None:
            with contextlib.suppress(FileNotFoundError, KeyError, ProcessLookupError):  # it is ending
                highest |= {name: max(value, highest.get(name, 0)) for name, value in usage(process.pid).items()}
                samples += 1
        time.sleep(0.01)
    if process.wait() or not early or not late:
        raise SystemExit(f'training ended with status {process.returncode} after {samples} samples')
    grown = {name: round(late[name] - early[name], 1) for name in LIMITS}
    return {
        'date': time.strftime('%Y-%m-%d'), 'steps': epochs * STEPS_PER_EPOCH, 'samples': samples,
        'early': {name: round(value, 1) for name, value in early.items()}, 'grown': grown, 'limits': LIMITS,
        'beyond': [name for name in LIMITS if grown[name] > LIMITS[name]],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=2000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        summary = soak(args.steps, Path(directory))
    print(json.dumps(summary))
    sys.exit(bool(summary['beyond']))


if __name__ == '__main__':
    main()

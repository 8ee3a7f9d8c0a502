"""Watch a real training process over thousands of steps: its memory, open files and threads must stay flat.

    python scripts/soak.py --steps 2000                           a checkpoint every 20 steps
    python scripts/soak.py --steps 10000 --checkpoint_every 1000

Trains configs/digits.py, shrunk, with an evaluation every 40 steps, and reads /proc a hundred times a second. What
counts is the lowest reading in each tenth of the run: within a save all three rise for a moment, which is no growth,
and what is never given back is there between saves too. From the second and third tenth
(everything is compiled, all buffers are made) to the last two, memory may grow by 32 MB, open files by 8 and threads
by 4. From 5,000 steps on memory must have come to rest: from the sixth and seventh tenth to the last two it may grow
by 8 MB. (docs/reliability.md says what is still not given back.)
Prints a JSON summary; exit status 1 beyond a limit.
"""

import argparse
import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMITS = {'memory_mb': 32, 'files': 8, 'threads': 4}
AT_REST = {'memory_mb': 8}  # in the second half of a run of so many steps:
AT_REST_STEPS = 5000
EARLY, MIDDLE, LATE = (1, 2), (5, 6), (8, 9)  # tenths of a run
STEPS_PER_EPOCH = 40


def usage(pid: int) -> dict[str, float]:
    """Resident memory, open files and threads of a process."""
    status = dict(line.split(':', 1) for line in Path(f'/proc/{pid}/status').read_text().splitlines())
    return {
        'memory_mb': int(status['VmRSS'].split()[0]) / 1024,
        'files': len(os.listdir(f'/proc/{pid}/fd')),
        'threads': int(status['Threads']),
    }


def soak(steps: int, checkpoint_every: int, directory: Path) -> dict:
    """Train for `steps` and return the lowest usage in each tenth, what it grew by, and how often it was read."""
    epochs = -(-steps // STEPS_PER_EPOCH)
    process = subprocess.Popen(
        [sys.executable, '-m', 'jointrd_jax.main', '--config=configs/digits.py', f'--workdir={directory / "run"}',
         '--config.procedure=plain', f'--config.epochs={epochs}', '--config.model.stage_sizes=1,1',
         '--config.model.width=4', f'--config.checkpoint.every_steps={checkpoint_every}'],
        cwd=ROOT, env={**os.environ, 'JAX_PLATFORMS': 'cpu'}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    metrics, samples = directory / 'run' / 'metrics.jsonl', 0
    tenths = [dict.fromkeys(LIMITS, math.inf) for _ in range(10)]
    while process.poll() is None:
        done = len(metrics.read_text().splitlines()) / epochs if metrics.exists() else 0
        if done < 1:
            with contextlib.suppress(FileNotFoundError, KeyError, ProcessLookupError):  # it is ending
                lowest = tenths[int(10 * done)]
                lowest |= {name: min(value, lowest[name]) for name, value in usage(process.pid).items()}
                samples += 1
        time.sleep(0.01)
    if process.wait() or not all(lowest['threads'] < math.inf for lowest in tenths):
        raise SystemExit(f'training ended with status {process.returncode} after {samples} samples')

    def grown(since: tuple[int, ...], name: str) -> float:
        before, after = (max(tenths[i][name] for i in window) for window in (since, LATE))
        return round(after - before, 1)

    growth = {name: (grown(EARLY, name), limit) for name, limit in LIMITS.items()}
    if steps >= AT_REST_STEPS:
        growth |= {f'{name}, second half': (grown(MIDDLE, name), limit) for name, limit in AT_REST.items()}
    return {
        'date': time.strftime('%Y-%m-%d'), 'steps': epochs * STEPS_PER_EPOCH, 'checkpoint_every': checkpoint_every,
        'samples': samples,
        'memory_mb': [round(lowest['memory_mb'], 1) for lowest in tenths],
        'grown_and_limit': growth, 'beyond': [name for name, (value, limit) in growth.items() if value > limit],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=2000)
    parser.add_argument('--checkpoint_every', type=int, default=20)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        summary = soak(args.steps, args.checkpoint_every, Path(directory))
    print(json.dumps(summary))
    sys.exit(bool(summary['beyond']))


if __name__ == '__main__':
    main()

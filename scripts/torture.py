"""Kill real training runs at random moments until they end, and compare with undisturbed ones.

    python scripts/torture.py --kills 30 --stops 10      the long form, some minutes
    python scripts/torture.py --kills 3 --procedures plain

Each round trains one procedure of configs/digits.py, shrunk, in a fresh directory: its processes get
SIGKILL (a third of them while a checkpoint is being written) or SIGTERM, and are started again by the
same command until one ends by itself. Then the digest of the student, every line of metrics.jsonl
but for its wall-time field, and the best checkpoint must be those of a run that nobody touched. Beside procedures
there are two forms of `plain`: 'grouped' takes three steps at once, 'streamed' reads files by a worker process.
Prints a line per fault and a JSON summary; exit status 1 if anything differs.
"""

import argparse
import collections
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
SMALL = (
    '--config.model.stage_sizes=1,1',
    '--config.model.width=4',
    '--config.epochs=4',
    '--config.checkpoint.every_steps=13',
)
# Forms of a run beside the procedures: several steps at once, and images that are streamed by worker processes.
FORMS = {
    'grouped': ('--config.procedure=plain', '--config.steps_per_dispatch=3'),
    'streamed': ('--config.procedure=plain', '--config.dataset.name=folder', '--config.dataset.image_size=8',
                 '--config.dataset.resize=8', '--config.dataset.workers=1', '--config.batch_size=16'),
}  # fmt: skip
STOP_SECONDS = 20  # a SIGTERM is answered within this, on a loaded machine
WALL_FIELDS = ('images_per_second', 'input_late')


def digits_as_files(directory: Path) -> Path:
    """320 of the digits as PNG files, DIRECTORY/CLASS/N.png."""
    if not directory.is_dir():
        import cv2

        from jointrd_jax.data import digits

        images, labels = digits.read()
        for number, (image, label) in enumerate(zip(images[:320], labels)):
            path = directory / str(label) / f'{number}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), (image * 15).astype('uint8'))
    return directory


def start(workdir: Path, procedure: str) -> subprocess.Popen:
    """A training process as a user starts it."""
    command = [sys.executable, '-m', 'jointrd_jax.main', '--config', 'configs/digits.py', '--workdir', str(workdir)]
    form = FORMS.get(procedure, (f'--config.procedure={procedure}',))
    if procedure == 'streamed':
        form = (*form, f'--config.dataset.data_dir={digits_as_files(workdir.parent / "images")}')
    return subprocess.Popen(
        [*command, *SMALL, *form],
        cwd=ROOT, env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen) -> None:
    """Wait for a process that nobody disturbs; it must succeed."""
    process.wait()  # its errors may have been read already
    if process.returncode:
        error = process.stderr.read() if process.stderr and not process.stderr.closed else ''
        raise SystemExit(f'training failed with status {process.returncode}: {error}')


def result(workdir: Path) -> dict:
    """What must not depend on faults: digests of last and best weights, metrics, of the run and of its teacher."""
    from jointrd_jax.runs import run_directory

    lines = [json.loads(line) for line in (workdir / run_directory.METRICS).read_text().splitlines()]
    found = {
        'digest': json.loads((workdir / run_directory.SUMMARY).read_text())['student_digest'],
        'last': run_directory.digest(run_directory.load(workdir, 'last').variables),
        'best': run_directory.digest(run_directory.load(workdir, 'best').variables),
        'metrics': [{k: v for k, v in line.items() if k not in WALL_FIELDS} for line in lines],
        'files': sorted(path.name for path in workdir.iterdir()),
    }
    return found | ({'teacher': result(workdir / 'teacher')} if (workdir / 'teacher').is_dir() else {})


def stage(workdir: Path) -> str:
    """Where the last process of a run was when it died, from what it left."""
    directories = [path for path in (workdir, workdir / 'teacher') if (path / 'checkpoints').is_dir()]
    names = [p.name for d in directories for p in (d / 'checkpoints').iterdir()]
    if any('partial' in name for name in names):
        return 'saving'
    if any('removing' in name for name in names):
        return 'deleting'
    return 'between saves' if names else 'before the first checkpoint'


def saving(workdir: Path) -> bool:
    """Whether a checkpoint of the run or of its teacher is being written."""
    return any(list((path / 'checkpoints').glob('*.partial*')) for path in (workdir, workdir / 'teacher'))


def disturb(process: subprocess.Popen, workdir: Path, kind: str, seconds: float, rng: random.Random) -> float | None:
    """Send a signal at a random moment; return the seconds until the process ended, None if it had ended before."""
    until = time.monotonic() + rng.uniform(0, seconds)
    if kind != 'SIGTERM' and rng.random() < 1 / 3:  # into a save
        until = time.monotonic() + seconds
        time.sleep(rng.uniform(0, seconds / 2))
        while time.monotonic() < until and process.poll() is None and not saving(workdir):
            time.sleep(0.001)
        until = time.monotonic() + rng.uniform(0, 0.1)
    while time.monotonic() < until and process.poll() is None:
        time.sleep(min(0.01, max(until - time.monotonic(), 0)))
    if process.poll() is not None:
        return None
    process.send_signal(getattr(signal, kind))
    sent = time.monotonic()
    process.wait()
    return time.monotonic() - sent


def torture(kills: int, stops: int, procedures: list[str], seed: int, directory: Path) -> dict:
    """Run rounds until that many signals were sent, and return the summary."""
    rng = random.Random(seed)
    todo = ['SIGKILL'] * kills + ['SIGTERM'] * stops
    rng.shuffle(todo)
    undisturbed, faults, differing, slowest, number = {}, collections.Counter(), [], 0.0, 0
    while todo:
        procedure = procedures[number % len(procedures)]
        if procedure not in undisturbed:
            for name in ('warm', 'undisturbed'):  # the first fills the compilation cache
                began = time.monotonic()
                finish(start(directory / f'{procedure}-{name}', procedure))
                undisturbed[procedure] = result(directory / f'{procedure}-{name}'), time.monotonic() - began
        expected, seconds = undisturbed[procedure]
        workdir = directory / f'{procedure}-{number}'
        while True:
            process = start(workdir, procedure)
            took = disturb(process, workdir, todo[-1], seconds, rng) if todo else finish(process)
            if took is None:
                finish(process)
                break
            kind, where = todo.pop(), stage(workdir)
            if kind == 'SIGTERM':
                slowest = max(slowest, took)
                ended = process.returncode == 0 and (workdir / 'summary.json').exists()  # just as the signal came
                if not (ended or process.returncode in (75, -signal.SIGTERM)) or took > STOP_SECONDS:
                    differing.append(f'{workdir.name}: SIGTERM ended with {process.returncode} after {took:.1f} s')
            faults[f'{kind} {where}'] += 1
            print(f'{procedure} round {number}: {kind} {where}', flush=True)
        same = result(workdir) == expected
        if not same:
            differing.append(workdir.name)
        print(f'{procedure} round {number}: {"the same" if same else "DIFFERENT"}', flush=True)
        number += 1
    return {
        'date': time.strftime('%Y-%m-%d'), 'kills': kills, 'stops': stops, 'rounds': number, 'seed': seed,
        'faults': dict(faults), 'slowest_stop_seconds': round(slowest, 2), 'differing': differing,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=int, default=30)
    parser.add_argument('--stops', type=int, default=0)
    parser.add_argument('--procedures', default='plain,jointrd,jointrd_scratch,grouped,streamed')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    os.environ['JAX_PLATFORMS'] = 'cpu'
    with tempfile.TemporaryDirectory() as directory:
        os.environ.setdefault('JOINTRD_CACHE_DIR', str(Path(directory) / 'cache'))
        summary = torture(args.kills, args.stops, args.procedures.split(','), args.seed, Path(directory))
    print(json.dumps(summary))
    sys.exit(bool(summary['differing']))


if __name__ == '__main__':
    main()

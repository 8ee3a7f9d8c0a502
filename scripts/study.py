"""The study of docs/experiments.md: every road to a network without shortcuts, alone and with JointRD, and its ResNet.

    python scripts/study.py runs/study --folders mnist5k=data/mnist5k,fashion=data/fashion
    python scripts/study.py runs/study --datasets digits --depths 34 --seeds 0 --roads none,dirac
    python scripts/study.py runs/study --tables             only the tables of what has been run

The first is all of it; the same command continues it.

Every dataset and depth is a `jointrd compare` in RUNS/DATASET/DEPTH with one recipe (configs/any_depth.py, mnist5k.py),
the digits in five folds. Its table has the paired difference of each row to its ResNet, and of each row with JointRD to
the same student trained alone; it is printed as Markdown and kept as RUNS/DATASET/DEPTH/table.md. data/mnist5k and
data/fashion are what scripts/image_folders.py writes; any other folder of images is a dataset too.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from jointrd_jax import cli, compare, config as config_lib
from jointrd_jax.configs import any_depth, mnist5k
from jointrd_jax.errors import Interrupted, UserError
from jointrd_jax.report import paired
from jointrd_jax.runs import run_directory, summary
from jointrd_jax.system import files, runtime

# Blocks per stage, and taps: at the ends of stages, or so many spread evenly.
SHAPES = {
    34: dict(stage_sizes=(3, 4, 6, 3)),
    66: dict(stage_sizes=(8, 8, 8, 8)),
    130: dict(stage_sizes=(16, 16, 16, 16)),
    258: dict(stage_sizes=(32, 32, 32, 32)),
    101: dict(depth=101),
}
ROADS = ('none', 'dirac', 'branches', 'tailored', 'prelu', 'annealed')
FOLDS = 5  # of the digits


def recipe(dataset: str, depth: int, data_dir: str, epochs: int) -> ml_collections.ConfigDict:
    """The config of one comparison."""
    config = any_depth.get_config() if dataset == 'digits' else mnist5k.get_config()
    config.dataset.data_dir = data_dir
    config.model.update(SHAPES[depth])
    config.epochs = epochs or config.epochs
    config.mix.num_taps = 0 if depth == 34 else 7  # 0: the ends of stages 1 to 3
    config.log.quiet = True
    config.eval_every = 4
    return config


def rows(roads: list[str]) -> tuple[str, ...]:
    """The procedures of a comparison: the ResNet, and each road alone and with JointRD."""
    names = ['' if road == 'none' else f'+{road}' for road in roads]
    return ('resnet', *(procedure + name for procedure in ('plain', 'jointrd') for name in names))


def so_far(workdir: Path) -> dict[str, Any]:
    """What `compare` would return of an unfinished comparison, over the seeds and folds that all its rows have."""
    runs: dict[str, dict[paired.Key, dict[str, Any]]] = {}
    for path in sorted(file.parent for file in workdir.rglob(summary.SUMMARY)):
        where = path.relative_to(workdir)
        config, found = run_directory.read_config(path), summary.read(path)
        assert found
        run = dataclasses.asdict(found) | {'path': str(where), 'fold': config.dataset.fold}
        runs.setdefault(where.parts[0], {})[config.seed, config.dataset.fold] = run
    common = set.intersection(*map(set, runs.values())) if runs else set()
    cells = {name: compare.statistics_of([of[key] for key in sorted(common)]) for name, of in runs.items()}
    resnet = correct(workdir, cells['resnet']) if 'resnet' in cells else {}
    for name, cell in cells.items():
        found = paired.difference(correct(workdir, cell), resnet) if name != 'resnet' else None
        cell['difference'] = found._asdict() if found else None
    return cells if common else {}


def correct(workdir: Path, cell: dict[str, Any]) -> dict[paired.Key, np.ndarray]:
    """Which images each finished run of a cell gets right."""
    found = {(run['seed'], run['fold']): run_directory.read_correct(workdir / run['path']) for run in cell['runs']}
    return {key: images for key, images in found.items() if images is not None}


def table(workdir: Path) -> str:
    """The comparison in a directory as a Markdown table: the ResNet, each road alone, each with JointRD."""
    whole = workdir / 'compare.json'
    result = json.loads(whole.read_text()) if whole.is_file() else so_far(workdir)

    def place(name: str) -> tuple[int, str]:
        procedure = name.partition('/')[0].partition('+')[0]
        return config_lib.PROCEDURES.index(procedure), name

    lines = [
        "| | top-1, last epoch (%) | of each seed | less its ResNet's, points [95 %] | less the same road's alone |",
        '| --- | --- | --- | --- | --- |',
    ]
    for name in sorted(result, key=place):
        cell, alone = result[name], result.get(name.replace('jointrd', 'plain', 1))
        seeds = ' '.join(f'{value:.2f}' for value in compare.by_seed(cell['runs'], 'last_top1').values())
        gain = paired.difference(correct(workdir, cell), correct(workdir, alone)) if alone and alone != cell else None
        columns = (name, compare.spread(cell, 'last_top1'), seeds, compare.shown(cell['difference']), gain or '-')
        lines.append('| ' + ' | '.join(map(str, columns)) + ' |')
    folds = len({run['fold'] for cell in result.values() for run in cell['runs']})
    images = max((cell['difference'] or {}).get('images', 0) for cell in result.values()) if result else 0
    lines += [
        '',
        f'{images} images, {folds} fold{"" if folds == 1 else "s"}{"" if whole.is_file() else ", not finished"}',
    ]
    return '\n'.join(lines) + '\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('runs', type=Path)
    parser.add_argument('--folders', default='', help='NAME=DIR,... of images, trained on by the recipe of mnist5k')
    parser.add_argument('--datasets', default='', help='of digits and the names of --folders; default: all')
    parser.add_argument('--depths', default='34,66,130', help=f'of {", ".join(map(str, SHAPES))}')
    parser.add_argument('--seeds', default='0,1,2')
    parser.add_argument('--roads', default=','.join(ROADS), help='none, or those of compare: identity+prelu,dirac')
    parser.add_argument('--folds', type=int, default=FOLDS, help='of the digits; 0: the 500 test images')
    parser.add_argument('--epochs', type=int, default=0, help="0: the recipe's")
    parser.add_argument('--variants', default='', help='as of jointrd compare')
    parser.add_argument('--set', nargs='*', default=[], metavar='FIELD=VALUE', help='fields of every recipe')
    parser.add_argument('--tables', action='store_true', help='train nothing')
    given = parser.parse_args()
    directories = {'digits': ''}
    for folder in filter(None, given.folders.split(',')):
        name, _, directories[name] = folder.partition('=')
        if not name or not directories[name]:
            raise UserError(f'--folders: {folder!r} is not NAME=DIR')
    if given.tables and given.runs.is_dir():  # whatever has been run needs no images any more
        directories |= dict.fromkeys(sorted(path.name for path in given.runs.iterdir() if path.is_dir()), '')
    runtime.configure()
    for dataset in given.datasets.split(',') if given.datasets else directories:
        if dataset not in directories:
            raise UserError(f'--datasets: {dataset!r} is none of {", ".join(directories)}')
        for depth in map(int, given.depths.split(',')):
            if depth not in SHAPES:
                raise UserError(f'--depths: {depth} is none of {", ".join(map(str, SHAPES))}')
            workdir = given.runs / dataset / str(depth)
            if not given.tables:
                config = recipe(dataset, depth, directories[dataset], given.epochs)
                for field, _, value in (override.partition('=') for override in given.set):
                    config.update_from_flattened_dict({field: config_lib.from_text(field, value)})
                compare.run(
                    config,
                    workdir,
                    [int(seed) for seed in given.seeds.split(',')],
                    rows(given.roads.split(',')),
                    compare.parse_variants(given.variants),
                    folds=given.folds if dataset == 'digits' else 0,
                )
            if workdir.is_dir():
                text = table(workdir)
                files.write_atomically(workdir / 'table.md', text)
                print(f'\n{dataset}, {depth} layers\n\n{text}')


if __name__ == '__main__':
    try:
        main()
    except (UserError, Interrupted) as error:
        cli.fail(str(error))

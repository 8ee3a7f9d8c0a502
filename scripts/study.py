"""The study of docs/experiments.md: every road to a network without shortcuts, alone and with JointRD, and its ResNet.

    python scripts/study.py runs/study --folders mnist5k=data/mnist5k,fashion=data/fashion
    python scripts/study.py runs/study --datasets digits --depths 34 --seeds 0 --roads none,dirac
    python scripts/study.py runs/study --tables             only the tables, of whatever has been run

The first is all of it; the same command continues it.

Every dataset and depth is a `jointrd compare` in RUNS/DATASET/DEPTH with one recipe (configs/any_depth.py, mnist5k.py),
the digits in five folds. Its table is of all runs that are there, of this call or another; each number of folds has its
own. It has the paired difference of each row to its ResNet, and of each row with JointRD to the same student trained
alone; it is printed as Markdown and kept as RUNS/DATASET/DEPTH/table.md. data/mnist5k and data/fashion are what
scripts/image_folders.py writes; any other folder of images is a dataset too.
"""

import argparse
import dataclasses
import re
from collections.abc import Set
from pathlib import Path

import ml_collections

from jointrd_jax import cli, compare, config as config_lib
from jointrd_jax.configs import any_depth, mnist5k
from jointrd_jax.errors import UserError
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
# The path of a run below its comparison: its row, and what `compare.part_of` adds.
RUN = re.compile(r'(?P<name>(?P<procedure>\w+).*?)/(fold(?P<fold>\d+)of(?P<folds>\d+)/)?seed(?P<seed>\d+)')


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


def begun(workdir: Path) -> dict[int, dict[str, dict[paired.Key, Path]]]:
    """The runs of a comparison that are there: number of folds (0: the dataset's own split) -> row -> key -> run."""
    found: dict[int, dict[str, dict[paired.Key, Path]]] = {}
    for path in (file.parent for file in workdir.rglob(run_directory.CONFIG)):
        run = RUN.fullmatch(path.relative_to(workdir).as_posix())
        if run and run['procedure'] in config_lib.PROCEDURES:
            key = int(run['seed']), f'{run["fold"]}/{run["folds"]}' if run['fold'] else ''
            found.setdefault(int(run['folds'] or 0), {}).setdefault(run['name'], {})[key] = path
    return found


def whole(keys: Set[paired.Key]) -> set[paired.Key]:
    """The keys of the seeds with the most folds: those that `paired.difference` is of."""
    folds = {seed: [fold for other, fold in sorted(keys) if other == seed] for seed, _ in sorted(keys)}
    most = max(folds.values(), key=len, default=[])
    return {key for key in keys if folds[key[0]] == most}


def table(cells: dict[str, dict[paired.Key, Path]], folds: int) -> str:
    """The runs of one number of folds as a Markdown table: the ResNet, each road alone, each with JointRD.

    A row's numbers are of its finished runs whose ResNet is finished too (of all where none is); how many are not
    finished, or ended with a loss that was not finite, stands beside them.
    """
    finished = {
        name: {key: dataclasses.asdict(found) for key, path in runs.items() if (found := summary.read(path))}
        for name, runs in cells.items()
    }

    def place(name: str) -> tuple[int, str]:
        return config_lib.PROCEDURES.index(re.split('[+/]', name)[0]), name

    def less(name: str, other: str, keys: Set[paired.Key]) -> paired.Difference | str:
        """The difference of a row to another, over these of its runs."""
        if other == name or other not in cells:
            return '-'
        pair = []
        for row in (name, other):
            read = {key: run_directory.read_correct(cells[row][key]) for key in keys & finished[row].keys()}
            pair.append({key: images for key, images in read.items() if images is not None})
        return paired.difference(*pair) or '-'

    lines = [
        "| | top-1, last epoch (%) | of each seed | less its ResNet's, points [95 %] | less the same road's alone |",
        '| --- | --- | --- | --- | --- |',
    ]
    for name in sorted(cells, key=place):
        runs = finished[name]
        same_variant = re.sub('^[^/]+', 'resnet', name)
        resnet = same_variant if same_variant in cells else 'resnet'
        keys = whole((runs.keys() & finished.get(resnet, {}).keys()) or runs.keys())
        cell = compare.statistics_of([runs[key] for key in sorted(keys)])
        total = len({seed for seed, _ in cells[name]}) * (folds or 1)
        not_finite = sum((cells[name][key] / run_directory.NOT_FINITE).is_file() for key in cells[name].keys() - runs)
        missing = {'not finite': not_finite, 'not finished': total - len(runs) - not_finite}
        notes = ', '.join(f'{count} of {total} {what}' for what, count in missing.items() if count)
        columns = (
            name,
            (compare.spread(cell, 'last_top1') if keys else '-') + (f' ({notes})' if notes else ''),
            ', '.join(f'{seed}: {value:.2f}' for seed, value in compare.by_seed(cell['runs'], 'last_top1').items()),
            less(name, resnet, keys),
            less(name, re.sub(r'^jointrd\b', 'plain', name), keys),
        )
        lines.append('| ' + ' | '.join(map(str, columns)) + ' |')
    images = {fold: (run['eval_images'] or ['', 0])[1] for runs in finished.values() for (_, fold), run in runs.items()}
    lines += ['', f'{sum(images.values())} images' + (f', {len(images)} of {folds} folds' if folds else '')]
    return '\n'.join(lines) + '\n'


def integers(text: str) -> list[int]:
    return [int(number) for number in text.split(',')]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('runs', type=Path)
    parser.add_argument('--folders', default='', help='NAME=DIR,... of images, trained on by the recipe of mnist5k')
    parser.add_argument('--datasets', default='', help='of digits and the names of --folders; default: all')
    parser.add_argument('--depths', type=integers, help=f'of {", ".join(map(str, SHAPES))}; default: 34,66,130')
    parser.add_argument('--seeds', type=integers, default='0,1,2')
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
        there = [depth for depth in SHAPES if (given.runs / dataset / str(depth)).is_dir()]
        for depth in given.depths or (there if given.tables else (34, 66, 130)):
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
                    given.seeds,
                    rows(given.roads.split(',')),
                    compare.parse_variants(given.variants),
                    folds=given.folds if dataset == 'digits' else 0,
                )
            text = '\n'.join(table(cells, folds) for folds, cells in sorted(begun(workdir).items()))
            if text:
                files.write_atomically(workdir / 'table.md', text)
                print(f'\n{dataset}, {depth} layers\n\n{text}')


if __name__ == '__main__':
    with cli.errors_in_one_line():
        main()

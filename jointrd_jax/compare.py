"""Procedures beside each other, over seeds and ablations (`jointrd compare`).

Every cell (procedure, seed) is a run of its own, resumed or reused when it is there.
"""

import dataclasses
import io
import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from jointrd_jax import config as config_lib
from jointrd_jax.errors import NotFinite, UserError, choice_error, require
from jointrd_jax.method.architectures import ACTIVATIONS, REPARAMS
from jointrd_jax.report import paired
from jointrd_jax.runs import from_config, run_directory, summary as summary_lib
from jointrd_jax.runs.summary import mean_and_spread
from jointrd_jax.system import files
from jointrd_jax.train import loop, preflight
from jointrd_jax.train.progress import Reporter

# A road is a way of making a student trainable without shortcuts: 'PROCEDURE+ROAD' sets these fields.
ROADS = {
    **{name: {'model.reparam': name} for name in REPARAMS if name != 'none'},
    **{name: {'model.activation': name} for name in (*ACTIVATIONS, 'tailored') if name != 'relu'},
    'identity': {'model.init': 'identity'},
    'fading': {'model.shortcuts': 'fading'},
}
TOP1 = ('last_top1', 'best_top1')
DEFAULT = ('resnet', 'plain', 'plain+dirac', 'jointrd', 'jointrd+dirac')
STANDARD = {'model.reparam': 'none', 'model.activation': 'relu', 'model.init': 'random', 'model.shortcuts': 'none'}
# What a comparison sets itself in every run, and by which flag.
SET_BY = {
    'procedure': '--procedures',
    'seed': '--seeds',
    'dataset.fold': '--folds',
    'teacher.path': '--config.teacher.path',
}

Variants = dict[str, dict[str, Any]]


def parse_variants(text: str) -> Variants:
    """'eta0: mix.eta=0; more: mix.num_taps=7 mix.eta=1' to {'eta0': {'mix.eta': 0.0}, 'more': {...}}.

    Raises:
      UserError: a part of `text` cannot be read; the message names it.
    """
    variants: Variants = {}
    for part in filter(None, map(str.strip, text.split(';'))):
        name, colon, overrides = part.partition(':')
        name = name.strip()
        is_name = name.strip('.') and all(c.isalnum() or c in '+-_.' for c in name)  # of a directory
        if not colon or not is_name or name in variants:
            raise UserError(
                f"variant {part!r} must be 'NAME: field=value ...', each NAME used once and of letters, digits and +-_."
            )
        variants[name] = {}
        for override in overrides.split():
            field, equals, value = override.removeprefix('config.').partition('=')
            if not equals:
                raise UserError(f'variant {name}: {override!r} is not field=value')
            if field in SET_BY:
                raise UserError(f'variant {name}: {field} is not for variants; use {SET_BY[field]}')
            variants[name][field] = config_lib.from_text(field, value)
    return variants


def cell_config(
    config: ml_collections.ConfigDict, name: str, seed: int, teacher: str, variants: Variants | None = None
) -> ml_collections.ConfigDict:
    """The config of the cell `name`, 'PROCEDURE', 'PROCEDURE+ROAD' or one of them and '/VARIANT'.

    Raises:
      UserError: `name` has an unknown procedure or road, roads that exclude each other or a road for a ResNet, or lacks
        a road that the recipe has.
    """
    name, _, variant = name.partition('/')
    procedure, *roads = name.split('+')
    if procedure not in config_lib.PROCEDURES:
        raise choice_error('procedures', name, [*config_lib.PROCEDURES, *(f'plain+{road}' for road in ROADS)])
    fields: dict[str, Any] = {}
    for road in roads:
        if road not in ROADS:
            raise choice_error(f'procedures={name}: road', road, ROADS)
        if ROADS[road].keys() & fields.keys():
            raise UserError(f'procedures={name}: {" and ".join(roads)} exclude each other; name one of them')
        fields |= ROADS[road]
    cell = config.copy_and_resolve_references()  # ConfigDict(config) would share the groups of fields
    if procedure in config_lib.TRAINS_RESNET:
        if roads:
            raise UserError(f'procedures={name}: {procedure} trains a ResNet, which has no road ({", ".join(roads)})')
        # Of shortcuts only a road is taken away: what else a recipe says of them stands in finished ResNets' configs.
        fields = {f: v for f, v in STANDARD.items() if f != 'model.shortcuts' or config.model.shortcuts in ROADS}
    else:
        for field, standard in STANDARD.items():
            value = config[field]
            if value in ROADS and fields.get(field) != value:
                raise UserError(
                    f'config.{field}={value} is set, but the row {name} is for networks without it; write '
                    f'{name}+{value}, or give --config.{field}={standard}'
                )
    cell.procedure, cell.seed = procedure, seed
    cell.update_from_flattened_dict(fields)
    if cell.model.activation in ('relu', 'tailored'):
        cell.model.slope, cell.model.slope_layers = 0.0, 0  # a recipe's slope is for the roads that read it
    cell.teacher.path = teacher if procedure in config_lib.NEEDS_TEACHER else ''
    cell.update_from_flattened_dict((variants or {}).get(variant, {}))
    return cell


def cells(procedures: Sequence[str], variants: Variants | None) -> list[str]:
    """'PROCEDURE', or with variants 'PROCEDURE/VARIANT' of each."""
    return [f'{name}/{variant}' for name in procedures for variant in variants] if variants else list(procedures)


class PlannedRun(NamedTuple):
    """A run of the comparison.

    Attributes:
      name: of its cell.
      config: the run's.
      path: its directory.
      resnet: the directory of the ResNet's run that it is compared with.
    """

    name: str
    config: ml_collections.ConfigDict
    path: Path
    resnet: Path

    @property
    def key(self) -> paired.Key:
        return self.config.seed, self.config.dataset.fold

    def label(self) -> str:
        fold = f' fold {self.config.dataset.fold}' if self.config.dataset.fold else ''
        return f'{self.name}{fold} seed {self.config.seed}'


def part_of(fold: str, seed: int) -> str:
    """The subdirectory of a cell for the run of a seed, or of a fold and a seed."""
    return f'fold{fold.replace("/", "of")}/seed{seed}' if fold else f'seed{seed}'


def plan(
    config: ml_collections.ConfigDict,
    workdir: Path,
    seeds: Sequence[int],
    procedures: Sequence[str] = DEFAULT,
    variants: Variants | None = None,
    folds: int = 0,
) -> list[PlannedRun]:
    """All runs in the order in which they are trained, each seed's (and fold's) teacher first.

    Raises:
      UserError: a run could not be trained; raised before any is trained, the message begins with its cell.
    """
    if not seeds or not procedures or len(set(seeds)) < len(seeds) or len(set(procedures)) < len(procedures):
        raise UserError('give at least one seed and one procedure, each once')
    names = cells(procedures, variants)
    trains_teacher = not config.teacher.path and any(
        name.partition('+')[0] in config_lib.NEEDS_TEACHER for name in procedures
    )
    if trains_teacher:
        names = ['resnet', *(name for name in names if name != 'resnet')]
    if folds and config.dataset.fold:
        raise UserError(f'--folds={folds} with config.dataset.fold={config.dataset.fold}; give one of the two')
    if folds == 1:
        raise UserError('--folds=1 leaves no image to train on; give at least 2, or 0 for the split of the dataset')
    planned = []
    for seed, fold in itertools.product(seeds, [f'{k}/{folds}' for k in range(1, folds + 1)] or [config.dataset.fold]):
        part = part_of(fold if folds else '', seed)
        teacher = config.teacher.path or str(workdir / 'resnet' / part)
        for name in names:
            cell = cell_config(config, name, seed, teacher, variants)
            cell.dataset.fold = fold
            _, slash, variant = name.partition('/')
            same_variant = f'resnet{slash}{variant}'
            resnet = workdir / same_variant / part if same_variant in names else Path(teacher)
            planned.append(PlannedRun(name, cell, workdir / name / part, resnet))
    for run in planned:
        try:
            config_lib.validate(run.config)
            student = from_config.student(run.config, num_classes=1)
            method = from_config.method(run.config, student)
            if trains_teacher and (method.taps or method.distill_weight):
                preflight.same(
                    'the teacher of all', from_config.resnet(config, num_classes=1), student, preflight.SHAPE_FIELDS
                )
            preflight.workdir(run.config, run.path)
        except UserError as error:
            raise UserError(f'{run.name}: {error}') from error
    return planned


def run(
    config: ml_collections.ConfigDict,
    workdir: str | Path,
    seeds: list[int],
    procedures: tuple[str, ...] = DEFAULT,
    variants: Variants | None = None,
    with_report: bool = False,
    folds: int = 0,
) -> dict[str, Any]:
    """Train what is missing and return (and write) the comparison.

    Args:
      config: the recipe.
      workdir: where the runs are kept.
      seeds: each procedure is run with each of them.
      procedures: the cells; `+dirac`, `+prelu`, ... (`ROADS`) say how a procedure's student is made.
      variants: {name: {field: value}}; given, every procedure is run with each list of overrides.
      with_report: also write WORKDIR/report.html.
      folds: how many parts all images are dealt out to; each part is evaluated on by runs that were trained on the
        others. 0: the dataset's own split.

    Returns:
      {cell: {'last_top1_mean', 'last_top1_std', 'best_top1_mean', 'best_top1_std', 'difference', 'runs': [summaries]}},
      in percent, a cell being a procedure or 'PROCEDURE/VARIANT'. A seed's accuracy is over the images of all folds;
      the spread is the sample standard deviation over the seeds, 0 for a single one. The difference, to the ResNet of
      the same seed on the same images, has the fields of `paired.Difference`; None where there is nothing to pair.
      The summary of a run whose loss was not finite is {'seed', 'path', 'not_finite': the error}; means and spreads
      are of the others, None without any.

    Raises:
      UserError: bad input; a teacher whose loss is not finite, since no student can be trained without it.
    """
    require('matplotlib', 'plot')
    if with_report:
        require('jinja2', 'report')
    workdir = files.absolute(workdir)
    planned = plan(config, workdir, seeds, procedures, variants, folds)
    reporter = Reporter('compare')
    summaries = train(planned, workdir, reporter)
    result: dict[str, dict[str, Any]] = {
        name: statistics_of(summaries[name]) | {'difference': to_resnet(run for run in planned if run.name == name)}
        for name in cells(procedures, variants)
    }
    files.write_json(workdir / 'compare.json', result)
    draw(workdir, result)
    if with_report:
        from jointrd_jax.report import page

        chosen = [workdir / run['path'] for cell in result.values() for run in cell['runs']]
        page.write(chosen, workdir / 'report.html')
        reporter.say(f'report: {workdir / "report.html"}')
    parts = f', {folds} folds' if folds else ''
    say_table(reporter, result, f'{config.dataset.name}{parts}, seeds {",".join(map(str, seeds))}')
    return result


def train(planned: Sequence[PlannedRun], workdir: Path, reporter: Reporter) -> dict[str, list[dict[str, Any]]]:
    """Train, continue or reuse each run, and return the summaries of every cell.

    Raises:
      NotFinite: a loss of a run that is the teacher of others; one of any other run is noted in its summary.
    """
    teachers = {run.config.teacher.path for run in planned}
    summaries: dict[str, list[dict[str, Any]]] = {}
    for number, run in enumerate(planned, 1):
        label = f'{number}/{len(planned)} {run.label()}'
        try:
            nested = Reporter(label, reporter.console, quiet=run.config.log.quiet, nested=True)
            summary = dataclasses.asdict(loop.run(run.config, run.path, nested))
        except NotFinite as error:
            if str(run.path) in teachers:
                raise
            reporter.say(f'{label}: {error}')
            summary = {'seed': run.config.seed, 'not_finite': str(error)}
        where = {'path': str(run.path.relative_to(workdir)), 'fold': run.config.dataset.fold}
        summaries.setdefault(run.name, []).append({**summary, **where})
    return summaries


def say_table(reporter: Reporter, result: dict[str, dict[str, Any]], trained: str) -> None:
    """Print a row for each cell."""
    rows = [
        (name, *(spread(cell, which) for which in TOP1), shown(cell['difference']),
         ' '.join(f'{value:.1f}' for value in by_seed(cell['runs'], 'last_top1').values()))
        for name, cell in result.items()
    ]  # fmt: skip
    heads = ('procedure', 'last epoch (reported)', 'best epoch', 'difference to its ResNet [95 %]', 'of each seed')
    reporter.table(f'{trained}: top-1 in percent, mean ± standard deviation', rows, heads)


def to_resnet(planned: Iterable[PlannedRun]) -> dict[str, Any] | None:
    """The paired difference of a cell's runs to their ResNets, as JSON values; None where no two can be paired.

    Only runs of one seed are, evaluated on the same images: a teacher given for all seeds is a partner of its own.
    """
    runs, resnets = {}, {}
    for run in planned:
        ours, theirs = summary_lib.read(run.path), summary_lib.read(run.resnet)  # None: a loss was not finite
        if run.path == run.resnet or not ours or not theirs:
            continue
        pair = [run_directory.read_correct(path) for path in (run.path, run.resnet)]
        same = ours.eval_images == theirs.eval_images and ours.seed == theirs.seed
        if same and pair[0] is not None and pair[1] is not None:
            runs[run.key], resnets[run.key] = pair
    found = paired.difference(runs, resnets)
    return found._asdict() if found else None


def shown(difference: dict[str, Any] | None) -> str:
    return str(paired.Difference(**difference)) if difference else '-'


def by_seed(runs: Iterable[dict[str, Any]], which: str) -> dict[int, float]:
    """Seed -> accuracy over the images of all its folds; nan where one of its runs has none."""
    values: dict[int, list[tuple[float, int]]] = {}
    for number, run in enumerate(runs):
        value = math.nan if run.get(which) is None else run[which]
        values.setdefault(run.get('seed', number), []).append((value, (run.get('eval_images') or ['', 1])[1]))
    return {seed: sum(v * n for v, n in parts) / sum(n for _, n in parts) for seed, parts in values.items()}


def statistics_of(summaries: list[dict[str, Any]]) -> dict[str, Any]:
    cell: dict[str, Any] = {}
    for which in TOP1:
        values = [value for value in by_seed(summaries, which).values() if not math.isnan(value)]
        cell[f'{which}_mean'], cell[f'{which}_std'] = mean_and_spread(values) or (None, None)
    return {**cell, 'runs': summaries}


def spread(cell: dict[str, Any], which: str) -> str:
    """'98.67 ± 0.23' of the runs whose loss stayed finite (a single one has no spread), and how many did not.

    Steps that were skipped since a loss was not finite (config.nan.action) are counted too.
    """
    failed = sum('not_finite' in run for run in cell['runs'])
    if cell[f'{which}_mean'] is None:
        return 'not finite' if failed == len(cell['runs']) else 'unmeasured'
    seeds = sum(not math.isnan(value) for value in by_seed(cell['runs'], which).values())
    text = f'{cell[f"{which}_mean"]:.2f}' + (f' ± {cell[f"{which}_std"]:.2f}' if seeds > 1 else '')
    notes = [f'{failed} of {len(cell["runs"])} not finite'] if failed else []
    finished = [run for run in cell['runs'] if 'not_finite' not in run]
    if skipped := sum(run.get('skipped_steps', 0) for run in finished):
        notes.append(f'{skipped} of {sum(run["steps"] for run in finished)} steps skipped')
    return text + (f' ({", ".join(notes)})' if notes else '')


def draw(workdir: Path, result: dict[str, Any]) -> None:
    """Top-1 over the epochs, a line per procedure (mean over seeds) in a band from worst to best seed.

    Runs whose loss was not finite are left out, or drawn as far as they came where there are no others.
    """
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    figure, axes = plt.subplots(figsize=(7, 4.5), layout='constrained')
    for name, cell in result.items():
        whole = [run for run in cell['runs'] if 'not_finite' not in run] or cell['runs']
        curves = [read_curve(workdir / run['path'] / run_directory.METRICS) for run in whole]
        epochs = sorted(set.intersection(*(set(curve) for curve in curves)))
        values = [[curve[epoch] for curve in curves] for epoch in epochs]
        (line,) = axes.plot(epochs, [statistics.fmean(v) for v in values], label=name)
        axes.fill_between(
            epochs, [min(v) for v in values], [max(v) for v in values], alpha=0.15, color=line.get_color()
        )
    axes.set(xlabel='epoch', ylabel='top-1 on the evaluation images (%)', ylim=(0, 101))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(loc='lower right')
    picture = io.BytesIO()
    figure.savefig(picture, format='png', dpi=130)
    plt.close(figure)
    files.write_atomically(workdir / 'compare.png', picture.getvalue())


def read_curve(path: Path) -> dict[int, float]:
    """{epoch: top-1} from a metrics file."""
    return {line['epoch']: line['top1'] for line in run_directory.read_metrics(path) if 'top1' in line}


if __name__ == '__main__':
    import sys

    from jointrd_jax import cli

    cli.run('compare', sys.argv[1:])

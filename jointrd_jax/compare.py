"""Procedures beside each other, over seeds and ablations (`jointrd compare`).

Every cell (procedure, seed) is a run of its own, resumed or reused when it is there.
"""

import dataclasses
import io
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from jointrd_jax import config as config_lib
from jointrd_jax.errors import NotFinite, UserError, choice_error, require
from jointrd_jax.method.layers import ACTIVATIONS, REPARAMS
from jointrd_jax.runs import from_config, run_directory
from jointrd_jax.runs.summary import mean_and_spread
from jointrd_jax.system import files
from jointrd_jax.train import preflight

ROADS = {  # 'PROCEDURE+ROAD': how the student is made, else than by its recipe
    **{name: {'model.reparam': name} for name in REPARAMS if name != 'none'},
    **{name: {'model.activation': name} for name in (*ACTIVATIONS, 'tailored') if name != 'relu'},
}
TOP1 = ('last_top1', 'best_top1')
DEFAULT = ('resnet', 'plain', 'plain+dirac', 'jointrd', 'jointrd+dirac')
STANDARD = {'model.reparam': 'none', 'model.activation': 'relu'}

Variants = dict[str, dict[str, Any]]


def parse_variants(text: str) -> Variants:
    """'eta0: mix.eta=0; more: mix.num_taps=7 mix.eta=1' to {'eta0': {'mix.eta': 0.0}, 'more': {...}}.

    Raises:
      UserError: what cannot be read as that, with the part that cannot.
    """
    variants: Variants = {}
    for part in filter(None, map(str.strip, text.split(';'))):
        name, colon, overrides = part.partition(':')
        name = name.strip()
        is_name = name.strip('.') and all(c.isalnum() or c in '+-_.' for c in name)  # of a directory
        if not colon or not is_name or name in variants:
            raise UserError(f"variant {part!r} is not 'NAME: field=value ...' with a name of its own")
        variants[name] = {}
        for override in overrides.split():
            field, equals, value = override.removeprefix('config.').partition('=')
            if not equals:
                raise UserError(f'variant {name}: {override!r} is not field=value')
            if field in ('procedure', 'seed', 'teacher.path'):
                raise UserError(f'variant {name}: {field} is not for variants; use --procedures, --seeds or --config')
            variants[name][field] = config_lib.from_text(field, value)
    return variants


def cell_config(
    config: ml_collections.ConfigDict, name: str, seed: int, teacher: str, variants: Variants | None = None
) -> ml_collections.ConfigDict:
    """The config of the cell `name`, 'PROCEDURE', 'PROCEDURE+ROAD' or one of them and '/VARIANT'.

    Raises:
      UserError: `name` is not a procedure, one without a student to build otherwise, or not what the recipe says.
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
        fields = dict(STANDARD)
    else:
        asked = {'model.reparam': config.model.reparam, 'model.activation': config.model.activation}
        for field, value in asked.items():
            if value != STANDARD[field] and fields.get(field) != value:
                raise UserError(
                    f'config.{field}={value}, but {name} is compared without it: name {name}+{value}, or give '
                    f'--config.{field}={STANDARD[field]}'
                )
    cell.procedure, cell.seed = procedure, seed
    cell.update_from_flattened_dict(fields)
    if cell.model.activation in ('relu', 'tailored'):
        cell.model.slope = 0.0  # a recipe's slope is for the roads that read it
    cell.teacher.path = teacher if procedure in config_lib.NEEDS_TEACHER else ''
    cell.update_from_flattened_dict((variants or {}).get(variant, {}))
    return cell


def cells(procedures: Sequence[str], variants: Variants | None) -> list[str]:
    """'PROCEDURE', or with variants 'PROCEDURE/VARIANT' of each."""
    return [f'{name}/{variant}' for name in procedures for variant in variants] if variants else list(procedures)


class Job(NamedTuple):
    """A run of the comparison: of which cell, with what config, where."""

    name: str
    config: ml_collections.ConfigDict
    path: Path


def plan(
    config: ml_collections.ConfigDict,
    workdir: Path,
    seeds: Sequence[int],
    procedures: Sequence[str] = DEFAULT,
    variants: Variants | None = None,
) -> list[Job]:
    """All runs in the order in which they are trained, each seed's teacher first.

    Raises:
      UserError: a run that could not be trained, before any is; the message begins with its cell.
    """
    if not seeds or not procedures or len(set(seeds)) < len(seeds) or len(set(procedures)) < len(procedures):
        raise UserError('give at least one seed and one procedure, each once')
    names = cells(procedures, variants)
    trains_teacher = not config.teacher.path and any(
        name.partition('+')[0] in config_lib.NEEDS_TEACHER for name in procedures
    )
    if trains_teacher:
        names = ['resnet', *(name for name in names if name != 'resnet')]
    jobs = []
    for seed in seeds:
        teacher = config.teacher.path or str(workdir / 'resnet' / f'seed{seed}')
        for name in names:
            jobs.append(Job(name, cell_config(config, name, seed, teacher, variants), workdir / name / f'seed{seed}'))
    for job in jobs:
        try:
            config_lib.validate(job.config)
            student = from_config.student(job.config, num_classes=1)
            method = from_config.method(job.config, student)
            if trains_teacher and (method.taps or method.distill_weight):
                preflight.same(
                    'the teacher of all', from_config.resnet(config, num_classes=1), student, preflight.SHAPE_FIELDS
                )
            preflight.workdir(job.config, job.path)
        except UserError as error:
            raise UserError(f'{job.name}: {error}') from error
    return jobs


def run(
    config: ml_collections.ConfigDict,
    workdir: str | Path,
    seeds: list[int],
    procedures: tuple[str, ...] = DEFAULT,
    variants: Variants | None = None,
    with_report: bool = False,
) -> dict[str, Any]:
    """Train what is missing and return (and write) the comparison.

    Args:
      config: the recipe.
      workdir: where the runs are kept.
      seeds: each procedure is run with each of them.
      procedures: the cells; `+dirac`, `+prelu`, ... (`ROADS`) say how a procedure's student is made.
      variants: {name: {field: value}}; given, every procedure is run with each list of overrides.
      with_report: also write WORKDIR/report.html.

    Returns:
      {cell: {'last_top1_mean', 'last_top1_std', 'best_top1_mean', 'best_top1_std', 'runs': [summaries]}}, in percent,
      a cell being a procedure or 'PROCEDURE/VARIANT'; the spread is the sample standard deviation, 0 for a single seed.
      The summary of a run whose loss was not finite is {'seed', 'path', 'not_finite': the error}; means and spreads
      are of the others, None without any.

    Raises:
      UserError: bad input; a teacher whose loss is not finite, since no student can be trained without it.
    """
    require('matplotlib', 'plot')
    if with_report:
        require('jinja2', 'report')
    from jointrd_jax.train import loop
    from jointrd_jax.train.progress import Reporter

    workdir = Path(workdir).absolute()
    jobs = plan(config, workdir, seeds, procedures, variants)
    teachers = {job.config.teacher.path for job in jobs}
    reporter = Reporter('compare')
    summaries: dict[str, list] = {}
    for number, (name, cell, path) in enumerate(jobs, 1):
        label = f'{number}/{len(jobs)} {name} seed {cell.seed}'
        try:
            nested = Reporter(label, reporter.console, quiet=config.log.quiet, nested=True)
            summary = dataclasses.asdict(loop.run(cell, path, nested))
        except NotFinite as error:
            if str(path) in teachers:
                raise
            reporter.say(f'{label}: {error}')
            summary = {'seed': cell.seed, 'not_finite': str(error)}
        summaries.setdefault(name, []).append({**summary, 'path': str(path.relative_to(workdir))})
    result = {name: statistics_of(summaries[name]) for name in cells(procedures, variants)}
    files.write_json(workdir / 'compare.json', result)
    draw(workdir, result)
    if with_report:
        from jointrd_jax.report import page

        chosen = [workdir / run['path'] for cell in result.values() for run in cell['runs']]
        page.write(chosen, workdir / 'report.html')
        reporter.say(f'report: {workdir / "report.html"}')
    rows = [
        (name, *(spread(cell, which) for which in TOP1),
         ' '.join(f'{math.nan if run.get("last_top1") is None else run["last_top1"]:.1f}' for run in cell['runs']))
        for name, cell in result.items()
    ]  # fmt: skip
    title = f'{config.dataset.name}, seeds {",".join(map(str, seeds))}: top-1 in percent, mean ± standard deviation'
    reporter.table(title, rows, ('procedure', 'last epoch (reported)', 'best epoch', 'last epoch of each seed'))
    return result


def statistics_of(summaries: list[dict[str, Any]]) -> dict[str, Any]:
    cell: dict[str, Any] = {}
    for which in TOP1:
        values = [summary[which] for summary in summaries if summary.get(which) is not None]
        cell[f'{which}_mean'], cell[f'{which}_std'] = mean_and_spread(values) or (None, None)
    return {**cell, 'runs': summaries}


def spread(cell: dict[str, Any], which: str) -> str:
    """'98.67 ± 0.23' of the runs whose loss stayed finite (a single one has no spread), and how many did not."""
    failed = sum('not_finite' in run for run in cell['runs'])
    if cell[f'{which}_mean'] is None:
        return 'not finite' if failed == len(cell['runs']) else 'unmeasured'
    text = f'{cell[f"{which}_mean"]:.2f}' + (f' ± {cell[f"{which}_std"]:.2f}' if len(cell['runs']) - failed > 1 else '')
    return f'{text} ({failed} of {len(cell["runs"])} not finite)' if failed else text


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

"""The report: what runs did, on one HTML page that needs nothing else."""

import datetime
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jointrd_jax import config as config_lib
from jointrd_jax.errors import UserError, require
from jointrd_jax.method import joint
from jointrd_jax.report import charts, collect
from jointrd_jax.report.charts import Series
from jointrd_jax.report.collect import Variant, show
from jointrd_jax.report.paired import Difference
from jointrd_jax.runs import from_config
from jointrd_jax.system import buckets, files
from jointrd_jax.train import step

TEMPLATE = 'page.html.j2'
PERCENT = (0.0, 100.0)


def write(paths: Sequence[str | Path], out: str | Path, title: str = '', evaluate: bool = True) -> dict[str, Any]:
    """Write the report of the runs at or below `paths` to `out`.

    Args:
      paths: run directories, directories of `compare`, and directories of `export`.
      out: the HTML file.
      title: of the page; by default made from the dataset and the procedures.
      evaluate: whether to run the networks again for confusions and example images.

    Returns:
      {'runs': how many runs it shows, 'variants': their names, 'left_out': (path, path of the run of the same config
      and seed that is shown instead) where their weights differ}.

    Raises:
      UserError: a path without runs, a damaged file of a run, jinja2 missing, or `out` cannot be written.
    """
    jinja2 = require('jinja2', 'report')
    require('PIL', 'report')  # for the images of `predictions`
    if not buckets.place(out).name:
        raise UserError(f'--out={str(out)!r} names no file')
    records = collect.find(paths)
    variants = collect.variants(records)
    left_out = collect.left_out(records, variants)
    differences = {variant.name: collect.to_resnet(variant, variants) for variant in variants}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {'show': show, 'used': collect.used, 'bytes': human_bytes, 'measure': measure}
    html = environment.get_template(TEMPLATE).render(
        title=title or default_title(variants),
        variants=variants,
        colour={variant.name: i for i, variant in enumerate(variants)},
        headline=headline(variants),
        rows=[row(variant, differences[variant.name]) for variant in variants],
        intervals=charts.interval_chart(*interval_rows(variants, differences)),
        differences=collect.differences([variant.config for variant in variants]),
        fields=config_lib.FIELDS,
        curves=learning_curves(variants),
        paths=path_curves(variants),
        gradients=gradient_curves(variants),
        schedules=schedule_curves(variants),
        mistakes=[mistakes(variant) for variant in variants] if evaluate else [],
        opened=opened(variants),
        left_out=left_out,
        exports=collect.exports(map(buckets.place, paths), records),
        environments=environments(variants),
        date=datetime.date.today().isoformat(),
    )
    out = buckets.place(out)
    files.make_parent(out)
    files.write_atomically(out, html)
    return {
        'runs': sum(len(variant.runs) for variant in variants),
        'variants': [v.name for v in variants],
        'left_out': [(str(record.path), str(shown.path)) for record, shown in left_out],
    }


def default_title(variants: list[Variant]) -> str:
    datasets = dict.fromkeys(variant.config['dataset.name'] for variant in variants)
    return f'{", ".join(datasets)}: {", ".join(dict.fromkeys(variant.procedure for variant in variants))}'


def interval_rows(
    variants: list[Variant], differences: dict[str, Difference | None]
) -> tuple[str, list[charts.Interval]]:
    """The title and the lines of the picture of all differences."""
    found = [(i, variant.name, differences[variant.name]) for i, variant in enumerate(variants)]
    rows = [charts.Interval(name, d.mean, d.low, d.high, i) for i, name, d in found if d]
    return 'Top-1 less that of the ResNet, on the same images', rows


def row(variant: Variant, difference: Difference | None) -> dict[str, Any]:
    """A variant's line of the results table."""
    summaries = variant.summaries
    first = summaries[0] if summaries else None
    return {
        'variant': variant,
        'network': first.model if first and first.model else '',
        'shortcuts': first.shortcuts if first and first.shortcuts else variant.config['model.shortcuts'],
        'runs': len({run.seed for run in variant.finished}),
        'seeds': [(name_of(run), outcome(run)) for run in variant.runs],
        'difference': difference,
        'last': variant.result('last_top1'),
        'best': variant.result('best_top1'),
        'top5': variant.result('last_top5'),
        'teacher': variant.result('teacher_top1'),
        'wall': variant.result('wall_seconds'),
    }


def name_of(run: collect.Record) -> str:
    """'0', or '0 fold 1/5'."""
    seed, fold = run.key
    return f'{seed} fold {fold}' if fold else str(seed)


def outcome(run: collect.Record) -> str:
    """A run's accuracy, or why it has none."""
    if run.summary:
        top1 = run.summary.last_top1
        skipped = f' ({run.summary.skipped_steps} steps skipped)' if run.summary.skipped_steps else ''
        return 'unmeasured' if top1 is None else f'{top1:.1f}{skipped}'
    if run.not_finite:
        return f'{run.not_finite["term"]} not finite at step {run.not_finite["step"]}'
    return f'not finished, epoch {run.metrics[-1]["epoch"] if run.metrics else 0} of {run.config["epochs"]}'


def measure(result: tuple[float, float] | None, runs: int, digits: int = 2) -> str:
    """Mean and, with several runs, spread."""
    if result is None:
        return '-'
    return f'{result[0]:.{digits}f}' + (f' ± {result[1]:.{digits}f}' if runs > 1 else '')


def best(
    variants: list[Variant], *procedures: str, like: dict[str, Any] | None = None
) -> tuple[Variant, str, int] | None:
    """The variant of these procedures (and fields) with the highest accuracy, that in words, and among how many."""
    scored = [
        (result, variant)
        for variant in variants
        if variant.procedure in procedures
        and all(variant.config[name] == value for name, value in (like or {}).items())
        if (result := variant.result('last_top1'))
    ]
    if not scored:
        return None
    _, chosen = max(scored, key=lambda pair: pair[0][0])
    failed = sum(run.not_finite is not None for run in chosen.runs)
    text = f'{measure(chosen.result("last_top1"), len(chosen.finished))} %'
    return chosen, text + (f' (without {failed} not finite)' if failed else ''), len(scored)


def opened(variants: list[Variant]) -> str:
    """The variant whose mistakes are unfolded: the one in the headline, else the last."""
    mixed = best(variants, *collect.MIXED)
    return (mixed[0] if mixed else variants[-1]).name


def headline(variants: list[Variant]) -> str:
    """The result in one sentence or two, if there is a JointRD run to speak of.

    Where several variants could stand in it, it is the best of them on the evaluation images, and says so.
    """
    joint = best(variants, *collect.MIXED)
    if not joint:
        return ''
    config = joint[0].config
    same = ('dataset.name', 'model.depth', 'model.stage_sizes', 'model.block', 'model.width', 'epochs')
    variants = [variant for variant in variants if variant.images == joint[0].images]
    resnet = best(variants, 'resnet', like={name: config[name] for name in same})
    same += ('model.shortcuts', *collect.IN_NAME)
    plain = best(variants, 'plain', like={name: config[name] for name in same})
    text = f'A {network_in_words(config)} reaches {joint[1]} top-1 by JointRD ({joint[0].name})'
    if plain:
        text += f', {plain[1]} when it is trained alone'
    if resnet:
        text += f'; the ResNet of the same shape reaches {resnet[1]}'
    text += '.'
    seeds = [len(found[0].finished) for found in (joint, plain, resnet) if found]
    if max(seeds) > 1:
        text += f' Mean ± standard deviation of {" to ".join(map(str, sorted({min(seeds), max(seeds)})))} seeds.'
    for found, name in ((joint, 'JointRD'), (plain, 'plain'), (resnet, 'ResNet')):
        if found and found[2] > 1:
            text += f' The {name} shown is the best of {found[2]} variants, chosen on these same evaluation images.'
    return text


def network_in_words(config: dict[str, Any]) -> str:
    """'network of 34 layers without a single shortcut' for the student of a flat config."""
    full = config_lib.default()
    full.update_from_flattened_dict({k: tuple(v) if isinstance(v, list) else v for k, v in config.items()})
    network = from_config.student(full, 1)
    kinds = set(network.faded().block_shortcuts())
    if kinds == {'none'}:
        kept = 'without a single shortcut'
    elif 'none' not in kinds:
        kept = 'that keeps all its shortcuts'
    else:
        kept = f'that keeps {"some of its" if "identity" in kinds else "only projection"} shortcuts'
    return f'network of {network.depth} layers {kept}'


def learning_curves(variants: list[Variant]) -> list[str]:
    def of(value: Any) -> list[Series]:
        return [Series(v.name, v.curve(value), i) for i, v in enumerate(variants)]

    cross_entropy = joint.term_name(joint.CE, joint.STUDENT)
    return [
        charts.line_chart('Accuracy on the evaluation images', of('top1'), unit='top-1, %', y_range=PERCENT),
        charts.line_chart('Cross entropy of the network itself, training', of(cross_entropy), unit='nats', log=True),
        charts.line_chart('Loss that is minimised, training', of(joint.LOSS), log=True,
                          note='All terms that a procedure has: compare the shape of the curves, not their level.'),
        charts.line_chart('Norm of the whole gradient', of(step.GRADIENT_NORM), log=True),
        charts.line_chart('Steps that waited for input', of(late_percent), unit='%', y_range=PERCENT),
    ]  # fmt: skip


def late_percent(line: dict[str, float]) -> float | None:
    """Of an epoch's calls, those that waited for input, in percent; None in lines of earlier versions."""
    return 100 * line['input_late'] if 'input_late' in line else None


def schedule_curves(variants: list[Variant]) -> list[str]:
    """Learning rate and mixing weight, each distinct course once."""
    figures = []
    for title, name, limits in (('Learning rate', 'learning_rate', None), ('Mixing weight m(t)', 'mix', (0.0, 1.0))):
        seen: dict[tuple, list[tuple[int, Variant]]] = {}
        for i, variant in enumerate(variants):
            points = tuple(variant.curve(name))
            if points:
                seen.setdefault(points, []).append((i, variant))
        series = []
        for points, same in seen.items():
            every = len(same) == len(variants) > 1
            series.append(Series('all' if every else ', '.join(v.name for _, v in same), points, same[0][0]))
        figures.append(charts.line_chart(title, series, y_range=limits))
    return figures


def path_curves(variants: list[Variant]) -> list[str]:
    """For each variant with mixed paths that were evaluated: accuracy of each path, the student and the teacher."""
    figures = []
    for variant in variants:
        names = variant.names('path', '_top1')
        if names:
            shown = [*names, 'top1', 'teacher_top1']
            taps = (variant.summaries[0].taps if variant.summaries else None) or ['?'] * len(names)
            labels = [
                f'{name.removesuffix("_top1")}: {tap} block{"" if tap == 1 else "s"} plain'
                for name, tap in zip(names, taps)
            ]
            labels += ['student (all plain)', 'teacher (all residual)']
            series = [Series(label, variant.curve(name), i) for i, (name, label) in enumerate(zip(shown, labels))]
            figures.append(
                charts.line_chart(f'{variant.name}: accuracy of each hybrid', series, unit='top-1, %', y_range=PERCENT)
            )
    return figures


def gradient_stages(variant: Variant) -> list[str]:
    """Stages whose gradient was measured, from the image to the classifier."""
    names = {name.split('/')[1] for name in variant.names('gradient/', '/student')}
    order = sorted(names - {'stem', 'head'})
    return [*(['stem'] if 'stem' in names else []), *order, *(['head'] if 'head' in names else [])]


def whole_norm(stage: str):
    """A line of metrics -> norm of the sum of both gradients of a stage, from their norms and their angle."""

    def value(line: dict[str, float]) -> float | None:
        student = line.get(f'gradient/{stage}/student')
        teacher, cosine = line.get(f'gradient/{stage}/teacher', 0.0), line.get(f'gradient/{stage}/cosine', 0.0)
        if student is None:
            return None
        return math.sqrt(max(student**2 + teacher**2 + 2 * student * teacher * cosine, 0.0))

    return value


def fading(variant: Variant, stages: list[str]) -> str:
    """The teacher's share of the early stages' gradient at the beginning and at the end of training, in words."""

    def mean_share(line: dict[str, float]) -> float | None:
        found = [line[f'gradient/{stage}/share'] for stage in stages if f'gradient/{stage}/share' in line]
        return 100 * sum(found) / len(found) if found else None

    points = variant.curve(mean_share)
    part = max(len(points) // 10, 1)
    first, last = points[:part], points[-part:]
    shares = [sum(point[1] for point in points) / len(points) for points in (first, last)]
    spans = [f'epoch {p[0][0]}' if len(p) == 1 else f'epochs {p[0][0]} to {p[-1][0]}' for p in (first, last)]
    return (
        f'{variant.name}: over {", ".join(stages)}, the mean share of the teacher was {shares[0]:.0f} % in {spans[0]} '
        f'and {shares[1]:.0f} % in {spans[1]}.'
    )


def gradient_curves(variants: list[Variant]) -> dict[str, list[str]]:
    """'share' and 'origins' for variants with two origins, 'norms' per stage for all beside each other."""
    share, origins, norms, sentences = [], [], [], []
    for variant in variants:
        fed = [
            stage
            for stage in gradient_stages(variant)
            if any(point[1] > 0 for point in variant.curve(f'gradient/{stage}/teacher'))
        ]
        if not fed:
            continue
        sentences.append(fading(variant, fed))
        series = [Series(stage, variant.curve(f'gradient/{stage}/share'), i) for i, stage in enumerate(fed)]
        title = f"{variant.name}: the teacher's share of each stage's gradient"
        share.append(charts.line_chart(title, series, y_range=(0.0, 1.0)))
        series = [Series(stage, variant.curve(f'gradient/{stage}/cosine'), i) for i, stage in enumerate(fed)]
        title = f'{variant.name}: do both gradients point the same way?'
        share.append(charts.line_chart(title, series, unit='cosine of their angle'))
        for stage in fed:
            series = [
                Series('through the teacher', variant.curve(f'gradient/{stage}/teacher'), 0),
                Series('through the student', variant.curve(f'gradient/{stage}/student'), 1),
            ]
            origins.append(charts.line_chart(f'{variant.name}, {stage}', series, unit='norm', log=True))
    stages = dict.fromkeys(stage for variant in variants for stage in gradient_stages(variant))
    for stage in stages:
        series = [Series(v.name, v.curve(whole_norm(stage)), i) for i, v in enumerate(variants)]
        norms.append(charts.line_chart(f'{stage}: gradient norm', series, log=True))
    return {'share': share, 'origins': origins, 'norms': norms, 'sentences': sentences}


def mistakes(variant: Variant) -> dict[str, Any]:
    """The confusions of a variant's first finished run, or why they are not shown."""
    from jointrd_jax.report import predictions

    if not variant.finished:
        return {'variant': variant, 'problem': 'no run of it is finished'}
    run = variant.finished[0]
    try:
        return {'variant': variant, 'seed': run.seed, 'problem': None, 'confusion': predictions.evaluate(run.path)}
    except UserError as error:
        return {'variant': variant, 'problem': str(error)}


def environments(variants: list[Variant]) -> list[tuple[str, str]]:
    """(devices, versions) that the runs were made with, each once."""
    found = {}
    for variant in variants:
        for summary in variant.summaries:
            versions = ', '.join(f'{k} {v}' for k, v in summary.versions.items())
            found[summary.devices or 'unknown device', versions] = None
    return list(found)


def human_bytes(size: float) -> str:
    for unit in ('B', 'KiB', 'MiB'):
        if size < 1024:
            return f'{size:.0f} {unit}' if unit == 'B' else f'{size:.1f} {unit}'
        size /= 1024
    return f'{size:.1f} GiB'

"""The result of a finished run: its summary, and the table that ends its output."""

import jax

from jointrd_jax.method.networks import deployed
from jointrd_jax.runs import provenance, run_directory
from jointrd_jax.runs.summary import Summary
from jointrd_jax.system import distributed
from jointrd_jax.train.job import Job
from jointrd_jax.train.progress import Reporter
from jointrd_jax.train.resume import Position

LATE = 0.1  # of the last epoch's calls: above it, waiting for input is pointed out


def write(job: Job, position: Position) -> Summary:
    """Return the summary; the first process writes it as summary.json."""
    config, history = job.config, position.history
    network, student = deployed(job.student, jax.device_get(position.state.student))
    last = history.last
    summary = Summary(
        procedure=config.procedure,
        dataset=job.dataset.name,
        eval_images=[job.dataset.name, job.dataset.eval_size],
        model=f'{"resnet" if network.shortcuts == "all" else "plain"}{network.depth}',
        depth=network.depth,
        stage_sizes=list(network.stage_sizes),
        width=network.width,
        shortcuts=network.shortcut_choices,
        reparam=config.model.reparam if network.reparam != 'none' else 'none',
        activation=config.model.activation if network.activation != 'relu' else 'relu',
        slope=list(network.slope) if isinstance(network.slope, tuple) else network.slope,
        taps=list(job.method.taps),
        skipped_images=len(job.dataset.bad_anywhere()),
        seed=config.seed,
        epochs=config.epochs,
        steps=job.total_steps,
        best_top1=history.best_top1,
        best_epoch=history.best_epoch,
        last_top1=last['top1'],
        last_top5=last['top5'],
        teacher_top1=job.teacher.top1 if job.teacher else last.get('teacher_top1'),
        teacher=job.teacher.origin if job.teacher else None,
        wall_seconds=round(position.seconds(), 2),
        images_per_second=last['images_per_second'],
        input_late=last.get('input_late'),
        rollbacks=history.rollbacks,
        skipped_steps=history.skipped_steps(),
        changes_on_resume=history.changes,
        student_digest=run_directory.digest(student),
        devices=f'{jax.device_count()} x {jax.devices()[0].device_kind}',
        versions=provenance.versions(),
    )
    if distributed.is_first():
        summary.write(job.workdir)
    distributed.sync('summary written')
    return summary


def show(summary: Summary, reporter: Reporter) -> None:
    """Print the final table of a run."""
    keys = ('procedure', 'dataset', 'model', 'shortcuts', 'seed', 'epochs', 'last_top1', 'best_top1', 'teacher_top1')
    values = {key: getattr(summary, key) for key in keys}
    rows = [(key, '-' if value is None else str(value)) for key, value in values.items()]
    if summary.skipped_images:
        rows.append(('bad images skipped', str(summary.skipped_images)))
    if summary.skipped_steps:
        rows.append(('steps skipped', f'{summary.skipped_steps} of {summary.steps}: a loss or gradient was not finite'))
    if summary.input_late is not None and summary.input_late > LATE:
        rows.append(('waited for input', f'{100 * summary.input_late:.0f} % of steps: the input limits the speed'))
    rows.append(('wall time', f'{summary.wall_seconds:.1f} s'))
    reporter.table('finished', rows, (reporter.label, 'accuracies in percent'))

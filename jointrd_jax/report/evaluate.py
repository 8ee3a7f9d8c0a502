"""A run on evaluation images, its own or another dataset's: accuracies and confusions (`jointrd evaluate`)."""

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from jointrd_jax import data
from jointrd_jax.errors import UserError
from jointrd_jax.runs import predictions, run_directory
from jointrd_jax.system import files

SHOWN = 20  # classes of a confusion matrix that a table can show; beyond, the commonest confusions
PAIRS = 20


def evaluate(
    path: str | Path, which: str = 'last', dataset: str | None = None, data_dir: str | None = None
) -> dict[str, Any]:
    """What the run at `path` reaches on the evaluation images of its dataset, or of `dataset` in `data_dir`.

    Another dataset may have fewer classes than the network, under the same names; the splits, the validation images and
    the fold of the run are not asked of it. `data_dir` alone says where the run's own dataset is now, which keeps them.

    Returns:
      'run', 'which', 'dataset', 'images', 'skipped' (that could not be read), 'top1' and 'top5' in percent, 'classes'
      ({name: {'images', 'top1'}}, None without images) and 'confusion' ([true][predicted] counts, in the run's order).

    Raises:
      UserError: no run, no such dataset, or one that does not fit the network.
    """
    run = run_directory.load(path, which)
    config = run.config.copy_and_resolve_references()
    config.batch_size = 1  # training images are only looked at
    own = config.dataset.name, files.absolute(config.dataset.data_dir)
    config.dataset.name = dataset or config.dataset.name
    config.dataset.data_dir = config.dataset.data_dir if data_dir is None else data_dir
    if dataset:
        config.dataset.train_split = config.dataset.eval_split = ''
        config.dataset.validation_size = 0
        if (dataset, files.absolute(config.dataset.data_dir)) != own:  # else the other folds are what it has seen
            config.dataset.fold = ''
    opened = data.load(config)
    try:
        return measured(run, opened, which)
    finally:
        opened.close()


def measured(run: run_directory.Run, dataset: data.Dataset, which: str) -> dict[str, Any]:
    """See `evaluate`."""
    names = list(run.data.classes)
    if unknown := [name for name in dataset.classes if name not in names]:
        raise UserError(
            f'{dataset.name} has classes that {run.path} was not trained on: {", ".join(unknown[:5])}'
            f'{", ..." if len(unknown) > 5 else ""}; its classes are {", ".join(names[:5])}'
            f'{", ..." if len(names) > 5 else ""}'
        )
    if tuple(dataset.image_shape) != tuple(run.data.image_shape):
        raise UserError(
            f'{run.path} takes images of {list(run.data.image_shape)}, {dataset.name} has {list(dataset.image_shape)}'
        )
    dataset.mean, dataset.std = tuple(run.data.mean), tuple(run.data.std)
    label_of = np.array([names.index(name) for name in dataset.classes])
    true, predicted, in_top5 = [], [], 0
    batches = -(-dataset.eval_size // run.config.eval_batch_size)
    console = Console(stderr=True)
    passes = predictions.of(dataset, run.network, run.variables)
    shown = track(passes, 'evaluating', batches, console=console, transient=True, disable=not console.is_terminal)
    for _, labels, logits, mask in shown:
        labels, logits = label_of[labels[mask]], logits[mask]
        true.append(labels)
        predicted.append(logits.argmax(1))
        own = np.take_along_axis(logits, labels[:, None], 1)
        in_top5 += int(((logits > own).sum(1) < 5).sum())
    matrix = predictions.confusion_matrix(true, predicted, len(names))
    images = int(matrix.sum())
    if not images:
        raise UserError(f'{dataset.name}: none of its {dataset.eval_size} evaluation images can be used')
    totals, right = matrix.sum(1), matrix.diagonal()
    return {
        'run': str(run.path),
        'which': which,
        'dataset': dataset.name,
        'images': images,
        'skipped': dataset.eval_size - images,
        'top1': round(100 * int(right.sum()) / images, 4),
        'top5': round(100 * in_top5 / images, 4),
        'classes': {
            name: {'images': int(total), 'top1': round(100 * int(hits) / int(total), 4) if total else None}
            for name, total, hits in zip(names, totals, right)
        },
        'confusion': matrix.tolist(),
    }


def show(found: dict[str, Any], console: Console) -> None:
    """The result as tables."""
    skipped = f', {found["skipped"]} could not be read' if found['skipped'] else ''
    console.print(f'{found["run"]} ({found["which"]}) on {found["images"]} images of {found["dataset"]}{skipped}')
    console.print(f'top-1 {found["top1"]:.2f} %, top-5 {found["top5"]:.2f} %')
    names, matrix = list(found['classes']), np.array(found['confusion'])
    table = Table('class', 'images', 'top-1 %')
    for name, about in found['classes'].items():
        if about['images']:
            table.add_row(name, str(about['images']), f'{about["top1"]:.2f}')
    console.print(table)
    if len(names) <= SHOWN:
        table = Table('true \\ predicted', *names)
        for name, row in zip(names, matrix):
            table.add_row(name, *(str(count) if count else '.' for count in row))
    else:
        table = Table('true', 'predicted', 'images')
        for true, predicted, images in predictions.commonest_confusions(matrix, PAIRS):
            table.add_row(names[true], names[predicted], str(images))
    console.print(table)

"""The networks that targets are run on: runs, what was exported of them, or shapes with random weights."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jointrd_jax.deploy import artifacts, export, fold, liveness, quantise, savings
from jointrd_jax.deploy.graph import Graph, apply
from jointrd_jax.errors import UserError
from jointrd_jax.method.networks import Network
from jointrd_jax.runs import run_directory
from jointrd_jax.system import files


@dataclass
class Candidate:
    """A network that targets are run on.

    Attributes:
      name: as it is shown.
      graph: for the liveness model.
      artifacts: path of each kind of artifact that there is.
      scales: {'int8_input', 'int8_output'} of the int8 TFLite file.
      images: an .npz of test images, labels and the checkpoint's logits; None with random weights.
      baseline: name of the network to compare with.
      export: the export directory that results belong to; None where it is not kept.
    """

    name: str
    graph: Graph
    artifacts: dict[str, Path]
    scales: dict[str, Any] = field(default_factory=dict)
    images: Path | None = None
    baseline: str | None = None
    export: Path | None = None


def with_baselines(candidates: Sequence[Candidate]) -> None:
    """Set every `baseline`: the first of the candidates with the most additions; None for it, or if none has any."""
    adds = {candidate.name: candidate.graph.operators().get('add', 0) for candidate in candidates}
    most = max(adds.values(), default=0)
    base = next((name for name, count in adds.items() if count and count == most), None)
    for candidate in candidates:
        candidate.baseline = base if candidate.name != base else None


def of_runs(
    paths: Iterable[str | Path],
    kinds: Sequence[str],
    work: Path,
    keep: Path | None = None,
    images: int = 500,
    which: str = 'last',
    data_dir: str | None = None,
    calibration: int = 256,
    say: Callable[[str], None] = print,
) -> list[Candidate]:
    """Candidates of run directories (exported here) and export directories (taken as they are).

    Args:
      kinds: of artifacts, keys of `artifacts.KINDS`, that are needed.
      work: a directory for files that are not kept.
      keep: a directory in which exports of runs are kept, by name; None: they are not.
      images: the first of the test split on which accuracies are taken.

    Raises:
      UserError: neither of the two, an export of other weights than its run holds now, or what `export` raises.
    """
    found: list[Candidate] = []
    for path in map(Path, paths):
        name = unique(path.resolve().name, [candidate.name for candidate in found])
        if (path / export.RECORD).is_file():
            out = path
        elif (path / run_directory.CONFIG).is_file():
            out = (keep or work / 'exports') / name
            asked = [artifacts.KINDS[kind] for kind in kinds or (artifacts.ONNX,)]
            formats, int8 = tuple(dict.fromkeys(kind.format for kind in asked)), any(kind.is_int8 for kind in asked)
            options = export.Options(formats, int8=int8, which=which, calibration=calibration)
            export.export(path, out, options, data_dir, say)
        else:
            raise UserError(f'{path} is neither a run directory nor a directory that jointrd export made')
        found.append(of_export(out, name, work, images, data_dir, keep is not None or out == path))
    with_baselines(found)
    return found


def unique(name: str, taken: Sequence[str]) -> str:
    """`name`, numbered if it is taken."""
    return name if name not in taken else next(f'{name}-{i}' for i in range(2, 1000) if f'{name}-{i}' not in taken)


def of_export(out: Path, name: str, work: Path, images: int, data_dir: str | None, kept: bool) -> Candidate:
    """The candidate in an export directory.

    Raises:
      UserError: its record or a file is damaged, it takes several images a call, its run is not here, or holds other
        weights now.
    """
    record = files.read_json(out / export.RECORD)
    try:
        run_path, digest, which, held, batch = (record[key] for key in ('run', 'digest', 'which', 'artifacts', 'batch'))
        paths = {kind: (out / about['file'], about['sha256']) for kind, about in held.items()}
        options = export.Options(which=which, pixels=record['input'].startswith('pixels'))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f'{out / "export.json"} is damaged: it lacks {error}') from error
    if batch not in ('dynamic', 1):
        raise UserError(
            f'{out} takes {batch} images a call, and targets are run on one at a time: export it again without --batch'
        )
    if not (Path(run_path) / run_directory.CONFIG).is_file():
        raise UserError(f'{out} was exported from {run_path}, which is not here: export it again from its run')
    run = run_directory.load(run_path, which)
    if run_directory.digest(run.variables) != digest:
        raise UserError(
            f'{out} is older than the checkpoint of {run_path}, which holds other weights now: export it again'
        )
    for path, sha256 in paths.values():
        if not path.is_file() or files.sha256(path) != sha256:
            raise UserError(f'{path} is not the file that was verified when {out} was exported: export it again')
    run = run._replace(network=run.network.clone(dtype=np.dtype(np.float32)))
    with closing(export.open_dataset(run, options, data_dir)) as dataset:
        job = export.ExportJob(run, options, dataset)
        images_file = work / f'{name}.npz'
        with images_file.open('wb') as file:
            np.savez(file, allow_pickle=False, **test_images(job, images))
    scales = {k: v for k, v in held.get(artifacts.INT8_TFLITE, {}).items() if k in ('int8_input', 'int8_output')}
    found = {kind: path for kind, (path, _) in paths.items()}
    return Candidate(name, job.graph, found, scales, images_file, export=out if kept else None)


def test_images(job: export.ExportJob, count: int) -> dict[str, np.ndarray]:
    """The first `count` test images as the artifacts take them, their labels, and the logits to compare with.

    Raises:
      UserError: the images have no labels.
    """
    images, labels = [], []
    for batch in job.batches():
        if batch.labels is None:
            raise UserError(f'the test images of {job.run.path} have no labels')
        images.append(batch.images[batch.counts])
        labels.append(batch.labels[batch.counts])
        if sum(len(part) for part in images) >= count:
            break
    held = np.concatenate(images)[:count]
    call = jax.jit(lambda x: apply(job.graph, x))
    given = job.run.data.to_pixels(held) if job.options.pixels else held
    logits = np.concatenate([np.asarray(call(part)) for part in np.array_split(given, -(-len(given) // 64))])
    return {'images': given, 'labels': np.concatenate(labels)[:count], 'logits': logits}


def of_shapes(
    graphs: dict[str, dict[str, Graph]], kinds: Sequence[str], work: Path, say: Callable[[str], None] = print
) -> list[Candidate]:
    """Candidates with random weights: per group of `graphs` a baseline, which comes first, and others.

    The scales of int8 come from four images of noise; values change no figure but the size of compressed weights.
    """
    found = []
    noise = np.random.default_rng(1)
    for group, made in graphs.items():
        base, *_ = (f'{group} {name}' for name in made)
        for name, graph in made.items():
            label = f'{group} {name}'
            place = work / label.replace(' ', '_')
            place.mkdir()
            say(f'writing {label}')
            images = list(noise.standard_normal((4, 1, *graph.image_shape), np.float32))
            candidate = Candidate(label, graph, {}, baseline=None if label == base else base)
            for kind, blob in artifacts.made(graph, kinds, lambda images=images: images):
                candidate.artifacts[kind] = place / artifacts.KINDS[kind].file
                candidate.artifacts[kind].write_bytes(blob)
                if kind == artifacts.INT8_TFLITE:
                    candidate.scales = quantise.scales(blob)
            found.append(candidate)
    return found


def shapes(depths: Sequence[int], stem: str, width: int, names: Sequence[str]) -> dict[str, dict[str, Graph]]:
    """{'R50': {'ResNet': graph, 'projection': ...}}: networks of the standard depths, with random weights, folded."""
    return {
        f'R{depth}': {name: graph for name, graph in savings.graphs(depth, stem, width).items() if name in names}
        for depth in depths
    }


def folded(network: Network, image_shape: tuple[int, int, int]) -> Graph:
    """The graph of a network with random weights."""
    return fold.fold(network, savings.random_variables(network, image_shape), image_shape)


def predicted(graph: Graph, model: tuple[str, int] | None) -> int | None:
    """What the liveness model (its name, bytes per value) says; None without one."""
    return liveness.peak(graph, *model) if model else None

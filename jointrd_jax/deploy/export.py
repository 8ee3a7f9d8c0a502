"""From a run to a directory of deployable files, written only after each was run on the test images."""

import functools
import importlib.metadata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jointrd_jax import data
from jointrd_jax.data.description import NORMALISATION, DataDescription
from jointrd_jax.deploy import artifacts, card, fold, onnx_graph, quantise, tflite
from jointrd_jax.deploy.graph import Graph
from jointrd_jax.deploy.runner import Runner
from jointrd_jax.errors import UserError, choice_error, require
from jointrd_jax.runs import predictions, provenance, run_directory, weights
from jointrd_jax.system import buckets, files

TOLERANCE = 1e-4  # largest difference of a float artifact's logits to the checkpoint's, relative
RANDOM_IMAGES = 64  # run instead of the test images with `verify='random'`
VERIFY = ('test', 'random')
RECORD = 'export.json'


class Options(NamedTuple):
    """What to export.

    Attributes:
      formats: of `artifacts.FORMATS`.
      batch: images per call; None: any number.
      int8: also the quantised version of the ONNX and TFLite models asked for.
      pixels: artifacts take pixels 0..255 and normalise them, instead of normalised images.
      platform: that the StableHLO file is for.
      which: of the run's weights, 'last' or 'best'.
      verify: 'test': on the test split; 'random': on random images, where the dataset is not at hand.
      calibration: training images that fix the int8 scales.
      opset: of the ONNX model.
    """

    formats: tuple[str, ...] = artifacts.FORMATS
    batch: int | None = None
    int8: bool = False
    pixels: bool = False
    platform: str = 'cpu'
    which: str = 'last'
    verify: str = 'test'
    calibration: int = 256
    opset: int = onnx_graph.OPSET


DEFAULT = Options()


class Batch(NamedTuple):
    """Images [B, H, W, C] normalised, labels [B] (None: unknown), which of them count [B]."""

    images: np.ndarray
    labels: np.ndarray | None
    counts: np.ndarray


def check(options: Options, out: Path) -> None:
    """Raises UserError for whatever is bound to fail, before anything is computed."""
    for name in options.formats:
        if name not in artifacts.FORMATS:
            raise choice_error('format', name, artifacts.FORMATS)
    if options.verify not in VERIFY:
        raise choice_error('verify', options.verify, VERIFY)
    if not options.formats:
        raise UserError(f'no format to export; choose from {", ".join(artifacts.FORMATS)}')
    if options.int8 and not set(artifacts.QUANTISED) & set(options.formats):
        raise UserError('int8 quantises the ONNX and the TFLite model; add onnx or tflite to the formats')
    oldest, newest = onnx_graph.OPSETS
    if not oldest <= options.opset <= newest:
        raise UserError(f'opset={options.opset} is not a whole number from {oldest} to {newest}')
    files.check_new(out)
    if 'stablehlo' in options.formats:
        check_platform(options.platform)
    if 'onnx' in options.formats:
        require('onnx', 'onnx')
        require('onnxruntime', 'onnx')
    if 'tflite' in options.formats:
        quantise.check_tflite_installed() if options.int8 else tflite.check_installed()


def check_platform(platform: str) -> None:
    """Raises UserError if there is no device here on which a StableHLO file for `platform` can be verified."""
    if platform == 'cpu':
        return
    try:
        jax.devices(platform)
    except RuntimeError:
        raise UserError(
            f'--platform={platform}: JAX sees no such device here to verify the StableHLO file on; export it where '
            'one is, or leave stablehlo out of --format'
        ) from None


def eval_batches(dataset: data.Dataset) -> Iterator[Batch]:
    """The evaluation split as the network sees it, in batches of one size."""
    for images, labels, _, mask in predictions.of(dataset, None):
        yield Batch(images, labels, mask)


def random_batches(about: DataDescription, size: int) -> Iterator[Batch]:
    """At least `RANDOM_IMAGES` images of random pixels, in batches of `size`."""
    rng = np.random.default_rng(0)
    for _ in range(-(-RANDOM_IMAGES // size)):
        pixels = rng.integers(0, 256, (size, *about.image_shape), np.uint8)
        yield Batch(about.normalised(pixels), None, np.ones(size, bool))


def calibration_batches(dataset: data.Dataset, images: int, size: int) -> list[np.ndarray]:
    """The first training images, not augmented, in whole batches of `size`."""
    preprocess = jax.jit(lambda device_arrays, batch: dataset.preprocess(device_arrays, batch, None))
    found, count = [], 0
    for batch in dataset.train_batches(0):
        found.append(np.asarray(preprocess(dataset.device_arrays, batch)[0]))
        count += len(found[-1])
        if count >= max(images, size):
            break
    together = np.concatenate(found)
    return [together[i : i + size] for i in range(0, len(together) - size + 1, size)]


class Agreement:
    """How one artifact compares with the checkpoint, gathered batch by batch."""

    def __init__(self) -> None:
        self.difference, self.correct, self.images, self.labelled = 0.0, 0, 0, True

    def add(self, batch: Batch, found: np.ndarray, wanted: np.ndarray) -> None:
        found, wanted = found[batch.counts].astype(np.float64), wanted[batch.counts].astype(np.float64)
        worst = np.abs(found - wanted).max(1) / np.abs(wanted).max(1)
        self.difference = max(self.difference, float(worst.max())) if np.isfinite(worst).all() else float('inf')
        self.images += len(found)
        self.labelled &= batch.labels is not None
        if batch.labels is not None:
            self.correct += int((found.argmax(1) == batch.labels[batch.counts]).sum())

    @property
    def top1(self) -> float | None:
        """The top-1 accuracy in percent; None without labels."""
        return round(100 * self.correct / self.images, 4) if self.labelled else None


class ExportJob:
    """One export: `write` makes the files in a directory, `verify` runs one and compares it."""

    def __init__(self, run: run_directory.Run, options: Options, dataset: data.Dataset | None):
        self.run, self.options, self.dataset = run, options, dataset
        self.image_shape = run.data.image_shape
        self.batch_size = options.batch or run.config.eval_batch_size
        self.graph = self.deployed_graph()

    def deployed_graph(self) -> Graph:
        graph = fold.fold(self.run.network, self.run.variables, self.image_shape)
        if not self.options.pixels:
            return graph
        normalisation = self.run.data.mean, self.run.data.std
        try:
            return fold.fold_normalisation(graph, *normalisation)
        except UserError:
            return fold.normalisation_first(graph, *normalisation)

    def batches(self) -> Iterator[Batch]:
        return eval_batches(self.dataset) if self.dataset else random_batches(self.run.data, self.batch_size)

    def metadata(self, top1: float | None) -> dict[str, Any]:
        """The metadata written into ONNX and TFLite files: nothing that differs between machines."""
        about = self.run.data
        return {
            'run': self.run.path.resolve().name,
            'digest': run_directory.digest(self.run.variables),
            'dataset': about.dataset,
            'classes': list(about.classes),
            'input_size': list(self.image_shape[:2]),
            'input': 'pixels 0..255' if self.options.pixels else NORMALISATION,
            'mean': list(about.mean),
            'std': list(about.std),
            'resize': about.resize,
            'batch': self.options.batch or 'dynamic',
            'top1': 'unmeasured' if top1 is None else top1,
        }

    def write(self, directory: Path, top1: float | None) -> Iterator[tuple[str, Path]]:
        """Make every artifact asked for, and yield its kind and path."""
        options = self.options
        kinds = artifacts.of_formats(options.formats, options.int8)
        for kind, blob in artifacts.made(
            self.graph, kinds, lambda: self.calibration,
            self.metadata(top1), options.batch, options.platform, options.opset,
        ):  # fmt: skip
            path = directory / artifacts.KINDS[kind].file
            path.write_bytes(blob)
            yield kind, path
        if artifacts.SAFETENSORS in kinds:
            path = directory / artifacts.KINDS[artifacts.SAFETENSORS].file
            weights.save(path, self.run.network, self.run.variables, self.run.data)
            yield artifacts.SAFETENSORS, path

    @property
    def calibrated_on(self) -> str:
        return 'training images' if self.dataset else 'random images'

    @functools.cached_property
    def calibration(self) -> list[np.ndarray]:
        """Training images [B, H, W, C] as the artifacts take them, in batches of theirs."""
        size = self.options.batch or 32
        if self.dataset:
            batches = calibration_batches(self.dataset, self.options.calibration, size)
        else:
            batches = [batch.images for batch in random_batches(self.run.data, size)]
        return [self.run.data.to_pixels(images) if self.options.pixels else images for images in batches]

    def checkpoint_top1(self) -> tuple[float | None, list[np.ndarray], int]:
        """The checkpoint's top-1 in percent, its logits batch by batch, and how many images there are."""
        apply, own, logits = jax.jit(self.run.network.apply), Agreement(), []
        for batch in self.batches():
            logits.append(np.asarray(apply(self.run.variables, batch.images).logits))
            own.add(batch, logits[-1], logits[-1])
        return own.top1, logits, own.images

    def verify(self, name: str, path: Path, logits: list[np.ndarray]) -> Agreement:
        """Run an artifact in a fresh process on every image and compare with the checkpoint's logits.

        Raises:
          UserError: it does not run, or (float artifacts) computes something else.
        """
        found, kind = Agreement(), artifacts.KINDS[name]
        try:
            with Runner(path) as run:
                for batch, wanted in zip(self.batches(), logits, strict=True):
                    pixels = self.options.pixels and kind.from_graph
                    found.add(batch, run(self.run.data.to_pixels(batch.images) if pixels else batch.images), wanted)
        except RuntimeError as error:
            raise UserError(f'{path.name} does not run in {kind.runtime}: {error}; nothing was exported') from error
        if not kind.is_int8 and not found.difference <= TOLERANCE:
            raise UserError(
                f'{path.name} differs from the checkpoint by {found.difference:.1e} relative '
                f'(allowed: {TOLERANCE:.0e}); nothing was exported'
            )
        return found


def export(
    workdir: str | Path,
    out: str | Path,
    options: Options = DEFAULT,
    data_dir: str | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Export the run in `workdir` to the new directory `out` and return what `out/export.json` says.

    `out` appears whole, after every artifact was loaded in a fresh process and compared, or not at all.

    Raises:
      UserError: bad options, no run, no dataset, a missing extra, or an artifact that computes something else.
    """
    out = buckets.place(out)
    check(options, out)
    run = run_directory.load(workdir, options.which)
    if run.summary is None:
        say(f'{workdir} is not finished: these are the weights of its newest checkpoint')
    run = run._replace(network=run.network.clone(dtype=np.dtype(np.float32)))
    dataset = open_dataset(run, options, data_dir) if options.verify == 'test' else None
    try:
        with files.atomic_directory(out, last=RECORD) as directory:
            return fill(directory, ExportJob(run, options, dataset), say)
    finally:
        if dataset:
            dataset.close()


def fill(directory: Path, job: ExportJob, say: Callable[[str], None]) -> dict[str, Any]:
    """Write and verify everything in `directory`; return the record that `export.json` holds."""
    run, options = job.run, job.options
    if options.int8 and not job.dataset:
        say(f'the scales of int8 come from {job.calibrated_on}, since --verify random reads no training images')
    top1, logits, images = job.checkpoint_top1()
    made = {}
    for name, path in job.write(directory, top1):
        found = job.verify(name, path, logits)
        runtime = artifacts.KINDS[name].runtime
        made[name] = {
            'file': path.name,
            'bytes': path.stat().st_size,
            'sha256': files.sha256(path),
            'runtime': f'{runtime} {importlib.metadata.version(runtime)}',
            'images': found.images,
            'max_relative_difference': found.difference,
            'top1': found.top1,
        }
        if name == artifacts.INT8_TFLITE:
            made[name] |= quantise.scales(path.read_bytes())
        shown = 'unmeasured' if found.top1 is None else f'{found.top1:.2f} %'
        say(f'{path.name}: top-1 {shown}, logits differ by {found.difference:.1e} relative')
    record = {
        'run': str(files.absolute(run.path)),
        'which': options.which,
        'finished': run.summary is not None,
        'network': weights.name_of(run.network),
        'digest': run_directory.digest(run.variables),
        'operators': job.graph.operators(),
        'parameters': job.graph.parameters(),
        'macs': job.graph.macs(),
        'batch': options.batch or 'dynamic',
        'input': job.metadata(top1)['input'],
        'data': run.data.to_json(),
        'verified_on': f'{images} {"test images of " + job.dataset.name if job.dataset else "random images"}',
        'int8_scales_from': job.calibrated_on if options.int8 else None,
        'checkpoint_top1': top1,
        'artifacts': made,
        'versions': provenance.versions(),
    }
    files.write_atomically(directory / 'README.md', card.text(record))
    files.write_json(directory / RECORD, record)
    return record


def open_dataset(run: run_directory.Run, options: Options, data_dir: str | None) -> data.Dataset:
    """The run's dataset with its test split (else what was held out), in batches of the size that artifacts take.

    Raises:
      UserError: no such dataset, or one of other classes or image shape than the run's.
    """
    config = run.config.copy_and_resolve_references()
    config.dataset.data_dir = data_dir or config.dataset.data_dir
    if data.has_test_images(config):
        config.dataset.validation_size = 0
    config.batch_size, config.eval_batch_size = 1, options.batch or config.eval_batch_size
    dataset = data.load(config)
    if len(dataset.classes) != run.network.num_classes or tuple(dataset.image_shape) != tuple(run.data.image_shape):
        dataset.close()
        raise UserError(
            f'{run.path} has {run.network.num_classes} classes and images of {list(run.data.image_shape)}, but the '
            f'dataset {dataset.name} has {len(dataset.classes)} and {list(dataset.image_shape)}'
        )
    return dataset

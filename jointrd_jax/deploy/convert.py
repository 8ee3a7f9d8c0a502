"""Weight files into runs, runs into weight files (`jointrd convert`)."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import ml_collections
import numpy as np

from jointrd_jax.config import default
from jointrd_jax.data.description import DataDescription
from jointrd_jax.data.normalisation import IMAGENET
from jointrd_jax.errors import UserError
from jointrd_jax.method.architectures import BOTTLENECK_DEPTHS, STAGE_SIZES
from jointrd_jax.method.networks import Network, Variables, grouped_hidden
from jointrd_jax.runs.summary import Summary

TOLERANCE = 1e-4  # of equivalent removal, relative


class Source(NamedTuple):
    """A network to convert, with the config, data and summary that its run directory has or will have."""

    network: Network
    variables: Variables
    config: ml_collections.ConfigDict
    data: DataDescription
    summary: Summary


def config_of(network: Network, dataset: str, data_dir: str = '', side: int | None = None) -> ml_collections.ConfigDict:
    """A config that describes `network` and images of `side` pixels (streamed ones are cropped to that)."""
    config = default()
    config.procedure = 'resnet' if network.shortcuts == 'all' else 'plain'
    config.dataset.name, config.dataset.data_dir = dataset, data_dir
    if side:
        config.dataset.image_size, config.dataset.resize = side, round(side * 256 / 224)
    model, sizes = config.model, tuple(network.stage_sizes)
    model.block = 'bottleneck' if network.bottleneck else 'basic'
    shapes = {depth: (STAGE_SIZES[depth], depth in BOTTLENECK_DEPTHS) for depth in STAGE_SIZES}
    depths = [depth for depth, shape in shapes.items() if shape == (sizes, network.bottleneck)]
    if depths:
        model.depth = depths[-1]
    else:
        model.stage_sizes = sizes
    model.width, model.stem, model.hidden = network.width, network.stem_kind, tuple(network.hidden)
    model.groups = network.groups
    if (
        network.bottleneck and network.hidden and isinstance(network.groups, int)
    ):  # a wide ResNet's or ResNeXt's, or wider where shortcuts were removed
        per_group = network.hidden[0] * 64 // (network.width * network.groups)
        if grouped_hidden(sizes, network.width, network.groups, per_group) == tuple(network.hidden):
            model.width_per_group, model.hidden = per_group, ()
    model.reparam, model.activation, model.slope = network.reparam, network.activation, network.slope
    model.shortcuts = network.shortcut_choices
    return config


def data_of(
    network: Network, channels: int, dataset: str | None, data_dir: str, side: int | None
) -> tuple[str, DataDescription]:
    """(config.dataset.name, the description of the data that a run keeps) for a weight file that has neither.

    Raises:
      UserError: the dataset is not there, or has other classes or channels than the network.
    """
    if dataset:
        from jointrd_jax import data

        config = config_of(network, dataset, data_dir, side)
        config.batch_size = 1  # only looked at: any number of images will do
        opened = data.load(config)
        opened.close()
        if len(opened.classes) != network.num_classes or opened.image_shape[-1] != channels:
            raise UserError(
                f'the weights have {network.num_classes} classes and {channels} channels, but the dataset '
                f'{opened.name} has {len(opened.classes)} and {opened.image_shape[-1]}'
            )
        return dataset, opened.description
    name = 'imagenet2012' if network.num_classes == 1000 else 'unnamed'
    side = side or (32 if network.stem_kind == 'cifar' else 224)
    return name, DataDescription(
        name,
        classes=tuple(str(i) for i in range(network.num_classes)),
        image_shape=(side, side, channels),
        mean=IMAGENET[0] if channels == 3 else (0.0,) * channels,
        std=IMAGENET[1] if channels == 3 else (1.0,) * channels,
    )


def open_source(
    path: Path, which: str, dataset: str | None, data_dir: str, side: int | None, ema: bool = False
) -> Source:
    """What `path` holds: a run, or a weight file."""
    from jointrd_jax.runs import run_directory, weights
    from jointrd_jax.system import files

    if path.is_dir():
        if ema:
            raise UserError(f'{path} is a run, which keeps no moving average; --ema is for weight files')
        run = run_directory.load(path, which)
        if run.summary is None:
            raise UserError(f'{path} is not a finished run; continue its training first')
        return Source(run.network, run.variables, run.config, run.data, run.summary)
    network, variables, about, taken = weights.load(path, ema=ema)
    if taken:
        print(f'{path}: {taken}')
    channels = variables['params']['stem']['conv']['kernel'].shape[2]
    name, named = data_of(network, channels, dataset, data_dir, side)
    if about is not None and not dataset:
        name, named = about.dataset.partition(':')[0], about
    config = config_of(network, name, data_dir, side)
    summary = Summary(
        procedure=config.procedure,
        wall_seconds=0.0,
        dataset=named.dataset,
        origin=str(path),
        origin_sha256=files.sha256(path),
    )
    return Source(network, variables, config, named, summary)


def without_shortcuts(source: Source) -> Source:
    """The equivalent plain network, verified on random images.

    Raises:
      UserError: nothing to remove, or the result is further off than `TOLERANCE`.
    """
    from jointrd_jax.deploy.remove_shortcuts import without_shortcuts

    network, variables = without_shortcuts(source.network, source.variables)
    images = np.random.default_rng(0).normal(size=(8, *source.data.image_shape)).astype(np.float32)
    wanted = np.asarray(jax.jit(source.network.apply)(source.variables, images).logits)
    found = np.asarray(jax.jit(network.apply)(variables, images).logits)
    difference = float(np.abs(found - wanted).max() / np.abs(wanted).max())
    print(f'shortcuts removed; the logits differ by {difference:.1e} relative')
    if not difference <= TOLERANCE:
        raise UserError(f'removal is not exact for these weights: the logits differ by {difference:.1e} relative')
    config = config_of(network, source.config.dataset.name)
    config.dataset = source.config.dataset
    summary = dataclasses.replace(source.summary, shortcuts_removed_from=source.summary.student_digest)
    return Source(network, variables, config, source.data, summary)


def convert(
    path: str | Path,
    out: str | Path,
    *,
    which: str = 'last',
    remove_shortcuts: bool = False,
    dataset: str | None = None,
    data_dir: str = '',
    image_size: int | None = None,
    ema: bool = False,
) -> None:
    """Convert a run or weight file `path`: into a weight file if `out` ends in .safetensors, else into a run directory.

    Raises:
      UserError: `path` holds no network, `out` holds something already, or they do not fit together.
    """
    from jointrd_jax.runs import provenance, run_directory, state_dicts, weights
    from jointrd_jax.system import buckets, files

    path, out = buckets.place(path), buckets.place(out)
    with buckets.answering(out):
        if out.is_file() or (out.exists() and any(out.iterdir())):
            raise UserError(f'{out} exists already; choose another --out')
    if out.name.lower().endswith(state_dicts.ENDINGS) and out.suffix != '.safetensors':
        raise UserError(f'{out}: weights are written as .safetensors only')
    with buckets.answering(path):
        if not path.exists():
            raise UserError(f'{path}: no such run or weight file')
    source = open_source(path, which, dataset, data_dir, image_size, ema)
    if remove_shortcuts:
        source = without_shortcuts(source)
    if out.suffix == '.safetensors':
        files.make_parent(out)
        weights.save(out, source.network, source.variables, source.data)
    else:
        network = source.network
        summary = dataclasses.replace(
            source.summary,
            procedure=source.config.procedure,
            model=weights.name_of(network),
            depth=network.depth,
            stage_sizes=list(network.stage_sizes),
            width=network.width,
            shortcuts=source.config.model.shortcuts,
            reparam=source.config.model.reparam,
            activation=source.config.model.activation,
            student_digest=run_directory.digest(source.variables),
            versions=provenance.versions(),
        )
        with files.atomic_directory(out, last=run_directory.SUMMARY) as directory:
            run_directory.save(directory, source.config, source.variables, source.data, summary)
    print(f'{weights.name_of(source.network)}: {path} -> {out}')

"""Runs on disk to what a report shows: variants (one config but for the seed), their curves and results."""

import json
import math
import statistics
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jointrd_jax import config as config_lib
from jointrd_jax.data.folds import name_of_split, parts
from jointrd_jax.deploy.export import RECORD
from jointrd_jax.errors import UserError
from jointrd_jax.report import paired, targets
from jointrd_jax.runs import run_directory, summary as summary_lib
from jointrd_jax.runs.checkpoint_places import DIRECTORY as CHECKPOINTS
from jointrd_jax.runs.summary import Summary, mean_and_spread
from jointrd_jax.system import buckets, files
from jointrd_jax.train.preflight import HARMLESS

# Fields that do not tell variants apart: where things are, how they are kept and shown, and what is drawn at random.
APART = ('seed', 'dataset.fold', 'eval_every', 'eval_hybrids', 'eval_batch_size', *HARMLESS)
APART_GROUPS = ('log.', 'checkpoint.')
# Fields (by their beginning) that decide the results of these procedures alone.
MIXED = ('jointrd', 'jointrd_scratch')
USED_BY = {
    'mix.': MIXED,
    'distill.weight': (*MIXED, 'feature_kd'),
    'distill.alpha': ('logit_kd', 'resnet_kd'),
    'distill.temperature': ('logit_kd', 'resnet_kd'),
}
IN_NAME = ('model.reparam', 'model.activation', 'model.init')  # of a student: 'jointrd+dirac'
# Fields of the student that a ResNet does not use.
OF_STUDENT = (*IN_NAME, 'model.shortcuts', 'model.slope', 'model.slope_layers', 'model.anneal_fraction', 'model.hidden')
ORDER = ('resnet', 'resnet_kd', 'plain', 'feature_kd', 'logit_kd', 'jointrd_scratch', 'jointrd')

Point = tuple[float, float]


class Record(NamedTuple):
    """One run.

    Attributes:
      path: its directory.
      config: flat.
      metrics: its lines of metrics.jsonl.
      summary: None: not finished.
      not_finite: {'step', 'term'} of the loss that ended it.
    """

    path: Path
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    summary: Summary | None
    not_finite: dict[str, Any] | None = None

    @property
    def seed(self) -> int:
        return self.config['seed']

    @property
    def key(self) -> paired.Key:
        return self.seed, self.config.get('dataset.fold', '')

    @property
    def dataset(self) -> str | None:
        """What it was evaluated on, whichever fold of it; None while that is not known."""
        evaluated = self.summary and (self.summary.eval_images or [self.summary.dataset])[0]
        name, kind, value = parts(evaluated or '')
        return name_of_split(name, kind, value if kind != 'fold' else f'of {self.folds}') or None

    @property
    def folds(self) -> str:
        """How many parts the images were dealt out to; '' if they were not."""
        return self.key[1].partition('/')[2]


class Variant(NamedTuple):
    """Runs of one config on one dataset: they differ by the seed alone, and which of so many folds they evaluate on."""

    name: str
    config: dict[str, Any]
    runs: list[Record]

    @property
    def procedure(self) -> str:
        return self.config['procedure']

    @property
    def images(self) -> tuple[str | None, str]:
        """The dataset of its runs (None: not known yet), and in how many folds."""
        return next((run.dataset for run in self.runs if run.dataset), None), self.runs[0].folds

    @property
    def finished(self) -> list[Record]:
        return [run for run in self.runs if run.summary]

    @property
    def summaries(self) -> list[Summary]:
        """Of its finished runs."""
        return [run.summary for run in self.runs if run.summary]

    def names(self, prefix: str = '', suffix: str = '') -> list[str]:
        """Names in the metrics of its runs, in order of first appearance."""
        found = {name: None for run in self.runs for line in run.metrics for name in line}
        return [name for name in found if name.startswith(prefix) and name.endswith(suffix)]

    def curve(self, value: str | Callable[[dict], float | None]) -> list[tuple[float, float, float, float]]:
        """(epoch, mean, lowest, highest over seeds) where every run has the value."""
        value_of = (lambda line: line.get(value)) if isinstance(value, str) else value
        by_epoch: dict[int, list[float]] = {}
        for run in self.runs:
            for line in run.metrics:
                found = value_of(line)
                if found is not None and math.isfinite(found):  # the norm of an exploding gradient may not be
                    by_epoch.setdefault(line['epoch'], []).append(found)
        most = max(map(len, by_epoch.values()), default=0)
        return [(epoch, statistics.fmean(v), min(v), max(v)) for epoch, v in sorted(by_epoch.items()) if len(v) == most]

    def result(self, name: str) -> tuple[float, float] | None:
        """(mean, sample standard deviation) over the seeds of a number in the summaries (of folds: their mean)."""
        by_seed: dict[int, list[float]] = {}
        for run in self.runs:
            value = getattr(run.summary, name) if run.summary else None
            if value is not None:
                by_seed.setdefault(run.seed, []).append(value)
        return mean_and_spread([statistics.fmean(folds) for folds in by_seed.values()])


def to_resnet(variant: Variant, variants: list[Variant]) -> paired.Difference | None:
    """The paired difference of a variant to the ResNet of its shape, data and length among `variants`; None without."""
    same = ('dataset.name', 'model.depth', 'model.stage_sizes', 'model.block', 'model.width', 'epochs')
    resnets = [
        other for other in variants
        if other.procedure == 'resnet' and other.images == variant.images
        and all(other.config.get(k) == variant.config.get(k) for k in same)
    ]  # fmt: skip
    if variant.procedure == 'resnet' or not resnets:
        return None
    return paired.difference(correct(variant), correct(resnets[0]))


def correct(variant: Variant) -> dict[paired.Key, np.ndarray]:
    """Which images each finished run got right, where it kept that."""
    found = {run.key: run_directory.read_correct(run.path) for run in variant.finished}
    return {key: images for key, images in found.items() if images is not None}


def read(path: Path) -> Record:
    """The run at `path`; a torn last line of its metrics (a run at work) is left out.

    Raises:
      UserError: one of its files is damaged.
    """
    config = json.loads(json.dumps(config_lib.flatten(run_directory.read_config(path))))
    return Record(
        path,
        config,
        run_directory.read_metrics(path / run_directory.METRICS),
        summary_lib.read(path),
        read_not_finite(path),
    )


def read_not_finite(path: Path) -> dict[str, Any] | None:
    """Which loss ended the run at `path`, and when; None if none did.

    Raises:
      UserError: the file that says so is damaged.
    """
    path = path / run_directory.NOT_FINITE
    if not path.is_file():
        return None
    fault = files.read_json(path)
    if not isinstance(fault, dict) or not fault.keys() >= {'step', 'term'}:
        raise UserError(f'{path} is damaged: it does not say which loss was not finite, and when')
    return fault


def find(paths: Iterable[str | Path]) -> list[Record]:
    """All runs at or below `paths` (run directories, directories of `compare`), teachers included.

    A config.json of something else is passed over, and so is a path that holds exports alone.

    Raises:
      UserError: a path that holds neither run nor export, no run in any, or a damaged file of a run.
    """
    found: dict[Path, Path] = {}
    paths = [buckets.place(path) for path in paths]
    for path in paths:
        with buckets.answering(path):
            configs = buckets.find(path, run_directory.CONFIG)
        configs = [p for p in configs if CHECKPOINTS not in p.relative_to(path).parts]
        places = [p.parent for p in configs if is_run(p.parent, named=p.parent == path)]
        if not places and not exports([path], []):
            raise UserError(f"{path} holds no run: there is no run's {run_directory.CONFIG} in it or below it")
        for place in places:
            found.setdefault(buckets.resolved(place), place)
    if not found:
        raise UserError(
            f'{", ".join(map(str, paths))}: a report needs at least one run; name the run of these exports too'
        )
    return [read(place) for place in found.values()]


def is_run(path: Path, named: bool) -> bool:
    """Whether the config.json in `path` is a run's, and not of something else that lies there.

    Raises:
      UserError: it is not, although `path` was `named` as a run or has a run's metrics.
    """
    try:
        config = files.read_json(path / run_directory.CONFIG)
    except UserError:
        config = None
    if isinstance(config, dict) and 'procedure' in config:
        return True
    if named or (path / run_directory.METRICS).exists():
        raise UserError(f'{path / run_directory.CONFIG} is damaged, or not the config of a run')
    return False


def exports(paths: Iterable[Path], records: Collection[Record]) -> list[dict[str, Any]]:
    """The export.json of each export at or below `paths`, with its 'path', 'targets' and its run's 'record' or None."""
    by_path = {buckets.resolved(record.path): record for record in records}
    found = {}
    for place in (place for path in paths for place in buckets.find(path, RECORD)):
        try:
            about = files.read_json(place)
        except UserError:
            continue
        if is_export(about):
            named = by_path.get(buckets.resolved(buckets.place(about['run'])))
            same = [run for run in records if run.summary and run.summary.student_digest == about['digest']]
            record = named if named in same or not same else same[0]  # a run may have moved, and another be there now
            said = targets.read(place.parent)
            found[buckets.resolved(place)] = {**about, 'path': place.parent, 'record': record, 'targets': said}
    return list(found.values())


def is_export(about: Any) -> bool:
    """Whether that is what `export` writes, and not the export.json of something else."""

    def has(value: Any, kind: Any, *names: str) -> bool:
        return isinstance(value, dict) and all(isinstance(value.get(name), kind) for name in names)

    number = int | float | None
    return (
        has(about, str, 'run', 'network', 'digest', 'verified_on')
        and has(about, int, 'parameters', 'macs')
        and has(about, dict, 'artifacts')
        and has(about, number, 'checkpoint_top1')
        and all(
            has(made, str, 'file', 'runtime')
            and has(made, int, 'bytes')
            and has(made, number, 'top1', 'max_relative_difference')
            for made in about['artifacts'].values()
        )
    )


def used(config: dict[str, Any]) -> dict[str, Any]:
    """The fields that decide the result of a run, but for the seed."""
    kept = {k: v for k, v in config.items() if k not in APART and not k.startswith(APART_GROUPS)}
    if config['procedure'] in config_lib.TRAINS_RESNET:  # a teacher inherits fields of the student that it does not use
        kept = {k: v for k, v in kept.items() if k not in OF_STUDENT}
    unused = [prefix for prefix, procedures in USED_BY.items() if config['procedure'] not in procedures]
    return {k: v for k, v in kept.items() if not k.startswith(tuple(unused))}


def differences(configs: list[dict[str, Any]]) -> list[str]:
    """Fields, in the order of config.FIELDS, in which the configs differ."""
    return [
        name
        for name in config_lib.FIELDS
        if name not in APART
        and not name.startswith(APART_GROUPS)
        and len({json.dumps(config.get(name)) for config in configs}) > 1
    ]


def variants(records: list[Record]) -> list[Variant]:
    """The runs grouped and named: by procedure, and by the fields that tell variants of one procedure apart.

    A name leaves out what most variants of its procedure have (of two halves, the one with the field's default), so
    that the base of ablations is called 'jointrd'.
    """

    def is_usual(name: str, value: Any, peers: list[dict[str, Any]]) -> bool:
        same = 2 * sum(peer[name] == value for peer in peers)
        return same > len(peers) or (same == len(peers) and value == usual[name])

    usual = json.loads(json.dumps(config_lib.flatten(config_lib.default())))
    chosen = [one_per_seed(group) for group in groups(records)]
    unnamed = [Variant('', group[0].config, group) for group in chosen]
    seen = {variant.images for variant in unnamed if variant.images[0]}
    named = []
    for variant in unnamed:
        config = variant.config
        peers = [g[0].config for g in chosen if g[0].config['procedure'] == config['procedure']]
        fields = [
            name for name in differences(peers) if name in used(config) and not is_usual(name, config[name], peers)
        ]
        name = config['procedure']
        if name not in config_lib.TRAINS_RESNET:
            name += ''.join(f'+{config[field]}' for field in IN_NAME if config[field] != usual[field])
            name += '+fading' * (config['model.shortcuts'] == 'fading')
        told = (*IN_NAME, *['model.shortcuts'] * name.endswith('+fading'))
        shown = [f'{field.split(".")[-1]}={show(config[field])}' for field in fields if field not in told]
        if len(seen) > 1 and variant.images[0]:
            shown.append(f'on {variant.images[0]}')
        named.append(variant._replace(name=' '.join([name, *shown])))
    return sorted(named, key=lambda v: (ORDER.index(v.procedure) if v.procedure in ORDER else len(ORDER), v.name))


def groups(records: list[Record]) -> list[list[Record]]:
    """The runs of one config each, evaluated on one dataset in as many folds.

    A run that is not finished is put beside those of its config: what it is evaluated on is not known yet.
    """
    by_config: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        by_config.setdefault((json.dumps(used(record.config), sort_keys=True), record.folds), []).append(record)
    found: list[list[Record]] = []
    for group in by_config.values():
        by_dataset: dict[str | None, list[Record]] = {}
        for record in sorted(group, key=lambda record: record.dataset is None):
            by_dataset.setdefault(record.dataset or next(iter(by_dataset), None), []).append(record)
        found += by_dataset.values()
    return found


def left_out(records: list[Record], variants: list[Variant]) -> list[tuple[Record, Record]]:
    """(finished run that is not shown, the one of the same config and seed that is), where their weights differ."""
    pairs = []
    for record in records:
        shown = next(
            run for v in variants for run in v.runs
            if run.key == record.key and used(run.config) == used(record.config)
            and record.dataset in (None, v.images[0])
        )  # fmt: skip
        digests = [run.summary and run.summary.student_digest for run in (record, shown)]
        if record.summary and digests[0] != digests[1]:
            pairs.append((record, shown))
    return pairs


def one_per_seed(group: list[Record]) -> list[Record]:
    """A finished run of each seed (the same teacher may lie under several runs), else the one that got furthest.

    Of runs in folds, one of each seed and fold.
    """
    by_seed: dict[paired.Key, Record] = {}
    for record in sorted(group, key=lambda r: (r.summary is not None, len(r.metrics))):
        by_seed[record.key] = record
    return [by_seed[key] for key in sorted(by_seed)]


def show(value: Any) -> str:
    """A config value for people."""
    if isinstance(value, (list, tuple)):
        return ','.join(map(str, value)) or '()'
    return f'{value:g}' if isinstance(value, float) else str(value)

"""Runs on disk to what a report shows: variants (one config but for the seed), their curves and results."""

import json
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from jointrd_jax import config as config_lib, files, runs
from jointrd_jax.checkpoint import DIRECTORY as CHECKPOINTS
from jointrd_jax.errors import UserError

# Fields that do not tell variants apart: where things are, how they are kept and shown, chance.
APART = ('seed', 'dataset.data_dir', 'teacher.path', 'eval_every', 'eval_hybrids', 'eval_batch_size')
APART_GROUPS = ('log.', 'checkpoint.')
ORDER = ('resnet', 'resnet_kd', 'plain', 'feature_kd', 'logit_kd', 'jointrd_scratch', 'jointrd')

Point = tuple[float, float]


class Record(NamedTuple):
    """One run: its config (flat), its lines of metrics.jsonl, its summary (None: not finished)."""

    path: Path
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    summary: dict[str, Any] | None

    @property
    def seed(self) -> int:
        return self.config['seed']


class Variant(NamedTuple):
    """Runs that differ by the seed alone."""

    name: str
    config: dict[str, Any]
    runs: list[Record]

    @property
    def procedure(self) -> str:
        return self.config['procedure']

    @property
    def finished(self) -> list[Record]:
        return [run for run in self.runs if run.summary]

    def names(self, prefix: str = '', suffix: str = '') -> list[str]:
        """Names in the metrics of its runs, in order of first appearance."""
        found = {name: None for run in self.runs for line in run.metrics for name in line}
        return [name for name in found if name.startswith(prefix) and name.endswith(suffix)]

    def curve(self, value: str | Callable[[dict], float | None]) -> list[tuple[float, float, float, float]]:
        """(epoch, mean, lowest, highest over seeds) where every run has the value."""
        if isinstance(value, str):
            name = value

            def value(line: dict) -> float | None:
                return line.get(name)

        by_epoch: dict[int, list[float]] = {}
        for run in self.runs:
            for line in run.metrics:
                found = value(line)
                if found is not None:
                    by_epoch.setdefault(line['epoch'], []).append(found)
        most = max(map(len, by_epoch.values()), default=0)
        return [(epoch, statistics.fmean(v), min(v), max(v)) for epoch, v in sorted(by_epoch.items()) if len(v) == most]

    def result(self, name: str) -> tuple[float, float] | None:
        """(mean, sample standard deviation) over the seeds of a number in the summaries."""
        values = [run.summary[name] for run in self.finished if run.summary.get(name) is not None]
        if not values:
            return None
        return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def read(path: Path) -> Record:
    """The run at `path`; a torn last line of its metrics (a run at work) is left out."""
    defaults = {name: field.default for name, field in config_lib.FIELDS.items()}
    config = json.loads(json.dumps({**defaults, **files.read_json(path / runs.CONFIG)}))
    metrics = []
    if (path / runs.METRICS).is_file():
        for line in (path / runs.METRICS).read_text().splitlines():
            try:
                metrics.append(json.loads(line))
            except ValueError:
                continue
    return Record(path, config, metrics, runs.read_summary(path))


def find(paths: Iterable[str | Path]) -> list[Record]:
    """All runs at or below `paths` (run directories, directories of `compare`), teachers included.

    Raises:
      UserError: a path holds no run.
    """
    found: dict[Path, Record] = {}
    for path in map(Path, paths):
        configs = [p for p in sorted(path.rglob(runs.CONFIG)) if CHECKPOINTS not in p.relative_to(path).parts]
        if not configs:
            raise UserError(f'{path} holds no run: no {runs.CONFIG} there or below')
        for config in configs:
            if config.parent.resolve() not in found:
                found[config.parent.resolve()] = read(config.parent)
    return list(found.values())


def identity(config: dict[str, Any]) -> str:
    """What runs of one variant share, as text."""
    kept = {k: v for k, v in config.items() if k not in APART and not k.startswith(APART_GROUPS)}
    if config['procedure'] in config_lib.TRAINS_RESNET:  # a teacher inherits fields of the student that it does not use
        kept = {k: v for k, v in kept.items() if k not in ('model.shortcuts', 'model.dirac')}
    if not config['procedure'].startswith('jointrd'):
        kept = {k: v for k, v in kept.items() if not k.startswith('mix.')}
    return json.dumps(kept, sort_keys=True)


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
    """The runs grouped and named: by procedure, and by the fields that tell variants of one procedure apart."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(identity(record.config), []).append(record)
    chosen = [one_per_seed(group) for group in groups.values()]
    named = []
    for group in chosen:
        config = group[0].config
        peers = [g[0].config for g in chosen if g[0].config['procedure'] == config['procedure']]
        fields = [name for name in differences(peers) if json.loads(identity(config)).get(name) is not None]
        name = config['procedure'] + ('+dirac' if config['model.dirac'] and 'resnet' not in config['procedure'] else '')
        shown = [f'{field.split(".")[-1]}={show(config[field])}' for field in fields if field != 'model.dirac']
        named.append(Variant(' '.join([name, *shown]), config, group))
    return sorted(named, key=lambda v: (ORDER.index(v.procedure) if v.procedure in ORDER else len(ORDER), v.name))


def one_per_seed(group: list[Record]) -> list[Record]:
    """A finished run of each seed (the same teacher may lie under several runs), else the one that got furthest."""
    by_seed: dict[int, Record] = {}
    for record in sorted(group, key=lambda r: (r.summary is not None, len(r.metrics))):
        by_seed[record.seed] = record
    return [by_seed[seed] for seed in sorted(by_seed)]


def show(value: Any) -> str:
    """A config value for people."""
    if isinstance(value, (list, tuple)):
        return ','.join(map(str, value)) or '()'
    return f'{value:g}' if isinstance(value, float) else str(value)


def exports(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Every export.json in or just below the runs, with the run it belongs to."""
    found = []
    for record in records:
        for path in sorted({*record.path.glob('export.json'), *record.path.glob('*/export.json')}):
            found.append({**files.read_json(path), 'path': path.parent, 'record': record})
    return found

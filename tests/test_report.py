"""The report: what it shows, that it needs nothing else, and what it says of runs that are not whole."""

import html.parser
import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT

from jointrd_jax import files, runs
from jointrd_jax.errors import UserError
from jointrd_jax.report import charts, collect, page, predictions
from jointrd_jax.report.charts import Series

EXPORT = {
    'network': 'plain10', 'digest': 'other', 'parameters': 12345, 'macs': 67890, 'checkpoint_top1': 68.6,
    'verified_on': '500 test images of digits',
    'artifacts': {'onnx': {'file': 'network.onnx', 'bytes': 50000, 'runtime': 'onnxruntime 1', 'top1': 68.4,
                           'max_relative_difference': 2e-7}},
}  # fmt: skip


class Page(html.parser.HTMLParser):
    """Tags, what they point to, and the text of a page."""

    def __init__(self, path):
        super().__init__()
        self.links, self.tags, self.words, self.open = [], {}, [], []
        self.feed(path.read_text())
        self.text = ' '.join(' '.join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.open.append(tag)
        self.links += [value for name, value in attributes if name in ('src', 'href', 'xlink:href', 'srcset')]

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if self.open and self.open[-1] not in ('style', 'script'):
            self.words.append(data)


@pytest.fixture(scope='module')
def report(watched_run, tmp_path_factory):
    """The report of a JointRD run with its teacher and an export, and what `write` returned."""
    workdir = tmp_path_factory.mktemp('reported') / 'run'
    shutil.copytree(watched_run, workdir)
    (workdir / 'exported').mkdir()
    files.write_json(workdir / 'exported' / 'export.json', EXPORT)
    out = workdir.parent / 'pages' / 'report.html'
    written = page.write([workdir], out)
    return Page(out), out.read_text(), written


def test_it_shows_every_part(report, watched_run):
    shown, _, written = report
    assert written == {'runs': 2, 'variants': ['resnet', 'jointrd']}
    summary = runs.read_summary(watched_run)
    assert f'{summary["last_top1"]:.2f}' in shown.text and f'{summary["teacher_top1"]:.2f}' in shown.text
    assert f'reaches {summary["last_top1"]:.1f} % by JointRD' in shown.text
    for part in ('Result', 'procedure', 'Curves', 'Mixing weight', 'The hybrids', 'path1: 1 blocks plain',
                 "the teacher's share of each stage's gradient", 'through the teacher', 'stage3: gradient norm',
                 'What it gets wrong', '% sure', 'network.onnx', '48.8 KiB', '2.0e-07',
                 'Not made from the last weights'):  # fmt: skip
        assert part in shown.text, part
    assert shown.tags['svg'] >= 15 and shown.tags['polyline'] >= 20


def test_it_needs_nothing_else(report):
    shown, source, _ = report
    assert all(link.startswith(('#', 'data:')) for link in shown.links), shown.links
    for word in ('http://', 'https://', '@import', 'url(', 'fetch('):
        assert word not in source
    assert 'prefers-color-scheme: dark' in source and 'width=device-width' in source


def test_curves_hold_the_metrics(report, watched_run):
    _, source, _ = report
    lines = [json.loads(line) for line in (watched_run / runs.METRICS).read_text().splitlines()]
    for line in lines:
        assert json.dumps([line['epoch'], float(f'{line["top1"]:.4g}')]) in source


def test_the_command(watched_run, tmp_path):
    out = tmp_path / 'report.html'
    done = subprocess.run(
        [sys.executable, '-m', 'jointrd_jax.report', str(watched_run), '--out', str(out), '--noevaluate'],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == f'report of 2 runs: {out}\n' and 'What it gets wrong' not in Page(out).text


def test_a_run_at_work_and_a_run_without_data(watched_run, tmp_path):
    at_work, elsewhere = tmp_path / 'seed7', tmp_path / 'seed8'
    for path, seed in ((at_work, 7), (elsewhere, 8)):
        shutil.copytree(watched_run, path, ignore=shutil.ignore_patterns('teacher'))
        config = files.read_json(path / runs.CONFIG)
        files.write_json(path / runs.CONFIG, {**config, 'seed': seed})
    (at_work / runs.SUMMARY).unlink()
    first = (at_work / runs.METRICS).read_text().splitlines()[0]
    (at_work / runs.METRICS).write_text(f'{first}\n{first[:50]}')
    shutil.rmtree(elsewhere / 'checkpoints')
    page.write([tmp_path], tmp_path / 'report.html')
    text = Page(tmp_path / 'report.html').text
    assert '7 : not finished, epoch 1 of 2' in text
    assert 'not evaluated' in text and 'has no finished checkpoint' in text


def test_what_it_refuses(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r'holds no run: no config\.json'):
        page.write([tmp_path], tmp_path / 'report.html')
    monkeypatch.setitem(sys.modules, 'jinja2', None)
    with pytest.raises(UserError, match=r'jinja2 is not installed.*\[report\]'):
        page.write([tmp_path], tmp_path / 'report.html')


def record(procedure='plain', seed=0, summary=None, **fields):
    defaults = {name: field.default for name, field in collect.config_lib.FIELDS.items()}
    config = {**defaults, 'procedure': procedure, 'seed': seed, **{k.replace('__', '.'): v for k, v in fields.items()}}
    return collect.Record(ROOT / procedure / str(seed), json.loads(json.dumps(config)), [], summary)


def test_variants_are_named_by_what_differs():
    found = collect.variants(
        [record('jointrd', seed, mix__eta=eta) for seed in (0, 1) for eta in (0.0, 0.5)]
        + [record('resnet', mix__eta=0.1, model__shortcuts='projection'), record('resnet', mix__eta=0.5)]
        + [record('plain', model__dirac=True), record('plain')]
    )
    assert [(v.name, len(v.runs)) for v in found] == [
        ('resnet', 1), ('plain', 1), ('plain+dirac', 1), ('jointrd eta=0', 2), ('jointrd eta=0.5', 2),
    ]  # fmt: skip


def test_mean_and_spread():
    found = collect.variants([record(seed=seed, summary={'last_top1': 90.0 + seed}) for seed in range(3)])
    assert found[0].result('last_top1') == (91.0, 1.0)
    assert page.measure((91.0, 1.0), 3) == '91.00 ± 1.00' and page.measure((91.0, 0.0), 1) == '91.00'


def test_text_is_escaped():
    series = [Series('<b>&"\'', [(1, 2.0, 2.0, 2.0), (2, 3.0, 2.5, 3.5)], 0)]
    chart = charts.line_chart('<script>', series)
    assert '<script>' not in chart and '<b>' not in chart and '&lt;script&gt;' in chart and 'polygon' in chart


def test_charts_of_nothing_are_empty():
    assert charts.line_chart('none', [Series('a', [], 0)]) == ''
    assert charts.line_chart('zeros', [Series('a', [(1, 0.0, 0.0, 0.0)], 0)], log=True) == ''


@pytest.mark.parametrize(
    'low, high, expected',
    [(0, 100, [0, 20, 40, 60, 80, 100]), (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (1, 2, [1, 1.2, 1.4, 1.6, 1.8, 2])],
)
def test_ticks(low, high, expected):
    assert charts.ticks(low, high) == expected


def test_confusion_of_many_classes_lists_pairs():
    number = predictions.MATRIX_CLASSES + 1
    matrix = np.diag(np.full(number, 9))
    matrix[3, 7], matrix[5, 1] = 4, 2
    dataset = SimpleNamespace(classes=tuple(f'class{i}' for i in range(number)), mean=(0.5,), std=(0.2,))
    wrong = {3: [(0.9, 7, np.zeros((8, 8, 1), np.float32))]}
    found = predictions.summarise(matrix, wrong, dataset)
    assert found.matrix is None and found.pairs == [('class3', 'class7', 4), ('class5', 'class1', 2)]
    assert [w.name for w in found.worst] == ['class3', 'class5']
    assert found.worst[0].accuracy == pytest.approx(100 * 9 / 13) and found.worst[1].examples == []
    example = found.worst[0].examples[0]
    assert example.taken_for == 'class7' and example.image.startswith('data:image/png;base64,iVBOR')

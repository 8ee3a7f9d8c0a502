"""The report: what it shows, that it needs nothing else, and what it says of runs that are not whole."""

import html.parser
import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from jointrd_jax.data.description import DataDescription
from jointrd_jax.errors import UserError
from jointrd_jax.report import charts, collect, page, predictions
from jointrd_jax.report.charts import Series
from jointrd_jax.runs import run_directory, summary as summary_lib
from jointrd_jax.system import files
from tests.support.configs import ROOT
from tests.support.runs import digits_run

EXPORT = {
    'run': 'elsewhere', 'network': 'plain10', 'digest': 'other', 'parameters': 12345, 'macs': 67890,
    'checkpoint_top1': 68.6, 'verified_on': '500 test images of digits',
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


TARGETS = {
    'command': 'jointrd targets RUN',
    'network': 'plain',
    'rows': [
        dict(target='vela', configuration='u55-256', network='ResNet', memory_bytes=1764 * 1024, time_ms=52.0),
        dict(
            target='vela', configuration='u55-256', network='plain', memory_bytes=1176 * 1024, time_ms=37.6, faster=1.38
        ),
        dict(target='mnn', configuration='float32', network='plain', outcome='hangs', reason='no answer after 600 s'),
    ],
}


@pytest.fixture(scope='module')
def report(watched_run, tmp_path_factory):
    """The report of a JointRD run with its teacher and an export, and what `write` returned."""
    workdir = tmp_path_factory.mktemp('reported') / 'run'
    shutil.copytree(watched_run, workdir)
    (workdir / 'exported').mkdir()
    files.write_json(workdir / 'exported' / 'export.json', {**EXPORT, 'run': str(workdir)})
    files.write_json(workdir / 'exported' / 'targets.json', TARGETS)
    out = workdir.parent / 'pages' / 'report.html'
    written = page.write([workdir], out)
    return Page(out), out.read_text(), written


def test_it_shows_every_part(report, watched_run):
    shown, _, written = report
    assert written == {'runs': 2, 'variants': ['resnet', 'jointrd'], 'left_out': []}
    summary = summary_lib.read(watched_run)
    assert f'{summary.last_top1:.2f}' in shown.text and f'{summary.teacher_top1:.2f}' in shown.text
    assert f'reaches {summary.last_top1:.2f} % top-1 by JointRD' in shown.text and 'best of' not in shown.text
    for part in ('Result', 'procedure', 'Curves', 'Mixing weight', 'The hybrids', 'path1: 1 block plain',
                 "the teacher's share of each stage's gradient", 'through the teacher', 'stage3: gradient norm',
                 'What it gets wrong', '% sure', 'network.onnx', '48.8 KiB', '2.0e-07',
                 'but not made from its last weights', 'What targets say of it', 'vela u55-256', '1176', '1.38',
                 'hangs: no answer after 600 s'):  # fmt: skip
        assert part in shown.text, part
    assert shown.tags['svg'] >= 15 and shown.tags['polyline'] >= 20


def test_it_needs_nothing_else(report):
    shown, source, _ = report
    assert all(link.startswith(('#', 'data:')) for link in shown.links), shown.links
    for word in ('http://', 'https://', '@import', 'url(', 'fetch('):
        assert word not in source
    assert 'Content-Security-Policy" content="default-src \'none\'; img-src data:; style' in source
    assert 'prefers-color-scheme: dark' in source and 'width=device-width' in source


def test_curves_hold_the_metrics(report, watched_run):
    _, source, _ = report
    lines = [json.loads(line) for line in (watched_run / run_directory.METRICS).read_text().splitlines()]
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
        config = files.read_json(path / run_directory.CONFIG)
        files.write_json(path / run_directory.CONFIG, {**config, 'seed': seed})
    (at_work / summary_lib.SUMMARY).unlink()
    first = (at_work / run_directory.METRICS).read_text().splitlines()[0]
    (at_work / run_directory.METRICS).write_text(f'{first}\n{first[:50]}')
    shutil.rmtree(elsewhere / 'checkpoints')
    page.write([tmp_path], tmp_path / 'report.html')
    text = Page(tmp_path / 'report.html').text
    assert '7 : not finished, epoch 1 of 2' in text
    assert 'not evaluated' in text and 'has no finished checkpoint' in text


def test_what_it_refuses(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"holds no run: there is no run's config\.json"):
        page.write([tmp_path], tmp_path / 'report.html')
    monkeypatch.setitem(sys.modules, 'jinja2', None)
    with pytest.raises(UserError, match=r'jinja2 is not installed.*\[report\]'):
        page.write([tmp_path], tmp_path / 'report.html')


def test_bars_of_targets_are_relative_to_the_longest(report):
    assert 'style="width: 66.7%"' in report[1]  # 1176 of 1764 KiB
    assert 'style="width: 72.3%"' in report[1]  # 37.6 of 52 ms


def test_an_export_that_lies_elsewhere(watched_run, tmp_path):
    run, other, out, export = (tmp_path / name for name in ('run', 'other', 'report.html', 'export'))
    shutil.copytree(watched_run, run, ignore=shutil.ignore_patterns('teacher'))
    shutil.copytree(watched_run / 'teacher', other)
    export.mkdir()
    for about, said in (
        ({'run': str(run)}, f'Of {run} , but not made from its last weights'),
        ({'digest': summary_lib.read(run).student_digest}, f'Made from exactly the weights of {run} .'),
        ({'run': str(other), 'digest': summary_lib.read(run).student_digest}, f'exactly the weights of {run} .'),
        ({}, 'Of the run elsewhere , which is not in this report.'),
    ):
        files.write_json(export / 'export.json', {**EXPORT, **about})
        page.write([run, other, export], out, evaluate=False)
        assert said in Page(out).text and 'network.onnx' in Page(out).text
    with pytest.raises(UserError, match='a report needs at least one run'):
        page.write([export], out)


def test_imported_weights_are_shown_as_unmeasured(tmp_path):
    digits_run(tmp_path / 'imported')
    page.write([tmp_path / 'imported'], tmp_path / 'report.html', evaluate=False)
    assert '0 : unmeasured' in Page(tmp_path / 'report.html').text


@pytest.mark.parametrize(
    'name, content',
    [
        (run_directory.CONFIG, '[]'),
        (run_directory.CONFIG, '{'),
        (run_directory.CONFIG, '{"procedure": 3}'),
        (run_directory.CONFIG, '{"procedure": {}}'),
        (run_directory.METRICS, '3\n'),
        (run_directory.METRICS, '[1]\n'),
        (run_directory.METRICS, '{}\n'),
        (run_directory.METRICS, '\xff'),
        (run_directory.METRICS, '{"epoch": 1, "top1": "much"}\n'),
        (run_directory.METRICS, 'torn\n{"epoch": 1}\n'),
        (summary_lib.SUMMARY, '{"wall_seconds": 1}'),
        (summary_lib.SUMMARY, '[]'),
        (summary_lib.SUMMARY, '{'),
        (summary_lib.SUMMARY, '{"wall_seconds": 1, "procedure": "plain", "last_top1": "much"}'),
        (run_directory.NOT_FINITE, '[]'),
        (run_directory.NOT_FINITE, '{}'),
    ],
)  # fmt: skip
def test_damaged_files_are_named(watched_run, tmp_path, name, content):
    run = tmp_path / 'run'
    shutil.copytree(watched_run, run, ignore=shutil.ignore_patterns('teacher', 'checkpoints'))
    (run / name).write_text(content, encoding='latin-1')
    for path in (run, tmp_path):
        with pytest.raises(UserError, match=str(run / name)):
            page.write([path], tmp_path / 'report.html', evaluate=False)


def test_files_of_something_else_are_passed_over(watched_run, tmp_path):
    run, out = tmp_path / 'run', tmp_path / 'report.html'
    shutil.copytree(watched_run, run, ignore=shutil.ignore_patterns('teacher', 'checkpoints'))
    for i, text in enumerate(('[]', '{}', '3', 'no json', '{"artifacts": {"a": 1}, "model_type": "bert"}')):
        for name in (run_directory.CONFIG, 'export.json'):
            (run / f'other{i}').mkdir(exist_ok=True)
            (run / f'other{i}' / name).write_text(text)
    assert page.write([tmp_path], out, evaluate=False)['variants'] == ['jointrd']
    assert 'Exports' not in Page(out).text
    with pytest.raises(UserError, match='holds no run'):
        page.write([run, tmp_path / 'nothing'], out)


def test_a_gradient_without_bound_leaves_the_charts_drawable():
    lines = [{'epoch': 1, 'gradient_norm': float('inf')}, {'epoch': 2, 'gradient_norm': 3.0}]
    (variant,) = collect.variants([record()._replace(metrics=lines)])
    assert variant.curve('gradient_norm') == [(2, 3.0, 3.0, 3.0)]


def finished(top1, procedure='jointrd', **fields):
    return [record(procedure, seed, {'last_top1': top1 + seed}, **fields) for seed in (0, 1, 2)]


def said(records):
    return page.headline(collect.variants(records))


def test_headline_has_spread_and_says_what_it_was_chosen_among():
    one = said(finished(90.0) + finished(50.0, 'plain') + finished(95.0, 'resnet'))
    assert one == (
        'A network of 34 layers without a single shortcut reaches 91.00 ± 1.00 % top-1 by JointRD (jointrd), '
        '51.00 ± 1.00 % when it is trained alone; the ResNet of the same shape reaches 96.00 ± 1.00 %. '
        'Mean ± standard deviation of 3 seeds.'
    )
    three = said([run for eta in (0.0, 0.5, 1.0) for run in finished(90.0 + eta, mix__eta=eta)])
    assert '92.00 ± 1.00 %' in three and 'eta=1' in three
    assert three.endswith('The JointRD shown is the best of 3 variants, chosen on these same evaluation images.')
    assert 'standard deviation' not in said([record('jointrd', summary={'last_top1': 90.0})])
    diverged = [run._replace(summary=None, not_finite={'step': 3, 'term': 'loss'}) for run in finished(90.0)[2:]]
    assert 'reaches 90.50 ± 0.71 % (without 1 not finite) top-1' in said(finished(90.0)[:2] + diverged)
    assert said(diverged) == '' and page.outcome(diverged[0]) == 'loss not finite at step 3'
    assert said([record('jointrd', summary={'last_top1': None})]) == ''


@pytest.mark.parametrize(
    'shortcuts, kept',
    [
        ('none', 'without a single shortcut'),
        ('projection', 'that keeps only projection shortcuts'),
        ('all', 'that keeps all its shortcuts'),
        ('projection,none,none,none,none,none,none,none', 'without a single shortcut'),  # the first changes no shape
        ('none,none,projection,none,none,none,none,none', 'that keeps only projection shortcuts'),
        ('none,none,none,none,all,all,none,none', 'that keeps some of its shortcuts'),
    ],
)
def test_headline_says_which_shortcuts_are_kept(shortcuts, kept):
    text = said(finished(90.0, model__shortcuts=shortcuts, model__depth=18))
    assert f'A network of 18 layers {kept} reaches' in text


def result(procedure='plain', wall_seconds=1.0, **fields):
    return summary_lib.Summary(procedure=procedure, wall_seconds=wall_seconds, **fields)


def record(procedure='plain', seed=0, summary=None, **fields):
    defaults = {name: field.default for name, field in collect.config_lib.FIELDS.items()}
    config = {**defaults, 'procedure': procedure, 'seed': seed, **{k.replace('__', '.'): v for k, v in fields.items()}}
    return collect.Record(
        ROOT / procedure / str(seed), json.loads(json.dumps(config)), [], summary and result(**summary)
    )


def test_variants_are_named_by_what_differs():
    found = collect.variants(
        [record('jointrd', seed, mix__eta=eta) for seed in (0, 1) for eta in (0.0, 0.5)]
        + [record('resnet', mix__eta=0.1, model__shortcuts='projection'), record('resnet', mix__eta=0.5)]
        + [record('plain', model__reparam='dirac'), record('plain'), record('plain', model__shortcuts='fading')]
    )
    assert [(v.name, len(v.runs)) for v in found] == [
        ('resnet', 1), ('plain', 1), ('plain+dirac', 1), ('plain+fading', 1), ('jointrd', 2), ('jointrd eta=0', 2),
    ]  # fmt: skip


def test_fields_that_a_procedure_does_not_use_make_no_variants():
    found = collect.variants(
        [record(procedure, distill__weight=w) for procedure in ('plain', 'jointrd') for w in (0.0, 1.0)]
    )
    assert [v.name for v in found] == ['plain', 'jointrd', 'jointrd weight=1']


def test_other_weights_of_the_same_config_and_seed_are_named():
    one, same, other = (
        record(summary={'last_top1': 90.0, 'student_digest': digest})._replace(path=ROOT / name)
        for name, digest in (('one', 'a'), ('same', 'a'), ('other', 'b'))
    )
    found = collect.variants([one, same])
    assert collect.left_out([one, same], found) == []
    found = collect.variants([other, one])
    assert [(left.path.name, shown.path.name) for left, shown in collect.left_out([other, one], found)] == [
        ('other', 'one')
    ]


def test_the_base_of_ablations_has_the_bare_name():
    found = collect.variants(
        [record('jointrd'), record('jointrd', mix__eta=0.0), record('jointrd', mix__taps=(3,)), record('plain')]
    )
    assert [v.name for v in found] == ['plain', 'jointrd', 'jointrd eta=0', 'jointrd taps=3']


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
    classes = tuple(f'class{i}' for i in range(number))
    dataset = SimpleNamespace(classes=classes, description=DataDescription('x', classes, (8, 8, 1), (0.5,), (0.2,)))
    wrong = {3: [(0.9, 7, np.zeros((8, 8, 1), np.float32))]}
    found = predictions.summarise(matrix, wrong, dataset)
    assert found.matrix is None and found.pairs == [('class3', 'class7', 4), ('class5', 'class1', 2)]
    assert [w.name for w in found.worst] == ['class3', 'class5']
    assert found.worst[0].accuracy == pytest.approx(100 * 9 / 13) and found.worst[1].examples == []
    example = found.worst[0].examples[0]
    assert example.taken_for == 'class7' and example.image.startswith('data:image/png;base64,iVBOR')

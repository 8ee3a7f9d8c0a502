import dataclasses
import json
import os
import signal
import socketserver
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from rich.console import Console

from jointrd_jax.deploy import ask_targets, bench, candidates, export, results
from jointrd_jax.deploy.ask_targets import Request
from jointrd_jax.errors import UserError
from jointrd_jax.runs import run_directory
from tests.support.runs import digits_run

FAST = ('vela/u55-256-sram_only-performance', 'tflite_micro', 'openvino/float32', 'mnn')


def asked(**fields):
    """The rows that a wish gets, and what was printed."""
    console = Console(record=True, width=200, file=open('/dev/null', 'w'))
    try:
        return ask_targets.run(Request(**fields), console), console.export_text()
    finally:
        console.file.close()


@pytest.fixture(scope='module')
def outside(tmp_path_factory):
    """What processes started meanwhile have tried to reach or to install: the first line of each, in a list."""
    work = tmp_path_factory.mktemp('outside')
    pip = work / 'pip'
    pip.write_text(f'#!/bin/sh\necho pip "$@" >> {work}/tried\nexit 1\n')
    pip.chmod(0o755)

    class Proxy(socketserver.StreamRequestHandler):
        def handle(self):
            with (work / 'tried').open('ab') as tried:
                tried.write(self.rfile.readline())

    with socketserver.ThreadingTCPServer(('127.0.0.1', 0), Proxy) as server, pytest.MonkeyPatch.context() as patch:
        threading.Thread(target=server.serve_forever).start()
        for name in ('http_proxy', 'https_proxy'):
            for form in (name, name.upper()):
                patch.setenv(form, f'http://127.0.0.1:{server.server_address[1]}')
        for name in ('no_proxy', 'NO_PROXY', 'CI'):  # in CI some tools keep to themselves
            patch.delenv(name, raising=False)
        patch.setenv('PATH', f'{work}{os.pathsep}{os.environ["PATH"]}')
        patch.setenv('HOME', str(work))  # nobody has told a tool there what it may send
        yield work / 'tried'
        server.shutdown()


@pytest.fixture(scope='module')
def said(watched_run, outside, tmp_path_factory):
    """What the targets that the test extra installs say of a trained network and its ResNet: (rows, text, OUT)."""
    work = tmp_path_factory.mktemp('targets')
    runs = str(watched_run), str(watched_run / 'teacher')
    rows, text = asked(runs=runs, targets=FAST, rounds=2, out=work / 'out', json=work / 'rows.json')
    return rows, text, work


def test_no_target_reports_to_its_makers_or_installs_anything(said, outside):
    probe = 'import urllib.request; urllib.request.urlopen("https://tried.invalid")'
    subprocess.run([sys.executable, '-c', probe], stderr=subprocess.DEVNULL)
    assert outside.read_text().splitlines() == ['CONNECT tried.invalid:443 HTTP/1.0']
    assert os.environ['ORT_DISABLE_TELEMETRY'] == '1'  # ONNX Runtime reports now and then: the listener may miss it


def row_of(rows, target, network):
    (row,) = (r for r in rows if f'{r.target} {r.configuration}' == target and r.network == network)
    return row


def test_every_target_takes_both_networks(said):
    rows, text, work = said
    assert [(r.target, r.network, r.reason) for r in rows if not r.went] == []
    assert {r.target for r in rows} == {'vela', 'tflite_micro', 'openvino', 'mnn'}
    written = json.loads((work / 'rows.json').read_text())['rows']
    assert [row['network'] for row in written] == [row.network for row in rows]
    assert 'vela u55-256-sram_only-performance' in text


def test_vela_runs_all_on_the_npu_in_less_memory_without_shortcuts(said):
    rows = said[0]
    plain, resnet = (row_of(rows, FAST[0].replace('/', ' '), name) for name in ('jointrd', 'teacher'))
    assert plain.accelerated == resnet.accelerated == 1
    assert plain.memory_bytes < resnet.memory_bytes
    assert (plain.memory_bytes, resnet.memory_bytes) == (plain.predicted_bytes, resnet.predicted_bytes)
    assert plain.saved == 1 - plain.memory_bytes / resnet.memory_bytes
    assert plain.faster == resnet.time_ms / plain.time_ms > 1


def test_tflite_micro_scores_what_the_checkpoint_scores(said):
    rows, _, work = said
    for name in ('jointrd', 'teacher'):
        record = json.loads((work / 'out' / name / 'export.json').read_text())
        floats = row_of(rows, 'tflite_micro float32', name)
        assert floats.top1 == pytest.approx(record['checkpoint_top1'])
        assert floats.images == 500
        int8 = row_of(rows, 'tflite_micro int8', name)
        assert int8.top1 == pytest.approx(record['artifacts']['int8_tflite']['top1'], abs=2)  # other rounding
        assert int8.memory_bytes < floats.memory_bytes / 3


@pytest.mark.parametrize('target', ['openvino float32', 'mnn float32'])
def test_runtimes_of_phones_and_cpus_compute_the_same(said, target):
    plain = row_of(said[0], target, 'jointrd')
    assert plain.agreement == 1
    assert plain.difference < 1e-4
    assert plain.time_ms > 0
    assert len(plain.faster_quartiles) == 2


def test_results_stand_beside_the_export_and_in_its_card(said):
    rows, _, work = said
    out = work / 'out' / 'jointrd'
    held = json.loads((out / results.FILE).read_text())
    assert len(held['rows']) == len(rows)
    card = (out / 'README.md').read_text()
    assert '## What targets say' in card
    assert '| vela | u55-256-sram_only-performance | jointrd |' in card


def test_an_export_is_asked_about_as_it_is(said):
    out = said[2] / 'out' / 'jointrd'
    rows, _ = asked(runs=[str(out)], targets=FAST[:1])
    assert [(row.network, row.went) for row in rows] == [('jointrd', True)]
    rows, _ = asked(runs=[str(out)], targets=['iree'])
    assert rows[0].outcome == 'no artifact'
    assert 'export with --format stablehlo' in rows[0].reason


def test_a_stale_or_changed_export_is_refused(tmp_path):
    digits_run(tmp_path / 'run')
    quietly = dict(say=lambda line: None)
    export.export(tmp_path / 'run', tmp_path / 'out', export.Options(('tflite',), int8=True), **quietly)
    kept = (tmp_path / 'out' / 'network.int8.tflite').read_bytes()
    (tmp_path / 'out' / 'network.int8.tflite').write_bytes(kept + b'0')
    with pytest.raises(UserError, match=r'network\.int8\.tflite is not the file that was verified'):
        asked(runs=[str(tmp_path / 'out')], targets=FAST[:1])
    (tmp_path / 'out' / 'network.int8.tflite').write_bytes(kept)
    held = run_directory.load(tmp_path / 'run')
    (tmp_path / 'run').rename(tmp_path / 'before')
    with pytest.raises(UserError, match='which is not here'):
        asked(runs=[str(tmp_path / 'out')], targets=FAST[:1])
    others = jax.tree.map(lambda leaf: leaf + 1, held.variables)
    summary = dataclasses.replace(held.summary, student_digest=run_directory.digest(others))
    run_directory.save(tmp_path / 'run', held.config, others, held.data, summary)
    with pytest.raises(UserError, match='is older than the checkpoint'):
        asked(runs=[str(tmp_path / 'out')], targets=FAST[:1])


def test_an_export_of_several_images_a_call_is_refused(tmp_path):
    digits_run(tmp_path / 'run')
    options = export.Options(('stablehlo',), batch=50)
    export.export(tmp_path / 'run', tmp_path / 'out', options, say=lambda line: None)
    with pytest.raises(UserError, match='takes 50 images a call, .* export it again without --batch'):
        asked(runs=[str(tmp_path / 'out')], targets=['iree'])


# What can happen to a tool. Each is a target's file of its own, run as every other.
TROUBLE = {
    'crashes': 'import os; os.kill(os.getpid(), 11)',
    'hangs': 'import subprocess, sys; subprocess.run([sys.executable, "-c", "import time; time.sleep(60)"])',
    'says nothing': 'import os; os._exit(0)',
    'fails': "raise ValueError('the tool does not like it')",
    'no room': "open('/dev/full', 'w').write('x' * 100000)",
    'goes through': "return {'memory_bytes': 5}",
}


def trouble(tmp_path, body, package='numpy', version=np.__version__):
    """A question to a target whose `measure` is `body`."""
    file = tmp_path / f'target_{len(list(tmp_path.iterdir()))}.py'
    file.write_text(
        f'PACKAGE, VERSION, INSTALL = {package!r}, {version!r}, "pip install it"\n'
        f'def measure(request, worker):\n    {body}\n'
    )
    module = SimpleNamespace(__file__=str(file), CONFIGURATIONS={'only': {'takes': 'onnx'}})
    return bench.Question('vela', 'only', module, sys.executable)


@pytest.fixture(scope='module')
def candidate(tmp_path_factory):
    work = tmp_path_factory.mktemp('candidate')
    graphs = {'R18': {'plain': candidates.shapes([18], 'cifar', 2, ['plain'])['R18']['plain']}}
    return candidates.of_shapes(graphs, ['onnx'], work, lambda line: None)[0]


def test_what_happens_to_a_tool_is_one_row_and_the_others_go_on(tmp_path, candidate):
    questions = [trouble(tmp_path, body) for body in TROUBLE.values()]
    questions.append(trouble(tmp_path, 'pass', package='no-such-package'))
    questions.append(trouble(tmp_path, 'pass', version='0.0.1'))
    rows = bench.ask([candidate], questions, bench.Settings(timeout=4))
    assert [row.outcome for row in rows] == [*TROUBLE, 'not installed', 'other version']
    reasons = [row.reason for row in rows]
    assert 'SIGSEGV' in reasons[0]
    assert 'no answer after 4 s' in reasons[1]
    assert 'the tool does not like it' in reasons[3]
    assert 'No space left' in reasons[4]
    assert rows[5].memory_bytes == 5
    assert 'no-such-package is not installed: pip install it' in reasons[6]
    assert f'numpy {np.__version__} is installed, figures were checked with 0.0.1' in reasons[7]
    elsewhere = questions[5]._replace(python=str(tmp_path / 'no-python'))
    (row,) = bench.ask([candidate], [elsewhere], bench.Settings())
    assert (row.outcome, row.went) == ('not installed', False)


def test_a_remedy_is_a_row_of_its_own(tmp_path, candidate):
    body = "return {'outcome': 'fails', 'reason': 'no', 'remedy': {'note': 'with --this', 'memory_bytes': 3}}"
    rows = bench.ask([candidate], [trouble(tmp_path, body)], bench.Settings())
    assert [(row.outcome, row.note, row.memory_bytes) for row in rows] == [
        ('fails', None, None), ('goes through', 'with --this', 3)]  # fmt: skip


def test_bad_wishes_are_refused_before_any_work(tmp_path):
    for fields, message in (
        ({}, 'name runs .* or --shapes'),
        (dict(runs=['x'], shapes=['18']), 'one of the two'),
        (dict(shapes=['19']), "shapes='19' is not one of 18, 34, 50"),
        (dict(shapes=['18'], targets=['velo']), "target='velo' is not one of vela"),
        (dict(shapes=['18'], targets=['vela/u99']), "vela has no configuration 'u99'; it has u55-128"),
        (dict(shapes=['18'], pythons=['rknn']), 'is not TARGET=PYTHON'),
        (dict(shapes=['18'], pythons=['rk=python']), "python='rk' is not one of"),
        (dict(shapes=['18'], networks=['vgg']), "networks='vgg' is not one of ResNet"),
        (dict(shapes=['18'], out=tmp_path / 'out'), 'with --shapes, write the rows with --json FILE'),
        (dict(runs=[str(tmp_path)], targets=['vela']), 'neither a run directory nor'),
    ):
        with pytest.raises(UserError, match=message):
            asked(**fields)


@pytest.mark.parametrize('named', ['path/to/python', 'python-of-mnn', 'path/to/nothing'])
def test_pythons_of_targets_are_found_from_here(named, tmp_path, monkeypatch):
    link = tmp_path / 'path' / 'to' / 'python'
    link.parent.mkdir(parents=True)
    for name in ('python', 'python-of-mnn'):
        (link.parent / name).symlink_to(sys.executable)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('PATH', str(link.parent))
    assert Request(pythons=[f'mnn={named}']).python_of == {'mnn': str(link.parent / Path(named).name)}


def test_a_file_for_rows_can_be_written_before_anything_is_run(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match=r'cannot write .*rows\.json'):
        asked(shapes=['18'], targets=['iree'], json=tmp_path / 'file' / 'rows.json')
    fields = dict(shapes=['18'], stem='cifar', width=2, networks=['plain'], targets=['iree'])
    asked(**fields, json=tmp_path / 'new' / 'rows.json')
    assert (tmp_path / 'new' / 'rows.json').is_file()


def test_an_interrupted_command_leaves_no_tool_and_no_directory_and_keeps_its_rows(tmp_path):
    (tmp_path / 'tmp').mkdir()
    tool = tmp_path / 'python'
    tool.write_text(f'#!/bin/sh\nsleep 300 &\necho $! $$ > {tmp_path}/started\nwait\n')
    tool.chmod(0o755)
    command = [sys.executable, '-m', 'jointrd_jax', 'targets', '--shapes=18', '--stem=cifar', '--width=2']
    command += ['--networks=plain', '--targets=iree,mnn', f'--python=iree={tmp_path}/none,mnn={tool}']
    command += [f'--json={tmp_path / "rows.json"}']
    environment = {**os.environ, 'TMPDIR': str(tmp_path / 'tmp')}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
    started = tmp_path / 'started'
    while process.poll() is None and not (started.is_file() and started.read_text()):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 75, error
    assert error.splitlines()[-1].startswith('SIGINT: stopped; --json and the model cards')
    assert list((tmp_path / 'tmp').iterdir()) == []
    for number in started.read_text().split():
        stat = Path(f'/proc/{number}/stat')
        assert not stat.exists() or stat.read_text().split()[2] == 'Z', 'a tool goes on'
    assert [row['target'] for row in json.loads((tmp_path / 'rows.json').read_text())['rows']] == ['iree']


def test_the_command_says_by_its_status_what_did_not_go_through(tmp_path):
    command = [sys.executable, '-m', 'jointrd_jax', 'targets', '--shapes=18', '--stem=cifar', '--width=2']
    command += ['--networks=plain', '--targets=iree', f'--json={tmp_path / "rows.json"}']
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert 'iree-base-compiler is not installed: into an environment of its own' in done.stdout
    (row,) = json.loads(Path(tmp_path / 'rows.json').read_text())['rows']
    assert row['outcome'] == 'not installed'

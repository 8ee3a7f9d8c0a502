"""What is printed: on a terminal, in a pipe, quietly, without colours, and while waiting."""

import io
import re
import time

import pytest
from rich.console import Console

from jointrd_jax import compare
from jointrd_jax.runs.summary import Summary
from jointrd_jax.train import loop, result
from jointrd_jax.train.progress import Reporter, accuracies
from tests.support.configs import tiny_config

LINE = {
    'epoch': 1, 'step': 40, 'learning_rate': 0.1, 'mix': 0.75, 'loss': 1.2345, 'ce/path1': 0.5, 'ce/student': 0.7,
    'distill/student': 3.5, 'gradient/stem/student': 9.0, 'path1_top1': 31.0, 'top1': 56.78, 'top5': 90.0,
    'teacher_top1': 98.6, 'best_top1': 60.12, 'images_per_second': 1234.5,
}  # fmt: skip
COLOUR = re.compile(r'\x1b\[(?:\d+;)*(3[0-8]|9[0-7])')


def reporter(terminal, **settings):
    console = Console(file=io.StringIO(), width=160, force_terminal=terminal, highlight=False)
    return Reporter('run', console, **settings)


def text(shown):
    return shown.console.file.getvalue()


def test_plain_lines_in_a_pipe():
    shown = reporter(False)
    with shown.live(80, 0, 40, 32):
        shown.step(1)
        shown.epoch(LINE, 2)
    assert text(shown) == '[run] epoch 1/2  loss 1.2345  mix 0.75  top-1 56.78%  best 60.12%  1234 img/s\n'


@pytest.mark.parametrize('path', ['/tmp/x[lr=0.1]/seed0', 'm[/b]', 'a[bold]b', ':smile:', '\\[red]'])
def test_paths_are_printed_as_they_are(path):
    shown = Reporter(path, Console(file=io.StringIO(), width=160, highlight=False))
    shown.say(f'{path} is finished already')
    shown.table(path, [(path, 'value')], ('field', path))
    lines = text(shown).splitlines()
    assert lines[0] == f'[{path}] {path} is finished already'
    assert lines[1].strip() == path and text(shown).count(path) == 5


def test_paths_in_the_live_display_are_shown_as_they_are(monkeypatch):
    monkeypatch.setenv('TERM', 'xterm-256color')
    shown = Reporter('m[/b]', Console(file=io.StringIO(), width=160, force_terminal=True))
    with shown.live(80, 0, 40, 32), shown.waiting('reading a[/b]'):
        seen = rendered(shown)
    assert 'm[/b]' in seen and 'reading a[/b] ...' in seen


def test_every_epoch_has_its_own_time_left(monkeypatch):
    monkeypatch.setenv('TERM', 'xterm-256color')
    shown = reporter(True)
    with shown.live(60, 0, 20, 32):
        for step in range(1, 31):
            shown.step(step)
            time.sleep(0.01)
        epoch = shown.display.bars.tasks[1]
        assert epoch.completed == 10 and not epoch.finished and epoch.time_remaining >= 0
        assert epoch.finished_time is None and epoch.finished_speed is None
        line = next(line for line in rendered(shown).splitlines() if 'epoch 2/3' in line)
        assert '10/20' in line


def test_plain_lines_come_seldom_but_first_and_last_always():
    shown = reporter(False, every_seconds=1000)
    for epoch in range(1, 6):
        shown.epoch({**LINE, 'epoch': epoch}, 5)
    assert [line.split()[2] for line in text(shown).splitlines()] == ['1/5', '5/5']


def test_live_display_shows_everything(monkeypatch):
    monkeypatch.setenv('TERM', 'xterm-256color')
    shown = reporter(True)
    with shown.live(80, 40, 40, 32):
        shown.epoch(LINE, 2)
        shown.terms(lambda: {'loss': 0.8765})
        with shown.waiting('compiling the training step'):
            assert 'compiling the training step' in rendered(shown)
        time.sleep(0.6)
        shown.step(60)
        seen = rendered(shown)
    assert 'compiling' not in seen
    for part in ('60/80', 'epoch 2/2', '20/40', 'img/s', 'loss 0.8765', 'ce/path1 0.5', 'distill/student 3.5',
                 'mixing weight 0.75', 'learning rate 0.1', 'student 56.78 %', 'path1 31.00 %', 'teacher 98.60 %',
                 'best 60.12 %'):  # fmt: skip
        assert part in seen
    assert 'gradient' not in seen


def rendered(shown):
    console = Console(file=io.StringIO(), width=160)
    console.print(shown.display)
    return console.file.getvalue()


@pytest.mark.parametrize('no_color', [False, True])
def test_no_color(no_color, monkeypatch):
    monkeypatch.setenv('TERM', 'xterm-256color')
    monkeypatch.delenv('NO_COLOR', raising=False)
    if no_color:
        monkeypatch.setenv('NO_COLOR', '1')
    shown = reporter(True)
    with shown.live(80, 40, 40, 32):
        shown.epoch(LINE, 2)
    assert bool(COLOUR.search(text(shown))) != no_color


def test_dumb_terminals_get_plain_lines(monkeypatch):
    monkeypatch.setenv('TERM', 'dumb')
    shown = reporter(True)
    with shown.live(80, 0, 40, 32):
        shown.epoch(LINE, 2)
    assert 'epoch 1/2' in text(shown)


def test_quiet_prints_the_last_table_alone():
    shown = reporter(False, quiet=True)
    with shown.live(80, 0), shown.waiting('a wait', after=0):
        shown.say('a line')
        shown.epoch(LINE, 2)
        shown.child('teacher').table('teacher done', [('a', 'b')], ('c', 'd'))
        time.sleep(0.05)
    assert text(shown) == ''
    shown.table('finished', [('a', 'b')], ('c', 'd'))
    assert 'finished' in text(shown)


def test_quiet_is_the_configs(tmp_path, monkeypatch):
    made = []

    def run_in(config, workdir, reporter):
        made.append(reporter.quiet)
        return Summary(procedure=config.procedure, wall_seconds=0.0)

    monkeypatch.setattr(loop, 'run_in', run_in)
    for quiet in (True, False):
        config = tiny_config(procedure='plain', log__quiet=quiet)
        loop.run(config, tmp_path)
        compare.train(compare.plan(config, tmp_path, [0], ('plain',)), tmp_path, reporter(False))
    assert made == [True, True, False, False]


def test_long_waits_are_named_and_short_ones_are_not():
    shown = reporter(False)
    with shown.waiting('short', after=30):
        pass
    with shown.waiting('long', after=0.01):
        time.sleep(0.1)
    assert text(shown) == '[run] long ...\n'


def test_first_call_is_named_and_passes_errors_on():
    shown = reporter(False)
    calls = []
    function = shown.first_call('compiling', lambda x: calls.append(x) or x * 2)
    assert [function(1), function(2)] == [2, 4] and calls == [1, 2]
    with pytest.raises(ZeroDivisionError):
        shown.first_call('compiling', lambda: 1 / 0)()


def test_accuracies():
    assert accuracies(LINE) == {'student': 56.78, 'path1': 31.0, 'teacher': 98.6}


@pytest.mark.parametrize('late', [None, 0.05, 0.43])
def test_the_last_table_says_when_the_input_limits_the_speed(late):
    shown = reporter(False)
    result.show(Summary(procedure='plain', wall_seconds=1.0, input_late=late), shown)
    assert ('43 % of steps' in text(shown)) == ('waited for input' in text(shown)) == (late == 0.43)

"""The step of a recipe compiled for chips that are not here, by their own compiler."""

import json
import os
import re
import subprocess
import sys

import psutil
import pytest

from jointrd_jax.errors import UserError
from jointrd_jax.plan import chips, compiled, estimate, run, worker
from tests.support.configs import ROOT, shipped_config

SHRINK = ['--config.model.stage_sizes=1,1,1', '--config.model.width=8', '--config.epochs=4']


def plan(*arguments, **environment):
    return subprocess.run(
        [sys.executable, '-m', 'jointrd_jax', 'plan', '--config', 'digits', *SHRINK, *arguments],
        cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip


@pytest.fixture(scope='module')
def planned(tmp_path_factory):
    """What was printed and written of the digits recipe on four TPU chips."""
    out = tmp_path_factory.mktemp('plan') / 'plan.json'
    done = plan('--topology=v5e:2x2', f'--json={out}')
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(out.read_text())['targets'][0]


def test_the_step_is_sharded_as_it_should_be(planned):
    _, target = planned
    names = [program['name'] for program in target['programs']]
    assert names == ['training step', 'evaluation', 'teacher: training step', 'teacher: evaluation']
    for program in target['programs']:
        assert 'all-gather' not in program['collectives'], program['name']
        if 'training' in program['name']:
            assert program['collectives']['all-reduce']['number'] <= 2
            assert program['donated'] == program['state_arrays'] > 0
        else:  # each chip counts its own images
            assert program['collectives'].get('all-reduce', {'bytes': 0})['bytes'] < 1000
        assert program['fits'] and program['memory']['peak'] > 0 and program['flops'] > 0


def test_every_figure_says_how_far_it_can_be_trusted(planned):
    output, target = planned
    assert {mark for _, mark in target['figures'].values()} == {'known', 'bound', 'guess'}
    assert target['figures']['chips'] == [4, 'known']
    most, perhaps = target['figures']['images/s, at most'][0], target['figures']['images/s, perhaps'][0]
    assert most >= perhaps > 0
    assert 'images/s a chip, at most' in output and 'BatchNorm sees 8 images on each chip' in output


def test_a_killed_plan_leaves_no_compiler_behind():
    command = [sys.executable, '-m', 'jointrd_jax', 'plan', '--config', 'digits', *SHRINK, '--topology=v5e:2x2']
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr and any('compiling the training step' in line for line in process.stderr)
        (compiler,) = psutil.Process(process.pid).children()
        process.kill()
    gone, _ = psutil.wait_procs([compiler], timeout=60)
    assert gone == [compiler]


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--topology=v9:2x2'], 'names no chip that can be compiled for; there are TPUs (v4, v5e'),
        (['--topology=v5e'], 'does not say how many chips'),
        (['--topology=v5e:3x1'], 'config.batch_size=32 is not a multiple of the 3 chips'),
        (['--topology=v5e:2x2', '--json=/nowhere/x.json'], 'the directory of /nowhere/x.json does not exist'),
        (['--topology=v5e:2x2', '--config.dataset.name=nosuch'], 'nosuch'),
    ],
)
def test_bad_input_is_one_line(arguments, message):
    done = plan(*arguments)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert done.stderr.count('error:') == 1 and 'Traceback' not in done.stderr


@pytest.mark.parametrize(
    'status, said, message',
    [
        (-9, '', 'ran out of memory'),
        (
            -6,
            'F1125 19:11:19.7 elf_reader.cc:312] Could not mmap libtpu.so: Cannot allocate memory [12]\n  @ 0x7f',
            'ran out of memory',
        ),
        (
            -6,
            'F1125 19:11:19.7 client.cc:1] Check failed: x\n    @ 0x7f2d1e39\nE1125 Raising signal 6',
            'status -6: F1125 .*Check failed: x$',
        ),
        (1, 'OSError: No space left on device', 'no room for the compiler'),
        (
            1,
            '<unknown>:0: error: Failed to parse using StableHLO v1.9.8, this could indicate forward incompatibility',
            r'libtpu \S+ does not fit JAX \d.*jointrd_jax\[plan-tpu\]',
        ),
        (1, '', 'no output'),
    ],
)
def test_a_compiler_that_ends_without_an_answer(status, said, message):
    error = run.ended_badly(status, said, chips.parse('v5e:2x2'))
    assert re.search(message, str(error)) and '\n' not in str(error)


@pytest.mark.parametrize('limit', [1, 5, 63, 64, 100, 1000])
def test_the_largest_batch_and_whether_there_was_no_larger(limit):
    images, is_capped = worker.most_that_fit(lambda n: n <= limit, 8, 324)
    assert is_capped == (limit >= 324)
    assert images <= min(limit, 324) < images + (1 if limit < 64 else 9)


def test_a_largest_batch_that_the_data_end_is_marked(planned):
    _, target = planned
    found = {'about': target['about'], 'programs': target['programs']}
    for largest, shown in (
        ({'images': 320}, 320),
        ({'images': 320, 'limit': 'of 1,297 training images'}, '320, all that there are of 1,297 training images;'),
    ):
        plan = estimate.of_target(shipped_config('digits'), chips.parse('v5e:2x2'), {**found, 'largest': largest})
        figure, _ = plan['figures']['largest batch per chip']
        assert str(figure).startswith(str(shown))


@pytest.mark.parametrize(('topology', 'products'), [('v5e:2x2', 'a TPU multiplies in bfloat16'), ('h100x8', 'in TF32')])
def test_float32_that_is_not_quite_is_said(topology, products):
    config, nothing = shipped_config('digits'), {'decoded_per_core': 0}
    said = [text for text in estimate.warnings(config, chips.parse(topology), nothing, {}) if 'dtype=float32' in text]
    assert len(said) == 1 and products in said[0] and 'JAX_DEFAULT_MATMUL_PRECISION=highest' in said[0]
    config.dtype = 'bfloat16'
    assert not any('float32' in text for text in estimate.warnings(config, chips.parse(topology), nothing, {}))


def test_topologies():
    assert chips.parse('v4:2x2x2').count == 8 and chips.parse('h100x16').layout == '1x2x8'
    for text in ('h100x0', 'h100x12', 'h100', 'v5e:0x4', 'v5e:99x99', ''):
        with pytest.raises(UserError):
            chips.parse(text)


def test_sizes_are_read_from_the_text_of_a_module():
    assert compiled.size('(f32[8,16]{1,0}, bf16[4]{0})') == 8 * 16 * 4 + 8
    text = 'ENTRY %main {\n  %x = f32[4]{0} all-reduce-start(f32[4]{0} %p)\n  %y = f32[2]{0} all-gather(%x)\n}\n'
    assert compiled.collectives(text) == {
        'all-reduce': {'number': 1, 'bytes': 16},
        'all-gather': {'number': 1, 'bytes': 8},
    }


def test_the_bytes_of_library_calls_are_counted():
    """XLA's count for a GPU has none of them; where there are none it stands."""
    text = """HloModule m

ENTRY %main (x: f32[1,8,8,4], k: f32[3,3,4,4]) -> f32[1,8,8,4] {
  %x = f32[1,8,8,4]{3,2,1,0} parameter(0)
  %k = f32[3,3,4,4]{3,2,1,0} parameter(1)
  ROOT %y = f32[1,8,8,4]{3,2,1,0} custom-call(%x, %k), custom_call_target="__cudnn$convForward"
}"""
    assert compiled.moved(0.0, text) == compiled.moved(7.0, text) == 4 * (256 + 144 + 256)
    assert compiled.moved(7.0, text.replace('__cudnn$convForward', 'Sharding')) == 7

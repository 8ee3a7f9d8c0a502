"""The benchmark as a user starts it, with and without what is not needed to measure a step."""

import json
import os
import subprocess
import sys

import jax

from jointrd_jax.benchmark import stepper as steppers, tasks
from jointrd_jax.train import assembly, step as step_lib
from tests.support.configs import QUICK_FLAGS, ROOT, TINY, shipped_config

SMALL = ['--shapes=18:32:4', '--width=4', '--rounds=2']
ONLY_JAX = """
import runpy, sys

for missing in ('ml_collections', 'grain', 'tensorflow_datasets', 'sklearn', 'cv2'):
    sys.modules[missing] = None
runpy.run_module('jointrd_jax.benchmark', run_name='__main__')
"""


def start(*arguments):
    environment = {**os.environ, 'XLA_FLAGS': QUICK_FLAGS}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )


def test_it_needs_nothing_but_jax_and_the_step(tmp_path):
    done = start('-c', ONLY_JAX, *SMALL, '--procedures=plain,jointrd,evaluate', f'--out={tmp_path / "out.json"}')
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / 'out.json').read_text())
    plain, jointrd, evaluation = result['rows']
    assert plain['time_to_plain'] == plain['flops_to_plain'] == 1
    assert 1.2 < jointrd['flops_to_plain'] < 3  # three tails, and a teacher for the distillation
    assert evaluation['flops'] < plain['flops'] / 2.5 and 'time_to_plain' not in evaluation
    images = 50_000 / jointrd['images_per_second'] + 10_000 / evaluation['images_per_second']
    assert abs(jointrd['cifar_minutes'] - 200 * images / 60) < 0.1
    assert all(row['step_ms'] > 0 and 0 < row['share_of_peak'] for row in result['rows'])
    assert result['peak']['flops_per_second'] > 0 and 'jointrd' in done.stdout


def test_flops_are_counted_for_a_device_whose_compiler_does_not_count():
    task = tasks.synthetic_tasks('18:32:4', ['plain'], tasks.Settings(width=4))[0]
    stepper = steppers.Stepper(task, step_lib.make_mesh(jax.devices()[:1]))
    assert tasks.flops_on_cpu(task) == stepper.row['flops'] > 1e6


def test_a_config_on_its_own_data(tmp_path):
    shrink = ['--config.model.stage_sizes=1,1', '--config.model.width=4', '--procedures=jointrd', '--rounds=1']
    out, option = tmp_path / 'out.json', 'xla_cpu_multi_thread_eigen=false'
    shrink += [f'--out={out}', f'--compiler_options={option}', '--steps_per_dispatch=3']
    done = start('-m', 'jointrd_jax.benchmark', '--config', 'configs/digits.py', *shrink)
    assert done.returncode == 0, done.stderr
    row, *others = json.loads(out.read_text())['rows']
    assert (row['shape'], row['batch_size'], row['variant']) == ('digits', 32, '')
    assert [other['variant'] for other in others] == [option, '3 steps at once']
    assert all(other['time_to_default'] > 0 for other in others)


def test_the_step_of_a_config_is_the_one_that_trains():
    """With all that the config has beside the procedure: steps that may be skipped, averages, what a schedule sets."""
    config = shipped_config('any_depth', **TINY, ema__decay=0.9, model__activation='annealed')
    (task,) = tasks.config_tasks(config, ['jointrd'])
    mesh = step_lib.make_mesh(jax.devices()[:1])
    function, state, arguments = tasks.program(task, mesh)
    assert state.skipped is not None and state.average is not None
    made = assembly.of(config, task.dataset)
    trains = made.make_train_step(made.method, mesh)
    assert function.lower(state, *arguments).as_text() == trains.lower(state, *arguments).as_text()
    synthetic = tasks.synthetic_tasks('18:32:4', ['jointrd'], tasks.Settings(width=4))[0].make_state()
    assert synthetic.skipped is None and synthetic.average is None


def test_bad_input_is_one_line():
    for arguments, message in (
        (['--shapes=18'], "'18' is not DEPTH:PIXELS:BATCH"),
        (['--shapes=19:32:8'], 'resnet19'),
        (['--procedures=magic'], "'magic'"),
        (['--steps_per_dispatch=2,x'], "--steps_per_dispatch='x' is not a whole number from 2"),
        (['--out=/nowhere/x.json'], '/nowhere/x.json'),
    ):
        done = start('-m', 'jointrd_jax.benchmark', *SMALL, *arguments)
        assert done.returncode == 2 and message in done.stderr and 'Traceback' not in done.stderr, done.stderr


SAME_WORK = """
import sys

import jax
import numpy as np
import torch

from benchmarks import torch_jointrd
from jointrd_jax.benchmark import stepper as steppers, tasks
from jointrd_jax.method import joint
from jointrd_jax.train import step


def fill(layer, params, batch_stats, conv, norm):
    layer[0].weight.data = torch.tensor(np.asarray(params[conv]['kernel']).transpose(3, 2, 0, 1))
    arrays = *(params[norm][name] for name in ('scale', 'bias')), *(batch_stats[norm][name] for name in ('mean', 'var'))
    for mine, array in zip((layer[1].weight, layer[1].bias, layer[1].running_mean, layer[1].running_var), arrays):
        mine.data = torch.tensor(np.asarray(array))


def fill_network(theirs, network, variables):
    params, batch_stats = variables['params'], variables['batch_stats']
    fill(theirs.stem, params['stem'], batch_stats['stem'], 'conv', 'bn')
    for block, name in zip(theirs.blocks, network.block_names, strict=True):
        for i, layer in enumerate(block.layers, 1):
            fill(layer, params[name], batch_stats[name], f'conv{i}', f'bn{i}')
        if block.projection is not None:
            fill(block.projection, params[name], batch_stats[name], 'shortcut_conv', 'shortcut_bn')
    theirs.head.weight.data = torch.tensor(np.asarray(params['head']['kernel']).T)
    theirs.head.bias.data = torch.tensor(np.asarray(params['head']['bias']))


for procedure in torch_jointrd.PROCEDURES:
    (task,) = tasks.synthetic_tasks('18:16:4', [procedure], tasks.Settings(width=4))
    networks, method, shape = task.networks, task.method, task.dataset.image_shape
    state = task.make_state()
    images, labels = task.dataset.preprocess(task.dataset.device_arrays, task.batch, None)
    stepper = torch_jointrd.Stepper(task, 'eager')
    fill_network(stepper.loss.student, networks.student, state.student)
    given = {}
    if networks.teacher:
        teacher = networks.teacher.initialise(jax.random.key(7), shape)
        fill_network(stepper.loss.frozen[0], networks.teacher, teacher)
        view = joint.TeacherView(teacher, step.margin(networks.teacher, teacher))
        given = {'teacher': view.with_outputs(networks.teacher.apply(teacher, images))}
        stepper.loss.margin.data = torch.tensor(np.asarray(view.margin))
        for connector, path in zip(stepper.loss.connectors, joint.path_names(method.taps), strict=True):
            fill(connector, state.params['connectors'], state.batch_stats['connectors'], f'{path}_conv', f'{path}_bn')
    ours, _ = joint.joint_loss(
        state.params, state.batch_stats, images, labels, networks=networks, method=method, mix=1.0, **given
    )
    pixels = torch.tensor(np.asarray(images)).permute(0, 3, 1, 2)
    theirs = stepper.loss(pixels, torch.tensor(np.asarray(labels)).long()).detach()
    assert abs(float(ours) / float(theirs) - 1) < 1e-4, (procedure, float(ours), float(theirs))
    print(procedure, float(ours), float(theirs))
"""


def test_pytorch_does_the_same_work():
    """On the same weights and images, its loss is ours."""
    done = start('-c', SAME_WORK)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('\n') == 4

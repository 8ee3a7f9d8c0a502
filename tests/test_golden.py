"""Same as the authors: every number that tests/golden/README.md describes, from their own code.

Other files of the same form are checked when JOINTRD_GOLDEN_DIR names their directory.
"""

import functools
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jointrd_jax.method import joint, networks
from jointrd_jax.runs import from_config, torch_names
from jointrd_jax.train import step as step_lib
from tests.support.configs import shipped_config

FILES = sorted(Path(__file__).parent.glob('golden/*.npz'))
if os.environ.get('JOINTRD_GOLDEN_DIR'):
    FILES += sorted(Path(os.environ['JOINTRD_GOLDEN_DIR']).glob('*.npz'))

LOSS, TENSOR = 1e-6, 1e-5  # relative, float64


def difference(ours, theirs) -> float:
    """Norm of the difference over the norm of theirs."""
    theirs = np.asarray(theirs, np.float64)
    norm = np.linalg.norm(theirs)
    return float(np.linalg.norm(np.asarray(ours, np.float64) - theirs) / (norm if norm else 1))


class Golden:
    """One file: the networks it describes and its weights as our trees."""

    def __init__(self, path: Path, dtype):
        depth, stem, dirac = re.fullmatch(r'resnet(\d+)_(cifar|imagenet)(_dirac)?', path.stem).groups()
        self.file, self.dtype = dict(np.load(path)), dtype
        shape = dict(width=4, num_classes=10, stem_kind=stem, dtype=dtype)
        self.teacher = networks.create(f'resnet{depth}', **shape)
        self.student = networks.create(f'projection{depth}', reparam='dirac' if dirac else 'none', **shape)
        self.networks = joint.Networks(self.student, self.teacher, networks.Connectors(dtype=dtype))
        # Their D is divided by the batch + 1e-8. Three steps of the bottleneck net blow that up to 6e-6 of its loss.
        batch = self['labels'].shape[1]
        self.weight = float(self['dis_weight']) * batch / (batch + 1e-8)
        self.method = joint.Method(self.student.stage_ends[:-1], self.weight, average_paths=True)
        self.paths = joint.path_names(self.method.taps)
        self.variables = {
            'teacher': self.imported('teacher', self.teacher),
            'student': self.imported('student', self.student),
            'connectors': self.connectors(),
        }
        self.images = self['images'].astype(dtype)
        self.labels = self['labels']
        self.m = float(self['m'])

    def __getitem__(self, key):
        return self.file[key]

    def group(self, prefix: str) -> dict[str, np.ndarray]:
        return {k.removeprefix(prefix): v for k, v in self.file.items() if k.startswith(prefix)}

    def imported(self, name: str, network: networks.Network):
        flat = {k: v.astype(self.dtype) for k, v in self.group(f'init/{name}.').items()}
        return torch_names.import_names(torch_names.template(network), flat, 'authors')

    def connectors(self):
        tree = {'params': {}, 'batch_stats': {}}
        for i, path in enumerate(self.paths):
            c = {k: v.astype(self.dtype) for k, v in self.group(f'init/Connectors.{i}.').items()}
            tree['params'][f'{path}_conv'] = {'kernel': torch_names.from_torch_layout('kernel', c['0.weight'])}
            tree['params'][f'{path}_bn'] = {'scale': c['1.weight'], 'bias': c['1.bias']}
            tree['batch_stats'][f'{path}_bn'] = {'mean': c['1.running_mean'], 'var': c['1.running_var']}
        return tree

    def trees(self, connector_of_student: str | None = None):
        """(params, batch_stats); optionally another path's connector at the student's end."""
        params = {name: self.variables[name]['params'] for name in ('student', 'connectors')}
        batch_stats = {name: self.variables[name]['batch_stats'] for name in ('student', 'connectors')}
        if connector_of_student:
            for kind in ('conv', 'bn'):
                for tree in (params, batch_stats):
                    if f'{connector_of_student}_{kind}' in tree['connectors']:
                        moved = tree['connectors'][f'{connector_of_student}_{kind}']
                        tree['connectors'] = {**tree['connectors'], f'student_{kind}': moved}
        return params, batch_stats

    @functools.cached_property
    def teacher_outputs(self):
        return jax.jit(self.teacher.apply)(self.variables['teacher'], self.images[0])

    def margin(self):
        """The authors' margin, which their code keeps in float32; `step_lib.margin` is compared with it."""
        return self['margin'].astype(self.dtype)

    def loss(self, method, gradient=False):
        """(params, batch_stats) -> (loss, (terms, running statistics)) on batch 0, the teacher frozen."""

        def loss(params, batch_stats, images, labels, teacher, outputs, margin):
            return joint.joint_loss(
                params, batch_stats, images, labels, networks=self.networks, method=method, mix=self.m,
                teacher=joint.TeacherView(teacher, margin, outputs.logits, outputs.features),
            )  # fmt: skip

        compiled = jax.jit(jax.value_and_grad(loss, has_aux=True) if gradient else loss)
        constants = self.variables['teacher'], self.teacher_outputs, self.margin()
        return lambda params, batch_stats: compiled(params, batch_stats, self.images[0], self.labels[0], *constants)

    def train(self, steps: int, teacher_trains: bool = False):
        """(states, reports) of `steps` steps of the trainer's own device step on batches 0, 1, ..."""
        config = shipped_config('cifar10', optimizer__schedule='constant')
        optimizer = from_config.optimizer(config, optax.constant_schedule(0.1))
        params, batch_stats = self.trees()
        teacher = joint.TeacherView(self.variables['teacher'], self.margin())
        learning = step_lib.LearningTeacher(teacher, optimizer.init(teacher.variables['params']))
        names = step_lib.term_names(self.method, teacher_trains)
        state = step_lib.TrainState(
            step=jnp.zeros((), jnp.int32), params=params, batch_stats=batch_stats, opt_state=optimizer.init(params),
            rate_scale=jnp.ones((), self.dtype), teacher=learning if teacher_trains else None,
            epoch_sums={name: jnp.zeros((), self.dtype) for name in names},
            fault={'step': jnp.full((), -1, jnp.int32), 'term': jnp.full((), -1, jnp.int32)},
        )  # fmt: skip
        device_step = step_lib.make_device_step(self.networks, self.method, optimizer, 1, lambda epoch: self.m)
        mesh = jax.make_mesh(
            (1,), (step_lib.AXIS,), devices=jax.devices()[:1], axis_types=(jax.sharding.AxisType.Auto,)
        )
        data, everywhere = P(step_lib.AXIS), step_lib.replicated(mesh)
        state, teacher = jax.device_put((state, teacher), everywhere)  # as the first step leaves it: one program
        mapped = jax.jit(
            jax.shard_map(device_step, mesh=mesh, in_specs=(P(), P(), data, data), out_specs=P(), check_vma=False)
        )
        reports = []
        for i in range(steps):
            batch = jax.device_put((self.images[i], self.labels[i]), jax.sharding.NamedSharding(mesh, data))
            state = mapped(state, None if teacher_trains else teacher, *batch)
            reports.append(state.epoch_sums)
        return state, reports


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def golden(request):
    with jax.enable_x64(True):
        yield golden_in(request.param, jnp.float64)


@functools.cache
def golden_in(path, dtype):
    return Golden(path, dtype)


def test_forward_and_joint_loss(golden):
    outputs = golden.teacher_outputs
    assert difference(outputs.logits, golden['teacher_logits']) < LOSS
    assert difference(outputs.features.mean(), golden['teacher_feature_mean']) < LOSS
    margin = step_lib.margin(golden.teacher, golden.variables['teacher'])
    assert difference(margin, golden['margin']) < LOSS
    evaluated = jax.jit(golden.student.apply)(golden.variables['student'], golden.images[0])
    assert difference(evaluated.logits, golden['student_logits_eval']) < LOSS

    @jax.jit
    def paths(student, teacher, images):
        taps = golden.method.taps
        outputs, _ = golden.student.apply(student, images, train=True, taps=taps, mutable=['batch_stats'])
        return outputs, joint.residual_paths(golden.teacher, teacher, outputs.taps, taps)

    trained, branches = paths(golden.variables['student'], golden.variables['teacher'], golden.images[0])
    assert difference(trained.logits, golden['student_logits_train']) < LOSS
    assert difference(np.stack([z for z, _ in branches]), golden['branch_logits']) < LOSS

    (loss, (terms, batch_stats)), grads = golden.loss(golden.method, gradient=True)(*golden.trees())
    assert difference(loss, golden['loss/joint']) < LOSS
    for i, path in enumerate(golden.paths):
        assert difference(terms[f'ce/{path}'], golden['ce'][i]) < LOSS
        assert difference(terms[f'distill/{path}'], golden['distill'][i]) < LOSS
    compare_named(golden, grads, None, 'grad_joint/')
    compare_named(golden, None, batch_stats, 'bn_after_joint/')


def compare_named(golden, params, batch_stats, prefix):
    """Every array of the file under `prefix` against ours of the same PyTorch name; none may be missing."""
    variables = {'params': (params or {}).get('student', {}), 'batch_stats': (batch_stats or {}).get('student', {})}
    ours = {f'student.{k}': v for k, v in torch_names.export_names(variables, 'authors').items()}
    for i, path in enumerate(golden.paths):
        if params and f'{path}_conv' in params['connectors']:
            conv, bn = (params['connectors'][f'{path}_{kind}'] for kind in ('conv', 'bn'))
            ours[f'Connectors.{i}.0.weight'] = torch_names.to_torch_layout('kernel', np.asarray(conv['kernel']))
            ours[f'Connectors.{i}.1.weight'], ours[f'Connectors.{i}.1.bias'] = bn['scale'], bn['bias']
    theirs = golden.group(prefix)
    assert theirs
    for name, value in theirs.items():
        if name not in ours:  # a projection that the student has but never runs keeps its first value
            unused = '.downsample.' in name and golden.student.bottleneck and '.layers.0.0.' in name
            assert unused and difference(golden[f'init/{name}'], value) == 0, name
            continue
        assert difference(ours[name], value) < TENSOR, name


def test_distillation_baselines(golden):
    hinton = joint.Method(kl_alpha=0.9, kl_temperature=4.0)
    (loss, _), grads = golden.loss(hinton, gradient=True)(*golden.trees())
    assert difference(loss, golden['loss/kl']) < LOSS
    compare_named(golden, {**grads, 'connectors': {}}, None, 'grad_kl/')

    feature_kd = golden.loss(joint.Method(distill_weight=golden.weight))
    loss, (terms, _) = feature_kd(*golden.trees('path1'))
    assert difference(loss, golden['loss/kd']) < LOSS
    assert difference(terms['distill/student'], golden['distill_kd']) < LOSS
    loss, _ = feature_kd(*golden.trees())
    assert difference(loss, golden['loss/ta_released']) < LOSS


def test_three_sgd_steps(golden):
    state, reports = golden.train(3)
    for report, loss in zip(reports, golden['sgd_losses']):
        assert difference(report['loss'], loss) < LOSS
    compare_named(golden, state.params, None, 'sgd_after/')


def test_step_from_scratch(golden):
    _, (report,) = golden.train(1, teacher_trains=True)
    assert difference(report['ce/teacher'], golden['loss/joint_scratch_teacher']) < LOSS
    assert difference(report['loss'], golden['loss/joint_scratch_student']) < LOSS


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_float32(path):
    golden = golden_in(path, jnp.float32)
    loss, (terms, _) = golden.loss(golden.method)(*golden.trees())
    assert difference(loss, golden['loss/joint']) < 1e-4
    for i, name in enumerate(golden.paths):
        assert difference(terms[f'ce/{name}'], golden['ce'][i]) < 1e-4
        assert difference(terms[f'distill/{name}'], golden['distill'][i]) < 1e-4

"""The joint step in PyTorch beside ours: same networks, shapes and terms, timed alternately where both are installed.

    python benchmarks/torch_jointrd.py [--shapes=18:32:32,50:224:256] [--procedures=plain,jointrd] [--out=FILE]

Each row says which share of the machine's matrix product it reaches: XLA's count of our step's FLOPs over its time.

Two PyTorch forms, both this file's own code: `eager`, float32 as a plain training script runs it, and `best`,
torch.compile, channels_last and on a GPU bfloat16 autocast with CUDA graphs. Options are those of
`python -m jointrd_jax.benchmark`; a GPU needs XLA_PYTHON_CLIENT_PREALLOCATE=false, so that both find memory.
"""

import importlib
import itertools
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')

import jax
import jax.numpy as jnp
import torch
import torch.nn.functional as F
from torch import nn

from jointrd_jax import cli
from jointrd_jax.benchmark import stepper, tasks
from jointrd_jax.method import networks
from jointrd_jax.system import files

FORMS = ('eager', 'best')
PROCEDURES = ('resnet', 'plain', 'jointrd', 'feature_kd')  # whose work is written here
SHOWN = 'shape', 'procedure', 'form', 'compile_seconds', 'step_ms', 'images_per_second', 'share_of_peak', 'time_to_ours'
DEVICE = torch.device('cuda' if torch.cuda.is_available() else 'cpu')


def conv_bn(inputs: int, outputs: int, size: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs))


class Block(nn.Module):
    """ReLU, convolutions, optional shortcut, as `networks.Block`."""

    def __init__(self, inputs: int, channels: int, stride: int, bottleneck: bool, residual: bool):
        super().__init__()
        outputs = channels * (4 if bottleneck else 1)
        if bottleneck:
            layers = [(inputs, channels, 1, 1), (channels, channels, 3, stride), (channels, outputs, 1, 1)]
        else:
            layers = [(inputs, channels, 3, stride), (channels, outputs, 3, 1)]
        self.layers = nn.ModuleList(conv_bn(*layer) for layer in layers)
        self.residual = residual
        self.projection = conv_bn(inputs, outputs, 1, stride) if residual and inputs != outputs else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(x)
        h = x
        for i, layer in enumerate(self.layers):
            h = layer(F.relu(h) if i else h)
        if not self.residual:
            return h
        return h + (x if self.projection is None else self.projection(x))


class Network(nn.Module):
    """The staged network; `tail` runs the blocks from a boundary on."""

    def __init__(self, stage_sizes, bottleneck: bool, width: int, classes: int, stem_kind: str, residual: bool):
        super().__init__()
        large = stem_kind == 'imagenet'
        self.stem = conv_bn(3, width, 7 if large else 3, 2 if large else 1)
        self.pool = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
        self.blocks, inputs = nn.ModuleList(), width
        for stage, size in enumerate(stage_sizes):
            for block in range(size):
                channels, stride = width * 2**stage, 2 if stage and not block else 1
                self.blocks.append(Block(inputs, channels, stride, bottleneck, residual))
                inputs = channels * (4 if bottleneck else 1)
        self.head = nn.Linear(inputs, classes)
        self.features = inputs

    def tail(self, h: torch.Tensor, start: int) -> tuple[torch.Tensor, torch.Tensor]:
        for block in self.blocks[start:]:
            h = block(h)
        return self.head(F.relu(h).mean((2, 3))), h

    def forward(self, x: torch.Tensor, taps: tuple[int, ...] = ()):
        h, tapped = self.pool(self.stem(x)), []
        for i, block in enumerate(self.blocks):
            if i in taps:
                tapped.append(h)
            h = block(h)
        return self.head(F.relu(h).mean((2, 3))), h, tapped


def distance(f: torch.Tensor, target: torch.Tensor, margin: torch.Tensor) -> torch.Tensor:
    """The margin-ReLU distance, as `losses.margin_distillation`."""
    target = torch.maximum(target, margin.view(1, -1, 1, 1))
    useful = (f > target) | (target > 0)
    return ((f - target).float() ** 2 * useful).sum() / f.shape[0]


class Loss(nn.Module):
    """The loss of one procedure on a batch; its parameters are what the optimiser updates."""

    margin: torch.Tensor

    def __init__(self, student: Network, teacher: Network | None, taps: tuple[int, ...], weight: float):
        super().__init__()
        self.student, self.taps, self.weight = student, taps, weight
        self.frozen = [teacher]  # in a list: its parameters are not this module's
        paths = len(taps) + 1 if weight else 0
        self.connectors = nn.ModuleList(conv_bn(student.features, student.features, 1, 1) for _ in range(paths))
        self.register_buffer('margin', torch.full((student.features,), -0.4))

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        teacher = self.frozen[0]
        logits, features, tapped = self.student(images, self.taps)
        paths = [(logits, features)]
        if teacher:
            paths = [teacher.tail(h, tap) for h, tap in zip(tapped, self.taps)] + paths
        loss = torch.stack([F.cross_entropy(z.float(), labels) for z, _ in paths]).sum()
        if self.weight and teacher:
            with torch.no_grad():
                target = teacher(images)[1]
            for connector, (_, f) in zip(self.connectors, paths):
                loss = loss + self.weight * distance(connector(f), target, self.margin)
        return loss / len(paths)


class Stepper:
    """A PyTorch training step for a task of our benchmark, timed as `stepper.Stepper` is."""

    def __init__(self, task: tasks.Task, form: str):
        ours, method = task.networks.student, task.method
        assert isinstance(ours, networks.Network)  # as all of `tasks.synthetic_tasks` are

        def network(residual: bool) -> Network:
            made = Network(
                ours.stage_sizes, ours.bottleneck, ours.width, ours.num_classes, ours.stem_kind, residual
            ).to(DEVICE)
            if form == 'best':  # which the stubs of PyTorch lack
                made.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
            return made

        teacher = None
        if task.networks.teacher:
            teacher = network(True).eval().requires_grad_(False)
        self.loss = Loss(network(ours.shortcuts == 'all'), teacher, method.taps, method.distill_weight).to(DEVICE)
        self.optimizer = torch.optim.SGD(
            self.loss.parameters(), 0.01, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=form == 'best'
        )
        self.forward, self.half, self.best = self.loss, False, form == 'best'
        if self.best:
            self.half = DEVICE.type == 'cuda'
            self.forward = torch.compile(self.loss, mode='reduce-overhead' if self.half else None)
        self.images = torch.as_tensor(task.dataset.device_arrays['images']).permute(0, 3, 1, 2).to(DEVICE)
        self.labels = torch.as_tensor(task.dataset.device_arrays['labels']).long().to(DEVICE)
        began = time.perf_counter()
        self(1)
        self.row = {
            'shape': task.label, 'procedure': task.procedure, 'form': f'PyTorch {form}',
            'batch_size': task.batch_size, 'compile_seconds': round(time.perf_counter() - began, 2),
        }  # fmt: skip
        self(2)
        began = time.perf_counter()
        self(1)
        self.steps_a_round = max(1, round(stepper.ROUND_SECONDS / (time.perf_counter() - began)))
        self.seconds = []

    def __call__(self, steps: int) -> None:
        for _ in range(steps):
            images = self.images.float() / 255 - 0.5
            if self.best:
                images = images.contiguous(memory_format=torch.channels_last)
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=self.half):
                loss = self.forward(images, self.labels)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
        if DEVICE.type == 'cuda':
            torch.cuda.synchronize()

    round = stepper.Stepper.round


def main(argv: list[str]) -> None:
    module = importlib.import_module('jointrd_jax.commands.benchmark')
    given, _ = cli.parse('benchmark', module, ['--procedures=plain,jointrd', *argv])
    jax.config.update('jax_enable_compilation_cache', False)
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True  # the fastest kernel for each shape
    if other := set(given.procedures) - set(PROCEDURES):
        cli.fail(f'--procedures={",".join(sorted(other))}: in PyTorch there are {", ".join(PROCEDURES)}')
    settings = tasks.Settings(given.width, given.dtype, given.distill_weight, given.remat)
    shapes = given.shapes or tasks.default_shapes()
    mesh = jax.make_mesh((1,), ('data',), devices=jax.devices()[:1], axis_types=(jax.sharding.AxisType.Auto,))
    rows, peak = [], {}
    for shape in shapes.split(','):
        for task in tasks.synthetic_tasks(shape, given.procedures, settings):
            peak = peak or stepper.machine_peak(jnp.dtype(task.dtype))
            steppers = [stepper.Stepper(task, mesh), *(Stepper(task, form) for form in FORMS)]
            steppers[0].row['form'] = 'ours'
            flops = steppers[0].row['flops']
            for _, timed in itertools.product(range(given.rounds), steppers):
                timed.round()
            for timed in steppers:
                pairs, seconds = zip(steppers[0].seconds, timed.seconds), statistics.median(timed.seconds)
                rows.append({
                    **timed.row,
                    'step_ms': round(1e3 * seconds, 3),
                    'images_per_second': round(task.batch_size / seconds, 1),
                    'share_of_peak': round(flops / seconds / peak['flops_per_second'], 3) if flops else None,
                    'time_to_ours': round(statistics.median(theirs / own for own, theirs in pairs), 3),
                })  # fmt: skip
                print({k: rows[-1].get(k) for k in SHOWN}, flush=True)
    versions = {'jax': jax.__version__, 'torch': torch.__version__}
    result = {'device': jax.devices()[0].device_kind, 'versions': versions, 'peak': peak, 'rows': rows}
    if given.out:
        files.write_json(Path(given.out), result)


if __name__ == '__main__':
    main(sys.argv[1:])

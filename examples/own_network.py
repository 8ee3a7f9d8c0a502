"""JointRD on a network of your own: python examples/own_network.py [EPOCHS]

The method asks a Flax module for four things (`method.interface.StagedNetwork`): the attribute `num_blocks`,
`__call__(x, train, taps)` that returns logits, the last feature map and the maps at the taps (`Outputs`),
`run_blocks(h, start, stop)` and `run_head(h)`. Teacher and student may be any two modules whose maps at the taps have
the same shape. Here: depthwise separable blocks with and without an addition, on scikit-learn's digits, with a
training loop of your own.
"""

import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jointrd_jax import config as config_lib, data
from jointrd_jax.method import joint
from jointrd_jax.method.interface import Outputs
from jointrd_jax.method.joint import Method, Networks, TeacherView

BATCH = 64
TAPS = (2, 4)


class SeparableBlock(nn.Module):
    """ReLU, depthwise 3x3, pointwise 1x1, BatchNorm; `residual` adds the input."""

    channels: int
    residual: bool

    @nn.compact
    def __call__(self, x, train):
        h = nn.Conv(x.shape[-1], (3, 3), feature_group_count=x.shape[-1], use_bias=False)(nn.relu(x))
        h = nn.Conv(self.channels, (1, 1), use_bias=False)(h)
        h = nn.BatchNorm(use_running_average=not train, momentum=0.9)(h)
        return h + x if self.residual else h


class Separable(nn.Module):
    """A stack of separable blocks that JointRD can train, or be taught by."""

    residual: bool
    num_blocks: int = 6
    channels: int = 24
    classes: int = 10

    def setup(self):
        self.stem = nn.Conv(self.channels, (3, 3), use_bias=False)
        self.blocks = [SeparableBlock(self.channels, self.residual) for _ in range(self.num_blocks)]
        self.head = nn.Dense(self.classes)

    def __call__(self, x, train=False, taps=()):
        h, at, tapped = self.stem(x), 0, []
        for tap in taps:
            h, at = self.run_blocks(h, at, tap, train), tap
            tapped.append(h)
        h = self.run_blocks(h, at, self.num_blocks, train)
        return Outputs(self.run_head(h), h, tuple(tapped))

    def run_blocks(self, h, start, stop, train=False):
        for block in self.blocks[start:stop]:
            h = block(h, train)
        return h

    def run_head(self, h):
        return self.head(nn.relu(h).mean((1, 2)))


def train(dataset, networks, method, epochs, teacher=None, seed=0):
    """Variables of `networks.student` after `epochs` of SGD on the loss that `method` describes."""
    steps, device_arrays = dataset.train_size // BATCH, jax.device_put(dataset.device_arrays)
    optimizer = optax.sgd(optax.cosine_decay_schedule(0.1, epochs * steps), momentum=0.9, nesterov=True)
    variables = networks.student.init(jax.random.key(seed), jnp.zeros((1, *dataset.image_shape)))
    params, batch_stats = {'student': variables['params']}, {'student': variables['batch_stats']}
    state = optimizer.init(params)

    @jax.jit
    def step(params, batch_stats, state, batch, key, mix):
        images, labels = dataset.preprocess(device_arrays, batch, key)
        gradient, (terms, batch_stats) = jax.grad(joint.joint_loss, has_aux=True)(
            params,
            batch_stats,
            images,
            labels,
            networks=networks,
            method=method,
            mix=mix,
            teacher=teacher and TeacherView(teacher),
        )
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), batch_stats, state, terms

    batches = dataset.train_batches(0)
    for i in range(epochs * steps):
        mix = joint.mixing_weight(i // steps, eta=0.5, mix_epochs=0.3 * epochs)
        params, batch_stats, state, terms = step(params, batch_stats, state, next(batches), jax.random.key(i), mix)
    print({name: round(float(value), 4) for name, value in terms.items()})
    return {'params': params['student'], 'batch_stats': batch_stats['student']}


def evaluate(dataset, network, variables):
    """Top-1 in percent on the evaluation images."""
    device_arrays = jax.device_put(dataset.device_arrays)

    @jax.jit
    def correct(batch):
        images, labels = dataset.preprocess(device_arrays, batch, None)
        hits = network.apply(variables, images).logits.argmax(-1) == labels
        return (hits & batch['mask']).sum()

    return 100 * sum(int(correct(batch)) for batch in dataset.eval_batches()) / dataset.eval_size


def main(epochs=20):
    config = config_lib.default()
    config.batch_size, config.dataset.crop_padding = BATCH, 1
    dataset = data.load(config)
    resnet, plain = Separable(residual=True), Separable(residual=False)

    teacher = train(dataset, Networks(resnet), Method(), epochs)
    alone = train(dataset, Networks(plain), Method(), epochs)
    joined = train(dataset, Networks(plain, resnet), Method(taps=TAPS, average_paths=True), epochs, teacher)
    result = {
        'residual': evaluate(dataset, resnet, teacher),
        'plain, alone': evaluate(dataset, plain, alone),
        'plain, JointRD': evaluate(dataset, plain, joined),
    }
    for name, top1 in result.items():
        print(f'{name}: {top1:.1f} %')
    return result


if __name__ == '__main__':
    main(*map(int, sys.argv[1:]))

"""From a config to what it describes: networks, the method, its schedules, the optimiser."""

from collections import Counter
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.tree_util import DictKey, tree_map_with_path

from jointrd_jax.config import TRAINS_RESNET, has_bottlenecks
from jointrd_jax.errors import UserError
from jointrd_jax.method import joint
from jointrd_jax.method.architectures import STAGE_SIZES
from jointrd_jax.method.clipping import clip_by_global_norm
from jointrd_jax.method.joint import Method
from jointrd_jax.method.layers import FADING, SLOPE, tailored_slope
from jointrd_jax.method.networks import Network, grouped_hidden


def resnet(config: ml_collections.ConfigDict, num_classes: int, axis_name: str | None = None) -> Network:
    """The residual network of `config.model`'s shape; `axis_name` is used if BatchNorm is global."""
    model = config.model
    sizes = tuple(model.stage_sizes) or STAGE_SIZES[model.depth]
    return Network(
        stage_sizes=sizes,
        bottleneck=has_bottlenecks(config),
        groups=model.groups,
        hidden=grouped_hidden(sizes, model.width, model.groups, model.width_per_group),
        width=model.width,
        num_classes=num_classes,
        stem_kind=model.stem,
        dtype=jnp.dtype(config.dtype),
        axis_name=axis_name if config.batch_norm == 'global' else None,
        remat=config.remat,
    )


def student(config: ml_collections.ConfigDict, num_classes: int, axis_name: str | None = None) -> Network:
    """The network that `config.procedure` trains: the ResNet, or `config.model`'s plain CNN."""
    network = resnet(config, num_classes, axis_name)
    if config.procedure in TRAINS_RESNET:
        return network
    shortcuts = config.model.shortcuts
    return network.clone(
        shortcuts=network.per_block(tuple(shortcuts.split(','))) if ',' in shortcuts else shortcuts,
        reparam=config.model.reparam,
        activation='leaky' if config.model.activation == 'tailored' else config.model.activation,
        slope=slope(config, network),
        hidden=network.per_block(tuple(config.model.hidden)) if config.model.hidden else network.hidden,
    )


def slope(config: ml_collections.ConfigDict, network: Network) -> float:
    """The slope below 0 of the student's activations at the start of training; 0 for ReLUs."""
    if config.model.activation == 'relu':
        return 0.0
    if config.model.slope_layers:
        return max(0.0, 1 - config.model.slope_layers / network.depth)
    return config.model.slope or tailored_slope(network.rectifiers)


def annealed(config: ml_collections.ConfigDict, network: Network, steps_per_epoch: int) -> Callable | None:
    """step -> the numbers of `layers.annealed`, which fall to 0 over model.anneal_fraction; None without any."""
    start = {}
    if network.activation == 'annealed' and not isinstance(network.slope, tuple):
        start[SLOPE] = network.slope
    if any(network.block_fades()):
        start[FADING] = 1.0
    total = config.epochs * steps_per_epoch
    steps = max(min(round(config.model.anneal_fraction * total), total - 1), 1)  # 0 at the last step at the latest
    schedules = {name: optax.cosine_decay_schedule(value, steps) for name, value in start.items()}
    return (lambda step: {name: schedule(step) for name, schedule in schedules.items()}) if schedules else None


def tap_sets(config: ml_collections.ConfigDict, network: Network) -> tuple[tuple[int, ...], ...]:
    """The block boundaries of the mixed paths: as listed, spread evenly, or the ends of all stages but the last.

    With config.mix.tap_sets > 1 there are several such sets of the same length; each step takes one of them.

    Raises:
      UserError: the taps do not fit the network.
    """
    blocks, sets = network.num_blocks, config.mix.tap_sets
    chosen = tuple(config.mix.taps)
    if config.mix.num_taps:
        count = config.mix.num_taps * sets
        chosen = tuple(round(i * blocks / (count + 1)) for i in range(1, count + 1))
    chosen = chosen or network.stage_ends[:-1]
    if not chosen:
        raise UserError('a network of one stage has no earlier stage at whose end to tap; set config.mix.taps')
    if chosen[-1] >= blocks or len(set(chosen)) < len(chosen):
        raise UserError(
            f'config.mix: taps after the blocks {chosen} do not fit a network of {blocks} blocks; '
            f'use ascending numbers from 0 to {blocks - 1}'
        )
    return tuple(chosen[first::sets] for first in range(sets))


def method(config: ml_collections.ConfigDict, network: Network) -> Method:
    """The loss of `config.procedure` for a student `network`: all that tells the procedures apart in the trainer."""
    smoothing = config.label_smoothing
    if config.procedure in ('jointrd', 'jointrd_scratch'):
        return Method(
            tap_sets(config, network)[0],
            config.distill.weight,
            config.mix.average_paths,
            config.mix.mean_of_paths,
            smoothing,
        )
    if config.procedure == 'feature_kd':
        return Method(distill_weight=config.distill.weight, label_smoothing=smoothing)
    if config.procedure in ('logit_kd', 'resnet_kd'):
        kl = dict(kl_alpha=config.distill.alpha, kl_temperature=config.distill.temperature)
        return Method(label_smoothing=smoothing, **kl)
    return Method(label_smoothing=smoothing)


def mixing_weight(config: ml_collections.ConfigDict) -> Callable[[jax.typing.ArrayLike], jax.Array]:
    """epoch -> m(t), the weight of the mixed paths."""

    def at(epoch: jax.typing.ArrayLike) -> jax.Array:
        return joint.mixing_weight(epoch, config.mix.eta, config.mix.fraction * config.epochs)

    return at


def peak_rate(config: ml_collections.ConfigDict, network: Network) -> float:
    """The highest learning rate of a run: lower for a deep network without shortcuts, if the config asks for it."""
    layers, rate = config.optimizer.rate_layers, config.optimizer.learning_rate
    if not layers or set(network.faded().block_shortcuts()) != {'none'}:
        return rate
    return rate * min(1.0, layers / network.depth)


def learning_rate(config: ml_collections.ConfigDict, network: Network, steps_per_epoch: int) -> Callable:
    """step -> learning rate of `network`: linear warm-up, then the schedule named by config.optimizer.schedule."""
    settings, total = config.optimizer, config.epochs * steps_per_epoch
    peak, warmup = peak_rate(config, network), round(settings.warmup_fraction * total)
    if settings.schedule == 'cosine':
        after = optax.cosine_decay_schedule(peak, max(total - warmup, 1))
    elif settings.schedule == 'constant':
        after = optax.constant_schedule(peak)
    else:
        at = [epoch * steps_per_epoch for epoch in settings.drop_epochs]
        at = at or [round(fraction * total) for fraction in settings.drop_fractions]
        drops = Counter(max(step - warmup, 0) for step in at)  # several may fall on one step, such as the warm-up's end
        after = optax.piecewise_constant_schedule(
            peak, {step: settings.drop_factor**count for step, count in drops.items()}
        )
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup]) if warmup else after


def decayed(params) -> object:
    """Which parameters get weight decay: all but Dirac's alpha and beta, and the slopes of PReLUs."""
    without = {DictKey(name) for name in ('alpha', 'beta', 'slope')}
    return tree_map_with_path(lambda path, _: path[-1] not in without, params)


def optimizer(config: ml_collections.ConfigDict, schedule: Callable) -> optax.GradientTransformation:
    """SGD with Nesterov's momentum and L2 added to the gradient, as PyTorch's; optional clipping comes first."""
    settings = config.optimizer
    return optax.chain(
        clip_by_global_norm(settings.clip_norm) if settings.clip_norm else optax.identity(),
        optax.add_decayed_weights(settings.weight_decay, mask=decayed),
        optax.sgd(schedule, momentum=settings.momentum or None, nesterov=True),
    )

"""What a config must fulfil before anything is read, made or compiled."""

import ml_collections

from jointrd_jax.config.fields import FIELDS, MAX_BLOCKS, MAX_PARAMETERS, MAX_STAGES, NEEDS_TEACHER
from jointrd_jax.config.values import flatten, shown, suggest
from jointrd_jax.errors import UserError
from jointrd_jax.method.architectures import BOTTLENECK_DEPTHS, STAGE_SIZES
from jointrd_jax.system import buckets


def parameters(blocks: tuple[int, ...], width: int, bottleneck: bool) -> int:
    """About how many parameters the convolutions of such a ResNet have."""
    channels = [width * 2**stage for stage in range(len(blocks))]
    return sum(n * c * c * (17 if bottleneck else 18) for n, c in zip(blocks, channels))


def check_size(config: ml_collections.ConfigDict) -> None:
    """Check that the network can be built.

    Raises:
      UserError: too many blocks, stages, channels or parameters.
    """
    model = config.model
    blocks = tuple(model.stage_sizes) or STAGE_SIZES[model.depth]
    count = parameters(blocks, model.width, model.block == 'bottleneck')
    if len(blocks) > MAX_STAGES or sum(blocks) > MAX_BLOCKS or count > MAX_PARAMETERS:
        raise UserError(
            f'config.model.stage_sizes={shown(blocks)} with config.model.width={model.width} is too large a network '
            f'(about {count:.2g} parameters); at most {MAX_STAGES} stages, {MAX_BLOCKS} blocks and '
            f'{MAX_PARAMETERS:.2g} parameters can be built'
        )


def has_bottlenecks(config: ml_collections.ConfigDict) -> bool:
    """Whether the blocks of `config.model` are bottlenecks."""
    model = config.model
    if model.block == 'auto':
        return not model.stage_sizes and model.depth in BOTTLENECK_DEPTHS
    return model.block == 'bottleneck'


def check_block(config: ml_collections.ConfigDict) -> None:
    """Check that the blocks can have these groups, and that the activation has a slope if one is given.

    Raises:
      UserError: groups in a basic block, channels that do not divide into the groups, or a slope that nothing reads.
    """
    model = config.model
    if (model.groups, model.width_per_group) != (1, 64):
        asked = f'config.model.groups={model.groups} with config.model.width_per_group={model.width_per_group}'
        if not has_bottlenecks(config):
            raise UserError(
                f'{asked} is for bottlenecks; set config.model.block=bottleneck or a depth of {BOTTLENECK_DEPTHS}'
            )
        hidden = model.width * model.width_per_group // 64 * model.groups
        if not hidden or any(n % model.groups for n in model.hidden):
            raise UserError(f'{asked} does not fit config.model.width={model.width}: {hidden} channels inside a block')
    given = [f'config.model.{field}={model[field]}' for field in ('slope', 'slope_layers') if model[field]]
    if len(given) > 1:
        raise UserError(f'{" and ".join(given)} exclude each other; set one of them to 0')
    if given and model.activation in ('relu', 'tailored'):
        raise UserError(
            f'{given[0]} has no effect with config.model.activation={model.activation}; '
            'only leaky, prelu and annealed have a slope'
        )


def validate(config: ml_collections.ConfigDict) -> None:
    """Check every field alone and the fields together, before anything is read, made or compiled.

    Raises:
      UserError: the message names the first field that is missing, unknown or not accepted, or the fields that exclude
        each other.
    """
    flat = flatten(config)
    for name in sorted(flat.keys() | FIELDS.keys()):
        if name not in FIELDS:
            raise UserError(f'config has no field {shown(name)}; {suggest(name)}')
        if name not in flat:
            raise UserError(f'config lacks the field {name!r} ({FIELDS[name].accepts})')
    for name, field in FIELDS.items():
        value = flat[name]
        kind = type(field.default)
        fits = isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) == (kind is bool)
        try:
            accepted = fits and field.check(value)
        except (TypeError, ValueError, OverflowError):
            accepted = False
        if not accepted:
            raise UserError(f'config.{name}={shown(value)} is not accepted; it must be: {field.accepts}')
    for name in ('dataset.data_dir', 'teacher.path', 'restore'):
        buckets.check_scheme(flat[name])
    drops = config.optimizer.drop_epochs
    if config.optimizer.schedule == 'step' and drops and max(drops) >= config.epochs:
        raise UserError(
            f'config.optimizer.drop_epochs={shown(drops)} reaches beyond the run: config.epochs={config.epochs}; '
            'give epochs before its end, or config.optimizer.drop_fractions, which are fractions of the run'
        )
    if config.dataset.fold and config.dataset.validation_size:
        raise UserError(
            f'config.dataset.fold={config.dataset.fold} and config.dataset.validation_size='
            f'{config.dataset.validation_size} exclude each other: each says which images are evaluated on'
        )
    check_size(config)
    check_block(config)
    if config.procedure == 'feature_kd' and not config.distill.weight:
        raise UserError('config.procedure=feature_kd needs config.distill.weight > 0 (about 1e-3 at 32x32 pixels)')
    if config.mix.taps and config.mix.num_taps:
        raise UserError('config.mix.taps and config.mix.num_taps exclude each other; set one of them')
    if config.mix.tap_sets > 1 and not config.mix.num_taps:
        raise UserError(f'config.mix.tap_sets={config.mix.tap_sets} needs config.mix.num_taps, the taps of each set')
    if config.mix.tap_sets > 1 and config.steps_per_dispatch > 1:
        raise UserError(
            f'config.mix.tap_sets={config.mix.tap_sets} and config.steps_per_dispatch={config.steps_per_dispatch} '
            'exclude each other, since every step draws its taps; set one of them to 1'
        )
    if config.model.init != 'random' and config.restore:
        raise UserError(f'config.model.init={config.model.init} and config.restore exclude each other; set one of them')
    if config.model.init == 'identity' and config.model.reparam == 'dirac':
        raise UserError(
            'config.model.init=identity and config.model.reparam=dirac are two ways to start near the identity; '
            'set one of them'
        )
    if config.model.init == 'teacher':
        if config.procedure not in NEEDS_TEACHER:
            raise UserError(
                f'config.model.init=teacher: procedure {config.procedure} has no frozen teacher; '
                f'one of {", ".join(NEEDS_TEACHER)} has, or give config.restore=RUN'
            )
    for name in ('mix.taps', 'optimizer.drop_epochs', 'optimizer.drop_fractions'):
        if list(flat[name]) != sorted(set(flat[name])):
            raise UserError(f'config.{name}={shown(flat[name])} must be ascending, without repetition')

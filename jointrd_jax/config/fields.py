"""Every config field with its default, its meaning and the values that it accepts."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from jointrd_jax.method.architectures import ACTIVATIONS, REPARAMS, SHORTCUTS, STAGE_SIZES, STEMS

PROCEDURES = ('resnet', 'plain', 'jointrd', 'jointrd_scratch', 'feature_kd', 'logit_kd', 'resnet_kd')
TRAINS_RESNET = ('resnet', 'resnet_kd')
NEEDS_TEACHER = ('jointrd', 'feature_kd', 'logit_kd', 'resnet_kd')
TRACKERS = ('wandb',)

# A value beyond these is taken for a slip of the keyboard, and refused before it costs memory or time.
MAX_INT = 2**31 - 1  # what a step counter on the device holds
MAX_BATCH = 1 << 16
MAX_SIDE = 1 << 14  # pixels
MAX_BLOCKS = 1000  # in a network
MAX_STAGES = 8
MAX_CHANNELS = 1 << 15
MAX_PARAMETERS = 1 << 31
MAX_DROPS = 1000  # of the learning rate
MAX_TEXT = 4096


class Field(NamedTuple):
    """One config field: its default (which fixes its type), what it accepts, and what it means."""

    default: Any
    accepts: str  # shown to the user
    check: Callable[[Any], bool]
    meaning: str


def one_of(*choices: Any) -> tuple[str, Callable]:
    return ' | '.join(map(str, choices)), lambda v: v in choices


def at_least(low: float, most: float = MAX_INT) -> tuple[str, Callable]:
    return f'>= {low}, at most {most}', lambda v: low <= v <= most


def between(low: float, high: float) -> tuple[str, Callable]:
    return f'{low} to {high}', lambda v: low <= v <= high


def shortcut_choice(value: str) -> bool:
    return all(choice in SHORTCUTS for choice in value.split(','))


POSITIVE = ('> 0, from 1e-30 to 1e30', lambda v: 1e-30 <= v <= 1e30)  # what float32 holds
YES_NO = ('True | False', lambda v: isinstance(v, bool))
ANY_TEXT = (f'text of at most {MAX_TEXT} printable characters', lambda v: len(v) <= MAX_TEXT and v.isprintable())
SIZES = (
    f'up to {MAX_BLOCKS} whole numbers > 0, at most {MAX_CHANNELS}',
    lambda v: len(v) <= MAX_BLOCKS and all(type(n) is int and 0 < n <= MAX_CHANNELS for n in v),
)


def are_taps(v: tuple) -> bool:
    return len(v) <= MAX_BLOCKS and all(type(n) is int and 0 <= n < MAX_BLOCKS for n in v)


def are_drops(v: tuple) -> bool:
    return len(v) <= MAX_DROPS and all(type(n) is int and 0 < n <= MAX_INT for n in v)


def channel_numbers(text: str) -> tuple[float, ...]:
    """The one or three numbers in '0.5' or '0.485,0.456,0.406'; () for any other text."""
    try:
        numbers = tuple(float(part) for part in text.split(','))
    except ValueError:
        return ()
    return numbers if len(numbers) in (1, 3) else ()


def per_channel(low: float, high: float) -> tuple[str, Callable]:
    accepts = f'auto | imagenet | measured | one number from {low} to {high}, or three, comma-separated'
    return (
        accepts,
        lambda v: (
            v in ('auto', 'imagenet', 'measured')
            or (channel_numbers(v) != () and all(low <= n <= high for n in channel_numbers(v)))
        ),
    )


def is_fold(v: str) -> bool:
    found = re.fullmatch(r'(\d{1,3})/(\d{1,3})', v)
    return not v or bool(found and 1 <= int(found[1]) <= int(found[2]) and 2 <= int(found[2]) <= 100)


def are_drop_fractions(v: tuple) -> bool:
    return len(v) <= MAX_DROPS and all(type(n) in (int, float) and 0 < n < 1 for n in v)


FRACTION = ('0 to 1', lambda v: 0 <= v <= 1)

FIELDS: dict[str, Field] = {
    'procedure': Field('jointrd', *one_of(*PROCEDURES), 'what to train, and how (table: docs/method.md, Procedures)'),
    'seed': Field(0, *at_least(0), 'of initialisation, shuffling and augmentation'),
    'epochs': Field(60, *at_least(1, 10**6), 'length of the run'),
    'batch_size': Field(32, *at_least(1, MAX_BATCH), 'images per step over all devices and hosts'),
    'eval_batch_size': Field(
        256, *at_least(1, MAX_BATCH), 'images per evaluation step; the last batch is padded, so every image counts'
    ),
    'eval_every': Field(1, *at_least(1), 'epochs between evaluations; the last epoch is always evaluated'),
    'eval_hybrids': Field(False, *YES_NO, 'also evaluate each mixed path (the student early, the teacher later)'),
    'batch_norm': Field('local', *one_of('local', 'global'), 'statistics per device, or over the global batch'),
    'dtype': Field('float32', *one_of('float32', 'bfloat16'), 'of computation; parameters and statistics are float32'),
    'steps_per_dispatch': Field(
        1, *between(1, 50),
        'training steps per call to the device: more can be faster on an accelerator, is slower on a CPU; '
        'the result differs in rounding',
    ),
    'remat': Field(False, *YES_NO, 'compute blocks anew in the backward pass: less memory, more time'),
    'label_smoothing': Field(0.0, *between(0, 0.999), 'share of the target spread over all classes'),
    'restore': Field('', *ANY_TEXT, 'run directory, or weight file, that gives the initial weights'),
    'restore_head': Field('keep', *one_of('keep', 'new'), 'new: restore everything except the classifier'),
    'model.depth': Field(
        34, *one_of(*STAGE_SIZES),
        "of a standard network; unused when stage_sizes is given; 20 to 56 and 110: He et al.'s for CIFAR (width 16)",
    ),
    'model.stage_sizes': Field((), *SIZES, 'blocks per stage, such as 8,8,8,8; (): the standard of `depth`'),
    'model.block': Field(
        'auto', *one_of('auto', 'basic', 'bottleneck'), 'auto: bottleneck for depth 50, 101 and 152, else basic'
    ),
    'model.width': Field(64, *at_least(1, MAX_CHANNELS), 'channels of the first stage; doubles with each stage'),
    'model.stem': Field(
        'cifar', *one_of(*STEMS),
        'cifar: 3x3; imagenet: 7x7 stride 2 and max-pool; pool_first: the imagenet stem with its pool first, '
        'less memory'
    ),
    'model.shortcuts': Field(
        'none',
        f'{" | ".join(SHORTCUTS)}, or one per block, comma-separated',
        shortcut_choice,
        'of the student; projection: those of the first block of stages 2-4 (the authors\' "plain"); fading: all, '
        'times a weight that falls from 1 to 0 in training: none in the end; a ResNet has all',
    ),
    'model.groups': Field(1, *at_least(1, MAX_CHANNELS), "of a bottleneck's 3x3 convolution: 32 in a resnext50_32x4d"),
    'model.width_per_group': Field(
        64, *at_least(1, MAX_CHANNELS),
        "a bottleneck's inner channels are width_per_group / 64 * groups of the stage's: 4 in a resnext50_32x4d, "
        '128 in a wide_resnet50_2',
    ),
    'model.reparam': Field(
        'none', *one_of(*REPARAMS),
        "of the student's convolutions but the stem's, folded on export; dirac: alpha*identity + beta*W; branches: "
        'a 1x1 convolution and the identity beside each (RepVGG)',
    ),
    'model.activation': Field(
        'relu', *one_of(*ACTIVATIONS, 'tailored'),
        "of the student's blocks; leaky: model.slope below 0; prelu: learnt per channel; tailored: leaky, its slope by "
        "Zhang et al.'s rule for the depth; annealed: leaky whose slope falls to 0 in training",
    ),
    'model.slope': Field(
        0.0, *between(0, 1), 'of leaky, and at the start of prelu and annealed; 0: the one of tailored'
    ),
    'model.slope_layers': Field(
        0, *at_least(0, 3 * MAX_BLOCKS),
        'instead of model.slope: in a network of L layers the slope is 1 - slope_layers / L, and 0 in one of fewer '
        'layers than these; 0: it is model.slope at any depth',
    ),
    'model.anneal_fraction': Field(
        0.75, *FRACTION,
        "share of the run in which the slope of annealed, and the weight of fading shortcuts, falls to 0 (a cosine)",
    ),
    'model.init': Field(
        'random', *one_of('random', 'identity', 'teacher'),
        "how the student's weights start; identity: each convolution of a block near the one that changes nothing; "
        'teacher: those of its frozen teacher, where names and shapes are the same',
    ),
    'model.hidden': Field(
        (), *SIZES, "channels inside each of the student's blocks; (): the stage's (wider where shortcuts were merged)"
    ),
    'mix.taps': Field(
        (), 'ascending numbers of blocks', are_taps,
        'after how many blocks the paths cross into the teacher; (): see num_taps',
    ),
    'mix.num_taps': Field(0, *at_least(0, MAX_BLOCKS), 'taps spread evenly over the blocks; 0: the ends of stages 1-3'),
    'mix.tap_sets': Field(
        1, *between(1, 16),
        'sets of num_taps taps, shifted against each other; every step draws one; not with steps_per_dispatch > 1',
    ),
    'mix.eta': Field(0.5, *between(0, 1), 'weight of the mixed paths after mix.fraction of the run'),
    'mix.fraction': Field(0.3, *FRACTION, 'share of the run in which their weight falls from 1 to eta (a cosine)'),
    'mix.mean_of_paths': Field(
        False, *YES_NO, 'the weight of the mixed paths is shared among them, whatever their number'
    ),
    'mix.average_paths': Field(True, *YES_NO, "divide the loss by the number of paths (the authors' joint branch)"),
    'distill.weight': Field(0.0, *at_least(0), 'w of margin distillation; about 1e-3 at 32x32, 1e-4 at 224x224'),
    'distill.alpha': Field(0.9, *between(0, 1), 'share of the KL term in logit_kd and resnet_kd'),
    'distill.temperature': Field(4.0, *POSITIVE, 'T of the KL term'),
    'optimizer.learning_rate': Field(0.1, *POSITIVE, 'peak learning rate'),
    'optimizer.rate_layers': Field(
        0, *at_least(0, 3 * MAX_BLOCKS),
        'a student without shortcuts that has more layers than these, L, is trained at rate_layers / L of the rate, '
        'and so is a teacher that is trained beside it; 0: the rate is the same at any depth',
    ),
    'optimizer.schedule': Field('cosine', *one_of('cosine', 'step', 'constant'), 'how the rate falls'),
    'optimizer.warmup_fraction': Field(
        0.0, *FRACTION, 'share of the run spent on a linear warm-up from 0, before the schedule'
    ),
    'optimizer.drop_fractions': Field(
        (0.5, 0.75), 'ascending numbers between 0 and 1', are_drop_fractions,
        'step: after which fractions of the run the rate is multiplied by drop_factor',
    ),
    'optimizer.drop_epochs': Field(
        (), 'ascending whole numbers', are_drops, 'step: after which epochs instead; (): see drop_fractions'
    ),
    'optimizer.drop_factor': Field(0.1, *between(0, 1), 'step: the factor of a drop'),
    'optimizer.momentum': Field(0.9, *between(0, 0.9999), 'of SGD'),
    'optimizer.weight_decay': Field(
        5e-4, *at_least(0), "L2 added to every gradient but those of Dirac's alpha and beta and PReLU's slopes"
    ),
    'optimizer.clip_norm': Field(0.0, *at_least(0), 'gradients are clipped to this global norm; 0: no clipping'),
    'ema.decay': Field(
        0.0, *between(0, 0.99999),
        "per step, of the average of the student's weights that is evaluated and deployed; 0: the last weights are "
        'evaluated and deployed',
    ),
    'dataset.name': Field(
        'digits', *ANY_TEXT, 'digits; folder; or a TFDS image-classification dataset: NAME, NAME/CONFIG, NAME:VERSION'
    ),
    'dataset.data_dir': Field('', *ANY_TEXT, "the folder; or where TFDS datasets are ('': TFDS's default)"),
    'dataset.train_split': Field(
        '', *ANY_TEXT, "of a TFDS dataset, slices such as train[:90%] too, or a folder's sub-folder; '': train"
    ),
    'dataset.eval_split': Field(
        '', *ANY_TEXT, "the same for evaluation; '': TFDS: test, or else validation; folder: val, or else test"
    ),
    'dataset.classes': Field(
        'equal', *one_of('equal', 'train'),
        'of a folder: both sides must have the same; train: those with training images, evaluated on what there is',
    ),
    'dataset.in_memory': Field(
        'auto', *one_of('auto', 'always', 'never'),
        'keep the images on the device; auto: if of one size, at most 128 pixels a side, and up to 1 GiB',
    ),
    'dataset.grey': Field(
        'auto', *one_of('auto', 'always', 'never'),
        'one channel; auto: in memory where all images are grey, streamed never',
    ),
    'dataset.mean': Field(
        'auto', *per_channel(-1, 1),
        "subtracted from pixels of 0..1; auto: the authors' for CIFAR, else measured (streamed: imagenet)",
    ),
    'dataset.std': Field(
        'auto', *per_channel(0.001, 10),
        'what they are divided by then; measured: on the training images, at most 10,000 if streamed',
    ),
    'dataset.image_size': Field(224, *at_least(1, MAX_SIDE), 'side of the crops of streamed (not in-memory) images'),
    'dataset.crop_scale': Field(
        0.08, *between(0.01, 1), 'streamed images: least share of the area that a random crop takes in training'
    ),
    'dataset.resize': Field(256, *at_least(1, MAX_SIDE), 'streamed images: shorter side before the centre crop'),
    'dataset.workers': Field(
        -1, *at_least(-1, 1024), 'input processes per host; -1: one per core, at most 32; 0: none'
    ),
    'dataset.on_bad_image': Field(
        'fail', *one_of('fail', 'skip'), 'fail: stop at an unreadable streamed image; skip: use another and count it'
    ),
    'dataset.eval_fraction': Field(
        0.1, *between(0, 0.999), 'folder without images to evaluate on: share of each class that is held out for it'
    ),
    'dataset.fold': Field(
        '', "k/n with 1 <= k <= n, n from 2 to 100, or ''", is_fold,
        'digits, and folders without train/ and val/: evaluate on the k-th of n parts of all images, train on the rest',
    ),
    'dataset.validation_size': Field(
        0, *at_least(0), 'training images held out and evaluated on instead of the test images; 0: none'
    ),
    'dataset.crop_padding': Field(0, *at_least(0, MAX_SIDE), 'pixels of zeros for random crops of in-memory images'),
    'dataset.flip': Field(False, *YES_NO, 'mirror half of the training images'),
    'dataset.cutout': Field(0, *at_least(0, MAX_SIDE), 'side of the square cut out of each training image; 0: none'),
    'teacher.path': Field('', *ANY_TEXT, "finished resnet run, or weight file; '': trained first, in WORKDIR/teacher"),
    'teacher.least_top1': Field(
        -1.0, *between(-1, 100),
        'percent that it must reach on the evaluation images before training starts; -1: clearly more than chance',
    ),
    'teacher.which': Field('last', *one_of('last', 'best'), "which of that run's checkpoints"),
    'log.quiet': Field(False, *YES_NO, 'print nothing but the final table'),
    'log.gradients': Field(
        0, *at_least(0), "epochs between measurements of the gradient's origins, teacher or student; 0: none"
    ),
    'log.tensorboard': Field(0, *at_least(0), 'epochs between points written for TensorBoard; 0: no event files'),
    'log.histograms': Field(0, *at_least(0), 'epochs between histograms of all parameters, for the trackers; 0: none'),
    'log.tracker': Field('', *one_of('', *TRACKERS), "also log to this service (extra of its name); '': none"),
    'checkpoint.every_steps': Field(0, *at_least(0), 'steps between checkpoints; 0: one per epoch'),
    'checkpoint.keep': Field(2, *at_least(1, 1000), 'how many of the newest are kept'),
    'checkpoint.accept_changes': Field(
        False, *YES_NO, 'continue although code, packages, devices or data changed, to another result'
    ),
    'nan.action': Field(
        'stop', *one_of('stop', 'skip', 'rollback'),
        'when a loss or gradient is not finite: stop, skip the step, or back to the last checkpoint',
    ),
    'nan.factor': Field(0.5, *between(0.001, 0.999), 'rollback: what it multiplies the learning rate by, each time'),
    'nan.rollbacks': Field(3, *between(1, 100), 'rollback: how often, before the run stops after all'),
}  # fmt: skip

"""Weight files into runs, runs into weight files.

    jointrd convert IN --out OUT

IN is a run directory or a torchvision-format ResNet (.safetensors, .pth, .pt, .bin, .ckpt, ...). OUT ending in
.safetensors is written under torchvision's names, any other OUT becomes a run directory: a teacher, or something to
export.
"""

from absl import flags

from jointrd_jax.commands import options

POSITIONAL = ('IN',)


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string('out', None, 'A new directory, or a .safetensors file.', required=True, flag_values=values)
    options.which(values)
    flags.DEFINE_bool(
        'ema', False, 'Of a weight file, the moving average that it holds beside the weights.', flag_values=values
    )
    flags.DEFINE_bool(
        'remove_shortcuts', False, 'Turn a ResNet exactly into a wider plain network (RMNet).', flag_values=values
    )
    flags.DEFINE_string(
        'dataset', None, 'What a weight file was trained on: digits, cifar10, imagenet2012, ...', flag_values=values
    )
    flags.DEFINE_string('data_dir', '', 'Where that dataset is prepared.', flag_values=values)
    flags.DEFINE_integer(
        'image_size', None, 'Side of the images, where no --dataset says it.', lower_bound=1, flag_values=values
    )


def main(given: flags.FlagValues, path: str) -> None:
    from jointrd_jax.deploy.convert import convert
    from jointrd_jax.system import runtime

    runtime.configure()
    convert(
        path,
        given.out,
        which=given.which,
        remove_shortcuts=given.remove_shortcuts,
        dataset=given.dataset,
        data_dir=given.data_dir,
        image_size=given.image_size,
        ema=given.ema,
    )

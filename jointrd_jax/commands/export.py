"""Export a trained network, each artifact verified on the whole test split before it gets its name.

jointrd export --workdir RUN --format onnx,tflite,stablehlo,safetensors --out OUT [--int8]
"""

from absl import flags

from jointrd_jax.commands import options


def define_flags(values: flags.FlagValues) -> None:
    options.workdir(values, 'The run to export.')
    flags.DEFINE_string(
        'out', None, 'The directory to make; it must not hold anything yet.', required=True, flag_values=values
    )
    flags.DEFINE_list(
        'format', ['onnx', 'stablehlo', 'safetensors'], 'Of onnx, tflite, stablehlo, safetensors.', flag_values=values
    )
    flags.DEFINE_string('batch', 'dynamic', 'Images per call: dynamic, or a number.', flag_values=values)
    flags.DEFINE_bool(
        'int8', False, 'Also quantised ONNX and TFLite models, calibrated on training images.', flag_values=values
    )
    flags.DEFINE_bool(
        'pixels', False, 'Artifacts take pixels 0..255 and normalise them themselves.', flag_values=values
    )
    flags.DEFINE_enum(
        'platform', 'cpu', ['cpu', 'cuda', 'rocm', 'tpu'], 'That the StableHLO file is for.', flag_values=values
    )
    options.which(values)
    flags.DEFINE_enum(
        'verify', 'test', ['test', 'random'], 'On the test split, or on random images.', flag_values=values
    )
    flags.DEFINE_string('data_dir', None, "Where the run's dataset is, if not where it was.", flag_values=values)
    flags.DEFINE_string(
        'opset', '17', 'Version of the operator set of the ONNX model, from 13 to 25.', flag_values=values
    )
    flags.DEFINE_integer(
        'calibration', 256, 'Training images that fix the scales of --int8.', lower_bound=1, flag_values=values
    )


def batch_size(text: str) -> int | None:
    """The number that `text` gives, None for 'dynamic'.

    Raises:
      UserError: it is neither 'dynamic' nor a whole number from 1 to MAX_BATCH.
    """
    from jointrd_jax.config import MAX_BATCH
    from jointrd_jax.errors import whole_number

    return None if text == 'dynamic' else whole_number('batch', text, 1, MAX_BATCH, 'dynamic')


def main(given: flags.FlagValues) -> None:
    from jointrd_jax.deploy import export
    from jointrd_jax.deploy.onnx_graph import OPSETS
    from jointrd_jax.errors import whole_number
    from jointrd_jax.system import runtime

    runtime.configure()
    formats = tuple(dict.fromkeys(name.strip() for name in given.format))
    chosen = export.Options(
        formats, batch_size(given.batch), given.int8, given.pixels, given.platform, given.which, given.verify,
        given.calibration, whole_number('opset', given.opset, *OPSETS),
    )  # fmt: skip
    export.export(given.workdir, given.out, chosen, given.data_dir)
    print(f'exported to {given.out}')

"""Export: python -m jointrd_jax.export --workdir RUN --format onnx,tflite,stablehlo,safetensors --out OUT [--int8]"""

from absl import flags

from jointrd_jax import cli

WORKDIR = flags.DEFINE_string('workdir', None, 'The run to export.')
OUT = flags.DEFINE_string('out', None, 'The directory to make; it must not hold anything yet.')
FORMAT = flags.DEFINE_list('format', ['onnx', 'stablehlo', 'safetensors'], 'Of onnx, tflite, stablehlo, safetensors.')
BATCH = flags.DEFINE_string('batch', 'dynamic', 'Images per call: dynamic, or a number.')
INT8 = flags.DEFINE_bool('int8', False, 'Also a quantised ONNX model, calibrated on training images.')
PIXELS = flags.DEFINE_bool('pixels', False, 'Artifacts take pixels 0..255 and normalise them themselves.')
PLATFORM = flags.DEFINE_enum('platform', 'cpu', ['cpu', 'cuda', 'rocm', 'tpu'], 'That the StableHLO file is for.')
WHICH = flags.DEFINE_enum('which', 'last', ['last', 'best'], "Which of the run's weights.")
VERIFY = flags.DEFINE_enum('verify', 'test', ['test', 'random'], 'On the test split, or on random images.')
DATA_DIR = flags.DEFINE_string('data_dir', None, "Where the run's dataset is, if not where it was.")
CALIBRATION = flags.DEFINE_integer('calibration', 256, 'Training images that fix the scales of --int8.', lower_bound=1)
flags.mark_flags_as_required(['workdir', 'out'])


def batch_size(text: str) -> int | None:
    """None for 'dynamic'.

    Raises:
      UserError: neither that nor a whole number above zero.
    """
    from jointrd_jax.config import MAX_BATCH
    from jointrd_jax.errors import whole_number

    return None if text == 'dynamic' else whole_number('batch', text, 1, MAX_BATCH, 'dynamic')


def main() -> None:
    from jointrd_jax import runtime
    from jointrd_jax.export import job

    runtime.configure()
    formats = tuple(dict.fromkeys(name.strip() for name in FORMAT.value))
    options = job.Options(
        formats, batch_size(BATCH.value), INT8.value, PIXELS.value, PLATFORM.value, WHICH.value, VERIFY.value,
        CALIBRATION.value,
    )  # fmt: skip
    job.export(WORKDIR.value, OUT.value, options, DATA_DIR.value)
    print(f'exported to {OUT.value}')


if __name__ == '__main__':
    cli.run(main)

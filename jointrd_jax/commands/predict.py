"""Predict classes: the class and its probability for each image, by a run or by an export of one.

    jointrd predict RUN_OR_EXPORT IMAGE|DIR ... [--top 5] [--format csv]

RUN_OR_EXPORT is a run directory, an export's directory, or its .onnx or .tflite file. Images are prepared exactly as
for evaluation. Folders are read with all below them, a batch at a time. An image that cannot be read has a row with
the reason, and the exit status is 2.
"""

from absl import flags

from jointrd_jax.commands import options

POSITIONAL = ('RUN_OR_EXPORT', 'IMAGE ...')


def define_flags(values: flags.FlagValues) -> None:
    options.which(values)
    flags.DEFINE_integer('top', 1, 'How many of the likeliest classes.', lower_bound=1, flag_values=values)
    flags.DEFINE_enum('format', 'table', ['table', 'csv', 'json'], 'Of what is printed.', flag_values=values)
    flags.DEFINE_integer('batch', 32, 'Images at a time, where the export leaves that open.', lower_bound=1,
                         upper_bound=1 << 16, flag_values=values)  # fmt: skip


def main(given: flags.FlagValues, path: str, *images: str) -> None:
    from jointrd_jax.errors import require
    from jointrd_jax.system import runtime

    predict = require('jointrd_jax.deploy.predict', 'data')  # decodes images
    runtime.configure()
    predict.run(path, images, which=given.which, top=given.top, form=given.format, batch=given.batch)

"""The model card of an export: what the files are, how to feed them, what they scored."""

from typing import Any

FEED = {
    'onnx': """import onnxruntime
session = onnxruntime.InferenceSession('{file}')
logits = session.run(None, {{'images': images.transpose(0, 3, 1, 2)}})[0]  # ONNX takes NCHW""",
    'tflite': """from ai_edge_litert.interpreter import Interpreter
network = Interpreter('{file}')
entry, result = network.get_input_details()[0]['index'], network.get_output_details()[0]['index']
network.resize_tensor_input(entry, images.shape)
network.allocate_tensors()
network.set_tensor(entry, images)
network.invoke()
logits = network.get_tensor(result)""",
    'stablehlo': """from pathlib import Path
from jax import export
call = export.deserialize(bytearray(Path('{file}').read_bytes())).call
logits = call(images)""",
    'safetensors': """from jointrd_jax.runs import weights  # or any torchvision-style network: the names are its own
network, variables, about = weights.load('{file}')
logits = network.apply(variables, images).logits""",
}
FEED['int8'] = FEED['onnx']


def percent(value: float | None) -> str:
    return 'unmeasured' if value is None else f'{value:.2f} %'


def text(record: dict[str, Any]) -> str:
    """Markdown, from what `export.json` holds."""
    about, height, width, channels = record['data'], *record['data']['image_shape']
    shortcut = 'without shortcuts' if 'add' not in record['operators'] else 'with shortcuts'
    operators = ', '.join(f'{count} {op}' for op, count in record['operators'].items())
    classes = ', '.join(about['classes'][:20]) + (', ...' if len(about['classes']) > 20 else '')
    pixels = record['input'].startswith('pixels')
    feed = 'images = pixels.astype(np.float32)  # 0..255, the network normalises' if pixels else (
        f'images = (pixels.astype(np.float32) / 255 - np.float32({about["mean"]})) / np.float32({about["std"]})'
    )  # fmt: skip
    rows = [
        f'| `{made["file"]}` | {made["bytes"]:,} | {made["runtime"]} | {percent(made["top1"])} |'
        f' {made["max_relative_difference"]:.1e} |'
        for made in record['artifacts'].values()
    ]
    lines = [
        f'# {record["network"]}',
        '',
        f'A convolutional network {shortcut}, trained on {about["dataset"]}. BatchNorm is folded into convolutions:',
        f'{record["parameters"]:,} parameters, {record["macs"]:,} multiply-accumulates; {operators}.',
        f'From the {record["which"]} weights of the run `{record["run"]}` (digest `{record["digest"][:16]}`)'
        + ('.' if record['finished'] else ', **which was not finished**: those of its newest checkpoint.'),
        '',
        '## What it scored',
        '',
        f'Each file was loaded in a fresh process and run on {record["verified_on"]};'
        f' the checkpoint itself: {percent(record["checkpoint_top1"])} top-1.',
        '',
        '| file | bytes | runtime | top-1 | largest difference of the logits to the checkpoint\'s, relative |',
        '| --- | --- | --- | --- | --- |',
        *rows,
        '',
        '## How to feed it',
        '',
        f'Images are {height} x {width}, {channels} channel{"s" if channels > 1 else ""}, NHWC'
        f' (NCHW for ONNX), float32, batch: {record["batch"]}. Logits come out, one for each of'
        f' {len(about["classes"])} classes: {classes}.',
        '',
    ]  # fmt: skip
    for name, artifact in record['artifacts'].items():
        prepare = feed if name != 'safetensors' else feed if not pixels else (
            f'images = (pixels.astype(np.float32) / 255 - np.float32({about["mean"]})) / np.float32({about["std"]})'
        )  # fmt: skip
        lines += [f'`{artifact["file"]}`, from uint8 `pixels` [B, {height}, {width}, {channels}]:', '', '```python']
        lines += ['import numpy as np', prepare, FEED[name].format(file=artifact['file']), '```', '']
    return '\n'.join(lines)

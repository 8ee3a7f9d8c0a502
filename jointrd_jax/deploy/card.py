"""The model card of an export: what the files are, how to feed them, what they scored."""

from pathlib import Path
from typing import Any

from jointrd_jax.data.description import DataDescription
from jointrd_jax.deploy import artifacts

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
    'int8_tflite': """from ai_edge_litert.interpreter import Interpreter
network = Interpreter('{file}')
entry, result = network.get_input_details()[0], network.get_output_details()[0]
network.resize_tensor_input(entry['index'], images.shape)
network.allocate_tensors()
scale, zero_point = entry['quantization']  # {input}
network.set_tensor(entry['index'], np.clip(np.round(images / scale) + zero_point, -128, 127).astype(np.int8))
network.invoke()
scale, zero_point = result['quantization']  # {output}
logits = (network.get_tensor(result['index']).astype(np.float32) - zero_point) * scale""",
    'portable': """from pathlib import Path
from jointrd_jax.deploy import stablehlo  # or a compiler that reads StableHLO, such as iree-compile
batch, call = stablehlo.load_portable(Path('{file}').read_bytes())  # images in batches of this size
logits = np.concatenate([call(images[i : i + batch]) for i in range(0, len(images), batch)])""",
    'stablehlo': """from pathlib import Path
from jax import export
call = export.deserialize(bytearray(Path('{file}').read_bytes())).call
logits = call(images)""",
    'safetensors': """from jointrd_jax.runs import weights  # or any torchvision-style network: the names are its own
network, variables, *_ = weights.load('{file}')
logits = network.apply(variables, images).logits""",
}
FEED['int8'] = FEED['onnx']


def feed(name: str, artifact: dict[str, Any]) -> str:
    """Python code that runs an artifact on `images` and assigns the result to `logits`."""
    ends = {
        end: 'scale {scale!r}, zero point {zero_point:.0f}'.format(**artifact[f'int8_{end}'])
        for end in ('input', 'output')
        if f'int8_{end}' in artifact
    }
    return FEED[name].format(file=artifact['file'], **ends)


def percent(value: float | None) -> str:
    return 'unmeasured' if value is None else f'{value:.2f} %'


def text(record: dict[str, Any]) -> str:
    """Markdown, from what `export.json` holds."""
    about = DataDescription.from_json(record['data'], 'export.json')
    height, width, channels = about.image_shape
    shortcut = 'without shortcuts' if 'add' not in record['operators'] else 'with shortcuts'
    operators = ', '.join(f'{count} {op}' for op, count in record['operators'].items())
    classes = ', '.join(about.classes[:20]) + (', ...' if len(about.classes) > 20 else '')
    pixels = record['input'].startswith('pixels')
    fixed = record['batch'] == 'dynamic' and 'portable' in record['artifacts']
    ready = 'images = pixels.astype(np.float32)  # 0..255, the network normalises' if pixels else (
        f'images = {about.normalisation}'
    )  # fmt: skip
    rows = [
        f'| `{made["file"]}` | {made["bytes"]:,} | {made["runtime"]} | {percent(made["top1"])} |'
        f' {made["max_relative_difference"]:.1e} |'
        for made in record['artifacts'].values()
    ]
    scales = record.get('int8_scales_from')
    lines = [
        f'# {record["network"]}',
        '',
        f'A convolutional network {shortcut}, trained on {about.dataset}. BatchNorm is folded into convolutions:',
        f'{record["parameters"]:,} parameters, {record["macs"]:,} multiply-accumulates; {operators}.',
        f'From the {record["which"]} weights of the run `{Path(record["run"]).name}` (digest `{record["digest"][:16]}`)'
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
        *([f'The scales of int8 come from {scales}.', ''] if scales else []),
        '## How to feed it',
        '',
        f'Images are {height} x {width}, {channels} channel{"s" if channels > 1 else ""}, NHWC'
        f' (NCHW for ONNX), float32, batch: {record["batch"]}. Logits come out, one for each of'
        f' {len(about.classes)} classes: {classes}.'
        + (' Compilers want fixed shapes: `network.mlirbc` takes one image.' if fixed else ''),
        '',
    ]  # fmt: skip
    for name, artifact in record['artifacts'].items():
        prepare = ready if artifacts.KINDS[name].from_graph else f'images = {about.normalisation}'
        lines += [f'`{artifact["file"]}`, from uint8 `pixels` [B, {height}, {width}, {channels}]:', '', '```python']
        lines += ['import numpy as np', prepare, feed(name, artifact), '```', '']
    return '\n'.join(lines)

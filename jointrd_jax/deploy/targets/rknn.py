"""Rockchip's NPUs, by rknn-toolkit2: compiles ONNX to int8, plans memory, counts cycles and simulates; no board.

The cycles are the compiler's own estimate, layer by layer, in the log of its build.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TITLE = 'Rockchip, by rknn-toolkit2'
PACKAGE, VERSION = 'rknn-toolkit2', '2.5.0'
INSTALL = 'into an environment of its own (docs/guides/fpga_npu.md), then --python rknn=VENV/bin/python'
CONFIGURATIONS = {
    f'{chip}-int8': {'takes': 'onnx', 'chip': chip, 'predicted': ('in_place', 1)} for chip in ('rk3588', 'rk3566')
}
CALIBRATION, SIMULATED = 64, 200  # images; its simulator is slow
LAYER = re.compile(r'\d+ +\S+ +\S+ +(NPU|CPU) .* (\d+)/(\d+)/(\d+) +\d+')


@contextlib.contextmanager
def logged(path: Path) -> Iterator[None]:
    """While the body runs, send everything printed, by native code too, to the file `path`."""
    kept = os.dup(1), os.dup(2)
    with path.open('wb') as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        try:
            yield
        finally:
            for number, old in enumerate(kept, 1):
                os.dup2(old, number)
                os.close(old)


def calibration_list(images: Any, directory: Path) -> str:
    """Write images [N, H, W, C] as the files (NCHW) that the tool reads; return the path of their list."""
    import numpy as np

    names = []
    for i, image in enumerate(images[:CALIBRATION]):
        names.append(f'{directory}/{i}.npy')
        np.save(names[-1], image[None].transpose(0, 3, 1, 2))
    (directory / 'images.txt').write_text('\n'.join(names))
    return str(directory / 'images.txt')


def measure(request: dict[str, Any], worker: Any) -> dict[str, Any]:
    import numpy as np

    work, log = Path(request['directory']), Path(request['directory']) / 'build.log'
    height, width, channels = request['image_shape']
    held = dict(np.load(request['images'])) if request['images'] else {}
    noise = np.random.default_rng(0).standard_normal((2, height, width, channels)).astype(np.float32)
    dataset = calibration_list(held.get('images', noise), work)
    found: dict[str, Any] = {}
    with logged(log):
        from rknn.api import RKNN

        tool = RKNN(verbose=True)
        tool.config(target_platform=request['configuration']['chip'])
        failed = tool.load_onnx(
            model=request['artifact'], inputs=['images'], input_size_list=[[1, channels, height, width]]
        ) or tool.build(do_quantization=True, dataset=dataset)
        if not failed and held and not tool.init_runtime():
            images = held['images'][:SIMULATED].transpose(0, 3, 1, 2)
            logits = np.concatenate(
                [np.array(tool.inference([np.ascontiguousarray(i[None])], data_format='nchw')[0]).reshape(1, -1)
                 for i in images]
            )  # fmt: skip
            best = logits.argmax(1)
            found['images'] = len(images)
            found['agreement'] = float((best == held['logits'][: len(images)].argmax(1)).mean())
            found['top1'] = 100 * float((best == held['labels'][: len(images)]).mean())
    text = re.sub(r'\x1b\[[\d;]*m', '', log.read_text(errors='replace'))
    memory = re.search(r'Total Internal Memory Size: ([\d.]+)KB', text)
    layers = [layer for layer in map(LAYER.search, text.splitlines()) if layer]
    if failed or not memory or not layers:
        reasons = [line for line in text.splitlines() if re.match(r'E |ERROR|.*Error:', line)]
        raise RuntimeError(reasons[-1] if reasons else 'the build printed no table of layers')
    return {
        **found,
        'memory_bytes': round(1024 * float(memory[1])),
        'memory_kind': 'internal memory',
        'accelerated': sum(layer[1] == 'NPU' for layer in layers) / len(layers),
        'cycles': {name: sum(int(layer[i]) for layer in layers) for i, name in ((2, 'ddr'), (3, 'npu'), (4, 'total'))},
        'time_kind': 'cycles, estimated',
    }

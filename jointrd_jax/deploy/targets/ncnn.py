"""Tencent's ncnn, for phones, on this machine's CPU: accuracy, and latency against the baseline on a pinned thread."""

import importlib.util
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

TITLE = 'phones, by ncnn'
PACKAGE, VERSION = 'ncnn', '1.0.20261020'
INSTALL = (
    'pip install ncnn==1.0.20261020, then pip install --no-deps pnnx==20261020 (its converter; torch is not needed)'
)
CONFIGURATIONS = {'float32': {'takes': 'onnx'}}


def converted(path: str, directory: str, image_shape: list[int]) -> tuple[str, str]:
    """Convert the network to ncnn's own two files by pnnx, and return their paths.

    Raises:
      RuntimeError: the converter's reason.
    """
    found = importlib.util.find_spec('pnnx')
    if not found or not found.origin:
        raise RuntimeError('pnnx, its converter, is not installed: pip install --no-deps pnnx==20261020')
    place = Path(directory) / Path(path).parent.name
    place.mkdir(exist_ok=True)
    source = place / 'network.onnx'
    source.write_bytes(Path(path).read_bytes())
    height, width, channels = image_shape
    program = Path(found.origin).parent / 'pnnx'
    asked = [str(program), str(source), f'inputshape=[1,{channels},{height},{width}]', 'fp16=0']
    ended = subprocess.run(asked, cwd=place, capture_output=True, text=True)
    param, weights = place / 'network.ncnn.param', place / 'network.ncnn.bin'
    if ended.returncode or not param.exists():
        said = (ended.stdout + ended.stderr).strip().splitlines()
        raise RuntimeError(said[-1] if said else f'pnnx ended with status {ended.returncode}')
    return str(param), str(weights)


def measure(request: dict[str, Any], worker: Any) -> dict[str, Any]:
    import ncnn
    import numpy as np

    def load(path: str) -> Callable:
        param, weights = converted(path, request['directory'], request['image_shape'])
        network = ncnn.Net()
        options = network.opt
        options.num_threads = 1
        options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = False
        network.load_param(param)
        network.load_model(weights)

        def call(images: np.ndarray) -> np.ndarray:
            session = network.create_extractor()
            session.input('in0', ncnn.Mat(np.ascontiguousarray(images[0].transpose(2, 0, 1))).clone())
            return np.array(session.extract('out0')[1]).reshape(1, -1)

        call.network = network  # lives as long as the function
        return call

    return {**worker.runtime_figures(request, load), 'time_kind': 'CPU time of one thread here'}

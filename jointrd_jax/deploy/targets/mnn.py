"""Alibaba's MNN, for phones, on this machine's CPU: accuracy, and latency against the baseline on one pinned thread."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

TITLE = 'phones, by MNN'
PACKAGE, VERSION = 'MNN', '3.6.1'
INSTALL = "pip install 'jointrd_jax[targets]'"
CONFIGURATIONS = {'float32': {'takes': 'onnx'}}  # it converts the int8 TFLite file to one that it cannot run (9.4 %)


def converted(path: str, directory: str) -> str:
    """Convert the network to MNN's own file, and return its path.

    Raises:
      RuntimeError: the converter's reason.
    """
    target = Path(directory) / f'{Path(path).parent.name}.mnn'
    # The converter itself: MNN.tools.mnnconvert is a wrapper that installs another package and reports to its makers.
    code = 'import sys, MNN, _tools; _tools.mnnconvert(sys.argv)'
    asked = ['-f', 'ONNX', '--modelFile', path, '--MNNModel', str(target), '--bizCode', 'jointrd']
    ended = subprocess.run([sys.executable, '-c', code, *asked], capture_output=True, text=True)
    if ended.returncode or not target.exists():
        said = (ended.stdout + ended.stderr).strip().splitlines()
        raise RuntimeError(said[-1] if said else f'mnnconvert ended with status {ended.returncode}')
    return str(target)


def measure(request: dict[str, Any], worker: Any) -> dict[str, Any]:
    import MNN.expr as F
    import numpy as np
    from MNN import nn

    manager = nn.create_runtime_manager(({'backend': 'CPU', 'numThread': 1, 'precision': 'high'},))

    def load(path: str) -> Callable:
        file = converted(path, request['directory'])
        network = nn.load_module_from_file(file, ['images'], ['logits'], runtime_manager=manager)

        def call(images: np.ndarray) -> np.ndarray:
            given = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
            return np.array(network.forward([F.const(given, given.shape, F.NCHW)])[0].read())

        return call

    return {**worker.runtime_figures(request, load), 'time_kind': 'CPU time of one thread here'}

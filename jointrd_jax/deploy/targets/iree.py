"""IREE, from StableHLO's portable bytecode: its transient memory, and the network run on this machine's CPU."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

TITLE = 'CPUs and GPUs, by IREE'
PACKAGE, VERSION = 'iree-base-compiler', '3.13.0'
INSTALL = 'into an environment of its own: pip install iree-base-compiler==3.13.0 iree-base-runtime==3.13.0; --python'
CONFIGURATIONS = {'cpu-float32': {'takes': 'portable', 'predicted': ('nothing', 4)}}


def compiled(path: str, directory: str) -> tuple[str, int | None]:
    """The path of the compiled module, and the bytes of transient memory that the compiler reports.

    Raises:
      RuntimeError: the compiler's reason.
    """
    target = Path(directory) / f'{Path(path).parent.name}.vmfb'
    report = target.with_suffix('.json')
    asked = [
        str(Path(sys.executable).parent / 'iree-compile'), path, '-o', str(target),
        '--iree-hal-target-device=local', '--iree-hal-local-target-device-backends=llvm-cpu',
        '--iree-llvmcpu-target-cpu=host', '--iree-scheduling-dump-statistics-format=json',
        f'--iree-scheduling-dump-statistics-file={report}',
    ]  # fmt: skip
    ended = subprocess.run(asked, capture_output=True, text=True)
    if ended.returncode:
        reasons = [line for line in ended.stderr.splitlines() if 'error:' in line]
        raise RuntimeError(reasons[0] if reasons else f'iree-compile ended with status {ended.returncode}')
    return str(target), transient(report)


def transient(report: Path) -> int | None:
    """The peak of transient memory in the compiler's statistics; None where it does not say."""
    import json

    try:
        found = json.loads(report.read_text())
    except (OSError, ValueError):
        return None
    sizes = [value for part in found.values() if isinstance(part, dict) for name, value in part.items()
             if 'transient' in name and isinstance(value, int)]  # fmt: skip
    return max(sizes, default=None)


def measure(request: dict[str, Any], worker: Any) -> dict[str, Any]:
    import numpy as np
    from iree import runtime

    sizes = {}

    def load(path: str) -> Callable:
        file, sizes[path] = compiled(path, request['directory'])
        device = runtime.get_device('local-sync')
        module = runtime.load_vm_flatbuffer_file(file, driver='local-sync')
        held = (device, module)

        def call(images: np.ndarray) -> np.ndarray:
            return np.array(held[1].main(np.ascontiguousarray(images)).to_host())

        return call

    found = worker.runtime_figures(request, load)
    return {
        **found,
        'time_kind': 'CPU time of one thread here',
        'memory_bytes': sizes[request['artifact']],
        'memory_kind': 'transient memory',
    }

"""Apache TVM: its static memory plan, and the network run by its compiled code on this machine's CPU."""

import re
from collections.abc import Callable
from typing import Any

TITLE = 'any chip that LLVM knows, by TVM'
PACKAGE, VERSION = 'apache-tvm', '0.27.0.post1'
INSTALL = 'into an environment of its own: pip install apache-tvm==0.27.0.post1 onnx; --python tvm=VENV/bin/python'
CONFIGURATIONS = {'llvm-float32': {'takes': 'onnx', 'predicted': ('nothing', 4)}}


def measure(request: dict[str, Any], worker: Any) -> dict[str, Any]:
    import numpy as np
    import onnx
    import tvm
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    height, width, channels = request['image_shape']

    def lowered(path: str) -> Any:
        shape = {'images': [1, channels, height, width]}
        module = from_onnx(onnx.load(path), shape_dict=shape, keep_params_in_input=False)
        passes = (
            relax.transform.DecomposeOpsForInference(), relax.transform.LegalizeOps(),
            relax.transform.AnnotateTIROpPattern(), relax.transform.FoldConstant(), relax.transform.FuseOps(),
            relax.transform.FuseTIR(),
        )  # fmt: skip
        for step in passes:
            module = step(module)
        return module

    def planned(module: Any) -> int:
        """Bytes of all storage that the memory plan allocates."""
        for step in (
            relax.transform.ToNonDataflow(), relax.transform.RemovePurityChecking(),
            relax.transform.CallTIRRewrite(), relax.transform.StaticPlanBlockMemory(),
        ):  # fmt: skip
            module = step(module)
        return sum(map(int, re.findall(r'R\.memory\.alloc_storage\(R\.shape\(\[(\d+)\]\)', module.script())))

    def load(path: str) -> Callable:
        machine = relax.VirtualMachine(tvm.compile(lowered(path), target='llvm'), tvm.cpu())

        def call(images: np.ndarray) -> np.ndarray:
            return machine['main'](tvm.runtime.tensor(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))).numpy()

        return call

    # Its code is not tuned here, so its time says nothing of the chip.
    found = worker.runtime_figures({**request, 'rounds': 0}, load) if request['images'] else {}
    return {**found, 'memory_bytes': planned(lowered(request['artifact'])), 'memory_kind': 'planned storage'}

"""Run one target's file on one request, in a process of its own: worker.py TARGET.py REQUEST.json ANSWER.json

It is started by its path with the Python that has the tool, which need not have jointrd_jax. What a tool prints goes
to this process's standard output and error; the answer is a file, so that it cannot be mixed up with that.
"""

import importlib.metadata
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

Request = dict[str, Any]


def load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f'target_{path.stem}', path)
    if spec is None or spec.loader is None:
        raise ImportError(f'{path} is not a Python file')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def to_int8(images: Any, entry: dict[str, float]) -> Any:
    import numpy as np

    scaled = np.round(images / np.float32(entry['scale'])) + np.float32(entry['zero_point'])
    return np.clip(scaled, -128, 127).astype(np.int8)


def runtime_figures(request: Request, load: Callable[[str], Callable]) -> dict[str, Any]:
    """What can be said of a target that runs networks on this machine's CPU.

    Args:
      load: a path -> a function of images [1, H, W, C] to logits.

    Returns:
      top1, agreement and difference over the images there are; time_ms, and against the baseline `faster`.
    """
    import numpy as np

    timing = load_file(Path(__file__).with_name('timing.py'))
    if request['rounds']:
        timing.pin()  # before a runtime starts its threads
    call, found = load(request['artifact']), {}
    if request['images']:
        with np.load(request['images']) as held:
            images, wanted, labels = held['images'], held['logits'], held.get('labels')
        logits = np.concatenate([np.asarray(call(image[None])).reshape(1, -1) for image in images]).astype(np.float64)
        found = {
            'images': len(images),
            'agreement': float((logits.argmax(1) == wanted.argmax(1)).mean()),
            'difference': float((np.abs(logits - wanted).max(1) / np.abs(wanted).max(1)).max()),
        }
        if labels is not None:
            found['top1'] = 100 * float((logits.argmax(1) == labels).mean())
    image = np.random.default_rng(0).standard_normal((1, *request['image_shape'])).astype(np.float32)
    if request['baseline'] and request['rounds']:
        other = load(request['baseline'])
        pair = timing.in_pairs(lambda: other(image), lambda: call(image), request['rounds'], time.process_time)
        found |= {'time_ms': pair['second_ms'], 'faster': pair['ratio']}
        found['faster_quartiles'] = [pair['ratio_low'], pair['ratio_high']]
    elif request['rounds']:
        call(image)
        times = [timing.timed(lambda: call(image), 1, time.process_time).cpu for _ in range(request['rounds'])]
        found['time_ms'] = 1e3 * sorted(times)[len(times) // 2]
    return found


def installed(target: ModuleType) -> str | None:
    """The version of the target's package here; None without it."""
    try:
        return importlib.metadata.version(target.PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None


def answer(target: ModuleType, request: Request) -> dict[str, Any]:
    version = installed(target)
    if version is None:
        return {'outcome': 'not installed', 'reason': f'{target.PACKAGE} is not installed: {target.INSTALL}'}
    tool = {'tool': f'{target.PACKAGE} {version}'}
    if version != target.VERSION and not request.get('any_version'):
        reason = (
            f'{target.PACKAGE} {version} is installed, figures were checked with {target.VERSION}: {target.INSTALL}'
        )
        return {'outcome': 'other version', 'reason': f'{reason} (or --any_version)', **tool}
    start = time.monotonic()
    found = target.measure(request, sys.modules[__name__])
    return {'outcome': 'goes through', **found, **tool, 'seconds': time.monotonic() - start}


def main(target: str, request: str, answer_path: str) -> None:
    found = answer(load_file(Path(target)), json.loads(Path(request).read_text()))
    Path(answer_path).write_text(json.dumps(found, default=lambda number: number.item()))  # NumPy's


if __name__ == '__main__':
    sys.path.pop(0)  # this directory, whose files are called like the tools that they import
    main(*sys.argv[1:])

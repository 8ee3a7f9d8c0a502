"""What a network without shortcuts saves, on which runtime (`jointrd savings`)."""

import importlib.util
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jointrd_jax.deploy import fold, liveness
from jointrd_jax.deploy.graph import Graph
from jointrd_jax.deploy.remove_shortcuts import without_shortcuts
from jointrd_jax.deploy.targets.timing import in_pairs
from jointrd_jax.errors import UserError, choice_error, require
from jointrd_jax.method.architectures import BOTTLENECK_DEPTHS, STAGE_SIZES
from jointrd_jax.method.networks import REGISTRY, Network, Variables, create
from jointrd_jax.system import files

RESNET, PLAIN, REMOVED = 'ResNet', 'plain', 'removed'
FAMILIES = {RESNET: 'resnet', 'projection': 'projection', PLAIN: 'plain'}
INPUTS = {'imagenet': ((224, 224, 3), 1000), 'pool_first': ((224, 224, 3), 1000), 'cifar': ((32, 32, 3), 10)}
MIB = 2**20
# What Li et al. (2020) claim of the plain network against ResNet-50, each with the figure that it is compared with.
CLAIMED_SPEED = 1.4
CLAIMS = (
    (f'up to {CLAIMED_SPEED}x faster', 'latency of ResNet / plain'),
    ('20-25 % less memory', 'peak of feature maps saved by plain'),
    ('shortcuts hold about 40 % of the feature maps', 'share of the sum of feature maps'),
)


def random_variables(network: Network, image_shape: tuple[int, int, int]) -> Variables:
    """He-initialised kernels and fresh BatchNorms: values do not change what is measured here."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key
        if name != 'kernel':
            return np.full(leaf.shape, name in ('scale', 'var'), np.float32)
        return rng.standard_normal(leaf.shape, np.float32) * np.float32((2 / np.prod(leaf.shape[:-1])) ** 0.5)

    return jax.tree_util.tree_map_with_path(draw, network.shapes(image_shape))


def graphs(depth: int, stem: str, width: int) -> dict[str, Graph]:
    """The networks to compare, folded. Removal is for basic blocks: in a bottleneck its 3x3 costs 25 times more."""
    image_shape, classes = INPUTS[stem]
    networks = {}
    for name, family in FAMILIES.items():
        network = create(f'{family}{depth}', stem_kind=stem, width=width, num_classes=classes)
        networks[name] = network, random_variables(network, image_shape)
    if depth not in BOTTLENECK_DEPTHS:
        networks[REMOVED] = without_shortcuts(*networks[RESNET])
    return {name: fold.fold(network, variables, image_shape) for name, (network, variables) in networks.items()}


class Runtime(NamedTuple):
    """A runtime to time: its name, the extra that brings it, and what makes a function to call of a graph."""

    name: str
    extra: str
    modules: tuple[str, ...]
    load: Callable[[Graph, Path], Callable[[], object]]


def onnx_session(graph: Graph, directory: Path, level: str, profile: bool) -> tuple[Any, Callable[[], object]]:
    """A one-thread session, and its inference on a fixed image."""
    import onnxruntime

    from jointrd_jax.deploy import onnx_graph

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.enable_profiling, options.profile_file_prefix = profile, str(directory / 'profile')
    model = onnx_graph.model(graph, {}, batch=1)
    session = onnxruntime.InferenceSession(model, options, providers=['CPUExecutionProvider'])
    images = np.random.default_rng(0).standard_normal((1, *graph.image_shape), np.float32).transpose(0, 3, 1, 2).copy()

    return session, lambda: session.run(None, {'images': images})


def onnx_call(graph: Graph, directory: Path) -> Callable[[], object]:
    """One-thread inference on a fixed image."""
    return onnx_session(graph, directory, 'ORT_ENABLE_ALL', profile=False)[1]


def tflite_call(graph: Graph, directory: Path) -> Callable[[], object]:
    """One-thread inference (XNNPACK) on a fixed image."""
    from ai_edge_litert.interpreter import Interpreter

    from jointrd_jax.deploy import tflite

    interpreter = Interpreter(model_content=tflite.model(graph, batch=1), num_threads=1)
    interpreter.allocate_tensors()
    images = np.random.default_rng(0).standard_normal((1, *graph.image_shape), np.float32)
    interpreter.set_tensor(interpreter.get_input_details()[0]['index'], images)
    return interpreter.invoke


RUNTIMES = (
    Runtime('ONNX Runtime', 'onnx', ('onnx', 'onnxruntime'), onnx_call),
    Runtime('LiteRT', 'tflite', ('litert_converter', 'ai_edge_litert'), tflite_call),
)


def arena_bytes(graph: Graph, level: str) -> int:
    """Most bytes of feature maps that ONNX Runtime's arena had in use, from its own profile of one inference.

    The profile's figures include the weights that live in the arena: what was in use before the first
    node is subtracted.
    """
    with files.temporary_directory() as directory:
        session, call = onnx_session(graph, directory, level, profile=True)
        call()
        events = json.loads(Path(session.end_profiling()).read_text())
    nodes = [event['args'] for event in events if event['cat'] == 'Node']
    used = [int(node['mem_bytes_requested_in_use']) for node in nodes]
    return max(used) - (used[0] - int(nodes[0]['mem_requested_in_use_delta']))


def predictions() -> dict[str, tuple[str, int]]:
    """{'vela u55-256-sram_only-size': (memory model, bytes per value)}, where liveness gives the tool's figure."""
    from jointrd_jax.deploy import bench

    found: dict[str, tuple[str, int]] = {}
    for target in bench.TARGETS:
        for name, chosen in bench.module_of(target).CONFIGURATIONS.items():
            if chosen.get('predicted'):
                found[f'{target} {name}'] = chosen['predicted']
    return found


def measure(depth: int, stem: str, width: int, rounds: int, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Everything that is reported of one depth, by network."""
    made, found = graphs(depth, stem, width), {}
    for name, graph in made.items():
        found[name] = {
            'parameters': graph.parameters(),
            'macs': graph.macs(),
            'operators': graph.operators(),
            'peak_bytes': {model: liveness.peak(graph, model) for model in liveness.MODELS},
            'predicted_bytes': {target: liveness.peak(graph, *model) for target, model in predictions().items()},
            'sum_bytes': liveness.sum_of_maps(graph),
            'arena_bytes': {
                'default': arena_bytes(graph, 'ORT_ENABLE_ALL'),
                'extended': arena_bytes(graph, 'ORT_ENABLE_EXTENDED'),
            },
            'timeline': [moment._asdict() for moment in liveness.timeline(graph, 'in_place')],
            'latency': {},
        }
    plain = found[PLAIN]['sum_bytes']
    for result in found.values():
        result['shortcut_share'] = max(0.0, 1 - plain / result['sum_bytes']) if 'add' in result['operators'] else 0.0
    for runtime in RUNTIMES:
        if any(importlib.util.find_spec(module) is None for module in runtime.modules):
            continue
        with files.temporary_directory() as directory:
            calls = {name: runtime.load(graph, directory) for name, graph in made.items()}
            for name in made:
                if name != RESNET:
                    pair = in_pairs(calls[RESNET], calls[name], rounds)
                    found[name]['latency'][runtime.name] = pair
                    say(f'resnet{depth}, {stem} stem, {runtime.name}: {RESNET} / {name} {spread(pair)}')
    return found


def spread(pair: dict[str, float]) -> str:
    return f'{pair["ratio"]:.2f} ({pair["ratio_low"]:.2f}-{pair["ratio_high"]:.2f})'


def times(pair: dict[str, float] | None) -> str:
    return f'{spread(pair)}; {pair["first_ms"]:.1f} / {pair["second_ms"]:.1f} ms' if pair else 'unmeasured'


def mib(size: float) -> str:
    return f'{size / MIB:.2f}'


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f'| {" | ".join(row)} |' for row in (head, ['---'] * len(head), *rows)]


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines = [f'# Deployment report, {report["stem"]} stem', '', f'`{report["command"]}`, {report["machine"]}.', '']
    size = ' x '.join(map(str, report['image_shape'][:2]))
    lines += [f'Images of {size} pixels, batch 1, float32, width {report["width"]}, random weights.', '']
    latency, sizes, maps = [], [], []
    for model, found in report['models'].items():
        for name, one in found.items():
            operators = ', '.join(f'{count} {op}' for op, count in one['operators'].items() if op in ('conv', 'add'))
            sizes.append([model, name, f'{one["parameters"] / 1e6:.2f}', f'{one["macs"] / 1e9:.3f}', operators])
            peaks = [mib(one['peak_bytes'][kind]) for kind in liveness.MODELS]
            arenas = [mib(one['arena_bytes'][kind]) for kind in ('default', 'extended')]
            share = f'{100 * one["shortcut_share"]:.1f} %'
            maps.append([model, name, *peaks, mib(one['sum_bytes']), share, *arenas])
            if name != RESNET:
                latency.append([model, name, *(times(one['latency'].get(runtime.name)) for runtime in RUNTIMES)])
    lines += ['## Size', '', *table(['model', 'network', 'parameters (M)', 'MACs (G)', 'operators'], sizes), '']
    lines += ['## Latency: ResNet / network', '', 'Median (quartiles) of the ratio over alternating pairs, above 1 the'
              ' network is faster; then the median times of both. CPU time of the one pinned thread that runs them.',
              '']  # fmt: skip
    lines += [*table(['model', 'network', *(runtime.name for runtime in RUNTIMES)], latency), '']
    lines += ['## Feature maps (MiB)', '', 'Peaks by liveness: nothing in place; ReLU and add in place; convolution'
              ' accumulating into the shortcut. Sum: all maps, none freed, and the share of it that shortcuts hold.'
              " Arena: ONNX Runtime's own, with its default and with its extended optimisations.", '']  # fmt: skip
    head = ['model', 'network', 'nothing', 'in place', 'accumulate', 'sum', 'shortcuts', 'arena', 'arena, extended']
    lines += [*table(head, maps), '', '## Predicted for targets (KiB)', '', *predicted_table(report['models']), '']
    lines += ["## The paper's claims, for ResNet-50", '']
    claims = [[*claim, report['claims'][claim[0]]] for claim in CLAIMS]
    lines += table(['claimed', 'held against', 'measured here'], claims)

    lines += ['', '![feature maps](memory.png)', '', '![latency](latency.png)', '']
    return '\n'.join(lines)


def predicted_table(models: dict[str, Any]) -> list[str]:
    """What liveness says that targets will report, those of one memory model together."""
    together: dict[tuple[str, int], list[str]] = {}
    for target, model in predictions().items():
        together.setdefault(model, []).append(target)
    names = {targets[0]: targets for targets in together.values()}
    rows = [
        [model, name, *(f'{one["predicted_bytes"][first] / 1024:.0f}' for first in names)]
        for model, found in models.items()
        for name, one in found.items()
    ]
    heads = [f'{model}, {size} byte{"s" * (size > 1)}' for model, size in together]
    said = '; '.join(f'{head}: {", ".join(dict.fromkeys(t.split()[0] for t in targets))}'
                     for head, targets in zip(heads, together.values()))  # fmt: skip
    return [f'By liveness ({said}); `jointrd targets` shows them beside the own figures of the tools.', '',
            *table(['model', 'network', *heads], rows)]  # fmt: skip


def held_against_claims(models: dict[str, Any]) -> dict[str, str]:
    """What was measured, by claim; 'unmeasured' where ResNet-50 is not in the report."""
    if 'resnet50' not in models:
        return {claim: 'unmeasured' for claim, _ in CLAIMS}
    resnet, plain = models['resnet50'][RESNET], models['resnet50'][PLAIN]
    faster = '; '.join(f'{name} {spread(pair)}' for name, pair in plain['latency'].items()) or 'unmeasured'
    saved = {kind: 1 - plain['peak_bytes'][kind] / resnet['peak_bytes'][kind] for kind in liveness.MODELS}
    saved |= {
        f'arena {kind}': 1 - plain['arena_bytes'][kind] / resnet['arena_bytes'][kind] for kind in resnet['arena_bytes']
    }
    less = '; '.join(f'{kind.replace("_", " ")} {100 * share:.0f} %' for kind, share in saved.items())
    return dict(zip((claim for claim, _ in CLAIMS), (faster, less, f'{100 * resnet["shortcut_share"]:.1f} %')))


def place_in(places: dict[str, int], name: str) -> int:
    """Where a plain network's tensor stands among its ResNet's, whose blocks end with the ReLU after the add."""
    return places[name] if name in places else places[f'{name.rsplit(".", 2)[0]}.add.relu']


def draw_memory(models: dict[str, Any], path: Path) -> None:
    """Live feature maps along each network, ResNet against plain, with what shortcuts hold of them."""
    from matplotlib.figure import Figure

    figure = Figure((4.6 * len(models), 3.4), layout='constrained')
    for i, (model, found) in enumerate(models.items(), 1):
        axes = figure.add_subplot(1, len(models), i)
        places = {moment['name']: at for at, moment in enumerate(found[RESNET]['timeline'])}
        for name, colour in ((RESNET, 'tab:red'), (PLAIN, 'tab:blue')):
            moments = found[name]['timeline']
            along = [place_in(places, moment['name']) for moment in moments]
            live = np.asarray([moment['live'] for moment in moments]) / MIB
            axes.step(along, live, where='mid', color=colour, label=f'{name}, peak {live.max():.2f} MiB')
            if name == RESNET:
                held = np.asarray([moment['shortcut'] for moment in moments]) / MIB
                axes.fill_between(along, held, step='mid', color=colour, alpha=0.25, label='held by shortcuts')
        stages = [at for name, at in places.items() if name.endswith('.0.conv1')]
        axes.set_xticks(stages, [f'stage {n}' for n, _ in enumerate(stages, 1)])
        axes.set(title=model, ylabel='live feature maps (MiB)', ylim=(0, None))
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def draw_latency(models: dict[str, Any], path: Path) -> None:
    """How many times faster than its ResNet each network is, by runtime, with quartiles."""
    from matplotlib.figure import Figure

    bars = [
        (f'{model}\n{name}', runtime, pair)
        for model, found in models.items()
        for name, one in found.items()
        for runtime, pair in one['latency'].items()
    ]
    labels, names = list(dict.fromkeys(bar[0] for bar in bars)), list(dict.fromkeys(bar[1] for bar in bars))
    figure = Figure((1.1 * max(len(labels), 3) + 1, 3.4), layout='constrained')
    axes = figure.add_subplot()
    for k, runtime in enumerate(names):
        own = [(labels.index(label), pair) for label, name, pair in bars if name == runtime]
        ratio = np.asarray([pair['ratio'] for _, pair in own])
        error = [ratio - [p['ratio_low'] for _, p in own], np.asarray([p['ratio_high'] for _, p in own]) - ratio]
        axes.bar(
            [at + 0.4 * (k - (len(names) - 1) / 2) for at, _ in own], ratio, 0.38, yerr=error, capsize=2, label=runtime
        )
    axes.axhline(1, color='black', linewidth=0.8)
    axes.axhline(CLAIMED_SPEED, color='grey', linewidth=0.8, linestyle='--', label="claimed of the paper's ResNet-50")
    axes.set_xticks(range(len(labels)), labels, fontsize=7)
    axes.set(ylabel='latency of ResNet / network', ylim=(0, max(1.7, 1.3 * axes.get_ylim()[1])))
    axes.legend(fontsize=8, ncols=3, loc='upper left')
    figure.savefig(path, dpi=120)


def run(
    models: list[str], stem: str, out: Path | None, rounds: int, width: int = 64, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Measure, print the tables, write them to `out` if given, and return the figures.

    Raises:
      UserError: no such model, a missing extra, or an `out` that holds something.
    """
    known = [name for name in REGISTRY if name.startswith('resnet')]
    for model in models:
        if model not in known:
            raise choice_error('model', model, known)
    if not models:
        raise UserError(f'no model to report on; choose from {", ".join(known)}')
    require('onnx', 'onnx')
    require('onnxruntime', 'onnx')
    if out:
        files.check_new(out)
        require('matplotlib', 'plot')
    depths = {f'resnet{depth}': depth for depth in STAGE_SIZES}
    measured = {model: measure(depths[model], stem, width, rounds, say) for model in dict.fromkeys(models)}
    report = {
        'command': f'jointrd savings --models {",".join(measured)} --stem {stem} --width {width} --rounds {rounds}',
        'machine': f'{os.cpu_count()} {platform.machine()} cores',
        'versions': {'onnxruntime': require('onnxruntime', 'onnx').__version__},
        'stem': stem,
        'width': width,
        'image_shape': INPUTS[stem][0],
        'models': measured,
        'claims': held_against_claims(measured),
    }
    text = markdown(report)
    if out:
        with files.atomic_directory(out) as directory:
            files.write_json(directory / 'report.json', report)
            files.write_atomically(directory / 'report.md', text)
            draw_memory(measured, directory / 'memory.png')
            draw_latency(measured, directory / 'latency.png')
    say(text)
    return report

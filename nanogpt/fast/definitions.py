"""Whether the definitions that fast code repeats are still the same.

Readers change the models. Fast code that repeats a part of a model must then not be used, because
it would compute the model of before the change.
"""

import ast
import hashlib
import inspect
import textwrap
from collections.abc import Callable
from functools import cache
from typing import Any

from ..models import GPT, Modern, gpt, modern

Definition = Callable[..., Any]
"""A class or a function."""
DIGESTS: dict[Definition, str] = {
    # The loss kernel (loss.py) repeats these two.
    GPT.unembed: "53588b8ed22caccf",
    Modern.unembed: "270910ff3c00401e",
    # The kernels for decoding (kernels.py) repeat these.
    gpt.CausalSelfAttention: "3f15d55dee0e429c",
    gpt.FeedForward: "104d0db2895205bc",
    gpt.Block: "43b1fced91ee6d75",
    modern.norm: "338339fb4a451a49",
    modern.rotate: "23dc49bf98b7b41a",
    modern.Attention: "843c7a32a74061dc",
    modern.SquaredReLU: "0098018f6cbf6e52",
    modern.FeedForward: "b042eb5c9f30e6b0",
    modern.Block: "4aa8e5979f2b6d84",
}
"""The digest of the code of each definition. If you change a definition, first change the fast code
that repeats it, and then its digest."""


def are_unchanged(*definitions: Definition) -> bool:
    """Return whether the code of all definitions is the code that fast code repeats."""
    return all(DIGESTS.get(item, "") == compute_digest(item) for item in definitions)


@cache
def compute_digest(definition: Definition) -> str | None:
    """Return 16 digits of the SHA-256 of the code, without comments, docstrings and line breaks.

    Returns None if there is no source code.
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(definition)))
    except OSError:
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()[:16]

"""Compare the logits of exported models with those of nanogpt, and print a table.

    python benchmarks/interop.py            # needs the extra dev

If llama-cpp-python is installed, the script opens the GGUF files with it. The models are those of
the presets, and that of baby-fast without its look-back; the weights are random. Each row has the
largest difference of a logit for a text that fills the context, the largest logit, and the size of
the folder.
"""

import argparse
import importlib.metadata
import json
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nanogpt.interop.huggingface import convert_model, write_converted
from nanogpt.interop.llama_cpp import write_gguf
from nanogpt.interop.onnx import write_onnx
from nanogpt.models import GPT, Bigram, Model, ModelConfig, ModernConfig, build
from nanogpt.runs.presets import PRESETS
from nanogpt.text.tokenizers import CharTokenizer

CHARACTERS = CharTokenizer(map(chr, range(32, 32 + 65)))


CONFIGS = {f"`{name}`": preset.config.model for name, preset in PRESETS.items()}
CONFIGS["`baby-fast --model.no-look-back`"] = ModernConfig(
    n_layer=6, n_head=3, n_embd=384, look_back=False
)


@torch.no_grad()
def make_model(config: ModelConfig) -> Model:
    """Return a model with random weights that are not small."""
    torch.manual_seed(0)
    model = build(config).eval()
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


def open_hf(model: Model, tokens: Tensor, folder: Path) -> tuple[str, Tensor]:
    """Return the class in transformers and its logits."""
    from transformers import AutoModelForCausalLM

    write_converted(folder, convert_model(model), CHARACTERS, model.config.block_size)
    opened = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    return type(opened).__name__, opened(tokens).logits


def open_gguf(model: Model, tokens: Tensor, folder: Path) -> tuple[str, Tensor]:
    """Return the architecture in llama.cpp and its logits, with keys and values in float32."""
    from llama_cpp import Llama

    write_gguf(folder / "a.gguf", model, CHARACTERS, "a")
    T = tokens.shape[1]
    opened = Llama(
        str(folder / "a.gguf"),
        n_ctx=T,
        n_batch=T,
        type_k=0,
        type_v=0,
        logits_all=True,
        verbose=False,
    )
    opened.eval(tokens[0].tolist())
    logits = torch.tensor(np.array(opened.scores[:T]))
    opened.close()
    return "gpt2", logits[None]


def open_onnx(model: Model, tokens: Tensor, folder: Path) -> tuple[str, Tensor]:
    """Return the logits of ONNX Runtime."""
    import onnxruntime

    write_onnx(folder / "model.onnx", model)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    return "a graph", torch.from_numpy(session.run(None, {"tokens": tokens.numpy()})[0])


@torch.no_grad()
def main() -> None:
    """Print the versions, and one row for each format and model."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    formats = {"hf": open_hf, "onnx": open_onnx}
    libraries = ["torch", "transformers", "tokenizers", "onnx", "onnxscript", "onnxruntime", "gguf"]
    if find_spec("llama_cpp"):
        formats["gguf"] = open_gguf
        libraries.append("llama_cpp_python")
    print(json.dumps({name: importlib.metadata.version(name) for name in libraries}))
    print("| format | model | opened as | largest difference | largest logit | MB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for format, run in formats.items():
        for name, config in CONFIGS.items():
            model = make_model(config)
            is_gpt = type(model) is GPT
            if (format == "gguf" and not is_gpt) or (format == "hf" and isinstance(model, Bigram)):
                continue
            tokens = torch.randint(config.vocab_size, (1, config.block_size))
            with tempfile.TemporaryDirectory() as folder:
                kind, logits = run(model, tokens, Path(folder))
                size = sum(file.stat().st_size for file in Path(folder).iterdir() if file.is_file())
            expected = model(tokens)
            difference = (logits - expected).abs().max().item()
            largest = expected.abs().max().item()
            print(
                f"| {format} | {name} | {kind} | {difference:.1e} | {largest:.1f} | "
                f"{size / 1e6:.1f} |"
            )


if __name__ == "__main__":
    main()

"""Compare the logits of exported models with those of nanogpt, and print a table.

    python benchmarks/interop.py                 # needs the extra dev
    python benchmarks/interop.py --nanogpt DIR   # DIR is a checkout of nanoGPT

If llama-cpp-python is installed, the script opens the GGUF files with it. The models are those of
the presets, and that of baby-fast without its look-back; the weights are random. Each row has the
largest difference of a logit for a text that fills the context, the largest logit, and the size of
the folder.

With --nanogpt, the script trains nanoGPT for a few steps, with and without biases, converts its
checkpoint with the script in docs/interop.md, imports it, and prints the largest differences of the
log-probabilities: with the GELU of nanogpt, and with nanoGPT's GELU.
"""

import argparse
import importlib.metadata
import json
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from nanogpt import load
from nanogpt.interop.huggingface import convert_model, write_converted
from nanogpt.interop.importing import import_model
from nanogpt.interop.llama_cpp import write_gguf
from nanogpt.interop.onnx import write_onnx
from nanogpt.models import GPT, Bigram, Model, ModelConfig, ModernConfig, build
from nanogpt.runs.presets import PRESETS
from nanogpt.text import corpora
from nanogpt.text.tokenizers import CharTokenizer

CHARACTERS = CharTokenizer(map(chr, range(32, 32 + 65)))


CONFIGS = {
    f"`{name}`": preset.config.model
    for name, preset in PRESETS.items()
    if not name.startswith("gpt2")
}
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


COMPUTE = """
import sys, torch
from safetensors.torch import load_file, save_file
from model import GPT, GPTConfig
saved = torch.load("out-shakespeare-char/ckpt.pt", map_location="cpu", weights_only=False)
model = GPT(GPTConfig(**saved["model_args"]))
model.load_state_dict({n.removeprefix("_orig_mod."): w for n, w in saved["model"].items()})
tokens = load_file("tokens.safetensors")["tokens"]
with torch.no_grad():
    logits = model.eval()(tokens, tokens)[0]
save_file({"logits": logits}, "logits.safetensors")
"""


def compare_with_nanogpt(checkout: Path) -> None:
    """Import checkpoints of nanoGPT, and print the largest differences."""
    page = (Path(__file__).parents[1] / "docs/interop.md").read_text("utf-8")
    script = page.partition("## nanoGPT")[2].split("```python\n")[1].split("```")[0]
    flags = "--device=cpu --compile=False --max_iters=100 --eval_interval=100 --eval_iters=2"
    flags += " --block_size=64 --batch_size=8 --n_layer=3 --n_head=4 --n_embd=64 --dropout=0.0"
    print("| biases | log-probabilities | with nanoGPT's GELU | loss | with nanoGPT's GELU |")
    print("| --- | --- | --- | --- | --- |")
    for bias in ("True", "False"):
        with tempfile.TemporaryDirectory() as directory:
            copy = Path(directory) / "nanoGPT"
            shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns(".git"))
            folder = copy / "data" / "shakespeare_char"
            text = corpora.load_corpus("tinyshakespeare").text()
            (folder / "input.txt").write_text(text, encoding="utf-8")
            training = ["train.py", "config/train_shakespeare_char.py", *flags.split()]
            for place, command in (
                (folder, ["prepare.py"]),
                (copy, [*training, f"--bias={bias}"]),
                (copy, ["-c", script]),
            ):
                done = [sys.executable, *command]
                subprocess.run(done, cwd=place, check=True, stdout=sys.stderr)
            trained = load(import_model(str(copy / "exported"), Path(directory) / "run"), "cpu")
            ids = torch.tensor(trained.tokenizer.encode(text[-6401:]))
            tokens, targets = ids[:-1].view(-1, 64), ids[1:].view(-1, 64)
            save_file({"tokens": tokens.clone()}, copy / "tokens.safetensors")
            subprocess.run([sys.executable, "-c", COMPUTE], cwd=copy, check=True)
            expected = load_file(copy / "logits.safetensors")["logits"].log_softmax(-1)
            row = []
            for gelu in ("tanh", "none"):
                for module in trained.model.modules():
                    if isinstance(module, nn.GELU):
                        module.approximate = gelu
                found = trained.model(tokens).log_softmax(-1)
                losses = [
                    F.nll_loss(each.flatten(0, 1), targets.flatten()) for each in (found, expected)
                ]
                row.append(
                    ((found - expected).abs().max().item(), losses[0].item(), losses[1].item())
                )
            print(
                f"| {bias} | {row[0][0]:.1e} | {row[1][0]:.1e} | {row[0][1]:.5f} | "
                f"{row[1][1]:.5f} ({row[1][2]:.5f} in nanoGPT) |"
            )


@torch.no_grad()
def main() -> None:
    """Print the versions, and one row for each format and model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nanogpt", type=Path, metavar="DIR", help="a checkout of nanoGPT")
    args = parser.parse_args()
    if args.nanogpt:
        compare_with_nanogpt(args.nanogpt)
        return
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

"""Compare the generation speed of nanogpt, nanoGPT and `transformers`, in tokens per second.

    python benchmarks/sampling.py --nanogpt CHECKOUT

The models of the compared programs have the same random weights. The programs run alternately in
one process. Each program generates 500 tokens per text, with temperature 0.8 and top-k 200. There
are three measurements:

- nanogpt and nanoGPT's model.py generate one text with a model of the shape of `baby` (10.8M
  parameters, context 256). On a GPU, nanogpt has bfloat16 weights and compiled kernels, and nanoGPT
  uses autocast to bfloat16. On a CPU, both use float32. As in nanoGPT's sample.py, nanoGPT's model
  is not compiled.
- On a GPU, nanogpt generates 64 texts in one batch with the same model.
- On a GPU, nanogpt and generate() of `transformers` generate one text with a model of the shape of
  GPT-2 (124M parameters, context 1,024) in bfloat16. Here, generate() uses a static cache, so
  `transformers` compiles the model.

The measured time covers the whole call: the prompt and all generated tokens, including the tokens
after the context is full. The time excludes loading and compilation, because every program
generates once before the measurement. The results are medians and go to
benchmarks/results/sampling_DEVICE.json.
"""

import argparse
import re
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib import util
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import RESULTS, save_result
from tables import sampling_table
from torch import Tensor, nn

from nanogpt.fast import generation as fast
from nanogpt.generate import Sampling, generate
from nanogpt.models import GPT, GPTConfig
from nanogpt.runs.presets import PRESETS
from nanogpt.system.devices import describe_device, limit_threads, pick_device, pick_precision

TOKENS = 500
SAMPLING = Sampling(temperature=0.8, top_k=200)
GPT2 = GPTConfig(n_layer=12, n_head=12, n_embd=768, block_size=1024, vocab_size=50_257)

# Patterns in GPT-2's parameter names, and the replacements that turn them into nanogpt's names.
NAMES = (
    (r"^transformer\.wte", "token_embedding"),
    (r"^transformer\.wpe", "position_embedding"),
    (r"^transformer\.ln_f", "norm"),
    (r"^transformer\.h\.", "blocks."),
    (r"\.ln_", ".norm"),
    (r"\.attn\.c_attn", ".attention.qkv"),
    (r"\.attn\.c_proj", ".attention.projection"),
    (r"\.mlp\.c_fc", ".feed_forward.0"),
    (r"\.mlp\.c_proj", ".feed_forward.2"),
)


def copy_weights(model: GPT, other: nn.Module) -> None:
    """Copy the weights of `model` into `other`, a GPT-2 of nanoGPT or of `transformers`."""
    weights = model.state_dict()
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            for pattern, replacement in NAMES:
                name = re.sub(pattern, replacement, name)
            weight = weights[name]
            # The library `transformers` stores all matrices transposed, except the embeddings.
            is_matrix = weight.dim() == 2 and "embedding" not in name
            is_transposed = type(other).__module__.startswith("transformers") and is_matrix
            parameter.copy_(weight.T if is_transposed else weight)


def scale_embedding(model: GPT) -> GPT:
    """Scale up the embedding, so that probabilities differ more; return the model in eval mode."""
    with torch.no_grad():
        model.token_embedding.weight.mul_(10)
    return model.eval()


def generate_text(model: GPT, texts: int = 1) -> None:
    """Generate `texts` texts of TOKENS tokens, as a model from nanogpt.load() with compile=True."""
    is_cuda = next(model.parameters()).device.type == "cuda"
    run = partial(fast.generate, compile=True) if is_cuda else generate
    list(run(model, [[0]] * texts, TOKENS, SAMPLING))


def time_call(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that a call takes."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure_rates(
    programs: Mapping[str, Callable[[], object]], tokens: int, repeats: int
) -> dict[str, Any]:
    """Run programs in turn; for each, return the median and all values of its tokens per second."""
    device = pick_device("auto")
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for call in programs.values():
        call()  # the first call loads and compiles
    for _ in range(repeats):
        for name, call in programs.items():
            seconds[name].append(time_call(call, device))
    return {
        name: {"median": round(tokens / median(s), 1), "all": [round(tokens / x, 1) for x in s]}
        for name, s in seconds.items()
    }


def load_nanogpt_model(checkout: Path, model: GPT, device: torch.device) -> Any:
    """Return nanoGPT's model with the weights of `model`.

    Check that the two models give the same logits.
    """
    spec = util.spec_from_file_location("nanogpt_model", checkout / "model.py")
    assert spec
    assert spec.loader
    program = util.module_from_spec(spec)
    sys.modules[spec.name] = program
    spec.loader.exec_module(program)
    c = model.config
    shape = {k: getattr(c, k) for k in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")}
    other = program.GPT(program.GPTConfig(**shape, bias=True, dropout=0.0)).to(device).eval()
    copy_weights(model, other)
    tokens = torch.arange(40, device=device)[None]
    with torch.no_grad():
        torch.testing.assert_close(other(tokens)[0], model(tokens)[:, -1:], atol=0.05, rtol=0.05)
    return other


def load_transformers_model(model: GPT, device: torch.device) -> Any:
    """Return the GPT-2 of the `transformers` library with the weights of `model`.

    Check that the two models give the same logits.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    c = model.config
    other: Any = GPT2LMHeadModel(
        GPT2Config(n_layer=c.n_layer, n_head=c.n_head, n_embd=c.n_embd, vocab_size=c.vocab_size)
    )
    other = other.to(device).eval()
    copy_weights(model, other)
    tokens = torch.arange(40, device=device)[None]
    with torch.no_grad():
        torch.testing.assert_close(other(tokens).logits, model(tokens), atol=1e-2, rtol=1e-2)
    return other


def measure_baby(checkout: Path, device: torch.device, repeats: int) -> dict[str, Any]:
    """Compare how fast nanogpt and nanoGPT generate one text with a model of the shape of `baby`.

    On a GPU, also measure how fast nanogpt generates 64 texts.
    """
    config = PRESETS["baby"].config.model
    assert isinstance(config, GPTConfig)
    model = scale_embedding(GPT(config).to(device))
    other = load_nanogpt_model(checkout, model, device)
    precision = torch.bfloat16 if device.type == "cuda" else torch.float32
    prompt = torch.zeros(1, 1, dtype=torch.long, device=device)
    ours = GPT(config).to(device, precision).eval()
    ours.load_state_dict(model.state_dict())

    def generate_theirs() -> None:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, device.type == "cuda"):
            other.generate(prompt, TOKENS, temperature=0.8, top_k=200).tolist()

    programs = {"nanoGPT": generate_theirs, "nanogpt": lambda: generate_text(ours)}
    rows = {"baby, 1 text": measure_rates(programs, TOKENS, repeats)}
    if device.type == "cuda":
        many = {"nanogpt": lambda: generate_text(ours, 64)}
        rows["baby, 64 texts"] = measure_rates(many, 64 * TOKENS, repeats)
    return rows


def measure_gpt2(device: torch.device, repeats: int) -> dict[str, Any]:
    """Compare the speeds of nanogpt and `transformers` for a model of GPT-2's shape."""
    model = scale_embedding(GPT(GPT2).to(device))
    other = load_transformers_model(model, device).to(torch.bfloat16)
    model = model.to(torch.bfloat16)
    prompt: Tensor = torch.zeros(1, 1, dtype=torch.long, device=device)

    def generate_theirs() -> None:
        other.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=TOKENS,
            min_new_tokens=TOKENS,
            do_sample=True,
            temperature=0.8,
            top_k=200,
            cache_implementation="static",
            pad_token_id=0,
        ).tolist()

    programs = {"transformers": generate_theirs, "nanogpt": lambda: generate_text(model)}
    return {"GPT-2, 1 text": measure_rates(programs, TOKENS, repeats)}


def main() -> None:
    """Measure the generation speed, save the result and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nanogpt", type=Path, required=True, help="a clone of nanoGPT")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each program")
    parser.add_argument("--no-large", action="store_true", help="skip the model with GPT-2's shape")
    args = parser.parse_args()
    limit_threads()
    device = pick_device("auto")
    pick_precision("auto", device)
    torch.manual_seed(0)
    rows = measure_baby(args.nanogpt, device, args.repeats)
    if device.type == "cuda" and not args.no_large:
        rows |= measure_gpt2(device, args.repeats)
    result = {"device": describe_device(device), "torch": torch.__version__, "rows": rows}
    save_result(RESULTS / f"sampling_{device.type}.json", result)
    print(sampling_table(result))


if __name__ == "__main__":
    main()

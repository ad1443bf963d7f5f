"""Tokens a second of sampling, beside nanoGPT's generate() and that of Hugging Face.

    python benchmarks/sampling.py --nanogpt CHECKOUT

On the same random weights, one process, the programs taking turns, medians:

- 500 tokens after a line break, one text at a time, of `baby`'s shape (10.8M parameters, context
  256), against nanoGPT's model.py as its sample.py calls it: temperature 0.8, top-k 200, under
  autocast to bfloat16 on a GPU, in float32 on a CPU, not compiled;
- on a GPU, 500 tokens of 64 texts at once;
- on a GPU, 500 tokens of GPT-2's shape (124M parameters, context 1,024), in bfloat16, against
  transformers' generate() with a static cache, which it compiles.

A time is that of the whole call, with what is read, captured and past the context, but without
loading or compiling: every program has written once before. Written to benchmarks/results.
"""

import argparse
import re
import sys
import time
from collections.abc import Callable, Mapping
from importlib import util
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import RESULTS, save
from torch import Tensor, nn

from nanogpt.generate import Sampling, generate
from nanogpt.models import GPT, GPTConfig
from nanogpt.runs.presets import PRESETS
from nanogpt.system.devices import describe_device, limit_threads, pick_device, pick_precision

TOKENS = 500
SAMPLING = Sampling(temperature=0.8, top_k=200)
GPT2 = GPTConfig(n_layer=12, n_head=12, n_embd=768, block_size=1024, vocab_size=50_257)

# Our names for GPT-2's.
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
    """Ours into a GPT-2 of others, whatever way round its matrices are."""
    ours = model.state_dict()
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            for theirs, here in NAMES:
                name = re.sub(theirs, here, name)
            weight = ours[name]
            # Hugging Face's are transposed; the square one can only be told by its class.
            conv = type(other).__module__.startswith("transformers") and weight.dim() == 2
            parameter.copy_(weight.T if conv and "embedding" not in name else weight)


def sure(model: GPT) -> GPT:
    """The model with weights that give some tokens more chance than others."""
    with torch.no_grad():
        model.token_embedding.weight.mul_(10)
    return model.eval()


def clocked(call: Callable[[], object], device: torch.device) -> float:
    """The seconds that a call takes."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def rates(
    programs: Mapping[str, Callable[[], object]], tokens: int, repeats: int
) -> dict[str, Any]:
    """Tokens a second of each, the programs taking turns: the median, and all."""
    device = pick_device("auto")
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for call in programs.values():
        call()
    for _ in range(repeats):
        for name, call in programs.items():
            seconds[name].append(clocked(call, device))
    return {
        name: {"median": round(tokens / median(s), 1), "all": [round(tokens / x, 1) for x in s]}
        for name, s in seconds.items()
    }


def nanogpt_model(checkout: Path, model: GPT, device: torch.device) -> Any:
    """nanoGPT's model with our weights, which says the same."""
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


def hugging_face(model: GPT, device: torch.device) -> Any:
    """GPT-2 of transformers with our weights, which says the same."""
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


def small(checkout: Path, device: torch.device, repeats: int) -> dict[str, Any]:
    """One text of baby's shape, and 64 on a GPU."""
    config = PRESETS["baby"].config.model
    assert isinstance(config, GPTConfig)
    model = sure(GPT(config).to(device))
    theirs = nanogpt_model(checkout, model, device)
    precision = torch.bfloat16 if device.type == "cuda" else torch.float32
    start = torch.zeros(1, 1, dtype=torch.long, device=device)
    ours = GPT(config).to(device, precision).eval()
    ours.load_state_dict(model.state_dict())

    def nanogpt() -> None:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, device.type == "cuda"):
            theirs.generate(start, TOKENS, temperature=0.8, top_k=200).tolist()

    def here(texts: int = 1) -> None:
        list(generate(ours, [[0]] * texts, TOKENS, SAMPLING))

    found = {"baby, 1 text": rates({"nanoGPT": nanogpt, "nanogpt": here}, TOKENS, repeats)}
    if device.type == "cuda":
        many = {"nanogpt": lambda: here(64)}
        found["baby, 64 texts"] = rates(many, 64 * TOKENS, repeats)
    return found


def large(device: torch.device, repeats: int) -> dict[str, Any]:
    """One text of GPT-2's shape."""
    model = sure(GPT(GPT2).to(device))
    theirs = hugging_face(model, device).to(torch.bfloat16)
    model = model.to(torch.bfloat16)
    start: Tensor = torch.zeros(1, 1, dtype=torch.long, device=device)

    def hugging() -> None:
        theirs.generate(
            start,
            attention_mask=torch.ones_like(start),
            max_new_tokens=TOKENS,
            min_new_tokens=TOKENS,
            do_sample=True,
            temperature=0.8,
            top_k=200,
            cache_implementation="static",
            pad_token_id=0,
        ).tolist()

    def here() -> None:
        list(generate(model, [[0]], TOKENS, SAMPLING))

    return {"GPT-2, 1 text": rates({"transformers": hugging, "nanogpt": here}, TOKENS, repeats)}


def table(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = ["| | program | tokens a second | times |", "| --- | --- | --- | --- |"]
    for what, programs in found["rows"].items():
        first = next(iter(programs.values()))["median"]
        for name, rate in programs.items():
            lines.append(
                f"| {what} | {name} | {rate['median']:,.0f} | {rate['median'] / first:.1f} |"
            )
    return "\n".join([f"{found['device']}, torch {found['torch']}:", "", *lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--nanogpt", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-large", action="store_true", help="leave GPT-2's shape out")
    args = parser.parse_args()
    limit_threads()
    device = pick_device("auto")
    pick_precision("auto", device)
    torch.manual_seed(0)
    about = {"device": describe_device(device), "torch": torch.__version__}
    found: dict[str, Any] = {**about, "rows": {}}
    found["rows"] |= small(args.nanogpt, device, args.repeats)
    if device.type == "cuda" and not args.no_large:
        found["rows"] |= large(device, args.repeats)
    save(RESULTS / f"sampling_{device.type}.json", found)
    (RESULTS / f"sampling_{device.type}.md").write_text(table(found), "utf-8")
    print(table(found))


if __name__ == "__main__":
    main()

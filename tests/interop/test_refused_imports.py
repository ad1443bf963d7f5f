"""nanogpt import refuses what it cannot represent, and what is damaged, and leaves nothing."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nanogpt.text.bpe import HubTokenizer
from tests.interop.test_import import change_config, make_folder

Command = Callable[..., tuple[int, str, str]]


SETTINGS = [
    ("gpt2", "activation_function", "relu", "gelu_new"),
    ("gpt2", "is_causal", False, "True"),
    ("nanochat", "is_causal", False, "True"),
    ("nanochat", "rope_scaling", {"rope_type": "linear", "factor": 4.0}, "None"),
    ("gpt2", "layer_norm_epsilon", 1e-6, "1e-05"),
    ("gpt2", "n_inner", 64, "128"),
    ("gpt2", "scale_attn_weights", False, "True"),
    ("gpt2", "scale_attn_by_inverse_layer_idx", True, "False"),
    ("nanochat", "hidden_act", "gelu", "relu2"),
    ("nanochat", "rms_norm_eps", 1e-6, "1.1920928955078125e-07"),
    ("nanochat", "num_key_value_heads", 1, "2"),
    ("nanochat", "intermediate_size", 96, "128"),
    ("nanochat", "final_logit_softcapping", None, "15.0"),
    ("nanochat", "attention_bias", True, "False"),
    ("nanochat", "tie_word_embeddings", True, "False"),
]


@pytest.mark.parametrize(("kind", "name", "value", "ours"), SETTINGS)
def test_a_setting_that_nanogpt_does_not_have(
    kind: str, name: str, value: Any, ours: str, bpe: HubTokenizer, nanogpt: Command
) -> None:
    make_folder(bpe, kind, **({} if name.startswith("rope_s") else {name: value}))
    change_config(**{name: value})
    status, out, err = nanogpt("import", "there")
    assert (status, out) == (2, "")
    shown = repr(value) if isinstance(value, str | dict) else value
    assert err == (
        f"nanogpt: {name} is {shown} in there/config.json, but in nanogpt it is always {ours}: "
        f"import another model\n"
    )
    assert not Path("runs").exists()


def write_index(name: str) -> None:
    content = json.dumps({"weight_map": {"transformer.wte.weight": name}})
    Path("there/model.safetensors.index.json").write_text(content, "utf-8")


def drop(name: str, added: str, factor: float = 1.0) -> None:
    """Remove a tensor, and add it with another name, multiplied by a factor."""
    weights = load_file("there/model.safetensors")
    weights[added] = weights.pop(name) * factor
    save_file(weights, "there/model.safetensors")


def make_pipe(name: str) -> None:
    Path(name).unlink()
    os.mkfifo(name)


def add(name: str, *shape: int) -> None:
    weights = load_file("there/model.safetensors")
    save_file({**weights, name: torch.zeros(shape)}, "there/model.safetensors")


def replace_weights(name: str) -> None:
    Path("there/model.safetensors").unlink()
    Path("there", name).write_bytes(b"a pickle")


BROKEN: list[tuple[Callable[[], object], str]] = [
    (
        lambda: shutil.rmtree("there"),
        "there is not a folder with a config.json: name the folder of a model for transformers, or "
        "hf:NAME for a model of the Hugging Face Hub",
    ),
    (
        lambda: change_config(architectures=["LlamaForCausalLM"]),
        "the model in there is a LlamaForCausalLM, but nanogpt can import only GPT2LMHeadModel, "
        "NanoChatForCausalLM, NanoGPTForCausalLM",
    ),
    (
        lambda: replace_weights("pytorch_model.bin"),
        "there has only pickled weights, pytorch_model.bin, and reading them can execute any "
        "code: save the model as safetensors",
    ),
    (
        lambda: Path("there/model.safetensors").unlink(),
        "there has no weights: it needs model.safetensors",
    ),
    (
        lambda: change_config(n_embd=64),
        "there/model.safetensors is missing or damaged (",
    ),
    (
        lambda: change_config(n_layer=10**8),
        "there/model.safetensors is missing or damaged (28 tensors are too few for n_layer 1000",
    ),
    (lambda: change_config(n_embd=2**30), "there/"),
    (lambda: change_config(num_attention_heads=4), "there/config.json is missing or damaged (n_h"),
    (lambda: change_config(resid_pdrop=False), "there/config.json is missing or damaged (resid_"),
    (
        lambda: change_config(architectures=[["a"]]),
        "the model in there is a model of an unkn",
    ),
    (
        lambda: change_config(architectures=True),
        "the model in there is a model of an unkn",
    ),
    (
        lambda: add("wte.weight", 400, 32),
        "there/model.safetensors is missing or damaged (",
    ),
    (
        lambda: drop("transformer.ln_f.bias", "transformer.ln_f.bias", float("nan")),
        "there/model.safetensors is missing or damaged (transformer.ln_f.bias is not finite)",
    ),
    (lambda: write_index("../there/a"), "there/model.safetensors.index.json is missing or damag"),
    (lambda: write_index("a\0b"), "there/model.safetensors.index.json is missing or damaged (no"),
    (lambda: write_index("missing"), "there/missing is missing or damaged ("),
    (
        lambda: Path("there/tokenizer.json").write_text(
            json.dumps(
                {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]}}
                | {"version": "1.0", "added_tokens": []}
            ),
            "utf-8",
        ),
        "the tokenizer in there is damaged (",
    ),
    (lambda: change_config(n_layer=3), "there/model.safetensors is missing or damaged ("),
    (lambda: change_config(n_layer="2"), "there/config.json is missing or damaged (n_layer cannot"),
    (lambda: change_config(n_head=3), "there/config.json is missing or damaged (n_embd is 32"),
    (
        lambda: drop("transformer.h.1.ln_1.bias", "h.0.attn.bias"),
        "there/model.safetensors is missing or damaged (transformer.h.1.ln_1.bias is missing)",
    ),
    (
        lambda: make_pipe("there/config.json"),
        "there/config.json is missing or damaged (not a regular file)",
    ),
    (
        lambda: add("lstm"),
        "there/model.safetensors is missing or damaged (unknown tensor 'lstm')",
    ),
    (
        lambda: Path("there/model.safetensors").write_bytes(b"\0" * 100),
        "there/model.safetensors is missing or damaged (",
    ),
    (
        lambda: Path("there/model.safetensors.index.json").write_text("{}", "utf-8"),
        "there/model.safetensors.index.json is missing or damaged (no weight_map with names",
    ),
    (
        lambda: Path("there/config.json").unlink(),
        "there is not a folder with a config.json",
    ),
    (
        lambda: Path("there/tokenizer.json").unlink(),
        "there has no tokenizer: it needs tokenizer.json",
    ),
    (
        lambda: Path("there/tokenizer.json").write_text("{}", "utf-8"),
        "the tokenizer in there is damaged (",
    ),
    (
        lambda: change_config(vocab_size=401),
        "there/model.safetensors is missing or damaged (",
    ),
]


@pytest.mark.parametrize(("breaks", "message"), BROKEN, ids=[str(i) for i in range(len(BROKEN))])
def test_a_broken_folder(
    breaks: Callable[[], object], message: str, bpe: HubTokenizer, nanogpt: Command
) -> None:
    make_folder(bpe)
    breaks()
    status, out, err = nanogpt("import", "there")
    assert (status, out) == (2, "")
    assert err.startswith(f"nanogpt: {message}")
    assert err.count("\n") == 1
    assert not Path("runs").exists()


@pytest.mark.parametrize("is_said", [True, False])
def test_an_output_layer_with_its_own_weights(
    is_said: bool, bpe: HubTokenizer, nanogpt: Command
) -> None:
    """The setting may be wrong: transformers uses the weights of the file."""
    make_folder(bpe, tie_word_embeddings=False)
    change_config(tie_word_embeddings=not is_said)
    assert nanogpt("import", "there") == (
        2,
        "",
        "nanogpt: the output layer in there has other weights than the token embedding, but in "
        "nanogpt they are always tied: import another model\n",
    )


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of the file size")
def test_a_full_disk_leaves_nothing(bpe: HubTokenizer, nanogpt: Command) -> None:
    import resource

    make_folder(bpe)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        answer = nanogpt("import", "there", "--out", "mine")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert answer == (
        1,
        "",
        "nanogpt: cannot write mine (File too large): name another directory with --out, or free "
        "disk space\n",
    )
    assert not Path("mine").exists()
    assert nanogpt("import", "there", "--out", "mine")[0] == 0


def test_a_tokenizer_of_another_size(bpe: HubTokenizer, nanogpt: Command) -> None:
    make_folder(bpe, vocab_size=401)
    assert nanogpt("import", "there")[::2] == (
        2,
        "nanogpt: the tokenizer in there has 400 tokens, but the model has 401: nanogpt needs the "
        "same number\n",
    )
    assert nanogpt("import")[0] == 2

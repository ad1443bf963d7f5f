"""An exported model has the same logits and the same tokens in the programs that open it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nanogpt.interop import extras
from nanogpt.interop.hub_tokenizer import convert_tokenizer
from nanogpt.interop.huggingface import convert_model, write_converted
from nanogpt.interop.llama_cpp import write_gguf
from nanogpt.interop.onnx import write_onnx
from nanogpt.models import GPTConfig, Model, ModelConfig, ModernConfig, build
from nanogpt.runs.presets import PRESETS
from nanogpt.text.bpe import HubTokenizer
from nanogpt.text.tokenizers import ByteTokenizer, CharTokenizer, Tokenizer
from tests.marks import slow
from tests.texts import LANGUAGES

GPT = GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=24, vocab_size=65)
MODERN = ModernConfig(n_layer=3, n_head=2, n_embd=32, block_size=24, vocab_size=65)
CONFIGS = [
    GPT,
    replace(GPT, bias=False, n_head=1, n_layer=1),
    MODERN,
    replace(MODERN, look_back=False),
    replace(MODERN, look_back=False, n_head=1, n_embd=10),
    replace(MODERN, look_back=False, skips=True),
    replace(MODERN, activation="swiglu", skips=True),
]
# The models of `gpt2` and `gpt2-fast` are those of other presets with larger sizes, with which the
# tests would take minutes.
PRESET_MODELS = [
    slow(preset.config.model)
    for name, preset in PRESETS.items()
    if name not in ("bigram", "gpt2", "gpt2-fast")
]
Command = Callable[..., tuple[int, str, str]]


@torch.no_grad()
def make_model(config: ModelConfig) -> Model:
    """Make a model with larger weights than those of a new model, and without zeros."""
    model = build(config).eval()
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def open_in_transformers(directory: Path) -> Any:
    """Open the model of a folder; every weight must have a place."""
    import transformers

    found: Any = transformers.AutoModelForCausalLM.from_pretrained(
        directory, trust_remote_code=True, output_loading_info=True
    )
    model, report = found
    assert not any(report.values())
    return model


@pytest.mark.parametrize("config", [*CONFIGS, *PRESET_MODELS])
@torch.no_grad()
def test_logits_and_greedy_text_in_transformers(config: ModelConfig, tmp_path: Path) -> None:
    model = make_model(config)
    tokenizer = CharTokenizer(map(chr, range(32, 32 + 65)))
    write_converted(tmp_path, convert_model(model), tokenizer, config.block_size)
    opened = open_in_transformers(tmp_path)
    tokens = torch.randint(config.vocab_size, (3, config.block_size))
    torch.testing.assert_close(opened(tokens).logits, model(tokens), atol=1e-4, rtol=1e-4)
    if isinstance(config, ModernConfig):  # in the logits, another value could be too small to see
        epsilon = torch.finfo(torch.float32).eps
        assert getattr(opened.config, "rms_norm_eps", epsilon) == epsilon
    new = min(20, config.block_size - 4)
    for prompt in tokens[:, :4]:
        found = opened.generate(prompt[None], max_new_tokens=new, do_sample=False)[0].tolist()
        assert found == continue_greedily(model, prompt, new)


def continue_greedily(model: Model, prompt: Tensor, new: int) -> list[int]:
    tokens = prompt
    for _ in range(new):
        logits = model(tokens[None, -model.config.block_size :])[0, -1]
        tokens = torch.cat([tokens, logits.argmax()[None]])
    return tokens.tolist()


@torch.no_grad()
def test_our_code_generates_beyond_the_context(tmp_path: Path) -> None:
    model = make_model(MODERN)
    write_converted(tmp_path, convert_model(model), ByteTokenizer(), MODERN.block_size)
    opened = open_in_transformers(tmp_path)
    prompt = torch.randint(65, (30,))
    found = opened.generate(prompt[None], max_new_tokens=30, max_length=None, do_sample=False)
    assert found[0].tolist() == continue_greedily(model, prompt, 30)
    labels = torch.randint(65, (2, 24))
    expected = torch.nn.functional.cross_entropy(
        model(labels)[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    )
    torch.testing.assert_close(opened(labels, labels=labels).loss, expected)
    mask = torch.ones_like(labels)
    mask[0, 0] = 0
    with pytest.raises(NotImplementedError, match="same length"):
        opened(labels, attention_mask=mask)


ALPHABET = "".join(sorted(set("".join(LANGUAGES)) | set("\0\t\n\r '\"\\<>unk")))
TOKENIZERS: dict[str, Tokenizer] = {"char": CharTokenizer(ALPHABET), "byte": ByteTokenizer()}


def open_tokenizer(tokenizer: Tokenizer, directory: Path) -> Any:
    """Export a tokenizer, and open it in transformers."""
    import transformers

    model = make_model(replace(GPT, vocab_size=tokenizer.vocab_size))
    write_converted(directory, convert_model(model), tokenizer, GPT.block_size)
    return transformers.AutoTokenizer.from_pretrained(directory)


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
def test_the_exported_tokenizer_gives_the_same_tokens(
    kind: str, bpe: HubTokenizer, tmp_path: Path
) -> None:
    tokenizer = {**TOKENIZERS, "bpe": bpe}[kind]
    opened = open_tokenizer(tokenizer, tmp_path)
    characters = (
        st.sampled_from(ALPHABET) if kind == "char" else st.characters(exclude_categories=["Cs"])
    )

    @given(st.text(characters))
    def check(text: str) -> None:
        ids = opened(text).input_ids
        assert ids == tokenizer.encode(text)
        assert opened.decode(ids) == tokenizer.decode(ids) == text

    check()
    for text in LANGUAGES:
        assert opened(text).input_ids == tokenizer.encode(text)


def test_the_exported_tokenizer_adds_no_special_tokens(bpe: HubTokenizer, tmp_path: Path) -> None:
    import tokenizers
    from tokenizers.processors import TemplateProcessing

    changed = tokenizers.Tokenizer.from_str(json.dumps(bpe.to_json()))
    changed.add_special_tokens(["<s>"])
    changed.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 400)])
    tokenizer = HubTokenizer(json.loads(changed.to_str()))
    opened = open_tokenizer(tokenizer, tmp_path)
    for text in ("<s>a<s> b", *LANGUAGES):
        assert opened(text).input_ids == tokenizer.encode(text)


def test_an_unknown_character_is_an_error(tmp_path: Path) -> None:
    opened = open_tokenizer(CharTokenizer("ab"), tmp_path)
    with pytest.raises(Exception, match=r"(?i)unk"):
        opened("abc")


@pytest.mark.slow
@pytest.mark.parametrize("config", [*CONFIGS, PRESETS["bigram"].config.model])
def test_logits_in_onnx_runtime(config: ModelConfig, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = make_model(config)
    write_onnx(tmp_path / "model.onnx", model)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    T = config.block_size
    for shape in ((1, 1), (1, T), (3, 5), (5, 2), (2, T)):
        tokens = torch.randint(config.vocab_size, shape)
        (logits,) = session.run(["logits"], {"tokens": tokens.numpy()})
        np.testing.assert_allclose(logits, model(tokens).detach().numpy(), atol=1e-4, rtol=0)


GGUF_CASES = [("char", GPT), ("byte", replace(GPT, bias=False, n_head=1)), ("bpe", GPT)]


def write_and_read_tokens(
    kind: str, config: GPTConfig, bpe: HubTokenizer, file: Path
) -> tuple[Model, Tokenizer]:
    """Write a GGUF file; return its model and its tokenizer."""
    tokenizer = {**TOKENIZERS, "bpe": bpe}[kind]
    model = make_model(replace(config, vocab_size=tokenizer.vocab_size))
    write_gguf(file, model, tokenizer, "name")
    return model, tokenizer


@pytest.mark.parametrize(("kind", "config"), GGUF_CASES)
def test_a_gguf_file_has_all_weights_and_tokens(
    kind: str, config: GPTConfig, bpe: HubTokenizer, tmp_path: Path
) -> None:
    import gguf

    model, tokenizer = write_and_read_tokens(kind, config, bpe, tmp_path / "a.gguf")
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    state = model.state_dict()
    written = sum(tensor.n_elements for tensor in reader.tensors)
    biases = sum(len(t.data) for t in reader.tensors if t.name.endswith(".bias"))
    own_biases = sum(len(p) for name, p in state.items() if name.endswith(".bias"))
    assert written - biases + own_biases == sum(p.numel() for p in model.parameters())
    qkv = next(t.data for t in reader.tensors if t.name == "blk.1.attn_qkv.weight")
    assert np.array_equal(qkv, state["blocks.1.attention.qkv.weight"].numpy())
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    assert len(tokens) == tokenizer.vocab_size
    end = reader.fields.get("tokenizer.ggml.eos_token_id")
    assert (end is None) == (kind != "bpe")  # otherwise, llama.cpp would stop after token 11
    if end:
        assert tokenizer.token_bytes(end.contents()) == b"\xff"


def test_only_a_special_token_ends_a_text_in_llama_cpp(bpe: HubTokenizer, tmp_path: Path) -> None:
    import gguf
    import tokenizers

    changed = tokenizers.Tokenizer.from_str(json.dumps(bpe.to_json()))
    changed.add_tokens([tokenizers.AddedToken("hello", normalized=False)])
    changed.add_special_tokens(["<|endoftext|>"])
    tokenizer = HubTokenizer(json.loads(changed.to_str()))
    model = make_model(replace(GPT, vocab_size=402))
    write_gguf(tmp_path / "a.gguf", model, tokenizer, "name")
    fields = gguf.GGUFReader(tmp_path / "a.gguf").fields
    assert fields["tokenizer.ggml.eos_token_id"].contents() == 401
    assert fields["tokenizer.ggml.token_type"].contents()[399:] == [1, 4, 3]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "config"), GGUF_CASES)
def test_logits_and_tokens_in_llama_cpp(
    kind: str, config: GPTConfig, bpe: HubTokenizer, tmp_path: Path
) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    model, tokenizer = write_and_read_tokens(kind, config, bpe, tmp_path / "a.gguf")
    # 0 is the type float32 of keys and values.
    settings = {"n_ctx": config.block_size, "n_batch": config.block_size, "type_k": 0, "type_v": 0}
    opened = llama_cpp.Llama(str(tmp_path / "a.gguf"), logits_all=True, verbose=False, **settings)
    for text in (*LANGUAGES, "\n", "  a b\n\n e"):
        ids = opened.tokenize(text.encode(), add_bos=False, special=False)
        assert ids == tokenizer.encode(text)
        assert opened.detokenize(ids) == text.encode()
    tokens = torch.randint(tokenizer.vocab_size, (config.block_size,))
    opened.eval(tokens.tolist())
    logits = np.array(opened.scores[: config.block_size])
    # llama.cpp looks GELU up in a table of float16 numbers.
    np.testing.assert_allclose(logits, model(tokens[None])[0].detach().numpy(), atol=5e-3, rtol=0)
    opened.close()


def test_the_code_of_the_card_runs(nanogpt: Command, small: list[str], text_file: Path) -> None:
    """The card's code opens the folder and generates; another text has no licence."""
    assert nanogpt("train", "--data", text_file, "--out", "mine", *small)[0] == 0
    status, out, err = nanogpt("export", "mine")
    assert (status, out, err) == (0, f"{Path('mine/hf')}\n", "")
    card = Path("mine/hf/README.md").read_text("utf-8")
    assert "on `words.txt`" in card
    assert "nanogpt does not know the licence of the texts" in card
    code = card.split("```python\n")[1].split("```")[0]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(done.stdout) == 17  # the block size, and a line break


def test_a_modern_run(nanogpt: Command, small: list[str], text_file: Path) -> None:
    """Its code is exported, and the command says so."""
    command = ["train", "tiny-fast", "--data", text_file, "--out", "mine", *small]
    assert nanogpt(*command, "--tokenizer", "bpe:300")[0] == 0
    assert nanogpt("export", "mine", "--out", "there") == (
        0,
        "there\n",
        "nanogpt: the folder contains the code of the model: to run it, transformers needs "
        "trust_remote_code=True\n",
    )
    assert {"modern.py", "gpt.py", "cache.py", "modeling_nanogpt.py"} < set(os.listdir("there"))
    card = Path("there/README.md").read_text("utf-8")
    assert card.count("trust_remote_code=True") == 2
    for file in Path("there").iterdir():
        assert "nanogpt.models" not in file.read_text("latin-1")
    assert nanogpt("export", "mine", "--to", "gguf")[::2] == (
        2,
        "nanogpt: llama.cpp cannot compute a modern model: use --to onnx\n",
    )
    open_in_transformers(Path("there"))


def test_what_cannot_be_exported(
    nanogpt: Command, small: list[str], text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each message names another format, which works."""
    short = ["--sample-tokens", "0", "--train.steps", "10", "--train.eval-every", "10"]
    assert nanogpt("train", "bigram", "--data", text_file, "--out", "bigram", *short)[0] == 0
    assert nanogpt("export", "bigram")[::2] == (
        2,
        "nanogpt: transformers has no class for a bigram model: use --to onnx\n",
    )
    assert not Path("bigram/hf").exists()
    assert nanogpt("export", "bigram", "--to", "onnx")[0] == 0
    assert nanogpt("export", "bigram", "--to", "onnx")[::2] == (
        2,
        "nanogpt: bigram/onnx exists: name a new directory with --out\n",
    )
    assert nanogpt("export", "bigram", "--to", "onnx", "--out", "new")[0] == 0
    assert sorted(os.listdir("new")) == ["model.onnx", "tokenizer.json"]

    words = convert_tokenizer(CharTokenizer(text_file.read_text("utf-8")))
    Path("words.json").write_text(json.dumps(words), "utf-8")
    command = ["train", "--data", text_file, "--tokenizer", "words.json", "--out", "words"]
    assert nanogpt(*command, *small)[0] == 0
    assert nanogpt("export", "words", "--to", "gguf")[::2] == (
        2,
        "nanogpt: llama.cpp has no tokenizer that works like that of this run: use --to hf\n",
    )
    assert nanogpt("export", "words", "--to", "hf")[0] == 0
    monkeypatch.setattr(extras, "find_spec", lambda _: None)
    assert nanogpt("export", "bigram", "--to", "onnx", "--out", "other")[::2] == (
        2,
        "nanogpt: --to onnx needs the library onnx: install it with `pip install onnx "
        "onnxscript`\n",
    )
    assert not Path("other").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of the file size")
def test_ctrl_c_ends_an_export_to_onnx(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """torch may replace the exception by another one."""

    def export(*_: object, **__: object) -> None:
        try:
            raise KeyboardInterrupt("signal")
        except KeyboardInterrupt as error:
            raise RuntimeError("failed to export the model") from error

    monkeypatch.setattr(torch.onnx, "export", export)
    with pytest.raises(KeyboardInterrupt, match="signal"):
        write_onnx(tmp_path / "model.onnx", make_model(GPT))


@pytest.mark.parametrize("format", ["hf", "gguf", slow("onnx")])
def test_a_full_disk_leaves_nothing(nanogpt: Command, run: Path, format: str) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        answer = nanogpt("export", run, "--to", format, "--out", "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    reason = "not all bytes were written" if format == "gguf" else "File too large"
    assert answer[::2] == (
        1,
        f"nanogpt: cannot write out ({reason}): name another directory with --out, or free disk "
        "space\n",
    )
    assert not [path for path in Path().iterdir() if "out" in path.name]
    assert nanogpt("export", run, "--to", format, "--out", "out")[0] == 0

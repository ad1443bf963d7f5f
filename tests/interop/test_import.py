"""A model of transformers becomes a run with the same logits; an export comes back unchanged."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from nanogpt.api import load
from nanogpt.errors import UserError
from nanogpt.interop.huggingface import convert_model, write_converted
from nanogpt.interop.importing import import_model
from nanogpt.lab.library import Library
from nanogpt.models import ModelConfig, ModernConfig
from nanogpt.runs.config import RunConfig
from nanogpt.text.bpe import HubTokenizer
from nanogpt.train import train
from tests.interop.hub import hub
from tests.interop.test_export import CONFIGS, TOKENIZERS, make_model

Command = Callable[..., tuple[int, str, str]]
GPT2: dict[str, Any] = {
    **{"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 24, "vocab_size": 400},
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
}
NANOCHAT: dict[str, Any] = {
    **{"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2},
    **{"hidden_size": 32, "intermediate_size": 128, "max_position_embeddings": 24},
    **{"vocab_size": 400, "rms_norm_eps": torch.finfo(torch.float32).eps},
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
}


@torch.no_grad()
def make_folder(
    bpe: HubTokenizer, kind: str = "gpt2", folder: str = "there", **changes: Any
) -> Any:
    """Save a random model of transformers and a tokenizer in a folder; return the model."""
    if kind == "gpt2":
        config: Any = transformers.GPT2Config(**{**GPT2, **changes})
        model: Any = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.NanoChatConfig(**{**NANOCHAT, **changes})
        model = transformers.NanoChatForCausalLM(config)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.eval().save_pretrained(folder)
    Path(folder, "tokenizer.json").write_text(json.dumps(bpe.to_json()), "utf-8")
    return model


def change_config(**changes: object) -> None:
    file = Path("there/config.json")
    settings = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps({**settings, **changes}), "utf-8")


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("gpt2", {}),
        ("gpt2", {"n_layer": 1, "n_head": 4, "n_inner": 128}),
        ("gpt2", {"activation_function": "gelu_pytorch_tanh"}),
        ("nanochat", {}),
        ("nanochat", {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}),
    ],
)
@torch.no_grad()
def test_logits_are_those_of_transformers(
    kind: str, changes: dict[str, Any], bpe: HubTokenizer
) -> None:
    model = make_folder(bpe, kind, **changes)
    run = import_model("there")
    assert run == Path("runs/there")
    trained = load(run, "cpu")
    tokens = torch.randint(400, (3, 24))
    torch.testing.assert_close(trained.model(tokens), model(tokens).logits, atol=1e-5, rtol=1e-5)
    assert trained.tokenizer.to_json() == bpe.to_json()


@torch.no_grad()
def test_other_forms_of_the_same_weights(bpe: HubTokenizer) -> None:
    """Several files, other types, names without a prefix, stored masks, an equal output layer."""
    model = make_folder(bpe)
    tokens = torch.randint(400, (2, 24))
    expected = model(tokens).logits
    weights = load_file("there/model.safetensors")
    save_file(
        {
            **{name.removeprefix("transformer."): each for name, each in weights.items()},
            "h.0.attn.bias": torch.ones(24, 24).tril()[None, None],
            "transformer.h.1.attn.bias": torch.ones(24, 24).tril()[None, None],
            "lm_head.weight": weights["transformer.wte.weight"].clone(),
        },
        "there/model.safetensors",
    )
    change_config(tie_word_embeddings=False)
    assert torch.allclose(load(import_model("there"), "cpu").model(tokens), expected, atol=1e-5)
    Path("there/model.safetensors").unlink()
    model.save_pretrained("there", max_shard_size="20KB")
    assert not Path("there/model.safetensors").exists()
    assert torch.allclose(load(import_model("there"), "cpu").model(tokens), expected, atol=1e-5)
    for file in Path("there").glob("*.safetensors*"):
        file.unlink()
    half = {name: each.bfloat16() for name, each in weights.items()}
    save_file(half, "there/model.safetensors")
    rounded = load(import_model("there"), "cpu").model.state_dict()["position_embedding.weight"]
    assert torch.equal(rounded, weights["transformer.wpe.weight"].bfloat16().float())


def test_the_files_of_gpt2s_tokenizer(bpe: HubTokenizer) -> None:
    """The folder has vocab.json and merges.txt instead of tokenizer.json."""
    make_folder(bpe)
    Path("there/tokenizer.json").unlink()
    saved = bpe.to_json()["model"]
    Path("there/vocab.json").write_text(json.dumps(saved["vocab"]), "utf-8")
    merges = "".join(f"{first} {second}\n" for first, second in saved["merges"])
    Path("there/merges.txt").write_text(f"#version: 0.2\n{merges}", "utf-8", newline="\n")
    tokenizer = load(import_model("there"), "cpu").tokenizer
    assert tokenizer.encode("a b, c\n\né") == bpe.encode("a b, c\n\né")


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
@pytest.mark.parametrize("config", CONFIGS)
def test_an_export_comes_back_unchanged(
    config: ModelConfig, kind: str, bpe: HubTokenizer, tmp_path: Path
) -> None:
    tokenizer = {**TOKENIZERS, "bpe": bpe}[kind]
    model = make_model(replace(config, vocab_size=tokenizer.vocab_size))
    Path("there").mkdir()
    write_converted(Path("there"), convert_model(model), tokenizer, config.block_size)
    back = load(import_model("there"), "cpu")
    assert back.tokenizer.to_json() == tokenizer.to_json()
    state = model.state_dict()
    for name, tensor in back.model.state_dict().items():
        assert torch.equal(tensor, state.get(name, torch.zeros_like(tensor))), name


@torch.no_grad()
def test_other_names_of_the_settings(bpe: HubTokenizer) -> None:
    model = make_folder(bpe, n_head=4)
    file = Path("there/config.json")
    file.write_text(file.read_text("utf-8").replace('"n_head"', '"num_attention_heads"'), "utf-8")
    tokens = torch.randint(400, (2, 24))
    found = load(import_model("there"), "cpu").model(tokens)
    torch.testing.assert_close(found, model(tokens).logits, atol=1e-5, rtol=1e-5)


def test_what_an_imported_run_can_do(bpe: HubTokenizer, nanogpt: Command, text_file: Path) -> None:
    model = make_folder(bpe)
    answer = nanogpt("import", "there", "--out", "mine")
    assert answer == (0, "saved in mine; generate text with: nanogpt sample mine\n", "")
    assert nanogpt("sample", "mine", "--max-new-tokens", "5")[0] == 0
    assert nanogpt("inspect", "mine", "--prompt", "abc")[0] == 0
    assert nanogpt("explain", "mine")[0] == 0
    assert nanogpt("export", "mine")[0] == 0
    card = Path("mine/hf/README.md").read_text("utf-8")
    assert "A GPT model, imported by nanogpt" in card
    assert nanogpt("eval", "mine")[::2] == (
        2,
        "nanogpt: mine was imported, without its text: name a text with --data\n",
    )
    status, out, _ = nanogpt("eval", "mine", "--data", text_file, "--json")
    ids = torch.tensor(bpe.encode(text_file.read_text("utf-8")))
    answer_json = json.loads(out)
    assert (status, answer_json["tokens"]) == (0, len(ids) - 1)
    with torch.no_grad():  # the first window
        first = torch.nn.functional.cross_entropy(model(ids[None, :24]).logits[0], ids[1:25])
    trained = load("mine", "cpu")
    own = torch.nn.functional.cross_entropy(trained.model(ids[None, :24])[0], ids[1:25])
    torch.testing.assert_close(own, first, atol=1e-5, rtol=1e-5)
    assert nanogpt("train", "--resume", "mine")[::2] == (
        2,
        "nanogpt: mine has no last checkpoint (an imported run never has one): begin a run with "
        "its weights, with --start-from mine\n",
    )
    status, out, _ = nanogpt("explain", "mine", "--data", text_file, "--json")
    assert (status, str(400 * 32) in out) == (0, True)
    summary = Library([Path("mine")]).describe("mine")
    assert (summary.bigram_loss, summary.val_loss, summary.kind) == (None, None, "GPT")
    with pytest.raises(UserError, match="was imported, without its text"):
        Library([Path("mine")]).texts("mine")


def test_training_starts_from_the_weights_of_a_run(
    bpe: HubTokenizer, nanogpt: Command, text_file: Path
) -> None:
    """The first loss is that of the run; the run can be resumed without the run it started from."""
    make_folder(bpe)
    assert nanogpt("import", "there", "--out", "start")[0] == 0
    loss = json.loads(nanogpt("eval", "start", "--data", text_file, "--json", "--split", "val")[1])
    command = ["train", "tiny", "--start-from", "start", "--data", text_file, "--device", "cpu"]
    command += ["--sample-tokens", "0", "--train.eval-every", "4", "--train.batch-size", "4"]
    schedule = ["--precision", "float32", "--optim.decay-steps", "8"]
    assert nanogpt(*command, *schedule, "--train.steps", "8", "--out", "straight")[0] == 0
    records = [
        json.loads(line) for line in Path("straight/metrics.jsonl").read_bytes().splitlines()
    ]
    assert records[0]["val_loss"] == pytest.approx(loss["loss"], abs=1e-5)
    assert records[-1]["val_loss"] < records[0]["val_loss"]
    assert nanogpt(*command, *schedule, "--train.steps", "4", "--out", "stopped")[0] == 0
    shutil.rmtree("start")
    resume = ["train", "--resume", "stopped", "--train.steps", "8", "--sample-tokens", "0"]
    assert nanogpt(*resume)[::2] == (0, "")
    one, two = (load(run, "cpu").model.state_dict() for run in ("straight", "stopped"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_start_that_does_not_fit(bpe: HubTokenizer, nanogpt: Command, text_file: Path) -> None:
    make_folder(bpe)
    assert nanogpt("import", "there", "--out", "start")[0] == 0
    command = ["train", "--start-from", "start", "--data", text_file, "--device", "cpu"]
    command += ["--sample-tokens", "0", "--train.steps", "2", "--train.eval-every", "2"]
    assert nanogpt(*command, "--model.n-layer", "3")[::2] == (
        2,
        "nanogpt: n_layer is 3, but start has 2: a run that starts from another one keeps its "
        "model; leave the option out\n",
    )
    assert nanogpt(*command, "--tokenizer", "byte")[0] == 2
    assert nanogpt(*command, "--tokenizer", "bpe:300")[::2] == (
        2,
        "nanogpt: start has another tokenizer: leave out --tokenizer, or use --tokenizer start\n",
    )
    assert nanogpt(*command, "--model.dropout", "0.2")[0] == 0
    assert nanogpt("train", "--start-from", "nope")[::2] == (
        2,
        "nanogpt: there is no run 'nope'; the runs in runs/: runs/tiny\n",
    )


def test_a_start_with_another_kind_of_model(bpe: HubTokenizer, text_file: Path) -> None:
    """Only a program in Python can have this error."""
    make_folder(bpe)
    run = import_model("there")
    config = RunConfig(data=str(text_file), start_from=run, tokenizer=str(run), device="cpu")
    with pytest.raises(UserError, match="has a GPT, but this run has a Modern"):
        train(replace(config, model=ModernConfig()))


def test_the_hub_needs_a_library(nanogpt: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert nanogpt("import", "hf:gpt2")[::2] == (
        2,
        "nanogpt: hf:gpt2 needs the library huggingface_hub: install it with `pip install "
        "huggingface_hub`\n",
    )


@pytest.mark.slow
def test_a_model_of_the_hub(bpe: HubTokenizer, tmp_path: Path) -> None:
    """The address of the Hub is read when the library is imported, so use a new process."""
    make_folder(bpe)
    Path("there/pytorch_model.bin").write_bytes(b"a pickle")
    with hub("me/model", Path("there")) as address:
        environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf")}

        def import_from_hub(name: str) -> tuple[int, str, str]:
            command = [sys.executable, "-m", "nanogpt", "import", name]
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            return done.returncode, done.stdout, done.stderr

        assert import_from_hub("hf:me/model") == (
            0,
            "saved in runs/model; generate text with: nanogpt sample runs/model\n",
            "",
        )
        status, out, err = import_from_hub("hf:me/other")
        assert (status, out) == (2, "")
        assert err.startswith("nanogpt: cannot download hf:me/other (")
        assert err.endswith("): check the network and the name\n")
    assert not list((tmp_path / "hf").rglob("*.bin"))  # pickled weights are not downloaded
    assert load("runs/model", "cpu").tokenizer.vocab_size == 400

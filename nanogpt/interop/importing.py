"""Makes a run from a model in the format of the library transformers.

The files may come from an untrusted source. They are data only: JSON and safetensors. Shapes are
compared with the configuration before memory is allocated.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..models import BigramConfig, GPTConfig, ModelConfig, ModernConfig, build
from ..runs.checkpoint import Checkpoint, save_checkpoint
from ..runs.config import RunConfig
from ..runs.directory import make_run_directory
from ..runs.reading import open_safetensors
from ..runs.run import Description, Versions
from ..system.files import (
    advise,
    damaged_error,
    dump_json,
    is_directory,
    path_exists,
    read_json,
    read_limited,
    write_atomically,
)
from ..system.schema import parse_dataclass, shorten
from ..text.bpe import make_bpe
from ..text.download import download_model
from ..text.gpt2 import END_OF_TEXT
from ..text.tokenizers import MAX_TOKENIZER_BYTES, Tokenizer
from .hub_tokenizer import parse_hub_tokenizer
from .huggingface import (
    LOGIT_CAP,
    RMS_EPSILON,
    ROTARY_BASE,
    convert_model,
    from_gpt2,
    from_nanochat,
    from_own_class,
)

UNUSED = re.compile(r"transformer\.h\.\d+\.attn\.(masked_bias|bias)")
"""Tensors in older files of GPT-2: the causal mask."""
DTYPES = "F32", "F16", "BF16"

Settings = dict[str, Any]
Limits = dict[str, tuple[object, tuple[object, ...]]]
"""For each setting in config.json: its default in transformers, and the values that we have."""


@dataclass(frozen=True)
class Kind:
    """A class of transformers that nanogpt can import."""

    parse: Callable[[Settings], ModelConfig]
    """Returns our configuration for a config.json."""
    find_limits: Callable[[Any], Limits]
    """Returns the limits for our configuration."""
    convert: Callable[[dict[str, Tensor], Any], dict[str, Tensor]]
    """Returns the weights under our names, given our configuration."""


def import_model(source: str, out: Path | None = None) -> Path:
    """Make a run from the folder `source`, or from hf:NAME, and return its directory.

    The run has only best/, so it can be used, but not resumed. Raises UserError if the files are
    missing or damaged, if nanogpt has no such model, or if the directory cannot be used.
    """
    folder = download_model(source) if source.startswith("hf:") else Path(source)
    if not is_directory(folder):
        raise UserError(
            f"there is no folder {folder}: name the folder of a model for transformers, or hf:NAME"
        )
    with advise("copy it again from its source"):
        config, state = _read_model(folder)
        tokenizer = _read_tokenizer(folder)
    if tokenizer.vocab_size != config.vocab_size:
        raise UserError(
            f"the tokenizer in {folder} has {tokenizer.vocab_size:,} tokens, but the model has "
            f"{config.vocab_size:,}: nanogpt needs the same number"
        )
    model = build(config).eval()
    model.load_state_dict(state)
    name = source.removeprefix("hf:") if source.startswith("hf:") else folder.resolve().name
    run = RunConfig(name=Path(name).name or "imported", data="", model=config)
    directory, lock = make_run_directory(out, run.name)
    try:
        save_checkpoint(directory / "best", Checkpoint(model, tokenizer, step=0))
        write_atomically(directory / "metrics.jsonl", b"")
        description = Description(
            config=replace(run, out=directory),
            text_sha256="",
            parameters=sum(p.numel() for p in model.parameters()),
            bigram_loss=None,
            device="",
            precision="float32",
            versions=Versions(),
        )
        write_atomically(directory / "run.json", dump_json(description.to_json()))
    finally:
        lock.release()
    return directory


def _read_model(folder: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Return the configuration and the weights of the model in a folder."""
    file = folder / "config.json"
    settings = read_json(file)
    name = (settings.get("architectures") or ["model without a name"])[0]
    if name not in KINDS:
        raise UserError(f"{folder} has a {name}, but nanogpt can import only {', '.join(KINDS)}")
    kind = KINDS[name]
    try:
        config = kind.parse(settings)
    except (TypeError, ValueError) as error:
        raise damaged_error(file, error) from None
    for key, (default, allowed) in kind.find_limits(config).items():
        if (found := settings.get(key, default)) not in allowed:
            raise UserError(
                f"{key} is {found} in {file}, but in nanogpt it is always {allowed[0]}: import "
                f"another model"
            )
    return config, kind.convert(_read_weights(folder, config, settings), config)


def _get_number(settings: Settings, name: str, default: int) -> int:
    value = settings.get(name, default)
    if type(value) is not int:
        raise ValueError(f"{name} cannot be {shorten(value)}")
    return value


def _parse_gpt2(settings: Settings) -> GPTConfig:
    return GPTConfig(
        n_layer=_get_number(settings, "n_layer", 12),
        n_head=_get_number(settings, "n_head", 12),
        n_embd=_get_number(settings, "n_embd", 768),
        block_size=_get_number(settings, "n_positions", 1024),
        vocab_size=_get_number(settings, "vocab_size", 50257),
        dropout=settings.get("resid_pdrop", 0.1),
    )


def _find_gpt2_limits(config: GPTConfig) -> Limits:
    return {
        "activation_function": ("gelu_new", ("gelu_new", "gelu_pytorch_tanh")),
        "layer_norm_epsilon": (1e-5, (1e-5,)),
        "n_inner": (None, (4 * config.n_embd, None)),
        "scale_attn_weights": (True, (True,)),
        "scale_attn_by_inverse_layer_idx": (False, (False,)),
        "add_cross_attention": (False, (False,)),
    }


def _parse_nanochat(settings: Settings) -> ModernConfig:
    return ModernConfig(
        n_layer=_get_number(settings, "num_hidden_layers", 12),
        n_head=_get_number(settings, "num_attention_heads", 6),
        n_embd=_get_number(settings, "hidden_size", 768),
        block_size=_get_number(settings, "max_position_embeddings", 2048),
        vocab_size=_get_number(settings, "vocab_size", 50304),
        dropout=settings.get("attention_dropout", 0.0),
        look_back=False,
    )


def _find_nanochat_limits(config: ModernConfig) -> Limits:
    heads = config.n_head
    return {
        "hidden_act": ("relu2", ("relu2",)),
        "intermediate_size": (8192, (4 * config.n_embd,)),
        "num_key_value_heads": (None, (heads, None)),
        "head_dim": (None, (config.n_embd // heads, None)),
        "rms_norm_eps": (1e-6, (RMS_EPSILON,)),
        "rope_parameters": (None, ({"rope_type": "default", "rope_theta": ROTARY_BASE},)),
        "final_logit_softcapping": (LOGIT_CAP, (LOGIT_CAP,)),
        "attention_bias": (False, (False,)),
        "tie_word_embeddings": (False, (False,)),
    }


def _parse_own(settings: Settings) -> ModernConfig:
    known = {name: settings[name] for name in ModernConfig.__dataclass_fields__ if name in settings}
    return parse_dataclass(ModernConfig, known, {})


KINDS = {
    "GPT2LMHeadModel": Kind(_parse_gpt2, _find_gpt2_limits, from_gpt2),
    "NanoChatForCausalLM": Kind(_parse_nanochat, _find_nanochat_limits, from_nanochat),
    "NanoGPTForCausalLM": Kind(_parse_own, lambda _: {}, from_own_class),
}


def _read_weights(folder: Path, config: ModelConfig, settings: Settings) -> dict[str, Tensor]:
    """Return the weights of a folder, which must have the shapes of the configuration."""
    files = {file: open_safetensors(file) for file in _find_weights(folder)}
    names = {name: file for file, opened in files.items() for name in opened.keys()}  # noqa: SIM118
    if not isinstance(config, BigramConfig) and config.n_layer > len(names):
        raise damaged_error(folder / "config.json", f"n_layer is {config.n_layer}")
    with torch.device("meta"):
        expected = convert_model(build(config)).weights
    head, table = "lm_head.weight", "transformer.wte.weight"
    if head not in expected and table in expected:
        expected[head] = expected[table]
    weights = {}
    for name, file in names.items():
        # The files of GPT-2 itself have names without this prefix.
        full = name if name in expected else f"transformer.{name}"
        if UNUSED.fullmatch(full):
            continue
        if full not in expected:
            raise damaged_error(file, f"unknown tensor {shorten(name)}")
        header = files[file].get_slice(name)
        shape, dtype = tuple(header.get_shape()), header.get_dtype()
        if shape != tuple(expected[full].shape) or dtype not in DTYPES:
            like = tuple(expected[full].shape)
            raise damaged_error(file, f"{name} is {dtype} {shape}; by config.json, it is {like}")
        weights[full] = files[file].get_tensor(name).float()
    is_tied = settings.get("tie_word_embeddings", True) or head not in weights
    if table in weights and not is_tied and not weights[head].equal(weights[table]):
        raise UserError(
            f"tie_word_embeddings is False in {folder / 'config.json'}, but in nanogpt it is "
            f"always True: import another model"
        )
    if missing := expected.keys() - weights.keys() - ({head} if table in weights else set()):
        raise damaged_error(next(iter(files)), f"{min(missing)} is missing")
    return weights


def _find_weights(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder. Raises UserError if there are none."""
    index = folder / "model.safetensors.index.json"
    if path_exists(index):
        try:
            names = sorted(set(read_json(index)["weight_map"].values()))
            return [folder / Path(name).name for name in names]
        except (AttributeError, KeyError, TypeError) as error:
            raise damaged_error(index, f"no weight_map: {error}") from None
    file = folder / "model.safetensors"
    if not path_exists(file):
        if pickled := sorted([*folder.glob("*.bin"), *folder.glob("*.pt")]):
            raise UserError(
                f"{folder} has only pickled weights, {pickled[0].name}, and reading them can "
                f"execute any code: save the model as safetensors"
            )
        raise UserError(f"{folder} has no weights: it needs model.safetensors")
    return [file]


def _read_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer of a folder, from tokenizer.json or from GPT-2's two files."""
    file, merges = folder / "tokenizer.json", folder / "merges.txt"
    if not path_exists(file) and path_exists(merges):
        file = folder / "vocab.json"
    if not path_exists(file):
        raise UserError(f"{folder} has no tokenizer: it needs tokenizer.json")
    saved = read_json(file, MAX_TOKENIZER_BYTES)
    try:
        if file.name == "tokenizer.json":
            return parse_hub_tokenizer(saved)
        lines = read_limited(merges, MAX_TOKENIZER_BYTES).decode().splitlines()
        pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
        special = [END_OF_TEXT] if END_OF_TEXT in saved else []
        return make_bpe(saved, [(first, second) for first, second in pairs], special)
    except (TypeError, ValueError) as error:
        raise UserError(f"{file} is not a tokenizer ({error}): name a tokenizer.json") from None

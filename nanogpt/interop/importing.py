"""Makes a run from a model in the format of the library transformers.

The files may come from an untrusted source. They are data only: JSON and safetensors. Shapes are
compared with the configuration before memory is allocated.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..models import GPTConfig, Model, ModernConfig, build
from ..runs.checkpoint import Checkpoint, SkipInit, save_checkpoint
from ..runs.config import RunConfig, TrainConfig
from ..runs.directory import make_run_directory
from ..runs.reading import open_safetensors
from ..runs.run import Description, Versions
from ..system.files import (
    advise,
    damaged_error,
    dump_json,
    is_file,
    path_exists,
    read_json,
    read_limited,
    remove_if_present,
    write_atomically,
)
from ..system.schema import parse_dataclass, shorten
from ..text.bpe import make_bpe
from ..text.gpt2 import END_OF_TEXT
from ..text.hub import download_model
from ..text.tokenizers import MAX_TOKENIZER_BYTES, Tokenizer, parse_tokenizer
from .extras import unwritable_error
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

FILES = [
    *("config.json", "tokenizer.json", "vocab.json", "merges.txt"),
    *("model.safetensors", "model.safetensors.index.json", "model-*.safetensors"),
]
"""The files of a model that are read."""
UNUSED = re.compile(r"^(transformer\.)?h\.\d+\.attn\.(masked_bias|bias)$")
"""Tensors in older files of GPT-2: the causal mask."""
DTYPES = "F32", "F16", "BF16"

Settings = dict[str, Any]
Limits = dict[str, tuple[object, tuple[object, ...]]]
"""For each setting in config.json: its default in transformers, and the values that we have."""


@dataclass(frozen=True)
class Kind:
    """A class of transformers that nanogpt can import."""

    parse: Callable[[Settings], GPTConfig | ModernConfig]
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
    is_remote = source.startswith("hf:")
    folder = download_model(source, ["config.json"]) if is_remote else Path(source)
    if not path_exists(folder / "config.json"):
        raise UserError(
            f"{source} is not a folder with a config.json: name the folder of a model for "
            f"transformers, or hf:NAME for a model of the Hugging Face Hub"
        )
    with advise("copy it again from its source"):
        settings = read_json(_require_file(folder / "config.json"))
        kind, config = _parse_settings(folder, settings)
        if is_remote:
            folder = download_model(source, FILES)
        weights = _read_weights(folder, config)
        tokenizer = _read_tokenizer(folder)
    if tokenizer.vocab_size != config.vocab_size:
        raise UserError(
            f"the tokenizer in {folder} has {tokenizer.vocab_size:,} tokens, but the model has "
            f"{config.vocab_size:,}: nanogpt needs the same number"
        )
    with SkipInit():
        model = build(config).eval()
    model.load_state_dict(kind.convert(weights, config))
    name = Path(source.removeprefix("hf:") if is_remote else folder.resolve()).name
    return _write_run(model, tokenizer, name or "imported", out)


def _write_run(model: Model, tokenizer: Tokenizer, name: str, out: Path | None) -> Path:
    """Write a run that has only best/. After an error, nothing is left."""
    training = TrainConfig(steps=1)  # no step is ever taken
    run = RunConfig(name=name, data="", model=model.config, train=training)
    if out and path_exists(out):
        raise UserError(f"{out} exists: name a new directory with --out")
    directory, lock = make_run_directory(out, run.name)
    description = Description(
        config=replace(run, out=directory, tokenizer=str(directory)),
        text_sha256="",
        parameters=sum(p.numel() for p in model.parameters()),
        bigram_loss=None,
        device="",
        precision="float32",
        versions=Versions(),
    )
    try:
        save_checkpoint(directory / "best", Checkpoint(model, tokenizer, step=0))
        write_atomically(directory / "metrics.jsonl", b"")
        write_atomically(directory / "run.json", dump_json(description.to_json()))
    except BaseException as error:
        lock.release()
        for file in ("best", "metrics.jsonl", "run.json", ".lock", ".pid"):
            remove_if_present(directory / file)
        with suppress(OSError):
            directory.rmdir()  # keeps a directory with other files
        if isinstance(error, OSError):
            raise unwritable_error(directory, error) from None
        raise
    lock.release()
    return directory


def _parse_settings(folder: Path, settings: Settings) -> tuple[Kind, GPTConfig | ModernConfig]:
    """Return the kind and our configuration of the model with these settings."""
    file, names = folder / "config.json", settings.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if not isinstance(name, str) or name not in KINDS:
        shown = shorten(name)[1:-1] if isinstance(name, str) else "model of an unknown class"
        raise UserError(
            f"the model in {folder} is a {shown}, but nanogpt can import only {', '.join(KINDS)}"
        )
    kind = KINDS[name]
    try:
        config = kind.parse(settings)
    except (TypeError, ValueError) as error:
        raise damaged_error(file, error) from None
    for key, (default, allowed) in kind.find_limits(config).items():
        found = settings.get(key, default)
        if not any(found == v and (found is v or not isinstance(found, bool)) for v in allowed):
            is_short = found is None or isinstance(found, bool | int | float)
            raise UserError(
                f"{key} is {found if is_short else shorten(found)} in {file}, but in nanogpt it is "
                f"always {allowed[0]}: import another model"
            )
    return kind, config


def _get_number(settings: Settings, default: int, name: str, other: str = "") -> int:
    """Return the value of a setting, which may also have another name."""
    values = [settings[key] for key in (name, other) if key in settings] or [default]
    if any(type(value) is not int or value != values[0] for value in values):
        raise ValueError(f"{name} cannot be {shorten(values[-1])}")
    return int(values[0])


def _get_dropout(settings: Settings, name: str, default: float) -> float:
    value = settings.get(name, default)
    if type(value) not in (int, float):
        raise ValueError(f"{name} cannot be {shorten(value)}")
    return float(value)


def _parse_gpt2(settings: Settings) -> GPTConfig:
    return GPTConfig(
        n_layer=_get_number(settings, 12, "n_layer", "num_hidden_layers"),
        n_head=_get_number(settings, 12, "n_head", "num_attention_heads"),
        n_embd=_get_number(settings, 768, "n_embd", "hidden_size"),
        block_size=_get_number(settings, 1024, "n_positions", "max_position_embeddings"),
        vocab_size=_get_number(settings, 50257, "vocab_size"),
        dropout=_get_dropout(settings, "resid_pdrop", 0.1),
    )


def _find_gpt2_limits(config: GPTConfig) -> Limits:
    return {
        "activation_function": ("gelu_new", ("gelu_new", "gelu_pytorch_tanh")),
        "layer_norm_epsilon": (1e-5, (1e-5,)),
        "n_inner": (None, (4 * config.n_embd, None)),
        "scale_attn_weights": (True, (True,)),
        "scale_attn_by_inverse_layer_idx": (False, (False,)),
        "add_cross_attention": (False, (False,)),
        "is_causal": (True, (True,)),
    }


def _parse_nanochat(settings: Settings) -> ModernConfig:
    return ModernConfig(
        n_layer=_get_number(settings, 12, "num_hidden_layers"),
        n_head=_get_number(settings, 6, "num_attention_heads"),
        n_embd=_get_number(settings, 768, "hidden_size"),
        block_size=_get_number(settings, 2048, "max_position_embeddings"),
        vocab_size=_get_number(settings, 50304, "vocab_size"),
        dropout=_get_dropout(settings, "attention_dropout", 0.0),
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
        "rope_scaling": (None, (None,)),
        "is_causal": (True, (True,)),
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


def _read_weights(folder: Path, config: GPTConfig | ModernConfig) -> dict[str, Tensor]:
    """Return the weights of a folder, which must have the shapes of the configuration."""
    files = {file: open_safetensors(file) for file in _find_weights(folder)}
    names = {name: file for file, opened in files.items() for name in opened.keys()}  # noqa: SIM118
    try:
        if len(names) < _count_weights(config):  # before building a model with too many layers
            raise damaged_error(
                next(iter(files)), f"{len(names)} tensors are too few for n_layer {config.n_layer}"
            )
        expected = _make_weights(config)
    except (RuntimeError, TypeError, OverflowError) as error:  # a size is too large for a tensor
        raise damaged_error(folder / "config.json", error) from None
    head, table = "lm_head.weight", "transformer.wte.weight"
    weights, tied_head = {}, None
    for name, file in names.items():
        # The files of GPT-2 itself have names without this prefix.
        full = name if name in expected or name == head else f"transformer.{name}"
        if UNUSED.search(name):
            continue
        like = expected.get(table if full == head and table in expected else full)
        if like is None:
            raise damaged_error(file, f"unknown tensor {shorten(name)}")
        header = files[file].get_slice(name)
        shape, dtype = tuple(header.get_shape()), header.get_dtype()
        if dtype not in DTYPES:
            raise damaged_error(file, f"{name} has the type {dtype}, not {', '.join(DTYPES)}")
        if shape != tuple(like.shape):
            raise damaged_error(
                file, f"{name} is {dtype} {shape}; by config.json, it is {tuple(like.shape)}"
            )
        tensor = files[file].get_tensor(name).float()
        if full in weights:
            raise damaged_error(file, f"{name} is there twice")
        if not tensor.isfinite().all():
            raise damaged_error(file, f"{name} is not finite")
        if full in expected:
            weights[full] = tensor
        else:
            tied_head = tensor
    if missing := expected.keys() - weights.keys():
        raise damaged_error(next(iter(files)), f"{min(missing)} is missing")
    if tied_head is not None and not tied_head.equal(weights[table]):
        raise UserError(
            f"the output layer in {folder} has other weights than the token embedding, but in "
            f"nanogpt they are always tied: import another model"
        )
    return weights


def _make_weights(config: GPTConfig | ModernConfig) -> dict[str, Tensor]:
    """Return the weights that a folder has, as meta tensors, which use no memory."""
    with torch.device("meta"), SkipInit():
        return convert_model(build(config)).weights


def _count_weights(config: GPTConfig | ModernConfig) -> int:
    """Compute how many weights a folder has, from those for two layers and for three layers."""
    n = config.n_layer
    few = {m: len(_make_weights(replace(config, n_layer=m))) for m in {min(n, 2), min(n, 3)}}
    return few[n] if n in few else few[2] + (n - 2) * (few[3] - few[2])


def _find_weights(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder. Raises UserError if there are none."""
    index = folder / "model.safetensors.index.json"
    if path_exists(index):
        found = read_json(_require_file(index)).get("weight_map")
        names = set(found.values()) if isinstance(found, dict) and _are_names(found) else set()
        if not names:
            raise damaged_error(index, "no weight_map with names of files")
        return [_require_file(folder / name) for name in sorted(names)]
    file = folder / "model.safetensors"
    if not path_exists(file):
        if pickled := sorted([*folder.glob("*.bin"), *folder.glob("*.pt")]):
            raise UserError(
                f"{folder} has only pickled weights, {pickled[0].name}, and reading them can "
                f"execute any code: save the model as safetensors"
            )
        raise UserError(f"{folder} has no weights: it needs model.safetensors")
    return [_require_file(file)]


def _require_file(file: Path) -> Path:
    """Return `file`, which may be a link. Raises UserError if it is a pipe or a directory."""
    if path_exists(file) and not is_file(file):
        raise damaged_error(file, "not a regular file")
    return file


def _are_names(found: dict[str, Any]) -> bool:
    """Return whether all values are names of files, without directories."""
    return all(isinstance(v, str) and re.fullmatch(r"[\w.-]+", v) for v in found.values())


def _read_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer of a folder, from tokenizer.json or from GPT-2's two files."""
    file, merges = folder / "tokenizer.json", folder / "merges.txt"
    if not path_exists(file) and path_exists(merges):
        file = folder / "vocab.json"
    if not path_exists(file):
        raise UserError(f"{folder} has no tokenizer: it needs tokenizer.json")
    saved = read_json(_require_file(file), MAX_TOKENIZER_BYTES)
    lines: list[str] = []
    if file.name != "tokenizer.json":
        raw = read_limited(_require_file(merges), MAX_TOKENIZER_BYTES)
        lines = raw.decode(errors="replace").splitlines()
    try:
        if file.name == "tokenizer.json":
            tokenizer = parse_hub_tokenizer(saved)
            parse_tokenizer(tokenizer.to_json())  # the run will be read from this content
            return tokenizer
        pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
        special = [END_OF_TEXT] if END_OF_TEXT in saved else []
        return make_bpe(saved, [(first, second) for first, second in pairs], special)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"the tokenizer in {folder} is damaged ({error}): copy it again from its source"
        ) from None

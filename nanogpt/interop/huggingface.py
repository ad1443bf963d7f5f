"""The formats of Hugging Face's library transformers: a configuration, and weights by name.

A GPT becomes a GPT2LMHeadModel. A modern model becomes a NanoChatForCausalLM if that class has the
same operations. Otherwise, the code of the model is exported, too: modeling_nanogpt.py.
"""

import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from .. import models
from ..errors import UserError
from ..models import GPT, GPTConfig, Model, Modern, ModernConfig, Plain
from ..runs.checkpoint import to_os_error
from ..system.files import dump_json
from ..text.tokenizers import Tokenizer
from .hub_tokenizer import convert_tokenizer

ROTARY_BASE, RMS_EPSILON, LOGIT_CAP = 1000.0, torch.finfo(torch.float32).eps, 15.0
"""The constants of models/modern.py that transformers reads from the configuration."""


@dataclass(frozen=True)
class Converted:
    """A model in the format of transformers."""

    config: dict[str, Any]
    """The content of config.json."""
    weights: dict[str, Tensor]
    """The content of model.safetensors."""
    code: dict[str, str] = field(default_factory=dict)
    """Files with the code of the model; empty if transformers has a class for it."""


def convert_model(model: Model) -> Converted:
    """Convert a model. Raises UserError for a bigram and a plain model."""
    match model:
        case GPT() if not isinstance(model, Plain):
            return _to_gpt2(model)
        case Modern() if not find_own_parts(model.config):
            return _to_nanochat(model)
        case Modern():
            return _to_own_class(model)
    kind = type(model).__name__.lower()
    raise UserError(f"transformers has no class for a {kind} model: use --to onnx")


def write_converted(
    directory: Path, converted: Converted, tokenizer: Tokenizer, block_size: int
) -> None:
    """Write the files that AutoModelForCausalLM and AutoTokenizer open. Raises OSError."""
    opened_by = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": block_size,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }
    files = {
        "config.json": converted.config,
        "generation_config.json": {
            "do_sample": True,
            "temperature": 0.8,
            "max_length": block_size,
        },
        "tokenizer.json": convert_tokenizer(tokenizer),
        "tokenizer_config.json": opened_by,
    }
    for name, content in files.items():
        (directory / name).write_bytes(dump_json(content))
    for name, code in converted.code.items():
        (directory / name).write_bytes(code.encode())
    file = directory / "model.safetensors"
    weights = {name: tensor.contiguous() for name, tensor in converted.weights.items()}
    try:
        save_file(weights, file, {"format": "pt"})
        shutil.copymode(directory / "config.json", file)  # save_file() sets other permissions
    except SafetensorError as error:
        raise to_os_error(error) from None


def find_own_parts(config: ModernConfig) -> list[str]:
    """Return the settings of a modern model that NanoChatForCausalLM does not have."""
    parts = {
        "look_back": config.look_back,
        "skips": config.skips,
        "activation": config.activation != "relu2",
    }
    return [name for name, differs in parts.items() if differs]


def _common_settings(config: GPTConfig | ModernConfig, name: str) -> dict[str, Any]:
    # Without these tokens, generate() would otherwise use the ids of other models.
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    return {"architectures": [name], "dtype": "float32", "vocab_size": config.vocab_size, **special}


def _gpt2_names(n_layer: int) -> dict[str, str]:
    """Map the names of the modules of a GPT to those of a GPT2LMHeadModel."""
    names = {"token_embedding": "wte", "position_embedding": "wpe", "norm": "ln_f"}
    parts = {
        "norm1": "ln_1",
        "attention.qkv": "attn.c_attn",
        "attention.projection": "attn.c_proj",
        "norm2": "ln_2",
        "feed_forward.0": "mlp.c_fc",
        "feed_forward.2": "mlp.c_proj",
    }
    for n in range(n_layer):
        names |= {f"blocks.{n}.{ours}": f"h.{n}.{theirs}" for ours, theirs in parts.items()}
    return {ours: f"transformer.{theirs}" for ours, theirs in names.items()}


def _to_gpt2(model: GPT) -> Converted:
    config, state = model.config, model.state_dict()
    settings = {
        "model_type": "gpt2",
        **_common_settings(config, "GPT2LMHeadModel"),
        "n_positions": config.block_size,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": model.norm.eps,
        "tie_word_embeddings": True,
        **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), config.dropout),
    }
    weights = {}
    for ours, theirs in _gpt2_names(config.n_layer).items():
        weight = state[f"{ours}.weight"]
        if "embedding" in ours:
            weights[f"{theirs}.weight"] = weight
            continue
        # GPT-2 stores the matrix of a linear layer transposed. It always has biases.
        weights[f"{theirs}.weight"] = weight.T if weight.dim() == 2 else weight
        weights[f"{theirs}.bias"] = state.get(f"{ours}.bias", weight.new_zeros(len(weight)))
    return Converted(settings, weights)


def _to_nanochat(model: Modern) -> Converted:
    config, state = model.config, model.state_dict()
    settings = {
        "model_type": "nanochat",
        **_common_settings(config, "NanoChatForCausalLM"),
        "hidden_size": config.n_embd,
        "intermediate_size": config.n_hidden,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_head,
        "max_position_embeddings": config.block_size,
        "hidden_act": "relu2",
        "attention_dropout": config.dropout,
        "rms_norm_eps": RMS_EPSILON,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROTARY_BASE},
        "final_logit_softcapping": LOGIT_CAP,
        "tie_word_embeddings": False,
    }
    weights = {
        "model.embed_tokens.weight": state["token_embedding.weight"],
        "lm_head.weight": state["head.weight"],
    }
    for n in range(config.n_layer):
        ours, theirs = f"blocks.{n}", f"model.layers.{n}"
        q, k = _swap_halves(state[f"{ours}.attention.qk.weight"], config.n_head).chunk(2)
        weights |= {
            f"{theirs}.self_attn.q_proj.weight": q,
            f"{theirs}.self_attn.k_proj.weight": k,
            f"{theirs}.self_attn.v_proj.weight": state[f"{ours}.attention.v.weight"],
            f"{theirs}.self_attn.o_proj.weight": state[f"{ours}.attention.projection.weight"],
            f"{theirs}.mlp.fc1.weight": state[f"{ours}.feed_forward.up.weight"],
            f"{theirs}.mlp.fc2.weight": state[f"{ours}.feed_forward.down.weight"],
        }
    return Converted(settings, weights)


def from_gpt2(weights: dict[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """Return the weights of a GPT under our names; the inverse of _to_gpt2()."""
    state = {}
    for ours, theirs in _gpt2_names(config.n_layer).items():
        weight = weights[f"{theirs}.weight"]
        is_transposed = weight.dim() == 2 and "embedding" not in ours
        state[f"{ours}.weight"] = weight.T.contiguous() if is_transposed else weight
        if "embedding" not in ours:
            state[f"{ours}.bias"] = weights[f"{theirs}.bias"]
    return state


def from_nanochat(weights: dict[str, Tensor], config: ModernConfig) -> dict[str, Tensor]:
    """Return the weights of a modern model under our names; the inverse of _to_nanochat()."""
    state = {
        "token_embedding.weight": weights["model.embed_tokens.weight"],
        "head.weight": weights["lm_head.weight"],
    }
    for n in range(config.n_layer):
        ours, theirs = f"blocks.{n}", f"model.layers.{n}"
        qk = torch.cat([weights[f"{theirs}.self_attn.{name}_proj.weight"] for name in "qk"])
        state |= {
            f"{ours}.attention.qk.weight": _swap_halves(qk, config.n_head),
            f"{ours}.attention.v.weight": weights[f"{theirs}.self_attn.v_proj.weight"],
            f"{ours}.attention.projection.weight": weights[f"{theirs}.self_attn.o_proj.weight"],
            f"{ours}.feed_forward.up.weight": weights[f"{theirs}.mlp.fc1.weight"],
            f"{ours}.feed_forward.down.weight": weights[f"{theirs}.mlp.fc2.weight"],
        }
    return state


def _swap_halves(qk: Tensor, n_head: int) -> Tensor:
    """Exchange the two halves of the channels of all query and key heads; qk is (2C, C).

    NanoChatForCausalLM rotates a pair of channels (a, b) as our rotate() rotates (b, a).
    """
    C = len(qk) // 2
    return qk.view(2 * n_head, 2, -1, C).flip(1).view(2 * C, C)


def _to_own_class(model: Modern) -> Converted:
    names = {"AutoConfig": "NanoGPTConfig", "AutoModelForCausalLM": "NanoGPTForCausalLM"}
    settings = {
        "model_type": "nanogpt",
        **_common_settings(model.config, "NanoGPTForCausalLM"),
        "auto_map": {each: f"modeling_nanogpt.{name}" for each, name in names.items()},
        **asdict(model.config),
        "tie_word_embeddings": False,
    }
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    definitions = Path(models.__file__).parent
    files = [definitions / f"{name}.py" for name in ("modern", "gpt", "cache")]
    files.append(Path(__file__).with_name("modeling_nanogpt.py"))
    # In an export, all files are in one folder.
    code = {
        file.name: file.read_text("utf-8").replace("from ..models.", "from .") for file in files
    }
    return Converted(settings, weights, code)


def from_own_class(weights: dict[str, Tensor], _: ModernConfig) -> dict[str, Tensor]:
    """Return the weights of a modern model under our names; the inverse of _to_own_class()."""
    return {name.removeprefix("model."): tensor for name, tensor in weights.items()}

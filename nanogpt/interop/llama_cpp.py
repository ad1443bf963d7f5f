"""The format GGUF, which the program llama.cpp reads; it can compute the models of gpt.py."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from ..models import GPT, Model, Plain
from ..text.bpe import HubTokenizer, is_gpt2_bpe, map_characters_to_bytes
from ..text.tokenizers import Tokenizer
from .extras import require_libraries

if TYPE_CHECKING:
    import gguf

NORMAL, CONTROL, ADDED, UNUSED = 1, 3, 4, 5
"""The types of tokens in a GGUF file."""
PARTS = {
    "norm1": "attn_norm",
    "attention.qkv": "attn_qkv",
    "attention.projection": "attn_output",
    "norm2": "ffn_norm",
    "feed_forward.0": "ffn_up",
    "feed_forward.2": "ffn_down",
}
"""The parts of a block: their names in models/gpt.py and in a GGUF file."""


def write_gguf(file: Path, model: Model, tokenizer: Tokenizer, name: str) -> None:
    """Write a model and its tokenizer to a GGUF file, with weights in float32.

    Raises UserError if llama.cpp cannot compute this model, or has no such tokenizer; raises
    OSError if writing fails.
    """
    if not isinstance(model, GPT) or isinstance(model, Plain):
        kind = type(model).__name__.lower()
        raise UserError(f"llama.cpp cannot compute a {kind} model: use --to onnx")
    if isinstance(tokenizer, HubTokenizer) and not is_gpt2_bpe(tokenizer.to_json()):
        raise UserError("llama.cpp has no tokenizer that works like that of this run: use --to hf")
    require_libraries("--to gguf", "gguf")
    from gguf import GGUFWriter

    writer, config = GGUFWriter(file, "gpt2"), model.config
    writer.add_name(name)
    writer.add_context_length(config.block_size)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(4 * config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(model.norm.eps)
    writer.add_file_type(0)  # all weights are in float32
    if isinstance(tokenizer, HubTokenizer):
        _add_bpe(writer, tokenizer)
    else:
        _add_longest_match(writer, tokenizer)
    _add_tensors(writer, model)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    except OSError as error:  # numpy does not know the reason of the system
        raise OSError(error.strerror or "not all bytes were written") from None
    finally:
        writer.close()


def _add_longest_match(writer: "gguf.GGUFWriter", tokenizer: Tokenizer) -> None:
    """Add a tokenizer of characters or bytes.

    llama.cpp has no such tokenizer, but that of the model RWKV selects the longest token that
    matches the next bytes. This is the next character, or the next byte. Unlike all others, this
    tokenizer has no special tokens, at which llama.cpp would stop.
    """
    tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
    writer.add_tokenizer_model("rwkv")
    writer.add_token_list([repr(token)[2:-1].encode() for token in tokens])  # b'\n' becomes \n
    writer.add_token_types([NORMAL] * len(tokens))


def _add_bpe(writer: "gguf.GGUFWriter", tokenizer: HubTokenizer) -> None:
    saved = tokenizer.to_json()
    vocabulary = saved["model"]["vocab"]
    added = {each["content"]: each["id"] for each in saved["added_tokens"]}
    special = {each["content"]: each["id"] for each in saved["added_tokens"] if each["special"]}
    tokens = [f"unused {i}" for i in range(tokenizer.vocab_size)]
    types = [UNUSED] * len(tokens)
    for kind, ids in ((NORMAL, vocabulary), (ADDED, added), (CONTROL, special)):
        for token, i in ids.items():
            tokens[i], types[i] = token, kind
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in saved["model"]["merges"]])
    # By default, llama.cpp stops after token 11. The byte 0xFF is in no text in UTF-8.
    never = next(c for c, byte in map_characters_to_bytes().items() if byte == 0xFF)
    end = next(iter(special.values()), vocabulary.get(never, 0))
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    writer.add_add_bos_token(False)


def _add_tensors(writer: "gguf.GGUFWriter", model: GPT) -> None:
    """Add the weights. llama.cpp needs biases; if the model has none, they are 0."""
    state = model.state_dict()
    writer.add_tensor("token_embd.weight", state["token_embedding.weight"].numpy())
    writer.add_tensor("position_embd.weight", state["position_embedding.weight"].numpy())
    names = {"norm": "output_norm"}
    for n in range(model.config.n_layer):
        names |= {f"blocks.{n}.{ours}": f"blk.{n}.{theirs}" for ours, theirs in PARTS.items()}
    for ours, theirs in names.items():
        weight = state[f"{ours}.weight"]
        bias = state.get(f"{ours}.bias", weight.new_zeros(len(weight)))
        writer.add_tensor(f"{theirs}.weight", weight.numpy())
        writer.add_tensor(f"{theirs}.bias", bias.numpy())

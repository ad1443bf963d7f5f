# %% [markdown]
# # 16. GPT-2's weights
#
# In 2019 OpenAI published the weights of GPT-2 (Radford et al. 2019, "Language Models are
# Unsupervised Multitask Learners"). It has the architecture of lesson 9. Can our GPT use its
# weights? Yes: only the names differ, and some matrices are transposed. This lesson translates a
# file of weights. It makes a small file with random weights itself, in the layout of the real one.
# At the end it loads the real file, if you have it.
#
# **Before this lesson:** [lesson 5](05_heads.md) (queries, keys and values of all heads in one
# matrix), [lesson 9](09_gpt.md) (the names of the weights) and [lesson 14](14_bpe.md) (byte-pair
# encoding).
#
# **You will see:** which name becomes which; the same logits as the library `transformers`; three
# mistakes that raise no error but raise the loss, from 2.1 up to 3.6 nats; and the four sizes of
# GPT-2, from 124,439,808 to 1,557,611,200 parameters.

# %%
import importlib.util
import mmap
import os
import tempfile
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from lesson import SOLUTIONS, T, V, evaluate, train
from pictures import ACCENT, FILL, INK, PAPER, SOFT, arrow, box, diagram, show, write
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn

from nanogpt.models import GPT, GPTConfig

# %% [markdown]
# ## A file in GPT-2's layout
#
# The usual copy of GPT-2's weights is the one of the company Hugging Face. It is a safetensors
# file: a list of tensors, each with a name. The next function makes random tensors with the same
# names and shapes.


# %%
def make_checkpoint(n_layer, C, block_size, vocab_size):
    shapes = {"wte.weight": (vocab_size, C), "wpe.weight": (block_size, C)}
    layers = {"attn.c_attn": (C, 3 * C), "attn.c_proj": (C, C)}
    layers |= {"mlp.c_fc": (C, 4 * C), "mlp.c_proj": (4 * C, C)}
    for block in range(n_layer):
        for norm in ("ln_1", "ln_2"):
            shapes[f"h.{block}.{norm}.weight"] = shapes[f"h.{block}.{norm}.bias"] = (C,)
        for name, (inputs, outputs) in layers.items():
            shapes[f"h.{block}.{name}.weight"] = (inputs, outputs)
            shapes[f"h.{block}.{name}.bias"] = (outputs,)
        shapes[f"h.{block}.attn.bias"] = (1, 1, block_size, block_size)  # not a bias: see below
    shapes["ln_f.weight"] = shapes["ln_f.bias"] = (C,)
    return {name: torch.randn(shape).mul_(0.2) for name, shape in shapes.items()}


# %% [markdown]
# We make a file with two Transformer blocks of 32 channels, write it, and read it again.

# %%
torch.manual_seed(0)
file = Path(tempfile.mkdtemp()) / "model.safetensors"
save_file(make_checkpoint(n_layer=2, C=32, block_size=16, vocab_size=100), file)
checkpoint = load_file(file)
print(len(checkpoint), "tensors; those outside the second Transformer block:")
for name, tensor in checkpoint.items():
    if not name.startswith("h.1."):
        print(f"{name:24} {tuple(tensor.shape)}")

# %% [markdown]
# `wte` and `wpe` are the token and position embedding (from "word token/position embedding"), `h`
# are the hidden layers, `ln` is layer norm, and `c_fc` and `c_proj` of `mlp` are the two layers of
# the feed-forward network. Nothing belongs to the output: it is tied.
#
# One name is a trap: `h.0.attn.bias` is no bias. It is the mask of the attention, stored by old
# versions of the library. Our model makes its mask itself, so we leave it out.
#
# ## From name to name

# %% alt="Each name in GPT-2's file, an arrow, and our name; the four matrices are transposed"
rows = [
    ("wte", "(V, C)", "token_embedding", "(V, C)"),
    ("wpe", "(T, C)", "position_embedding", "(T, C)"),
    ("h.0.ln_1", "(C)", "blocks.0.norm1", "(C)"),
    ("h.0.attn.c_attn", "(C, 3C)", "blocks.0.attention.qkv", "(3C, C)"),
    ("h.0.attn.c_proj", "(C, C)", "blocks.0.attention.projection", "(C, C)"),
    ("h.0.ln_2", "(C)", "blocks.0.norm2", "(C)"),
    ("h.0.mlp.c_fc", "(C, 4C)", "blocks.0.feed_forward.0", "(4C, C)"),
    ("h.0.mlp.c_proj", "(4C, C)", "blocks.0.feed_forward.2", "(C, 4C)"),
    ("ln_f", "(C)", "norm", "(C)"),
]
axes = diagram(74, 50)
write(axes, 12, 48, "GPT-2's file", bold=True)
write(axes, 54, 48, "our GPT", bold=True)
for number, (old, old_shape, new, new_shape) in enumerate(rows):
    y, transposed = 44 - 4.5 * number, old_shape != new_shape or "c_proj" in old
    color = SOFT if transposed else FILL
    box(axes, 12, y, f"{old}   {old_shape}", 22, 3.6, color)
    box(axes, 54, y, f"{new}   {new_shape}", 38, 3.6, color)
    arrow(axes, (23, y), (35, y), color=ACCENT if transposed else INK)
    if transposed:
        write(axes, 28.5, y + 1.2, "transpose", 8, ACCENT)
box(axes, 12, 3.2, "h.0.attn.bias   (1, 1, T, T)", 22, 3.6, PAPER)
write(axes, 25, 3.2, "left out: it is the mask", align="left")
show("names")

# %% [markdown]
# Four matrices are transposed. The reason: the original program computes $x W + b$ with a matrix of
# shape (inputs, outputs). `nn.Linear` computes $x W^\top + b$ with a matrix of shape (outputs,
# inputs). Both give the same result if one matrix is the transpose of the other:

# %%
x = torch.tensor([[1.0, 10.0]])  # (1, 2)
W = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])  # (2, 3): inputs, outputs
linear = nn.Linear(2, 3, bias=False)
linear.weight.data = W.T  # (3, 2): outputs, inputs
print((x @ W).tolist(), linear(x).tolist())

# %% [markdown]
# The translation needs a table of names and one rule: the weights of the layers whose name begins
# with `c_` are transposed.

# %%
NEW_NAMES = {
    "wte": "token_embedding",
    "wpe": "position_embedding",
    "h.": "blocks.",
    "ln_1": "norm1",
    "ln_2": "norm2",
    "ln_f": "norm",
    "attn.c_attn": "attention.qkv",
    "attn.c_proj": "attention.projection",
    "mlp.c_fc": "feed_forward.0",
    "mlp.c_proj": "feed_forward.2",
}


def translate(checkpoint):
    weights = {}
    for old_name, tensor in checkpoint.items():
        if old_name.endswith(".attn.bias"):
            continue  # the mask
        new_name = old_name.removeprefix("transformer.")  # in files of save_pretrained()
        for old, new in NEW_NAMES.items():
            new_name = new_name.replace(old, new)
        is_transposed = ".c_" in old_name and old_name.endswith(".weight")
        weights[new_name] = tensor.T if is_transposed else tensor
    return weights


# %% [markdown]
# The shapes in the file also tell the settings of the model, except one: no shape depends on the
# number of heads. In all sizes of GPT-2, a head has D = 64 channels.


# %%
def read_config(weights, head_size=64):
    vocab_size, C = weights["token_embedding.weight"].shape
    numbers = {int(name.split(".")[1]) for name in weights if name.startswith("blocks.")}
    return GPTConfig(
        n_layer=len(numbers),
        n_head=C // head_size,
        n_embd=C,
        block_size=len(weights["position_embedding.weight"]),
        vocab_size=vocab_size,
    )


weights = translate(checkpoint)
config = read_config(weights, head_size=8)
print(config)

# %% [markdown]
# A model on the device `meta` has shapes but no memory. `load_state_dict` with `assign=True` gives
# it the tensors of the file instead of copying their numbers.

# %%
with torch.device("meta"):
    model = GPT(config)
print(model.load_state_dict(weights, assign=True))
tokens = torch.randint(100, (2, 16))  # (B, T)
logits = model(tokens)  # (B, T, V)
print("logits", tuple(logits.shape))

# %% [markdown]
# ## Is it right?
#
# The library `transformers` reads the same file. Its logits must be equal to ours. If the library
# is missing, the cell says so.

# %%
if importlib.util.find_spec("transformers"):
    from transformers import GPT2Config, GPT2LMHeadModel

    no_ids = {"bos_token_id": None, "eos_token_id": None}  # our vocabulary has no special tokens
    reference = GPT2LMHeadModel(
        GPT2Config(n_layer=2, n_head=4, n_embd=32, n_positions=16, vocab_size=100, **no_ids)
    ).eval()
    missing = reference.transformer.load_state_dict(checkpoint, strict=False).missing_keys
    theirs = reference(tokens).logits  # (B, T, V)
    torch.testing.assert_close(logits, theirs)
    difference = (logits - theirs).abs().max().item()
    print(f"same logits as transformers; the largest difference is {difference:.0e}")
else:
    print("To compare, install the library: pip install transformers")

# %% tags=["test"]
assert len(checkpoint) == 30
assert len(weights) == 28 == len(list(model.parameters()))
assert config == GPTConfig(n_layer=2, n_head=4, n_embd=32, block_size=16, vocab_size=100)
assert not importlib.util.find_spec("transformers") or not [m for m in missing if "mask" not in m]

# %% [markdown]
# ## Queries, keys and values
#
# `c_attn` is one matrix for all queries, keys and values. Its first C columns belong to the
# queries, the next C to the keys, the last C to the values. In each part, head 0 has the first D
# columns, head 1 the next D. Our `qkv` has the same order, so one transpose is enough. To check it,
# we compute the queries of head 1 from the file alone:

# %%
C, D = 32, 8
x = torch.randn(16, C)  # (T, C)
W_q, W_k, W_v = checkpoint["h.0.attn.c_attn.weight"].split(C, dim=1)  # (C, C) each
b_q, b_k, b_v = checkpoint["h.0.attn.c_attn.bias"].split(C)  # (C,) each
query = x @ W_q[:, D : 2 * D] + b_q[D : 2 * D]  # (T, D)
q, k, v = model.blocks[0].attention.heads(x[None])  # (B, H, T, D) each
torch.testing.assert_close(q[0, 1], query)
print("queries of head 1:", tuple(query.shape), "equal")

# %% [markdown]
# Other models have other orders: GPT-NeoX, for example, stores query, key and value of head 0, then
# those of head 1. The shape is the same, so nothing but a test can tell.
#
# ## Mistakes without an error
#
# PyTorch compares names and shapes only. If you forget the transpose of `c_fc`, the shapes differ
# and `load_state_dict` raises an error. But `attn.c_proj` is square. To see what a silent mistake
# costs, we train a small GPT on Shakespeare for 400 steps, and then spoil its weights.

# %%
torch.manual_seed(1)
small = GPT(GPTConfig(n_layer=2, n_head=4, n_embd=64, block_size=T, vocab_size=V))
train(small, steps=400)
right = {name: tensor.clone() for name, tensor in small.state_dict().items()}
qkv = [name for name in right if "qkv" in name]
projections = [name for name in right if name.endswith("projection.weight")]


def loss_with(changes, n_head=4):
    """Return the validation loss with some weights replaced, or with other heads."""
    small.load_state_dict(right | changes)
    for block in small.blocks:
        block.attention.n_head = n_head
    return evaluate(small)


def order_by_head(weight):
    parts = weight.unflatten(0, (3, 4, 16))  # (3, H, D, ...): all queries, all keys, all values
    return parts.transpose(0, 1).flatten(0, 2)  # query, key and value of head 0, of head 1, ...


losses = {
    "right": loss_with({}),
    "c_proj of the attention not transposed": loss_with({n: right[n].T for n in projections}),
    "heads in the order of GPT-NeoX": loss_with({n: order_by_head(right[n]) for n in qkv}),
    "8 heads instead of 4": loss_with({}, n_head=8),
}
for mistake, loss in losses.items():
    print(f"{mistake:40} {loss:.2f}")

# %% [markdown]
# TODO
#
# ## Four sizes
#
# GPT-2 has four sizes. The formula of lesson 9 gives their parameters,
# $VC + TC + \text{n\_layer}\,(12\,C^2 + 13\,C) + 2\,C$. The vocabulary has 50,257 tokens: the 256
# bytes, 50,000 merges (lesson 14) and `<|endoftext|>`, which separates documents. A parameter in
# float32 takes 4 bytes.

# %%
sizes = {
    "gpt2": (12, 12, 768),
    "gpt2-medium": (24, 16, 1024),
    "gpt2-large": (36, 20, 1280),
    "gpt2-xl": (48, 25, 1600),
}
V2, T2 = 256 + 50_000 + 1, 1024
parameters = {}
print("              n_layer  n_head  n_embd     parameters  float32")
for name, (n_layer, n_head, C) in sizes.items():
    with torch.device("meta"):
        big = GPT(GPTConfig(n_layer, n_head, C, T2, V2))
    count = V2 * C + T2 * C + n_layer * (12 * C**2 + 13 * C) + 2 * C
    assert count == sum(p.numel() for p in big.parameters())
    parameters[name] = count
    print(f"{name:13} {n_layer:7} {n_head:7} {C:7}  {count:13,}  {4 * count / 1e9:5.1f} GB")

# %% [markdown]
# The paper gives other numbers for the two smallest, 117 and 345 million. OpenAI corrected them
# later to 124 and 355 million.
#
# How much memory does loading take? The next cell makes random weights of the smallest size, in the
# layout of the file, and measures the memory of the process (on Linux).


# %%
def measure_memory():
    """Return the memory of this process in MB, or 0 on systems without the file statm."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * mmap.PAGESIZE / 1e6 if statm.exists() else 0


start = measure_memory()
checkpoint = make_checkpoint(n_layer=12, C=768, block_size=1024, vocab_size=V2)
print(f"the file's tensors:    {sum(t.nbytes for t in checkpoint.values()) / 1e6:.0f} MB")
print(f"memory, measured:     +{measure_memory() - start:.0f} MB")
with torch.device("meta"):
    model = GPT(read_config(translate(checkpoint)))
model.load_state_dict(translate(checkpoint), assign=True)
print(f"with a loaded model:  +{measure_memory() - start:.0f} MB")
copy = GPT(model.config)
copy.load_state_dict(translate(checkpoint))
print(f"with a copied model:  +{measure_memory() - start:.0f} MB")

# %% [markdown]
# The file has 548 MB: 498 MB of weights and 50 MB of masks. The loaded model takes nothing more,
# because it shares the memory of the tensors; a transpose is only another view of the same memory.
# A model that copies the weights takes 498 MB more.
#
# ## The real weights
#
# Now the real file. The cell looks for it in the environment variable `GPT2_WEIGHTS`, then in the
# folder of downloads of Hugging Face. It downloads nothing. The prompt becomes tokens by the rules
# of `tokenizer.json`, the 50,000 merges. Then the model completes the prompt: it appends the most
# likely token, ten times.


# %%
def find_weights():
    """Return the path of GPT-2's weights on this disk, or None."""
    if "GPT2_WEIGHTS" in os.environ:
        return Path(os.environ["GPT2_WEIGHTS"])
    cached = try_to_load_from_cache("openai-community/gpt2", "model.safetensors")
    return Path(cached) if isinstance(cached, str) else None


@torch.no_grad()
def complete(path, prompt, count):
    """Load the weights, and append the `count` most likely tokens to the prompt, one by one."""
    weights = translate(load_file(path))
    with torch.device("meta"):
        model = GPT(read_config(weights))
    model.load_state_dict(weights, assign=True)
    tokenizer = Tokenizer.from_file(str(path.with_name("tokenizer.json")))
    tokens = torch.tensor([tokenizer.encode(prompt).ids])  # (1, T)
    for _ in range(count):
        token = model(tokens)[:, -1].argmax(dim=-1, keepdim=True)  # (1, 1)
        tokens = torch.cat([tokens, token], dim=1)
    return tokenizer.decode(tokens[0].tolist())


path = find_weights()
if path:
    print(complete(path, "The capital of France is", count=10))
else:
    print("GPT-2's weights are not on this disk. This command downloads them (548 MB):")
    print("hf download openai-community/gpt2 model.safetensors tokenizer.json")

# %% [markdown]
# ## What to remember
#
# - GPT-2 is the model of lesson 9. Its weights need a table of names and four transposes.
# - Matching shapes prove little: a square matrix, the order of queries, keys and values, and the
#   number of heads can be wrong without an error.
# - The proof is a comparison of logits with a trusted program, on random weights.
# - A parameter in float32 takes 4 bytes: 0.5 GB for 124 million parameters, 6.2 GB for 1.6 billion.
#
# ## Three common mistakes
#
# 1. **A transpose is missing** in a square matrix. Symptom: the weights load, but the loss is
#    higher than the published one. Remedy: compare logits with a trusted program.
# 2. **`load_state_dict(weights, strict=False)`** to silence an error. Symptom: weights with unknown
#    names are ignored, the model keeps its random ones, and its loss is near ln V. Remedy: keep
#    `strict=True`, and remove by name what the model does not need.
# 3. **The exact GELU**, `nn.GELU()`, instead of the approximation with tanh that GPT-2 was trained
#    with. Symptom: the logits agree with the reference in two or three digits only. Remedy:
#    `nn.GELU("tanh")`.
#
# ## Exercises
#
# 1. Write the way back: a function from our weights to GPT-2's layout. Check that `translate`
#    undoes it.
# 2. Which part of the parameters is the token embedding in `gpt2`, and in `gpt2-xl`?
# 3. How much memory do the weights of `gpt2-xl` take in bfloat16 (2 bytes per number)?
# 4. Convert the small model to bfloat16 with `.to(torch.bfloat16)`. How much does its validation
#    loss change?

# %% tags=["solution"]
if SOLUTIONS:  # run with: python lessons/16_gpt2.py --solutions

    def translate_back(weights):
        old = {}
        for name, tensor in weights.items():
            for hf_name, our_name in reversed(NEW_NAMES.items()):
                name = name.replace(our_name, hf_name)
            is_transposed = ".c_" in name and name.endswith(".weight")
            old[name] = tensor.T if is_transposed else tensor
        return old

    for name, weight in translate(translate_back(right)).items():
        assert torch.equal(weight, right[name])
    print("1. translate(translate_back(weights)) has equal weights")
    print(f"2. {V2 * 768 / parameters['gpt2']:.0%}, {V2 * 1600 / parameters['gpt2-xl']:.0%}")
    print(f"3. {2 * parameters['gpt2-xl'] / 1e9:.1f} GB")
    exact = loss_with({})
    difference = evaluate(small.to(torch.bfloat16)) - exact
    print(f"4. by {difference:.4f} nats")
    assert abs(difference) < 0.01

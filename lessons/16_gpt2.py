# %% [markdown]
# # 16. GPT-2's weights
#
# In 2019 OpenAI published the weights of GPT-2 (Radford et al. 2019, [Language Models are
# Unsupervised Multitask Learners](https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf)).
# The training text was 40 GB from a little more than 8 million web pages. Can the GPT of lesson
# 9 use the weights? Yes: it has the same layers. Only the names of the weights differ, and four
# matrices of each Transformer block have their rows and columns exchanged. You need no download:
# this lesson makes a small file with random weights in the layout of the real file, and loads it.
# (`GPT` below is that of the package; lesson 9 showed that it has the same names and logits.)
#
# **Before this lesson:** [lesson 5](05_heads.md) (queries, keys and values of all heads in one
# matrix), [lesson 9](09_gpt.md) (the names of the weights) and [lesson 14](14_bpe.md) (byte-pair
# encoding).
#
# **You will see:** the same logits as the library `transformers`; three mistakes that give no
# error, but raise the loss of a small GPT from 2.21 to 2.26, 2.63 and 3.41 nats; and the four sizes
# of GPT-2, from 124,439,808 to 1,557,611,200 parameters.

# %%
import importlib.util
import tempfile
import warnings
from pathlib import Path

import lesson
import torch
from lesson import SOLUTIONS, T, V, evaluate, train
from pictures import ACCENT, FILL, INK, PAPER, SOFT, arrow, box, diagram, show, write
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn

from nanogpt.models import GPT, GPTConfig

# %% [markdown]
# ## A file in GPT-2's layout
#
# The website Hugging Face has GPT-2's weights, in a file of the format safetensors: a list of
# names, each with a tensor. The file has these names: `wte` and `wpe` are the token and position
# embedding, `h` stands for the Transformer blocks, `ln` for layer norm, `attn` for attention, and
# `mlp` for the feed-forward layer. The names of linear layers begin with `c_`: GPT-2's code calls
# such a layer `conv1d`. It computes a matrix product, but stores its matrix in the shape (inputs,
# outputs). A file of weights is also called a *checkpoint*. The next function makes one with random
# numbers, and with the names and shapes of the real file.


# %%
def make_checkpoint(n_layer, C, block_size, vocab_size):
    shapes = {"wte.weight": (vocab_size, C), "wpe.weight": (block_size, C)}
    attention = {"attn.c_attn": (C, 3 * C), "attn.c_proj": (C, C)}  # (inputs, outputs)
    feed_forward = {"mlp.c_fc": (C, 4 * C), "mlp.c_proj": (4 * C, C)}
    for block in range(n_layer):
        for norm in ("ln_1", "ln_2"):
            shapes[f"h.{block}.{norm}.weight"] = shapes[f"h.{block}.{norm}.bias"] = (C,)
        for name, (inputs, outputs) in (attention | feed_forward).items():
            shapes[f"h.{block}.{name}.weight"] = (inputs, outputs)
            shapes[f"h.{block}.{name}.bias"] = (outputs,)
        shapes[f"h.{block}.attn.bias"] = (1, 1, block_size, block_size)  # the mask
    shapes["ln_f.weight"] = shapes["ln_f.bias"] = (C,)
    return {name: 0.2 * torch.randn(shape) for name, shape in shapes.items()}


# %% [markdown]
# We write such a file, with two Transformer blocks of 32 channels, and read it again.

# %%
torch.manual_seed(0)
file = Path(tempfile.mkdtemp()) / "model.safetensors"
save_file(make_checkpoint(n_layer=2, C=32, block_size=16, vocab_size=100), file)
checkpoint = load_file(file)
print(len(checkpoint), "tensors; without those of the second Transformer block:")
for name, tensor in checkpoint.items():
    if not name.startswith("h.1."):
        print(f"{name:24} {tuple(tensor.shape)}")

# %% [markdown]
# The output layer has no separate weights: it is tied to `wte`.
#
# One name is misleading: `h.0.attn.bias` is not a bias. It is the mask of the attention, which old
# versions of the library `transformers` stored with the weights (here it is random, too). Our model
# computes the mask itself, so we leave it out.
#
# ## From name to name
#
# The next list has the old name, the new name, and the shape in the file, for the picture below.

# %%
NAMES = [
    ("wte", "token_embedding", ["V", "C"]),
    ("wpe", "position_embedding", ["T", "C"]),
    ("ln_f", "norm", ["C"]),
    ("h.", "blocks.", []),
    ("ln_1", "norm1", ["C"]),
    ("attn.c_attn", "attention.qkv", ["C", "3C"]),
    ("attn.c_proj", "attention.projection", ["C", "C"]),
    ("ln_2", "norm2", ["C"]),
    ("mlp.c_fc", "feed_forward.0", ["C", "4C"]),
    ("mlp.c_proj", "feed_forward.2", ["4C", "C"]),
]

# %% alt="Each name in GPT-2's file, an arrow, and our name; the four matrices are transposed"
axes = diagram(70, 61)
write(axes, 13, 59, "GPT-2's file", bold=True)
write(axes, 52, 59, "our GPT", bold=True)
box(axes, 35, 19.5, "", 68, 37, PAPER)
write(axes, 35, 36, "in each Transformer block", bold=True)
for row, (old, new, shape) in enumerate(NAMES):
    y = (55 if row < 4 else 50.5) - 4.5 * row
    transposed = "c_" in old
    write(axes, 29, y + 1.2, "transpose" if transposed else "", 8, ACCENT)
    for x, name, sizes in (13, old, shape), (52, new, shape[::-1] if transposed else shape):
        label = f"{name}   ({', '.join(sizes)})" if sizes else f"{name}0.   {name}1.   …"
        box(axes, x, y, label, 20 if x == 13 else 32, 3.6, SOFT if transposed else FILL)
    arrow(axes, (23, y), (36, y), color=ACCENT if transposed else INK)
box(axes, 13, 5, "attn.bias   (1, 1, T, T)", 20, 3.6, PAPER)
write(axes, 25, 5, "left out: the mask", align="left")
show("names")

# %% [markdown]
# Each arrow leads from a name in the file to ours. Four matrices are *transposed*: rows and columns
# change places. GPT-2's layers compute $x W + b$ with $W$ of shape (inputs, outputs). `nn.Linear`
# computes $x W^\top + b$ with $W$ of shape (outputs, inputs). The results are equal if one matrix
# is the transpose of the other:

# %%
x = torch.tensor([[1.0, 10.0]])  # (1, 2)
W = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])  # (2, 3): inputs, outputs
linear = nn.Linear(2, 3, bias=False)
linear.weight.data = W.T  # (3, 2): outputs, inputs
print((x @ W).tolist(), linear(x).tolist())

# %% [markdown]
# So the rule is: transpose the weight of each layer whose own name begins with `c_`.


# %%
def translate(checkpoint):
    weights = {}
    for old_name, tensor in checkpoint.items():
        if old_name.endswith((".attn.bias", ".attn.masked_bias")):
            continue  # the mask, and a number that some files have for it
        new_name = old_name.removeprefix("transformer.")  # some files have it
        for old, new, _ in NAMES:
            new_name = new_name.replace(old, new)  # each old name occurs in one place only
        is_transposed = ".c_" in old_name and old_name.endswith(".weight")
        weights[new_name] = tensor.T if is_transposed else tensor
    return weights


# %% [markdown]
# The names and shapes also give the settings of the model, except one. The matrices of all heads
# lie side by side, so no shape depends on the number of heads. In every size of GPT-2 a head has
# D = 64 channels; for our small file we choose 8.


# %%
def read_config(weights, head_size=64):
    vocab_size, C = weights["token_embedding.weight"].shape
    n_layer = sum(name.endswith("qkv.weight") for name in weights)
    block_size = len(weights["position_embedding.weight"])
    return GPTConfig(n_layer, C // head_size, C, block_size, vocab_size)


weights = translate(checkpoint)
config = read_config(weights, head_size=8)
print(config)

# %% [markdown]
# Now we load the weights. A large model should not be in memory twice. So we make the model on the
# device `meta`, where a tensor has a shape but no numbers. With `assign=True`, `load_state_dict`
# puts the tensors of the file into the model, and copies nothing. `data_ptr()` returns the address
# of a tensor in memory.

# %%
with torch.device("meta"):
    model = GPT(config)
print(model.load_state_dict(weights, assign=True))
matrix = model.blocks[0].attention.qkv.weight
print("same memory:", matrix.data_ptr() == checkpoint["h.0.attn.c_attn.weight"].data_ptr())
tokens = torch.randint(100, (2, 16))  # (B, T)
logits = model(tokens)  # (B, T, V)
print("logits:", tuple(logits.shape))

# %% [markdown]
# Even the transposed matrix is at the same address: a transpose is another way to read the same
# numbers.
#
# ## Is it right?
#
# The library `transformers` of Hugging Face has a GPT-2 that many people use, with layers in the
# layout of this file. With the same weights it must give the same logits. (`LMHead` in the name of
# the class is the output layer, tied here, too; `reference.transformer` is all the rest.)

# %%
if importlib.util.find_spec("transformers"):
    warnings.filterwarnings("ignore", message="IProgress")  # of a progress bar in notebooks
    from transformers import GPT2Config, GPT2LMHeadModel

    # None: no token stands for the beginning (bos) or the end (eos) of a text
    sizes = {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_positions": 16, "vocab_size": 100}
    reference = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=None, eos_token_id=None)).eval()
    masks = [name for name in checkpoint if name.endswith(".attn.bias")]
    reference.transformer.load_state_dict({n: checkpoint[n] for n in checkpoint if n not in masks})
    theirs = reference(tokens).logits  # (B, T, V)
    torch.testing.assert_close(logits, theirs)
    print(f"same logits; the largest difference is {(logits - theirs).abs().max().item():.0e}")
else:
    print("To compare, install the library: pip install transformers")

# %% tags=["test"]
assert len(checkpoint) == 30
assert len(weights) == 28 == len(list(model.parameters()))
assert config == GPTConfig(n_layer=2, n_head=4, n_embd=32, block_size=16, vocab_size=100)
prefixed = translate({f"transformer.{name}": tensor for name, tensor in checkpoint.items()})
assert prefixed.keys() == weights.keys()

# %% [markdown]
# This check cannot find a wrong number of heads, because we give the same number to both models.
# For the real weights, the file `config.json` beside them has it.
#
# ## Queries, keys and values
#
# `c_attn` is one matrix for all queries, keys and values. Its first C columns give the queries, the
# next C the keys, the last C the values. In each of the three parts, the first D columns belong to
# head 1, the next D to head 2, and so on. Our `qkv` has the same order in its rows, because it is
# transposed; with another order, the logits above would differ.
#
# Other models have other orders. In the code of GPT-NeoX (Black et al. 2022, arXiv:2204.06745), the
# rows for query, key and value of head 1 come first; those of head 2 follow. The shape is the same.
#
# ## Mistakes without an error
#
# `load_state_dict` compares only names and shapes. Without its transpose, `c_fc` has the wrong
# shape: you get an error. But `attn.c_proj` is square: you get none. What does such a mistake cost?
# We train a small GPT on Shakespeare for 400 steps, and then change its weights. `right | changes`
# is a copy of the dictionary `right` with the changes.

# %%
torch.manual_seed(1)
small = GPT(GPTConfig(n_layer=2, n_head=4, n_embd=64, block_size=T, vocab_size=V))
train(small, steps=400)
right = {name: tensor.clone() for name, tensor in small.state_dict().items()}
qkv = [name for name in right if "qkv" in name]
projections = [name for name in right if name.endswith("projection.weight")]


def loss_with(changes, n_head=4):
    small.load_state_dict(right | changes)
    for block in small.blocks:
        block.attention.n_head = n_head
    return evaluate(small)


def order_by_head(weight):
    parts = weight.view(3, 4, 16, -1)  # (3, H, D, C): 3 for q, k, v; for a bias, (3, H, D, 1)
    return parts.transpose(0, 1).reshape(weight.shape)  # (3C, C): rows of head 1, of head 2, ...


losses = {
    "right": loss_with({}),
    "c_proj of the attention not transposed": loss_with({n: right[n].T for n in projections}),
    "heads in the order of GPT-NeoX": loss_with({n: order_by_head(right[n]) for n in qkv}),
    "8 heads instead of 4": loss_with({}, n_head=8),
}
for mistake, loss in losses.items():
    print(f"{mistake:40} {loss:.2f}")

# %% [markdown]
# None of the three gives an error. A missing transpose costs 0.42 nats, the wrong order of the rows
# 1.20: that model is worse than one that knows only how frequent each character is (3.35, lesson
# 2). In this small model, the wrong number of heads costs only 0.05, which is easy to overlook.
#
# ## Four sizes
#
# GPT-2 has four sizes. The formula of lesson 9 gives their parameters,
# $VC + TC + \text{n\_layer}\,(12\,C^2 + 13\,C) + 2\,C$. The vocabulary has 50,257 tokens: 256
# bytes, 50,000 merges (lesson 14) and `<|endoftext|>`, the end of a document. A parameter in
# float32 takes 4 bytes.

# %%
names = ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"]
shapes = [(12, 12, 768), (24, 16, 1024), (36, 20, 1280), (48, 25, 1600)]
vocab_size, block_size = 256 + 50_000 + 1, 1024
parameters = {}
print("              n_layer  n_head  n_embd     parameters  float32")
for name, (n_layer, n_head, C) in zip(names, shapes, strict=True):
    with torch.device("meta"):
        big = GPT(GPTConfig(n_layer, n_head, C, block_size, vocab_size))
    count = (vocab_size + block_size) * C + n_layer * (12 * C**2 + 13 * C) + 2 * C
    assert count == sum(p.numel() for p in big.parameters())
    parameters[name] = count
    print(f"{name:13} {n_layer:7} {n_head:7} {C:7}  {count:13,}  {4 * count / 1e9:5.1f} GB")

# %% [markdown]
# The paper has other numbers: 117, 345, 762 and 1,542 million. OpenAI corrected them later, in the
# [README of its code](https://github.com/openai/gpt-2).
#
# ## Optional: the real weights
#
# This command downloads the smallest GPT-2 into the folder `gpt2`: 548 MB, of which 498 MB are
# parameters and 50 MB masks. `tokenizer.json` has the vocabulary and the 50,000 merges. Run it in
# the directory in which you run the lesson. (`pip install huggingface_hub` installs `hf`.)
#
# ```
# hf download openai-community/gpt2 model.safetensors tokenizer.json --local-dir gpt2
# ```
#
# With the file, the next cell appends ten tokens to a prompt. (This page was made without it.) If
# the model is right, it continues the sentence in plain English.

# %%
real_file = Path("gpt2/model.safetensors")
if real_file.exists():
    weights = translate(load_file(real_file))
    with torch.device("meta"):
        gpt2 = GPT(read_config(weights))
    gpt2.load_state_dict(weights, assign=True)
    tokenizer = Tokenizer.from_file("gpt2/tokenizer.json")
    tokens = torch.tensor([tokenizer.encode("The capital of France is").ids])  # (1, T)
    for _ in range(10):
        token = gpt2(tokens)[:, -1].argmax(dim=-1, keepdim=True)  # (1, 1): the most likely one
        tokens = torch.cat([tokens, token], dim=1)  # (1, T + 1)
    print(tokenizer.decode(tokens[0].tolist()))
else:
    print("The real weights are not here.")

# %% [markdown]
# ## What to remember
#
# - GPT-2 is the model of lesson 9. Its weights need new names, and some need a transpose.
# - Equal shapes prove little: a square matrix, the order of query, key and value, and the number of
#   heads can be wrong without an error.
# - So compare logits with a trusted program. Random weights are enough, but take the number of
#   heads from `config.json`.
# - A parameter in float32 takes 4 bytes: 0.5 GB for 124 million parameters, 6.2 GB for 1.6 billion.
#
# ## Three common mistakes
#
# 1. *A transpose is missing* for a square matrix. *Symptom:* the weights load, but the loss is too
#    high. *Remedy:* compare logits with a trusted program.
# 2. *`load_state_dict(weights, strict=False)`*, to silence an error. *Symptom:* PyTorch skips
#    unknown names, and the loss is near ln V: a new model keeps its initial weights. *Remedy:* keep
#    `strict=True`, and leave out by name what the model does not need.
# 3. *The exact GELU.* GPT-2 was trained with an approximation that uses tanh. *Symptom:* with
#    `nn.GELU()`, the loss of `small` stays 2.21, but its logits change by about 0.001, too much for
#    rounding (exercise 3). *Remedy:* compare logits; use `nn.GELU("tanh")`.
#
# ## Exercises
#
# 1. Write the way back, from our names to GPT-2's layout (without masks). `translate` must undo it.
# 2. Another mistake without an error: exchange the queries and the keys. What is the loss?
# 3. Put the exact GELU into `small`: `block.feed_forward[1] = nn.GELU()`. What changes?
#
# This is the last lesson: you have built every part of GPT-2. Next, train a model on your own text
# ([README](../README.md)), or read how such models compare ([studies](../docs/studies.md)).

# %% tags=["solution"]
if SOLUTIONS:  # run with: python lessons/16_gpt2.py --solutions

    def translate_back(weights):
        old = {}
        for name, tensor in weights.items():
            for old_part, new_part, _ in reversed(NAMES):  # norm1 and norm2 before norm
                name = name.replace(new_part, old_part)
            is_transposed = ".c_" in name and name.endswith(".weight")
            old[name] = tensor.T if is_transposed else tensor
        return old

    for name, weight in translate(translate_back(right)).items():
        assert torch.equal(weight, right[name])
    print("1. translate(translate_back(weights)) has equal weights")

    exchanged = {}
    for name in qkv:
        q, k, v = right[name].chunk(3)  # (C, C) or (C,) each
        exchanged[name] = torch.cat([k, q, v])
    print(f"2. {loss_with(exchanged):.2f} instead of {losses['right']:.2f}")

    text = lesson.val_tokens[None, :T]  # (1, T)
    loss_with({})  # the right weights, and 4 heads
    before = small(text)  # (1, T, V)
    for block in small.blocks:
        block.feed_forward[1] = nn.GELU()
    change = (small(text) - before).abs().max().item()
    print(f"3. loss {evaluate(small):.2f}; the largest change of a logit is {change:.4f}")

# %% tags=["test"]
assert list(parameters.values()) == [124439808, 354823168, 774030080, 1557611200]
masks = 12 * 1024**2 * 4  # bytes in the file
assert [round(x / 1e6) for x in (4 * 124439808, masks, 4 * 124439808 + masks)] == [498, 50, 548]
if not lesson.FAST:
    for loss, expected in zip(losses.values(), (2.21, 2.63, 3.41, 2.26), strict=True):
        assert abs(loss - expected) < 0.05
    assert losses["heads in the order of GPT-NeoX"] > 3.35
fresh = GPT(GPTConfig(n_layer=2, n_head=4, n_embd=64, block_size=T, vocab_size=V))
fresh.load_state_dict({f"transformer.{n}": w for n, w in right.items()}, strict=False)
assert abs(evaluate(fresh) - 4.17) < 0.05
if SOLUTIONS and not lesson.FAST:
    assert 0.0005 < change < 0.002, change

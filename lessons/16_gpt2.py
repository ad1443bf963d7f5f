# %% [markdown]
# # 16. GPT-2's weights
#
# In 2019 OpenAI published the weights of GPT-2 (Radford et al. 2019, "Language Models are
# Unsupervised Multitask Learners"). Can the GPT of lesson 9 use them? Yes: it has the same layers.
# Only the names of the weights differ, and four matrices of each Transformer block are transposed.
# The lesson makes a small file with random weights in the layout of the real file, and loads it
# into our model. At the end it loads the real file, if you have it.
#
# **Before this lesson:** [lesson 5](05_heads.md) (queries, keys and values of all heads in one
# matrix), [lesson 9](09_gpt.md) (the names of the weights) and [lesson 14](14_bpe.md) (byte-pair
# encoding).
#
# **You will see:** the same logits as the library `transformers`; three mistakes that raise no
# error, and raise the loss from 2.21 to 2.26, 2.63 and 3.41 nats; and the four sizes of GPT-2, from
# 124,439,808 to 1,557,611,200 parameters.

# %%
import importlib.util
import mmap
import os
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
# Most programs get GPT-2's weights from the website of the company Hugging Face. The file has the
# format safetensors: a list of names, each with a tensor. The next function makes random tensors
# with the names and shapes of that file.


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
# `wte` and `wpe` are the token and position embedding, `h` stands for the Transformer blocks, `ln`
# for layer norm, `attn` for attention, and `mlp` for the feed-forward network. The output layer has
# no weights of its own: it is tied to `wte`.
#
# One name is misleading: `h.0.attn.bias` is not a bias. It is the mask of the attention, which old
# programs stored with the weights. Our model computes its mask, so we leave it out.
#
# ## From name to name
#
# The next list has the old name, the new name, and the shape in the file.

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
axes = diagram(70, 57)
write(axes, 13, 55, "GPT-2's file", bold=True)
write(axes, 52, 55, "our GPT", bold=True)
box(axes, 35, 19.5, "", 68, 37, PAPER)
for row, (old, new, shape) in enumerate(NAMES):
    y = 49 - 4.5 * row + (2 if row < 3 else 0)
    transposed = "c_" in old
    write(axes, 29, y + 1.2, "transpose" if transposed else "", 8, ACCENT)
    for x, name, sizes in (13, old, shape), (52, new, shape[::-1] if transposed else shape):
        label = f"{name}   ({', '.join(sizes)})" if sizes else f"{name}0.   {name}1.   …"
        box(axes, x, y, label, 20 if x == 13 else 32, 3.6, SOFT if transposed else FILL)
    arrow(axes, (23, y), (36, y), color=ACCENT if transposed else INK)
box(axes, 13, 4, "attn.bias   (1, 1, T, T)", 20, 3.6, PAPER)
write(axes, 25, 4, "left out: the mask", align="left")
write(axes, 67, 4, "in each Transformer block", align="right", bold=True)
show("names")

# %% [markdown]
# Four matrices are transposed. GPT-2's layers compute $x W + b$ with $W$ of shape (inputs,
# outputs). `nn.Linear` computes $x W^\top + b$ with $W$ of shape (outputs, inputs). The results are
# equal if one matrix is the transpose of the other:

# %%
x = torch.tensor([[1.0, 10.0]])  # (1, 2)
W = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])  # (2, 3): inputs, outputs
linear = nn.Linear(2, 3, bias=False)
linear.weight.data = W.T  # (3, 2): outputs, inputs
print((x @ W).tolist(), linear(x).tolist())

# %% [markdown]
# So the rule is: transpose the weights of each layer whose name begins with `c_`.


# %%
def translate(checkpoint):
    weights = {}
    for old_name, tensor in checkpoint.items():
        if old_name.endswith(".attn.bias"):
            continue  # the mask
        new_name = old_name.removeprefix("transformer.")  # in files of save_pretrained()
        for old, new, _ in NAMES:
            new_name = new_name.replace(old, new)
        is_transposed = ".c_" in old_name and old_name.endswith(".weight")
        weights[new_name] = tensor.T if is_transposed else tensor
    return weights


# %% [markdown]
# The shapes also give the settings of the model, except one: no shape depends on the number of
# heads. In every size of GPT-2 a head has D = 64 channels; in our small file we choose 8.


# %%
def read_config(weights, head_size=64):
    vocab_size, C = weights["token_embedding.weight"].shape
    numbers = {int(name.split(".")[1]) for name in weights if name.startswith("blocks.")}
    block_size = len(weights["position_embedding.weight"])
    return GPTConfig(len(numbers), C // head_size, C, block_size, vocab_size)


weights = translate(checkpoint)
config = read_config(weights, head_size=8)
print(config)

# %% [markdown]
# On the device `meta`, a tensor has a shape but no numbers, so the model takes no memory. With
# `assign=True`, `load_state_dict` puts the tensors of the file into the model; it copies nothing.

# %%
with torch.device("meta"):
    model = GPT(config)
print(model.load_state_dict(weights, assign=True))
tokens = torch.randint(100, (2, 16))  # (B, T)
logits = model(tokens)  # (B, T, V)
print("logits:", tuple(logits.shape))

# %% [markdown]
# ## Is it right?
#
# The library `transformers` has the original layers. With the same weights it must give the same
# logits.

# %%
if importlib.util.find_spec("transformers"):
    warnings.filterwarnings("ignore", message="IProgress")  # of a progress bar in notebooks
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_positions": 16, "vocab_size": 100}
    reference = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=None, eos_token_id=None)).eval()
    missing, masks = reference.transformer.load_state_dict(checkpoint, strict=False)
    theirs = reference(tokens).logits  # (B, T, V)
    torch.testing.assert_close(logits, theirs)
    print(f"same logits; the largest difference is {(logits - theirs).abs().max().item():.0e}")
else:
    print("To compare, install the library: pip install transformers")

# %% tags=["test"]
assert len(checkpoint) == 30
assert len(weights) == 28 == len(list(model.parameters()))
assert config == GPTConfig(n_layer=2, n_head=4, n_embd=32, block_size=16, vocab_size=100)
assert not importlib.util.find_spec("transformers") or (not missing and len(masks) == 2)
prefixed = translate({f"transformer.{name}": tensor for name, tensor in checkpoint.items()})
assert prefixed.keys() == weights.keys()

# %% [markdown]
# ## Queries, keys and values
#
# `c_attn` is one matrix for all queries, keys and values. Its first C columns give the queries, the
# next C the keys, the last C the values. In each of the three parts, the first D columns belong to
# head 0, the next D to head 1, and so on. Our `qkv` has the same order. To check it, we compute the
# queries of head 1 with the file's matrix and compare them with the model's:

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
# Other models have other orders. GPT-NeoX (Black et al. 2022, arXiv:2204.06745) stores query, key
# and value of head 0, then those of head 1. The shape is the same.
#
# ## Mistakes without an error
#
# `load_state_dict` compares only names and shapes. Without its transpose, `c_fc` has the wrong
# shape: you get an error. But `attn.c_proj` is square: you get none. What does such a mistake cost?
# We train a small GPT on Shakespeare for 400 steps, and then change its weights.

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
# All four models load without an error. A missing transpose costs 0.42 nats, the wrong order of the
# rows 1.20: that model is worse than one that knows only how frequent each character is (3.35,
# lesson 2). The wrong number of heads costs only 0.05, which is easy to overlook.
#
# ## Four sizes
#
# GPT-2 has four sizes. The formula of lesson 9 gives their parameters,
# $VC + TC + \text{n\_layer}\,(12\,C^2 + 13\,C) + 2\,C$. The vocabulary has 50,257 tokens: 256
# bytes, 50,000 merges (lesson 14) and `<|endoftext|>`, the end of a document. A parameter in
# float32 takes 4 bytes.

# %%
names = ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"]
sizes = [(12, 12, 768), (24, 16, 1024), (36, 20, 1280), (48, 25, 1600)]
V2, T2 = 256 + 50_000 + 1, 1024
parameters = {}
print("              n_layer  n_head  n_embd     parameters  float32")
for name, (n_layer, n_head, C) in zip(names, sizes, strict=True):
    with torch.device("meta"):
        big = GPT(GPTConfig(n_layer, n_head, C, T2, V2))
    count = V2 * C + T2 * C + n_layer * (12 * C**2 + 13 * C) + 2 * C
    assert count == sum(p.numel() for p in big.parameters())
    parameters[name] = count
    print(f"{name:13} {n_layer:7} {n_head:7} {C:7}  {count:13,}  {4 * count / 1e9:5.1f} GB")

# %% [markdown]
# The paper calls the two smallest 117M and 345M; OpenAI later corrected this to 124M and 355M.
#
# How much memory does loading take? The next cell makes random weights of the smallest size in the
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
# The tensors take 548 MB: 498 MB of weights and 50 MB of masks. (The process grows a little less if
# it had free memory before.) The loaded model takes no more, because it shares the memory of the
# tensors, and a transpose is only another view of the same memory. A model that copies the weights
# takes another 498 MB.
#
# ## The real weights
#
# The cell looks for the real file among the downloads of Hugging Face's program `hf`, or at the
# path in the environment variable `GPT2_WEIGHTS`. It downloads nothing itself. `tokenizer.json`, in
# the same folder, has the 50,000 merges. The model appends the most likely token to the prompt, ten
# times.


# %%
@torch.no_grad()
def complete(path, prompt, count):
    """Load the weights, and append `count` tokens to the prompt: always the most likely one."""
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


downloads = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")) / "hub"
found = list(downloads.glob("models--openai-community--gpt2/snapshots/*/model.safetensors"))
if "GPT2_WEIGHTS" in os.environ:
    found = [Path(os.environ["GPT2_WEIGHTS"])]
if found:
    print(complete(found[-1], "The capital of France is", count=10))
else:
    print("GPT-2's weights are not on this disk. This command downloads them (548 MB):")
    print("hf download openai-community/gpt2 model.safetensors tokenizer.json")

# %% [markdown]
# ## What to remember
#
# - GPT-2 is the model of lesson 9. Its weights need new names, and four transposes in each block.
# - Equal shapes prove little: a square matrix, the order of query, key and value, and the number of
#   heads can be wrong without an error.
# - Only a comparison of logits with a trusted program is a proof. Random weights are enough for it.
# - A parameter in float32 takes 4 bytes: 0.5 GB for 124 million parameters, 6.2 GB for 1.6 billion.
#
# ## Three common mistakes
#
# 1. **A transpose is missing** for a square matrix. Symptom: the weights load, but the loss is
#    higher than the published one. Remedy: compare logits with a trusted program.
# 2. **`load_state_dict(weights, strict=False)`**, to silence an error. Symptom: PyTorch ignores
#    unknown names, the model keeps its random weights, and its loss is near ln V. Remedy: keep
#    `strict=True`, and leave out by name what the model does not need.
# 3. **The exact GELU.** GPT-2 was trained with an approximation that uses tanh. Symptom: with
#    `nn.GELU()`, the logits differ from the reference by about 0.001, too much for rounding.
#    Remedy: `nn.GELU("tanh")`.
#
# ## Exercises
#
# 1. Write the way back, from our names to GPT-2's layout. Check that `translate` undoes it.
# 2. Which share of the parameters is the token embedding in `gpt2`, and in `gpt2-xl`?
# 3. How much memory do the weights of `gpt2-xl` take in bfloat16 (2 bytes per number)?

# %% tags=["solution"]
if SOLUTIONS:  # run with: python lessons/16_gpt2.py --solutions

    def translate_back(weights):
        old = {}
        for name, tensor in weights.items():
            for old_part, new_part, _ in reversed(NAMES):
                name = name.replace(new_part, old_part)
            is_transposed = ".c_" in name and name.endswith(".weight")
            old[name] = tensor.T if is_transposed else tensor
        return old

    for name, weight in translate(translate_back(right)).items():
        assert torch.equal(weight, right[name])
    print("1. translate(translate_back(weights)) has equal weights")
    print(f"2. {V2 * 768 / parameters['gpt2']:.0%}, {V2 * 1600 / parameters['gpt2-xl']:.0%}")
    print(f"3. {2 * parameters['gpt2-xl'] / 1e9:.1f} GB")

# %% tags=["test"]
assert list(parameters.values()) == [124439808, 354823168, 774030080, 1557611200]
masks, total = 12 * 1024**2 * 4, sum(t.nbytes for t in checkpoint.values())
assert [round(b / 1e6) for b in (4 * 124439808, masks, total)] == [498, 50, 548]
assert measure_memory() == 0 or abs(measure_memory() - start - 548 - 498) < 120
for old, new in ("wte", model.token_embedding), ("h.0.mlp.c_fc", model.blocks[0].feed_forward[0]):
    assert checkpoint[f"{old}.weight"].data_ptr() == new.weight.data_ptr()  # not copied
if not lesson.FAST:
    for loss, expected in zip(losses.values(), (2.21, 2.63, 3.41, 2.26), strict=True):
        assert abs(loss - expected) < 0.05
    assert losses["heads in the order of GPT-NeoX"] > 3.35
fresh = GPT(GPTConfig(n_layer=2, n_head=4, n_embd=64, block_size=T, vocab_size=V))
fresh.load_state_dict({f"transformer.{n}": w for n, w in right.items()}, strict=False)
assert abs(evaluate(fresh) - 4.17) < 0.05
fresh.load_state_dict(right)
before = fresh(lesson.val_tokens[None, :T])
for block in fresh.blocks:
    block.feed_forward[1] = nn.GELU()
change = (fresh(lesson.val_tokens[None, :T]) - before).abs().max().item()
assert lesson.FAST or 0.0003 < change < 0.01, change

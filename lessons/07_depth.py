# %% [markdown]
# # 7. Depth: feed-forward layers and residual connections
#
# One attention head is about as good as the bigram, although it sees up to 64 characters (lesson
# 4). Two pieces are missing. The *feed-forward layer* computes something from what attention
# collected. The *residual connection* lets us put many layers on top of each other and still train
# all of them. What does each piece do, and why does a deep model need the second?
#
# **Before this lesson:** [lesson 1](01_tensors.md) (gradients), [lesson 4](04_attention.md)
# (attention), [lesson 5](05_heads.md) (heads) and [lesson 6](06_positions.md) (positions).
#
# **You will see:**
#
# - that two linear layers in a row are one linear layer, and how GELU changes that;
# - a model of four Transformer blocks that fails: its loss is 3.21, and the gradient in its first
#   block is more than 1,000 times smaller than in its last;
# - the same model with two plus signs in each block: its loss is 1.81.

# %%
import math

import lesson
import matplotlib.pyplot as plt
import torch
from lesson import SOLUTIONS, compare, cross_entropy, get_batch, show_scoreboard, train_tokens
from pictures import ACCENT, INK, MUTED, PAPER, SOFT, arrow, box, diagram, show, write
from torch import nn
from torch.nn import functional as F

C, H, T, V = 64, 4, 64, 65  # channels, heads, positions in a block, characters in the vocabulary

# %% [markdown]
# ## Two linear layers are one
#
# A *linear layer* multiplies a vector by a matrix (and adds a bias, which we leave out here).
# Multiply a vector by two matrices, one after the other. Then multiply it once, by the product of
# the two matrices:

# %%
first = torch.tensor([[1.0, 2.0], [0.0, 1.0]])
second = torch.tensor([[1.0, 0.0], [3.0, 1.0]])
x = torch.tensor([1.0, -1.0])
print("two layers:", (x @ first) @ second)
print("one layer: ", x @ (first @ second))

# %% [markdown]
# The results are equal, and they are equal for each `x`. So a second linear layer adds parameters,
# but no new functions.
#
# This matters for attention. Only its *weights* come from a nonlinear function, the softmax. Once
# the weights are known, all other steps are linear: values, weighted mean, projection and output
# layer. One matrix can replace the three matrices of values, projection and output layer:

# %%
torch.manual_seed(0)
weights = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])  # (T, T), T = 3
x = torch.randn(3, 4)  # (T, C): three positions, C = 4
value, projection, output = torch.randn(3, 4, 4)  # three matrices (C, C)
logits = weights @ (x @ value) @ projection @ output  # (T, C)
votes = x @ (value @ projection @ output)  # (T, C): what each position says alone
torch.testing.assert_close(logits, weights @ votes)
print(logits[2], "=", 0.2 * votes[0] + 0.3 * votes[1] + 0.5 * votes[2])

# %% [markdown]
# So each position votes for the next character without knowing the other positions, and attention
# takes the weighted mean of the votes. What can a sum of votes not express?
#
# Let $a = 1$ if the context has a `t`, and $b = 1$ if it has an `h`; otherwise they are 0. We want
# a vote for `e` if `t` *and* `h` are there: $f(1, 1) = 1$, and 0 in the other three cases. A linear
# function cannot do that. If it is 0 in the other three cases, then
# $f(1, 1) = f(1, 0) + f(0, 1) - f(0, 0) = 0$. One nonlinear function is enough, for example ReLU.
# It replaces negative numbers by 0:

# %%
pairs = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])  # (4, 2): a and b
print((pairs.sum(dim=1) - 1).relu())  # (4,): ReLU(a + b - 1)

# %% [markdown]
# ## The feed-forward layer
#
# GPTs use a smooth relative of ReLU, called GELU (Hendrycks and Gimpel 2016,
# [arXiv:1606.08415](https://arxiv.org/abs/1606.08415)). GELU multiplies $x$ by the probability that
# a random number is below $x$. The random number comes from the normal distribution with mean 0 and
# variance 1. `torch.erf` helps to compute this probability: it is (1 + erf(x / √2)) / 2.

# %% alt="GELU and ReLU: both near 0 on the left and near x on the right; only GELU is smooth"
x = torch.linspace(-3, 3, 121)  # 121 numbers from -3 to 3
gelu = x * (1 + torch.erf(x / math.sqrt(2))) / 2
torch.testing.assert_close(gelu, F.gelu(x))
plt.figure(figsize=(5.5, 3))
plt.plot(x, gelu, color=ACCENT, linewidth=2)
plt.plot(x, x.relu(), color=INK, linestyle="--")
plt.text(1.75, 1.2, "GELU", color=ACCENT)
plt.text(1.0, 1.75, "ReLU", color=INK, ha="right")
plt.text(-2.9, 0.25, "negative inputs: almost 0", color=MUTED)
plt.xlabel("x")
show("gelu")

# %% [markdown]
# The *feed-forward layer* is two linear layers with GELU in between. The first makes $4C$ numbers
# from $C$, the second makes $C$ from $4C$. The factor 4 is that of the first Transformer (Vaswani
# et al. 2017, [arXiv:1706.03762](https://arxiv.org/abs/1706.03762)). `nn.Sequential` applies layers
# one after the other. Our layer works on each position alone, always with the same weights. If we
# exchange positions, the outputs are exchanged in the same way:


# %%
class FeedForward(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(C, 4 * C), nn.GELU(), nn.Linear(4 * C, C))


torch.manual_seed(0)
feed_forward = FeedForward()
x = torch.randn(1, 4, C)  # (B, T, C)
order = torch.tensor([2, 0, 3, 1])
y, exchanged = feed_forward(x), feed_forward(x[:, order])  # (B, T, C) each
print("channel 0:", y[0, :, 0].detach(), "exchanged:", exchanged[0, :, 0].detach())
torch.testing.assert_close(exchanged, y[:, order])

# %% [markdown]
# So attention moves information between positions, and the feed-forward layer processes it at each
# position. Together they are a *Transformer block*. Here is the attention of lesson 5 again.
# `F.scaled_dot_product_attention` computes its scores, mask, softmax and weighted mean in one call.


# %%
class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(C, 3 * C)
        self.projection = nn.Linear(C, C)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = self.qkv(x).chunk(3, dim=-1)  # (B, T, C) each
        q, k, v = (part.view(B, T, H, C // H).transpose(1, 2) for part in (q, k, v))  # (B, H, T, D)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, H, T, D)
        return self.projection(y.transpose(1, 2).reshape(B, T, C))  # (B, T, C)


in_attention = sum(parameter.numel() for parameter in SelfAttention().parameters())
in_feed_forward = sum(parameter.numel() for parameter in FeedForward().parameters())
print(f"parameters: attention {in_attention:,}, feed-forward {in_feed_forward:,}")

# %% [markdown]
# So two thirds of the parameters of a Transformer block are in its feed-forward layer.
#
# ## Four Transformer blocks
#
# A *deep* model has many layers, so that a later layer can use what an earlier layer computed. The
# model below has `n_layer` Transformer blocks. With `residual=False`, each layer replaces `x` by
# its output. The other case comes in the next section.


# %%
class Block(nn.Module):
    def __init__(self, residual):
        super().__init__()
        self.attention, self.feed_forward = SelfAttention(), FeedForward()
        self.residual = residual

    def forward(self, x):
        if self.residual:
            x = x + self.attention(x)  # (B, T, C)
            return x + self.feed_forward(x)  # (B, T, C)
        return self.feed_forward(self.attention(x))  # (B, T, C)


class Model(nn.Module):
    def __init__(self, n_layer, residual):
        super().__init__()
        self.token_embedding = nn.Embedding(V, C)
        self.position_embedding = nn.Embedding(T, C)
        self.blocks = nn.Sequential(*[Block(residual) for _ in range(n_layer)])
        self.output = nn.Linear(C, V)

    def embed(self, tokens):
        positions = torch.arange(tokens.shape[1])  # (T,)
        return self.token_embedding(tokens) + self.position_embedding(positions)  # (B, T, C)

    def forward(self, tokens):
        return self.output(self.blocks(self.embed(tokens)))  # (B, T, V)


# %% [markdown]
# What does a fresh (untrained) model of this kind do with a text? We pass a batch through four
# blocks, and print how much the vectors of different positions and texts differ: their standard
# deviation, computed by `std()` (`2e-02` is 0.02).

# %%
torch.manual_seed(1)
fresh = Model(4, residual=False)
inputs = get_batch(train_tokens)[0]  # (B, T)
x = fresh.embed(inputs)  # (B, T, C)
print(f"embeddings:    {x.std(dim=(0, 1)).mean():.0e}")
for i, block in enumerate(fresh.blocks):
    x = block(x)  # (B, T, C)
    print(f"after block {i + 1}: {x.std(dim=(0, 1)).mean():.0e}")

# %% [markdown]
# After four blocks, all positions have almost the same vector: the model no longer knows what it
# has read. Fresh layers make the vectors smaller, and attention averages them. The gradient passes
# the same layers in the other direction, from the loss to the first block. We measure its length
# (`norm()`: the root of the sum of the squares) for one matrix in each block:


# %%
def gradient_lengths(n_layer, residual):
    torch.manual_seed(1)
    model = Model(n_layer, residual)
    inputs, targets = get_batch(train_tokens)  # (B, T) each
    cross_entropy(model(inputs), targets).backward()
    return [block.feed_forward[0].weight.grad.norm().item() for block in model.blocks]


ends = {}
for n_layer in (1, 2, 4, 8):
    ends[n_layer] = plain = gradient_lengths(n_layer, residual=False)
    print(f"n_layer {n_layer}: first block {plain[0]:.0e}, last block {plain[-1]:.0e}")

# %% [markdown]
# In the last block, the length hardly depends on the depth. In the first block, it shrinks with the
# depth, to about 0.0000000001 in a model of 8 blocks. The gradient is a product: each layer on its
# way multiplies it by the derivative of the layer. Here these derivatives are small, so their
# product is tiny. This is called a *vanishing gradient*: the first block hardly learns anything
# from it.
#
# ## Residual connections
#
# The remedy is a plus sign. Each layer *adds* its output to its input: `x = x + f(x)` instead of
# `x = f(x)`. He et al. (2015, [arXiv:1512.03385](https://arxiv.org/abs/1512.03385)) introduced
# these *residual connections* in networks for images. The derivative of $x + f(x)$ is $1 + f'(x)$.
# Even if $f'(x)$ is very small, the 1 remains. Four layers with $f(x) = 0.1x$ show the difference:

# %%
x = torch.tensor(1.0, requires_grad=True)
without, residual = x, x
for _ in range(4):
    without = 0.1 * without
    residual = residual + 0.1 * residual
print(f"without: {torch.autograd.grad(without, x)[0]:.4f}")  # the derivative of `without` by x
print(f"with residual connections: {torch.autograd.grad(residual, x)[0]:.4f}")

# %% [markdown]
# The results are $0.1^4$ and $1.1^4$. Now the same in our model, with 8 Transformer blocks:

# %% alt="Gradient in 8 blocks: 1e-10 to 0.02 without, level at 0.3 with residual connections"
plain, residual = gradient_lengths(8, residual=False), gradient_lengths(8, residual=True)
plt.figure(figsize=(6, 3.4))
plt.semilogy(range(1, 9), residual, "o-", color=ACCENT, markersize=5)
plt.semilogy(range(1, 9), plain, "s--", color=INK, markersize=5)
plt.text(4.5, 2e-2, "with residual connections: level", color=ACCENT, ha="center")
plt.text(5.1, 2e-7, "without: each earlier block\ngets a much smaller gradient", va="top")
plt.xlabel("Transformer block (1 is the first)")
plt.ylabel("length of the gradient")
show("gradient")

# %% tags=["test"]
assert fresh.blocks(fresh.embed(inputs)).std(dim=(0, 1)).mean() < 1e-4
ratios = torch.tensor(plain[1:]) / torch.tensor(plain[:-1])
assert 4 < ratios.min() <= ratios.max() < 30
assert 1e-11 < plain[0] < 1e-9 < 0.2 < min(residual) < max(residual) < 1.5 * min(residual)
assert all(0.01 < lengths[-1] < 0.06 for lengths in ends.values())
assert ends[4][-1] > 1000 * ends[4][0]

# %% [markdown]
# Without residual connections, each earlier block gets a gradient that is 6 to 24 times smaller.
# With them, all blocks get gradients of about the same length.
#
# Think of `x` as a stream from the embeddings to the output layer: the *residual stream*. Each
# layer reads `x` and adds its output. What one layer has added reaches all later layers.

# %% alt="A line from embeddings to output; layers read from it and add to it at plus signs"
axes = diagram(77, 27)
axes.plot([11.5, 66], [11, 11], color=ACCENT, linewidth=5, solid_capstyle="butt", zorder=0)
box(axes, 6, 11, "embeddings", 11, 5)
box(axes, 71, 11, "output", 10, 5)
for i, x_center in enumerate((19.5, 32.5, 45.5, 58.5)):
    box(axes, x_center, 19, ["attention", "feed_forward"][i % 2], 11.6, 4.4, SOFT)
    arrow(axes, (x_center - 4, 11.3), (x_center - 4, 16.6))
    arrow(axes, (x_center + 4, 16.6), (x_center + 4, 12.3))
    axes.plot(x_center + 4, 11, "o", color=INK, markerfacecolor=PAPER, markersize=13)
    write(axes, x_center + 4, 11, "+", 11)
write(axes, 26, 24.5, "Transformer block 1", color=MUTED)
write(axes, 52, 24.5, "Transformer block 2", color=MUTED)
write(axes, 13.4, 13, "x", color=ACCENT, bold=True)
write(axes, 16, 14, "read", 8, MUTED, "left")
write(axes, 24, 14, "add", 8, MUTED, "left")
arrow(axes, (66, 6.5), (11.5, 6.5), color=ACCENT, style="--")
write(axes, 38.7, 4, "a plus sign passes the gradient back unchanged", color=ACCENT)
show("residual-stream")

# %% [markdown]
# ## The current character passes by the attention
#
# The residual stream also mends a weakness of attention (lesson 4). Without it, the model knows the
# current character only through a mean over all positions. We give a fresh attention layer 64
# random vectors, and then replace the last vector. How much does the output at the last position
# change, compared with its length?

# %%
torch.manual_seed(1)
attention = SelfAttention()
x = torch.randn(1, T, C)  # (B, T, C)
changed = x.clone()  # a copy
changed[0, -1] = torch.randn(C)  # another current character
y, y_changed = attention(x), attention(changed)  # (B, T, C) each
without = ((y_changed - y)[0, -1].norm() / y[0, -1].norm()).item()
residual = ((changed + y_changed - x - y)[0, -1].norm() / (x + y)[0, -1].norm()).item()
print(f"change of the output: {without:.0%} without residual connection, {residual:.0%} with it")

# %% [markdown]
# Without a residual connection, most of the output stays the same, although the current character
# is the best hint at the next one. With it, the current character passes by the attention and
# reaches the output layer. If all layers added 0, the output layer would see only the current
# character and its position: almost a bigram. The layers improve on that.
#
# ## Scoreboard
#
# First, a feed-forward layer follows the attention of lesson 6. Then we take four Transformer
# blocks, without and with residual connections.

# %%
torch.manual_seed(1)
deep = Model(4, residual=True)
models = {
    "with a feed-forward layer": lambda: Model(1, residual=False),
    "4 Transformer blocks": lambda: Model(4, residual=False),
    "with residual connections": lambda: deep,
}
losses = compare(models)
show_scoreboard(7, losses)

# %% tags=["test"]
expected = (2.09, 3.21, 1.81)
assert lesson.FAST or all(abs(a - b) < 0.07 for a, b in zip(losses.values(), expected, strict=True))
frequencies = torch.bincount(train_tokens) / len(train_tokens)  # (V,)
assert abs(-frequencies[lesson.val_tokens].log().mean() - 3.35) < 0.01
assert without < 0.4 < 1 < residual

assert sum(p.numel() for p in nn.Sequential(*[Block(True)] * 4).parameters()) == 49_728
x, message = fresh.embed(inputs), ""  # (B, T, C)
x += attention(x)
try:
    x.sum().backward()
except RuntimeError as error:
    message = str(error)
assert "inplace operation" in message

# %% [markdown]
# The feed-forward layer lowers the loss to 2.09. Four Transformer blocks without residual
# connections have 3.21, hardly less than the character frequencies of lesson 2 (3.35). With
# residual connections, a model with the same number of parameters reaches 1.81. Vanishing gradients
# are not the only reason: in the networks of He et al., gradients did not vanish, and residual
# connections still lowered the error.
#
# ## Three common mistakes
#
# 1. **`nn.Sequential(*[Block(True)] * 4)`.** This is the same Transformer block four times.
#    Symptom: the model has the parameters of one block only. Remedy:
#    `[Block(True) for _ in range(4)]`.
# 2. **`x += self.attention(x)`.** It overwrites the `x` that the backward pass needs. Symptom:
#    `loss.backward()` raises a RuntimeError about an "inplace operation". Remedy: `x = x + …`.
# 3. **No GELU.** The two linear layers are one. Symptom: no error, as many parameters, but a higher
#    loss (exercise 2). Remedy: a nonlinear function between linear layers.
#
# ## Exercises
#
# 1. Write the number of parameters of attention and of the feed-forward layer as formulas in $C$.
#    How many are they for GPT-2's $C = 768$?
# 2. Train the model "with a feed-forward layer" without GELU. How much higher is its loss?
# 3. Remove one Transformer block from the trained model with residual connections, each in turn.
#    How much does the loss rise? (An idea of Veit et al. 2016,
#    [arXiv:1605.06431](https://arxiv.org/abs/1605.06431).)

# %% tags=["solution"]
if SOLUTIONS:  # run with: python lessons/07_depth.py --solutions
    # 1. Attention: C · 3C + 3C and C · C + C. Feed-forward: C · 4C + 4C and 4C · C + C.
    assert (in_attention, in_feed_forward) == (4 * C**2 + 4 * C, 8 * C**2 + 5 * C)
    print(f"1. attention {4 * 768**2 + 4 * 768:,}, feed-forward {8 * 768**2 + 5 * 768:,}")

    # 2. nn.Identity, which returns its input, takes the place of GELU.
    torch.manual_seed(1)
    linear = Model(1, residual=False)
    linear.blocks[0].feed_forward[1] = nn.Identity()
    found = [*compare({"2. without GELU": lambda: linear}).values()]

    # 3. The loss rises, but is still lower than that of the character frequencies.
    part, all_blocks = lesson.val_tokens[:20_000], deep.blocks
    print(f"3. with all blocks: loss {lesson.evaluate(deep, tokens=part):.2f}")
    for i in range(4):
        deep.blocks = nn.Sequential(*all_blocks[:i], *all_blocks[i + 1 :])
        found.append(lesson.evaluate(deep, tokens=part))
        print(f"3. without block {i + 1}: loss {found[-1]:.2f}")

# %% tags=["test"]
if SOLUTIONS and not lesson.FAST:
    assert found[0] > losses["with a feed-forward layer"] + 0.08
    assert max(found[1:]) < 3

# %% [markdown]
# # 7. Depth: feed-forward layers and residual connections
#
# Even with heads and positions, attention is still far from the 7-grams of lesson 3. Two pieces are
# missing. The *feed-forward layer* computes something from what attention collected. The *residual
# connection* lets us train many layers on top of each other. Why does a deep model need it?
#
# **Before this lesson:** [lesson 1](01_tensors.md) (gradients), [lesson 4](04_attention.md)
# (attention), [lesson 5](05_heads.md) (heads) and [lesson 6](06_positions.md) (positions).
#
# **You will see:**
#
# - that two linear layers in a row are one linear layer, and how GELU changes that;
# - a model of four Transformer blocks that fails: its loss is 3.21, and before training, the
#   gradient in its first block is more than 1,000 times smaller than in its last;
# - the same model with two plus signs in each block: its loss is 1.81.

# %%
import math

import lesson
import matplotlib.pyplot as plt
import torch
from lesson import SOLUTIONS, cross_entropy, get_batch, show_scoreboard, train, train_tokens
from pictures import ACCENT, INK, MUTED, PAPER, SOFT, arrow, box, diagram, show, write
from torch import nn
from torch.nn import functional as F

C, H, T, V = 64, 4, 64, 65  # channels, heads, positions in a block, characters in the vocabulary

# %% [markdown]
# ## Two linear layers are one
#
# A *linear layer* multiplies a vector by a matrix (and adds a bias, which we leave out here). We
# multiply a vector by two matrices, one after the other, and then once by their product:

# %%
first = torch.tensor([[1.0, 2.0], [0.0, 1.0]])
second = torch.tensor([[1.0, 0.0], [3.0, 1.0]])
x = torch.tensor([1.0, -1.0])
print("two layers:", (x @ first) @ second)
print("one layer: ", x @ (first @ second))

# %% [markdown]
# The results are equal for each `x`: a second linear layer adds parameters, but no new functions.
#
# This matters for attention. Only its *attention weights* come from nonlinear steps: the product of
# query and key, and the softmax. For given weights, all other steps of a head are linear (values,
# weighted mean, projection, output layer), and one matrix can replace their matrices. So each
# position votes for the next character without knowing the other positions, and a head takes the
# weighted mean of the votes. The results of all heads add up. What can such a sum not express?
#
# The current character is `e`. If the two characters before it are `t` *and* `h`, we want a vote
# for a space. Let $a = 1$ if the first of them is `t`, and $b = 1$ if the second is `h`; otherwise
# they are 0. So we want $f(1, 1) = 1$, and 0 in the other three cases. With fixed weights, the sum
# of the votes has the form $f(a, b) = ua + wb + c$. Then $f(1, 1) = f(1, 0) + f(0, 1) - f(0, 0)$.
# If it is 0 in the other three cases, then $f(1, 1)$ is 0, too. (In a model, the weights depend on
# the characters, so a head can combine the current one with another: the query of `e` can look for
# an `h`.) A nonlinear function solves the task, for example *ReLU*. It sets negative numbers to 0:

# %%
pairs = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])  # (4, 2): a and b
print((pairs.sum(dim=1) - 1).relu())  # (4,): ReLU(a + b - 1)

# %% [markdown]
# ## The feed-forward layer
#
# GPTs use a smooth relative of ReLU, called GELU (Hendrycks and Gimpel 2016,
# [arXiv:1606.08415](https://arxiv.org/abs/1606.08415)). GELU multiplies $x$ by the probability that
# a random number from the normal distribution with mean 0 and variance 1 is below $x$. This
# probability is (1 + erf(x / √2)) / 2, with the function `torch.erf`:

# %% alt="GELU and ReLU: both near 0 on the left and near x on the right; only GELU is smooth"
x = torch.linspace(-3, 3, 121)  # 121 numbers from -3 to 3
gelu = x * (1 + torch.erf(x / math.sqrt(2))) / 2
torch.testing.assert_close(gelu, F.gelu(x))
plt.figure(figsize=(5.5, 3))
plt.plot(x, gelu, color=ACCENT, linewidth=2)
plt.plot(x, x.relu(), color=INK, linestyle="--")
plt.text(1.75, 1.2, "GELU", color=ACCENT)
plt.text(1.0, 1.75, "ReLU", color=INK, ha="right")
plt.xlabel("x")
show("gelu")

# %% [markdown]
# Left of 0, GELU is a little negative; its minimum is −0.17.
#
# The *feed-forward layer* (also called *MLP*) is two linear layers with GELU in between. The first
# makes $4C$ numbers from $C$, the second makes $C$ from $4C$. The factor 4 is that of the first
# Transformer (Vaswani et al. 2017, [arXiv:1706.03762](https://arxiv.org/abs/1706.03762)).
# `nn.Sequential` applies layers one after the other. Our layer works on each position alone, always
# with the same parameters. One position without the others gives the same result:


# %%
class FeedForward(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(C, 4 * C), nn.GELU(), nn.Linear(4 * C, C))


feed_forward = FeedForward()
x = torch.randn(1, 4, C)  # (B, T, C)
alone = feed_forward(x[:, 2])  # (B, C): position 2 without the others
torch.testing.assert_close(feed_forward(x)[:, 2], alone)

# %% [markdown]
# So attention moves information between positions, and the feed-forward layer processes it at each
# position. Together they are a *Transformer block*. Here is the attention of lesson 6 again.
# `F.scaled_dot_product_attention` computes its scores, mask, softmax and weighted mean in one call.


# %%
class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(C, 3 * C)
        self.projection = nn.Linear(C, C)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = self.qkv(x).chunk(3, dim=-1)  # three equal parts, (B, T, C) each
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
# model below has `n_layer` Transformer blocks. (GPT-2 calls a block a layer. Here, a layer is an
# attention or a feed-forward layer.) With `residual=False`, each layer replaces `x` by its output.


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
# What does a fresh (untrained) model with `residual=False` do with a text? We pass a batch through
# its four Transformer blocks. (`get_batch` and `cross_entropy` are those of lesson 2, for 32 texts
# of 64 characters and logits (B, T, V).) We print the length of the mean vector, and the mean
# distance of all vectors from it. (`norm()` is the root of the sum of the squares; `2e-01` is 0.2.)

# %%
torch.manual_seed(1)
fresh = Model(4, residual=False)
inputs = get_batch(train_tokens)[0]  # (B, T)
x = fresh.embed(inputs)  # (B, T, C)
for i in range(5):
    mean = x.mean(dim=(0, 1))  # (B, T, C) -> (C,): over all positions of all texts
    distance = (x - mean).norm(dim=-1).mean()  # (B, T, C) -> (B, T) -> one number
    print(f"after {i} blocks: mean vector {mean.norm():.2f}, distance from it {distance:.0e}")
    if i < 4:
        x = fresh.blocks[i](x)  # (B, T, C)

# %% [markdown]
# After four blocks, the vectors have a length of 0.36, but they differ only by about 0.00003. So
# almost nothing in them depends on the text. The random matrices of fresh layers are small, so each
# layer makes the differences smaller, and attention averages them. What the biases add remains.
# (Dong et al. 2021, [arXiv:2103.03404](https://arxiv.org/abs/2103.03404), prove that layers of
# attention alone make the vectors of a text more and more equal.)
#
# The gradient passes the same layers in the other direction, from the loss to the first block. We
# measure its length in fresh models, for one matrix in each block:


# %%
def gradient_lengths(n_layer, residual):
    torch.manual_seed(1)
    model = Model(n_layer, residual)
    inputs, targets = get_batch(train_tokens)  # (B, T) each
    cross_entropy(model(inputs), targets).backward()
    return [block.feed_forward[0].weight.grad.norm().item() for block in model.blocks]


for n_layer in (1, 2, 4, 8):
    plain = gradient_lengths(n_layer, residual=False)
    print(f"n_layer {n_layer}: first block {plain[0]:.0e}, last block {plain[-1]:.0e}")

# %% [markdown]
# In the last block, the length hardly depends on the depth. In the first block, it shrinks with the
# depth, to about 0.0000000001 in a model of 8 blocks. The gradient is a product: each layer on the
# way multiplies it by the derivative of the layer. Here all of these are small, so the product is
# tiny: a *vanishing gradient* (Bengio et al. 1994). So gradient descent hardly changes block 1.
#
# ## Residual connections
#
# The remedy is a plus sign. Each layer *adds* its output to its input: `x = x + f(x)` instead of
# `x = f(x)`. He et al. (2015, [arXiv:1512.03385](https://arxiv.org/abs/1512.03385)) introduced
# these *residual connections* in networks for images. The derivative of $x + f(x)$ is $1 + f'(x)$.
# Even if $f'(x)$ is very small, the 1 remains. With $f(x) = 0.1x$, the derivative of four layers is
# $0.1^4 = 0.0001$ without and $1.1^4 = 1.4641$ with residual connections. Now the same in our
# model, with 8 Transformer blocks. (On the vertical axis, each line is 100 times the one below.)

# %% alt="Gradient in 8 blocks: 1e-10 to 0.02 without, about 0.3 with residual connections"
plain, residual = gradient_lengths(8, residual=False), gradient_lengths(8, residual=True)
ratios = [plain[i + 1] / plain[i] for i in range(7)]
print(f"without: each earlier block {min(ratios):.0f} to {max(ratios):.0f} times smaller")
plt.figure(figsize=(6, 3.4))
plt.semilogy(range(1, 9), residual, "o-", color=ACCENT, markersize=5)
plt.semilogy(range(1, 9), plain, "s--", color=INK, markersize=5)
plt.text(4.5, 2e-2, "with residual connections: about equal", color=ACCENT, ha="center")
plt.text(5.1, 2e-7, "without: each earlier block\ngets a much smaller gradient", va="top")
plt.xlabel("Transformer block (1 is the first)")
plt.ylabel("length of the gradient")
show("gradient")

# %% tags=["test"]
assert abs(gelu.min() + 0.17) < 0.001
assert 2e-5 < distance < 4.5e-5 < 0.34 < mean.norm() < 0.38
assert 5 < min(ratios) < 7 < 22 < max(ratios) < 26
assert 1e-11 < plain[0] < 1e-9 < 0.2 < min(residual) < max(residual) < 1.5 * min(residual)
ends = {n: gradient_lengths(n, residual=False) for n in (1, 2, 4, 8)}
assert all(0.01 < n[-1] < 0.06 for n in ends.values())
assert ends[4][-1] > 1000 * ends[4][0]

# %% [markdown]
# Without residual connections, each earlier block gets a gradient that is 6 to 24 times smaller.
# With them, all blocks get gradients of about the same length.
#
# Think of `x` as a stream from the embeddings to the output layer: the *residual stream*. Each
# layer reads `x` and adds its output. What one layer has added reaches all later layers. On the way
# back, each plus sign copies the gradient: along the stream (the 1) and into the layer (the $f'$).

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
write(axes, 38.7, 4, "each plus sign copies the gradient; each layer adds its part", color=ACCENT)
show("residual-stream")

# %% [markdown]
# ## The current character goes around the attention
#
# The residual stream also mends a weakness of attention (lesson 4). Without it, the current
# character reaches the output only through its query and as one term of a mean over all positions.
# We give a fresh attention layer 100 texts of 64 random vectors, and then replace the last vector
# of each. How much does the output at the last position change, compared with its length?


# %%
def change(before, after):
    difference = (after - before)[:, -1].norm(dim=-1)  # (B, T, C) -> (B, C) -> (B,)
    return (difference / before[:, -1].norm(dim=-1)).mean().item()


torch.manual_seed(1)
attention = SelfAttention()
x = torch.randn(100, T, C)  # (B, T, C)
changed = x.clone()  # a copy
changed[:, -1] = torch.randn(100, C)  # other current characters
y, y_changed = attention(x), attention(changed)  # (B, T, C) each
alone, added = change(y, y_changed), change(x + y, changed + y_changed)
print(f"mean change: {alone:.0%} without residual connection, {added:.0%} with it")

# %% [markdown]
# Without a residual connection, most of the output of this fresh layer stays the same, although the
# current character is the best hint at the next one. (Training can raise its weight, but then the
# others get less: lesson 4.) With the connection, the output is almost new: the character goes
# around the attention. (Two random vectors of 64 numbers differ by about √2 times their length.)
#
# ## Scoreboard
#
# First, a feed-forward layer follows the attention of lesson 6. Then we take four Transformer
# blocks, without and with residual connections.

# %%
losses, models = {}, {}
for name, n_layer, residual in (
    ("with a feed-forward layer", 1, False),
    ("4 Transformer blocks", 4, False),
    ("with residual connections", 4, True),
):
    torch.manual_seed(1)
    model = models[name] = Model(n_layer, residual)
    losses[name] = train(model)
show_scoreboard(7, losses)

# %% tags=["test"]
expected = (2.09, 3.21, 1.81)
assert lesson.FAST or all(abs(a - b) < 0.07 for a, b in zip(losses.values(), expected, strict=True))
counted = train_tokens.bincount()[lesson.val_tokens] / len(train_tokens)  # frequencies
assert abs(counted.log().mean() + 3.35) < 0.01
assert alone < 0.4 < 1.36 < added < 1.46
torch.manual_seed(1)
pair = Model(4, residual=False), models["4 Transformer blocks"]
start, end = (model.blocks[0].feed_forward[0].weight for model in pair)
assert lesson.FAST or (end - start).norm() > 0.4 * start.norm()
assert sum(p.numel() for p in nn.Sequential(*[Block(True)] * 4).parameters()) == 49_728
x, message = fresh.embed(inputs), ""  # (B, T, C)
x += attention(x)
try:
    x.sum().backward()
except RuntimeError as error:
    message = str(error)
assert "inplace operation" in message
_ = [p.data.zero_() for p in fresh.parameters() if p.ndim == 1]  # the biases
assert fresh.blocks(fresh.embed(inputs)).norm(dim=-1).max() < 0.001

# %% [markdown]
# The feed-forward layer lowers the loss to 2.09. Four Transformer blocks without residual
# connections have 3.21, hardly less than the character frequencies of lesson 2 (3.35). With
# residual connections, a model of the same size reaches 1.81. Small gradients alone do not explain
# this: Adam divides slopes by their usual size (lesson 1), so it still changes the first block.
# Also, after four fresh blocks, almost nothing in the vectors depends on the text (see above); with
# residual connections, each block passes on its input. And in the networks of He et al., gradients
# did not vanish, yet residual connections helped.
#
# ## Three common mistakes
#
# 1. **`nn.Sequential(*[Block(True)] * 4)`.** This is the same block four times. *Symptom:* it has
#    the parameters of one block only. *Remedy:* `[Block(True) for _ in range(4)]`.
# 2. **`x += self.attention(x)`.** It overwrites the `x` that the backward pass needs. *Symptom:*
#    `loss.backward()` raises a RuntimeError about an "inplace operation". *Remedy:* `x = x + …`.
# 3. **No GELU.** The two linear layers are one. *Symptom:* no error, as many parameters, but a
#    higher loss (exercise 2). *Remedy:* a nonlinear function between linear layers.
#
# ## Exercises
#
# 1. Write the number of parameters of attention and of the feed-forward layer as formulas in $C$.
#    How many are they for GPT-2's $C = 768$?
# 2. Train the model "with a feed-forward layer" without GELU. How much higher is its loss? Then
#    train `Model(1, residual=True)`. From 2.09 to 1.81, what gains more: its plus signs, or then
#    three more blocks?
# 3. Remove one Transformer block from the trained model with residual connections, each in turn.
#    Measure the loss on the first 20,000 validation characters. Which block is needed most? (An
#    idea of Veit et al. 2016, [arXiv:1605.06431](https://arxiv.org/abs/1605.06431).)

# %% tags=["solution"]
if SOLUTIONS:  # run with: python lessons/07_depth.py --solutions
    # 1. Attention: C · 3C + 3C and C · C + C. Feed-forward: C · 4C + 4C and 4C · C + C.
    assert (in_attention, in_feed_forward) == (4 * C**2 + 4 * C, 8 * C**2 + 5 * C)
    print(f"1. attention {4 * 768**2 + 4 * 768:,}, feed-forward {8 * 768**2 + 5 * 768:,}")
    torch.manual_seed(1)
    linear = Model(1, residual=False)
    linear.blocks[0].feed_forward[1] = nn.Identity()  # returns its input
    found = [train(linear)]
    print(f"2. without GELU: loss {found[0]:.3f}")
    torch.manual_seed(1)
    found.append(train(Model(1, residual=True)))
    print(f"2. one block with residual connections: loss {found[1]:.3f}; 3 more blocks gain more")
    part, all_blocks = lesson.val_tokens[:20_000], model.blocks
    print(f"3. with all blocks: loss {lesson.evaluate(model, tokens=part):.2f}")
    for i in range(4):
        model.blocks = nn.Sequential(*all_blocks[:i], *all_blocks[i + 1 :])
        found.append(lesson.evaluate(model, tokens=part))
        print(f"3. without block {i + 1}: loss {found[-1]:.2f}")
    print("3. Block 1 is needed most. Without one block, the loss is still below 3.")

# %% tags=["test"]
if SOLUTIONS and not lesson.FAST:
    one_block, _, deep = losses.values()
    assert found[0] > one_block + 0.08 > found[1] + 0.08 > (one_block + deep) / 2 + 0.08
    assert found[2] == max(found[2:]) < 3

# %% [markdown]
# # 6. Positions, learned and rotary
#
# *The dog bites the man* and *the man bites the dog* consist of the same words. Only their order
# says who bites. The attention of lessons 4 and 5 hardly uses the order. This lesson shows why.
# Then it gives the model the positions in two ways: with a learned table, as in [gpt.py](../gpt.py)
# and GPT-2, and with rotations, as in most newer models.
#
# **Before this lesson:** [lesson 4](04_attention.md) (queries, keys, values, the causal mask) and
# [lesson 5](05_heads.md) (several heads).
#
# **You will see:** two texts that attention cannot tell apart; a head that learns to look at the
# previous character; and a validation loss that falls from 2.44 to 2.27 with a learned table and to
# 2.14 with rotations.

# %%
import math

import matplotlib.pyplot as plt
import torch
from drawings import draw_rotations
from lesson import SOLUTIONS, V, evaluate, show_scoreboard, train, val_tokens
from pictures import ACCENT, INK, show
from torch import nn
from torch.nn import functional as F

from nanogpt.models import modern
from nanogpt.models.gpt import causal_attention

T, C, H, D = 64, 64, 4, 16  # positions, channels, heads, head size

# %% [markdown]
# ## Attention ignores the order
#
# `causal_attention(q, k, v)` of the package is the attention of lesson 4. It returns the output and
# the attention weights. We give three characters a vector of two channels each, and use this vector
# as query, key and value. Here is what the last character, `c`, gets:

# %%
vectors = {"a": [1.0, 0.0], "b": [0.0, 1.0], "c": [1.0, 1.0]}
for text in ("abc", "bac"):
    x = torch.tensor([vectors[character] for character in text])  # (3, 2): T = 3, C = 2
    y, weights = causal_attention(x, x, x)  # (3, 2), (3, 3)
    print(f"{text}: weights {weights[2].numpy().round(2)}, output {y[2].numpy().round(2)}")

# %% [markdown]
# The output is the same. A score compares a query with a key, and both depend only on the
# characters. The output is a sum of weighted values, and a sum does not depend on the order of its
# terms. The last position knows which characters come before it, but not where they stand.
#
# ## A small hint in the mask
#
# The mask gives one hint. Position $t$ sees $t + 1$ characters, and its output is a mean of their
# values. A mean of many different vectors is shorter than a mean of few:

# %%
torch.manual_seed(0)
values = torch.randn(1000, T, D)  # (1000, T, D): 1,000 random texts
sums = values.cumsum(dim=1)  # (1000, T, D): cumsum, the cumulative sum, adds up positions 0 to t
means = sums / torch.arange(1, T + 1)[:, None]  # (1000, T, D)
for t in (0, 3, 15, 63):
    print(f"position {t:2}: mean length {means[:, t].norm(dim=-1).mean():.2f}")

# %% [markdown]
# The length falls like $1/\sqrt{t + 1}$, so a second layer can estimate from it how many characters
# a position sees. Haviv et al. (2022, [arXiv:2203.16634](https://arxiv.org/abs/2203.16634)) found
# that deep models with a mask and without positions are almost as good as models with positions.
#
# ## A learned table of positions
#
# The token embedding is a table with one vector per character. In gpt.py, a second table, the
# **position embedding**, has one vector per position. The model adds the two.
# Both tables start with random vectors, and training changes them. The rest is the model of lesson
# 5.


# %%
class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(C, 3 * C)
        self.projection = nn.Linear(C, C)

    def heads(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)  # (B, T, C) each
        return [part.unflatten(2, (H, D)).transpose(1, 2) for part in (q, k, v)]  # (B, H, T, D)

    def forward(self, x):
        y, _ = causal_attention(*self.heads(x))  # (B, H, T, D)
        return self.projection(y.transpose(1, 2).flatten(2))  # (B, T, C)


class Model(nn.Module):
    def __init__(self, attention, has_table):
        super().__init__()
        self.token_embedding = nn.Embedding(V, C)
        self.position_embedding = nn.Embedding(T, C) if has_table else None
        self.attention = attention()
        self.output = nn.Linear(C, V)

    def forward(self, tokens):
        x = self.token_embedding(tokens)  # (B, T, C)
        if self.position_embedding is not None:
            positions = torch.arange(tokens.shape[1])  # (T,): 0, 1, 2, ...
            x = x + self.position_embedding(positions)  # (B, T, C) + (T, C) = (B, T, C)
        return self.output(self.attention(x))  # (B, T, V)


torch.manual_seed(1)
without = Model(Attention, has_table=False)
loss_without = train(without)
torch.manual_seed(1)
learned = Model(Attention, has_table=True)
loss_learned = train(learned)
print(f"validation loss: {loss_without:.3f} without positions, {loss_learned:.3f} with the table")

# %% [markdown]
# The table helps. What has it learned? The left picture compares its rows by their cosine
# similarity, which is 1 for the same direction and 0 for a right angle. The right picture gives one
# head only the position vectors, without characters, and shows its attention weights.

# %% alt="Two matrices. Left, similarity of rows: no pattern. Right, attention: one position back"
table = learned.position_embedding.weight.detach()  # (T, C)
directions = table / table.norm(dim=1, keepdim=True)  # (T, C): each of length 1
q, k, v = learned.attention.heads(table[None])  # (1, H, T, D) each
position_weights = causal_attention(q, k, v)[1][0].detach()  # (H, T, T)
previous = position_weights.diagonal(-1, dim1=1, dim2=2)  # (H, T - 1): weight one position back
head = previous.mean(dim=1).argmax()  # the head with the largest weight there
worst = previous[head].argmin().item() + 1  # the position with the smallest weight there

figure, axes = plt.subplots(1, 2, figsize=(7, 4.1))
axes[0].imshow(directions @ directions.T, vmin=0, vmax=1)  # (T, T)
axes[0].set_title("similarity of two rows of the table:\nalmost no pattern")
axes[0].set(xlabel="position", ylabel="position")
axes[1].imshow(position_weights[head], vmin=0, vmax=1)  # (T, T)
axes[1].set_title("attention weights of one head:\none position back")
axes[1].set(xlabel="position s of the key", ylabel="position t of the query")
arrow = {"arrowstyle": "-|>", "color": "black"}
axes[1].annotate("not learned", (worst - 2, worst), (6, 52), color="black", arrowprops=arrow)
for axis in axes:
    axis.grid(visible=False)
show("table")

# %% [markdown]
# The rows themselves show almost no pattern. But this head has learned to look **one position
# back**: its matrices turn the vector of position $t$ into a query that matches the key of $t - 1$.
#
# A table has two limits. First, **each position learns alone.** *One back* is row 7 for position 8,
# and row 40 for position 41. Nothing tells the model that these are the same thing, so it learns it
# 63 times. At one position near the end, it has not learned it after 1,000 steps (exercise 3).
#
# Second, **the table ends.** Row 63 is the last. A longer text is an error:

# %%
try:
    learned(val_tokens[None, : T + 1])  # (1, 65)
except IndexError as error:
    print(f"IndexError: {error}")

# %% [markdown]
# ## Sines and cosines
#
# The first Transformer (Vaswani et al. 2017, [arXiv:1706.03762](https://arxiv.org/abs/1706.03762),
# section 3.5) adds a table that is computed, not learned. Each pair of channels is like the hand of
# a clock. The hand of pair $i$ turns by $f_i$ radians per position, its **frequency**. The table
# stores the coordinates of its tip:
#
# $$\sin(t f_i), \quad \cos(t f_i), \qquad f_i = 10000^{-2i/C}$$

# %% alt="Left, stripes of sines and cosines. Right, dot products: equal curves, peaks at 16 and 48"
angles = torch.arange(T)[:, None] * 10000.0 ** -(torch.arange(0, C, 2) / C)  # (T, C/2)
sines = torch.cat([angles.sin(), angles.cos()], dim=1)  # (T, C)
products = sines @ sines.T  # (T, T)

figure, axes = plt.subplots(1, 2, figsize=(7, 3.2), width_ratios=(1, 1.2))
axes[0].imshow(sines)
axes[0].set(title="the table: sines | cosines", xlabel="channel", ylabel="position")
axes[0].grid(visible=False)
for t, style, color in ((16, "-", INK), (48, "--", ACCENT)):
    axes[1].plot(products[t], style, color=color)
    axes[1].text(t, 32.5, f"row {t}", ha="center", color=color)
axes[1].set_title("dot product with row 16 and row 48:\nthe same curve, shifted")
axes[1].set(xlabel="position", ylim=(0, 35))
show("sines")

# %% [markdown]
# The dot product of two rows depends only on the **distance** of their positions. This is what we
# want: *one back* becomes one thing, not 63. But the model adds these rows to the token vectors,
# and the query and key matrices mix all channels. So the scores lose this property.
#
# ## Rotary positions
#
# Su et al. (2021, [arXiv:2104.09864](https://arxiv.org/abs/2104.09864)) put the clock hands into
# the queries and keys themselves. Take two channels of a query as a point $(a, b)$ in the plane. At
# position $t$, **rotate** the point by the angle $t f$:
#
# $$(a, b) \rightarrow (a \cos tf - b \sin tf, \quad b \cos tf + a \sin tf)$$
#
# Keys are rotated in the same way: the key at position $s$ by the angle $s f$. Values are not
# rotated.


# %%
def rotate(x, positions, base=1000.0):
    """Rotate each pair of channels of x (..., T, D) by its angle at positions (T,)."""
    D = x.shape[-1]
    angles = positions[:, None] * base ** -(torch.arange(0, D, 2) / D)  # (T, D/2)
    cos, sin = angles.cos(), angles.sin()  # (T, D/2) each
    a, b = x.chunk(2, dim=-1)  # (..., T, D/2) each: the pairs are (a, b)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)  # (..., T, D)


pair = torch.tensor([[1.0, 0.0]]).expand(4, 2)  # (4, 2): the same pair at four positions
print(rotate(pair, torch.arange(4)))

# %% [markdown]
# With frequency 1, the pair turns by one radian (57°) per position:

# %% alt="Three half circles with arrows: a fast pair turns by 57 degrees, a slow one by 10"
draw_rotations()
show("rotation")

# %% [markdown]
# The dot product of two points depends on their lengths and on the angle between them. If query and
# key both stand two positions later, both turn by the same extra angle, and the angle between them
# stays. So the dot product depends only on the distance $t - s$:

# %%
torch.manual_seed(0)
query, key = torch.randn(1, D), torch.randn(1, D)  # (1, D) each
for t, s in ((3, 1), (13, 11), (43, 41), (3, 2)):
    product = rotate(query, torch.tensor([t])) @ rotate(key, torch.tensor([s])).T  # (1, 1)
    print(f"query at {t:2}, key at {s:2}, distance {t - s}: dot product {product.item():.4f}")

# %% [markdown]
# Each of the $D/2 = 8$ pairs of a head has its own frequency. Fast pairs tell neighbours apart.
# Slow pairs hardly turn within a block, so a head can use them to compare characters at any
# distance. In the paper, frequencies fall towards 1/10,000; nanogpt uses 1/1,000, because its
# blocks are short.

# %%
frequencies = 1000.0 ** -(torch.arange(0, D, 2) / D)  # (D/2,)
print("positions for one whole turn:", (2 * math.pi / frequencies).round().int().tolist())

# %% [markdown]
# [nanogpt/models/modern.py](../nanogpt/models/modern.py) computes the same on (B, T, H, D).

# %%
x = torch.randn(2, H, T, D)
cos, sin = modern.rotations(torch.arange(T), D)
theirs = modern.rotate(x.transpose(1, 2), cos, sin).transpose(1, 2)  # (2, H, T, D)
torch.testing.assert_close(rotate(x, torch.arange(T)), theirs)

# %% [markdown]
# ## Table against rotations
#
# The rotary model has no table. Its attention rotates queries and keys; the rest is the same.


# %%
class RotaryAttention(Attention):
    def heads(self, x):
        q, k, v = super().heads(x)  # (B, H, T, D) each
        positions = torch.arange(x.shape[1])  # (T,)
        return rotate(q, positions), rotate(k, positions), v


torch.manual_seed(1)
rotary = Model(RotaryAttention, has_table=False)
loss_rotary = train(rotary)
print(f"validation loss: {loss_learned:.3f} with the table, {loss_rotary:.3f} with rotations")

# %% [markdown]
# Rotations are better, without any extra parameter (the table has $TC = 4{,}096$). Where in the
# block is the gain? `unfold(0, T + 1, 32)` cuts a block out of the text every 32 characters.

# %% alt="Loss over position: no positions above 2.4, table 2.25 with a jump, rotary 2.1"
blocks = val_tokens.unfold(0, T + 1, 32)  # (N, T + 1), N blocks


@torch.no_grad()
def loss_by_position(model):
    logits = torch.cat([model(part[:, :-1]) for part in blocks.split(128)])  # (N, T, V)
    losses = F.cross_entropy(logits.transpose(1, 2), blocks[:, 1:], reduction="none")  # (N, T)
    return losses.mean(dim=0)  # (T,)


names = {"no positions": (without, ":"), "learned table": (learned, "--"), "rotary": (rotary, "-")}
curves = {}
for name, (model, style) in names.items():
    curves[name] = loss_by_position(model)
    color = ACCENT if name == "rotary" else INK
    plt.plot(curves[name], style, color=color)
    plt.text(64, curves[name][-4:].mean(), name, va="center", color=color)
top, arrow = curves["learned table"][worst], {"arrowstyle": "-|>", "color": INK}
plt.annotate(f"position {worst}", (worst, top), (47, top + 0.17), arrowprops=arrow)
plt.xlim(-1, 77)
plt.xlabel("position")
plt.ylabel("loss (nats per character)")
show("by-position")

# %% [markdown]
# At position 0 all three models know only one character. Without positions, the loss is lowest for
# the next few positions and then rises slowly: among 5 characters of unknown order each one is
# recent, among 60 most are old. From position 2 on, rotations are better than the table everywhere.
# They have no position that fails, because what a head learns about a distance holds at every
# position.
#
# ## Scoreboard
#
# The row of this lesson is the learned table, because gpt.py and GPT-2 have it. Rotations return in
# [lesson 13](13_modern.md).

# %%
show_scoreboard(6, {"with positions": loss_learned})

# %% [markdown]
# Positions lower the loss of lesson 5 by 0.17 nats, because heads can now find the previous
# character. The model is still far behind the 7-grams of lesson 3.
#
# ## Three common mistakes
#
# 1. **The whole table for a short text.** With `self.position_embedding.weight` instead of
#    `self.position_embedding(positions)`, training works, but a prompt of 10 characters fails with
#    *The size of tensor a (10) must match the size of tensor b (64)*. Remedy: take the positions
#    from `tokens.shape[1]`.
# 2. **Only the queries are rotated.** There is no error message. Symptom: the dot product changes
#    if both positions grow by 10. Remedy: rotate queries and keys, and test the shift as above.
# 3. **Other pairs.** We rotate the pairs of channels $(0, D/2), (1, D/2 + 1), \dots$; the paper
#    rotates $(0, 1), (2, 3), \dots$. Both can be trained. But weights trained with one kind of
#    pairs do not work with the other. Symptom: no error message, but the loss of our rotary model
#    rises from 2.14 to 3.32. Remedy: reorder the rows of the query and key weights.
#
# ## Exercises
#
# 1. A point $(a, b)$ is a complex number $a + bi$. Write `rotate` as one product of complex numbers
#    (`torch.complex`, `torch.polar`).
# 2. The rotary model has no table that ends. Evaluate it on blocks of 128 characters, although it
#    was trained on 64. Does the longer context help?
# 3. Is the position that the table has not learned special, or was it unlucky with its random
#    vector? Give this row of the table a new random vector before the training. At which position
#    is the loss now furthest above that of the rotary model?

# %% tags=["test"]
from copy import deepcopy  # noqa: E402

from lesson import FAST  # noqa: E402

gaps = curves["learned table"] - curves["rotary"]  # (T,)
assert FAST or abs(loss_without - 2.44) < 0.04
assert FAST or abs(loss_learned - 2.27) < 0.05
assert FAST or abs(loss_rotary - 2.14) < 0.03
assert FAST or abs(loss_without - loss_learned - 0.17) < 0.05
assert FAST or (previous.mean(dim=1).max() > 0.4 and previous[head][worst - 1] < 0.3)
assert FAST or (worst > 40 and gaps[worst] > 0.2 and (gaps[2:] > 0).all())
assert FAST or curves["no positions"][2:9].mean() + 0.03 < curves["no positions"][50:].mean()
assert abs(frequencies[2] - 0.178) < 0.001
assert learned.position_embedding.weight.numel() == T * C == 4096
lengths = means.norm(dim=-1).mean(dim=0) * torch.arange(1, T + 1).sqrt()  # (T,)
assert ((lengths - 4).abs() < 0.15).all()
torch.testing.assert_close(products[16, :32], products[48, 32:])
here = torch.arange(T)
assert not torch.allclose(rotate(x, here) @ x.mT, rotate(x, here + 10) @ x.mT, atol=0.1)
other = deepcopy(rotary)  # with the rows of query and key weights in the order of other pairs
rows = torch.arange(2 * C).view(2 * H, D // 2, 2).mT.flatten()
for parameter in other.attention.qkv.parameters():
    parameter.data[: 2 * C] = parameter.data[rows]
assert FAST or abs(evaluate(other) - 3.32) < 0.2

# %% tags=["solution"]
if SOLUTIONS:  # run with: python lessons/06_positions.py --solutions
    angles = torch.arange(T)[:, None] * frequencies  # (T, D/2)
    turns = torch.polar(torch.ones_like(angles), angles)  # (T, D/2): length 1 and these angles
    turned = torch.complex(*x.chunk(2, dim=-1)) * turns  # (2, H, T, D/2)
    mine = torch.cat([turned.real, turned.imag], dim=-1)  # (2, H, T, D)
    torch.testing.assert_close(mine, rotate(x, torch.arange(T)))
    print("1. A product with a complex number of length 1 is a rotation: the same numbers.")

    loss_128 = evaluate(rotary, block_size=128)
    print(f"2. {loss_128:.3f} with blocks of 128, {loss_rotary:.3f} with 64: it does harm, because")
    print("   the angles of such large distances did not occur in training.")

    torch.manual_seed(1)
    redrawn = Model(Attention, has_table=True)
    redrawn.position_embedding.weight.data[worst] = torch.randn(C)
    train(redrawn)
    gaps = curves["learned table"] - curves["rotary"]  # (T,)
    new_gaps = loss_by_position(redrawn) - curves["rotary"]  # (T,)
    print(f"3. gap at position {worst}: {gaps[worst]:.2f} before, {new_gaps[worst]:.2f} now")
    print(f"   largest gap now: {new_gaps[2:].max():.2f}, at position {new_gaps[2:].argmax() + 2}")
    print("   So which position fails is an accident of the random vectors.")

# %% tags=["test"]
if SOLUTIONS:
    assert FAST or loss_128 > loss_rotary + 0.1
    assert FAST or new_gaps[worst] < gaps[worst] - 0.05

# %% [markdown]
# # 6. Positions, learned and rotary
#
# *The dog bites the man* and *the man bites the dog* consist of the same words. Only their order
# says who bites. Attention itself hardly uses the order. This lesson shows why. Then it gives the
# model the positions in three ways: with a learned table, as in [gpt.py](../gpt.py) and GPT-2; with
# sines, as in the first Transformer; and with rotations, as in most newer models.
#
# **Before this lesson:** [lesson 4](04_attention.md) (queries, keys, values, the causal mask) and
# [lesson 5](05_heads.md) (several heads).
#
# **You will see:** two texts that attention cannot tell apart; a head that learns to look at the
# previous character; and a validation loss that falls from 2.44 to 2.27 with a learned table, to
# 2.19 with sines and to 2.14 with rotations.

# %%
import matplotlib.pyplot as plt
import torch
from drawings import draw_rotations
from lesson import SOLUTIONS, V, evaluate, show_scoreboard, train, val_tokens
from pictures import ACCENT, INK, show
from torch import nn
from torch.nn import functional as F

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
# The mask gives one hint. Position $t$ sees $t + 1$ characters, and its output is a weighted mean
# of their values. With equal weights and independent values of mean 0, a mean of many is shorter
# than a mean of few. (`norm` returns the length of a vector, the root of the sum of its squares.)

# %%
torch.manual_seed(0)
values = torch.randn(1000, T, D)  # (1000, T, D): 1,000 random texts
sums = values.cumsum(dim=1)  # (1000, T, D): cumsum, the cumulative sum, adds up positions 0 to t
means = sums / torch.arange(1, T + 1)[:, None]  # (1000, T, D)
for t in (0, 3, 15, 63):
    print(f"position {t:2}: length of the mean {means[:, t].norm(dim=-1).mean():.2f}")

# %% [markdown]
# With such values, the length falls like $1/\sqrt{t + 1}$, so a second layer can estimate from it
# how many characters a position sees. Haviv et al. (2022,
# [arXiv:2203.16634](https://arxiv.org/abs/2203.16634)) found that deep models with a mask and
# without positions, of up to 1.3 billion parameters, are almost as good as models with positions.
#
# ## A learned table of positions
#
# The token embedding is a table with one vector per character. In gpt.py, a second table, the
# *position embedding*, has one vector per position. The model adds the two. Both tables start with
# random vectors, and training changes them. The rest is `HeadsOnly` of lesson 5. (Its variant
# `HeadsWithPositions` had such a table, but its training differs from that of the scoreboard.)


# %%
class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(C, 3 * C)
        self.projection = nn.Linear(C, C)

    def heads(self, x):
        B, T, C = x.shape
        q, k, v = self.qkv(x).chunk(3, dim=-1)  # three parts, (B, T, C) each
        return [part.view(B, T, H, C // H).transpose(1, 2) for part in (q, k, v)]  # (B, H, T, D)

    def forward(self, x):
        y, _ = causal_attention(*self.heads(x))  # (B, H, T, D)
        return self.projection(y.transpose(1, 2).reshape(x.shape))  # (B, T, C)


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
without = Model(SelfAttention, has_table=False)
loss_without = train(without)
torch.manual_seed(1)
learned = Model(SelfAttention, has_table=True)
loss_learned = train(learned)
print(f"validation loss: {loss_without:.3f} without positions, {loss_learned:.3f} with the table")

# %% [markdown]
# The table helps. What has it learned? We give the attention only the position vectors, without
# characters. The picture shows the attention weights of one head:

# %% alt="Attention weights of a head: dark one position back, but not at one position near the end"
table = learned.position_embedding.weight.detach()  # (T, C)
q, k, v = learned.attention.heads(table[None])  # (1, H, T, D) each
position_weights = causal_attention(q, k, v)[1][0].detach()  # (H, T, T)
previous = position_weights.diagonal(-1, dim1=1, dim2=2)  # (H, T - 1): weight one position back
head = previous.mean(dim=1).argmax()  # the head with the largest weight there
worst = previous[head].argmin().item() + 1  # the position with the smallest weight there

plt.figure(figsize=(5, 4.2))
plt.imshow(position_weights[head], vmin=0, vmax=1)  # (T, T)
plt.grid(visible=False)
plt.title("one head looks one position back\n(darker: more weight)")
plt.xlabel("position s of the key")
plt.ylabel("position t of the query")
arrow = {"arrowstyle": "-|>", "color": "black"}
plt.annotate("not learned", (worst - 2, worst), (6, 52), color="black", arrowprops=arrow)
show("table")

# %% [markdown]
# This head has learned to look one position back: its matrices turn the vector of position $t$ into
# a query that matches the key of position $t - 1$.
#
# A table has two limits. First, *each row is learned alone*. For position 8, one back is row 7; for
# position 41, it is row 40. Nothing tells the model that these are the same thing, so it must learn
# *one back* for 63 positions. At one of them, near the end, it has not succeeded after 1,000 steps.
# (With other random vectors, it may be other positions, or none.)
#
# Second, *the table ends*. Row 63 is the last, so a longer text gives an `IndexError`.
#
# ## Sines and cosines
#
# The first Transformer (Vaswani et al. 2017, [arXiv:1706.03762](https://arxiv.org/abs/1706.03762),
# section 3.5) adds a table that is computed, not learned. Each pair of channels is like the hand of
# a clock. The hand of pair $i$ turns by $f_i$ radians per position, its *frequency*. The table
# stores the coordinates of its tip, in channels $i$ and $C/2 + i$. (The paper alternates sines and
# cosines; the order of the channels does not matter.)
#
# $$\sin(t f_i), \quad \cos(t f_i), \qquad f_i = 10000^{-2i/C}$$

# %% alt="Left, stripes of sines and cosines. Right, dot products: equal curves, peaks at 16 and 48"
angles = torch.arange(T)[:, None] * 10000.0 ** -(torch.arange(0, C, 2) / C)  # (T, C/2)
sines = torch.cat([angles.sin(), angles.cos()], dim=1)  # (T, C)
products = sines @ sines.T  # (T, T)

figure, axes = plt.subplots(1, 2, figsize=(7, 3.2), width_ratios=(1, 1.2))
axes[0].imshow(sines)
axes[0].set_title("sines | cosines\n(white: −1, grey: 0, black: 1)")
axes[0].set(xlabel="channel", ylabel="position")
axes[0].grid(visible=False)
for t, style, color in ((16, "-", INK), (48, "--", ACCENT)):
    axes[1].plot(products[t], style, color=color)
    axes[1].text(t, 32.5, f"row {t}", ha="center", color=color)
axes[1].set_title("dot product with row 16 and row 48:\nthe same curve, shifted")
axes[1].set(xlabel="position", ylim=(0, 35))
show("sines")

# %% [markdown]
# Left: the first channels of each half turn fast and make stripes. The last ones hardly turn: their
# sines stay near 0, their cosines near 1.
#
# Right: the dot product of two rows depends only on the *distance* of their positions, because
# $\sin a \sin b + \cos a \cos b = \cos(a - b)$. This is what we want: *one back* becomes one thing,
# not 63. But the model adds these rows to the token vectors, and the scores multiply the sums by
# learned matrices. So the property is not built in: training has to find it. The authors expected
# that it can, because one matrix, a rotation, turns the row of each $t$ into the row of $t - 1$. We
# give the model this fixed table instead of the learned one:

# %%
torch.manual_seed(1)
fixed = Model(SelfAttention, has_table=True)
fixed.position_embedding = nn.Embedding.from_pretrained(sines)  # training does not change it
loss_sines = train(fixed)
print(f"validation loss: {loss_learned:.3f} with the learned table, {loss_sines:.3f} with sines")

# %% [markdown]
# After 1,000 steps, sines are better. In the paper, after many more steps, both are equally good.
#
# ## Rotary positions
#
# Su et al. (2021, [arXiv:2104.09864](https://arxiv.org/abs/2104.09864)) use the clock hands in
# the queries and keys themselves; they add nothing to $x$. Take two channels of a query as a point
# $(a, b)$ in the plane. At position $t$, *rotate* the point by the angle $t f$:
#
# $$(a, b) \rightarrow (a \cos tf - b \sin tf, \quad b \cos tf + a \sin tf)$$
#
# Keys are rotated in the same way: the key at position $s$ by the angle $s f$. Values are not
# rotated: only the scores need the positions.


# %%
def rotate(x, positions, base=1000.0):  # the paper has 10,000, see below
    """Rotate each pair of channels of x (..., T, D) by its angle at positions (T,)."""
    D = x.shape[-1]
    angles = positions[:, None] * base ** -(torch.arange(0, D, 2) / D)  # (T, D/2)
    cos, sin = angles.cos(), angles.sin()  # (T, D/2) each
    a, b = x.chunk(2, dim=-1)  # (..., T, D/2) each: the pairs are (a, b)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)  # (..., T, D)


pair = torch.tensor([[1.0, 0.0]]).expand(4, 2)  # (4, 2): the same pair at four positions
print(rotate(pair, torch.arange(4)))

# %% [markdown]
# This pair has the frequency 1: it turns by one radian (57°) per position (picture, left). The pair
# in the middle has the frequency 0.18. On the right, q2 is a query at position 2, and k1 a key at
# position 1; q4 and k3 are the same query and key two positions later.

# %% alt="Three half circles with arrows: a fast pair turns by 57 degrees, a slow one by 10"
draw_rotations()
show("rotation")

# %% [markdown]
# The dot product of two points depends on their lengths and on the angle between them. A rotation
# keeps the lengths. If query and key both stand two positions later, both turn by the same extra
# angle, and the angle between them stays. So for the same query and key, the dot product depends
# only on the distance $t - s$. A query has D/2 such pairs, and its dot product with a key is the
# sum over the pairs. So the same holds for whole queries and keys:

# %%
torch.manual_seed(0)
query, key = torch.randn(1, D), torch.randn(1, D)  # (1, D) each
for t, s in ((3, 1), (13, 11), (43, 41), (3, 2)):
    product = rotate(query, torch.tensor([t])) @ rotate(key, torch.tensor([s])).T  # (1, 1)
    print(f"query at {t:2}, key at {s:2}, distance {t - s}: dot product {product.item():.4f}")

# %% [markdown]
# Each of the $D/2 = 8$ pairs of a head has its own frequency, $f_i = 1000^{-2i/D}$. Fast pairs tell
# neighbours apart. Slow pairs hardly turn within a block, so a head can use them to compare
# characters at any distance. The base is 10,000 in the paper, and 1,000 in
# [nanogpt/models/modern.py](../nanogpt/models/modern.py), because nanogpt's blocks are short.

# %%
frequencies = 1000.0 ** -(torch.arange(0, D, 2) / D)  # (D/2,)
print("positions for one whole turn:", (2 * torch.pi / frequencies).round().int().tolist())

# %% [markdown]
# ## Table against rotations
#
# The rotary model has no table. Its attention rotates queries and keys; the rest is the same.


# %%
class RotaryAttention(SelfAttention):
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
# `cross_entropy` wants the V logits on axis 1; `reduction="none"` keeps the loss of each target.

# %% alt="Loss over position: no positions about 2.4, table 2.25 with a jump, rotary 2.1"
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
    plt.text(64, curves[name][-1], name, va="center", color=color)
top, arrow = curves["learned table"][worst], {"arrowstyle": "-|>", "color": INK}
plt.annotate(f"position {worst}", (worst, top), (47, top + 0.17), arrowprops=arrow)
plt.xlim(-1, 77)
plt.xlabel("position")
plt.ylabel("loss (nats per character)")
show("by-position")

# %% [markdown]
# At position 0 all three models know only one character, like the bigram of lesson 2. Each has a
# higher loss there than the bigram (2.48): heads that look for earlier characters find only this
# one, and only one of 64 positions is a first one, so training hardly corrects this. Without
# positions, the loss stays near 2.40 up to about position 13 and then rises slowly: among 10
# characters of unknown order most are recent, among 60 most are old. From position 2 on, rotations
# are better than the table. No position fails, because what a head learns about a distance holds at
# every position. (The bumps that all curves share come from the text: some characters are harder to
# predict. Each is measured at two positions, 32 apart, so those at 17 and 27 come again at 49, 59.)
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
# 1. *The whole table for a short text.* With `self.position_embedding.weight` instead of
#    `self.position_embedding(positions)`, training works, but a prompt of 10 characters fails with
#    *The size of tensor a (10) must match the size of tensor b (64)*. *Remedy:* take the positions
#    from `tokens.shape[1]`.
# 2. *Only the queries are rotated.* There is no error message. *Symptom:* the dot product changes
#    if both positions grow by 10. *Remedy:* rotate queries and keys, and test the shift as above.
# 3. *Other pairs.* We rotate the pairs of channels $(0, D/2), (1, D/2 + 1), \dots$; the paper
#    rotates $(0, 1), (2, 3), \dots$. Both can be trained. But weights trained with one kind of
#    pairs do not work with the other. *Symptom:* no error message, but the loss of our rotary model
#    rises from 2.14 to 3.32 (exercise 3). *Remedy:* reorder the query and key rows of `qkv`.
#
# ## Exercises
#
# 1. A point $(a, b)$ is a complex number $a + bi$. Write `rotate` as one product of complex numbers
#    (`torch.complex`, `torch.polar`).
# 2. The rotary model has no table that ends. Evaluate it on blocks of 128 characters, although it
#    was trained on 64. Does the longer context help?
# 3. Evaluate the rotary model with the other pairs of mistake 3.

# %% tags=["test"]
from lesson import FAST  # noqa: E402

from nanogpt.models import modern  # noqa: E402

gaps = curves["learned table"] - curves["rotary"]  # (T,)
errors = [loss_without - 2.44, loss_learned - 2.27, loss_sines - 2.19, loss_rotary - 2.14]
assert FAST or max(map(abs, errors)) < 0.05
assert FAST or min(curve[0] for curve in curves.values()) > 2.6
assert FAST or abs(loss_without - loss_learned - 0.17) < 0.05
assert FAST or (previous.mean(dim=1).max() > 0.4 and previous[head][worst - 1] < 0.3)
assert FAST or (worst > 40 and gaps[worst] > 0.2 and (gaps[2:] > 0).all())
assert FAST or curves["no positions"][2:9].mean() + 0.03 < curves["no positions"][50:].mean()
assert abs(frequencies[2] - 0.178) < 0.001
assert learned.position_embedding.weight.numel() == T * C == 4096
lengths = means.norm(dim=-1).mean(dim=0) * torch.arange(1, T + 1).sqrt()  # (T,)
assert ((lengths - 4).abs() < 0.15).all()
torch.testing.assert_close(products[16, :32], products[48, 32:])
here, x = torch.arange(T), torch.randn(2, H, T, D)
theirs = modern.rotate(x.transpose(1, 2), *modern.rotations(here, D)).transpose(1, 2)
torch.testing.assert_close(rotate(x, here), theirs)
assert not torch.allclose(rotate(x, here) @ x.mT, rotate(x, here + 10) @ x.mT, atol=0.1)

# %% tags=["solution"]
if SOLUTIONS:  # run with: python lessons/06_positions.py --solutions
    x = torch.randn(2, H, T, D)
    angles = torch.arange(T)[:, None] * frequencies  # (T, D/2)
    turns = torch.polar(torch.ones_like(angles), angles)  # (T, D/2): length 1 and these angles
    turned = torch.complex(*x.chunk(2, dim=-1)) * turns  # (2, H, T, D/2)
    mine = torch.cat([turned.real, turned.imag], dim=-1)  # (2, H, T, D)
    torch.testing.assert_close(mine, rotate(x, torch.arange(T)))
    print("1. A product with a complex number of length 1 is a rotation: the same numbers.")
    loss_128 = evaluate(rotary, block_size=128)
    print(f"2. {loss_128:.3f} with blocks of 128, {loss_rotary:.3f} with 64: it does harm. Large")
    print("   distances have angles that did not occur in training. Without positions, the loss")
    print(f"   hardly changes: {evaluate(without, block_size=128):.3f} and {loss_without:.3f}.")

    class OtherPairs(SelfAttention):
        def heads(self, x):
            q, k, v = super().heads(x)  # (B, H, T, D) each
            order = torch.arange(D).view(D // 2, 2).T.flatten()  # (D,): 0, 2, 4, ..., 1, 3, 5, ...
            positions = torch.arange(x.shape[1])  # (T,)
            return rotate(q[..., order], positions), rotate(k[..., order], positions), v

    other = Model(OtherPairs, has_table=False)
    other.load_state_dict(rotary.state_dict())
    print(f"3. {evaluate(other):.3f} instead of {loss_rotary:.3f}")

# %% tags=["test"]
if SOLUTIONS:
    assert FAST or loss_128 > loss_rotary + 0.1
    assert FAST or abs(evaluate(without, block_size=128) - loss_without) < 0.05
    assert FAST or abs(evaluate(other) - 3.32) < 0.2

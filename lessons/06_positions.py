# %% [markdown]
# # 4. Positions
#
# *The dog bites the man* and *the man bites the dog* are made of the same words. Attention, as
# lessons 2 and 3 built it, tells them apart by the last word alone, which asks: of all before it,
# it compares what they are, and nowhere does it ask where they stand. This lesson first proves
# that, then mends it in two ways: a learned table, as GPT-2 has it, and rotations, as most newer
# models have them.

# %%
import math

import matplotlib.pyplot as plt
import torch
from lesson import FAST, T, V, measure, val
from torch import nn
from torch.nn import functional as F

from nanogpt.models import modern

C, H = 64, 4
D = C // H

# %% [markdown]
# Attention with several heads once more, now with a switch for the mask. It keeps its weights, so
# that we can look at them later.


# %%
class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(C, 3 * C)
        self.projection = nn.Linear(C, C)

    def heads(self, x):  # (B, T, C)
        B, T, _ = x.shape
        return self.qkv(x).view(B, T, 3, H, D).permute(2, 0, 3, 1, 4)  # (3, B, H, T, D)

    def forward(self, x, causal=True):
        q, k, v = self.heads(x)
        scores = q @ k.mT / math.sqrt(D)  # (B, H, T, T)
        if causal:
            future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(diagonal=1)
            scores = scores.masked_fill(future, -math.inf)
        weights = scores.softmax(dim=-1)
        self.weights = weights.detach()
        return self.projection((weights @ v).transpose(1, 2).flatten(2))  # (B, T, C)


# %% [markdown]
# ## Attention sees a bag
#
# The score of a query and a key depends on these two vectors alone, and the output is a weighted
# sum. A sum does not care in which order it is taken. So without a mask, if we permute the tokens,
# each gets exactly what it got before, at its new place. That is called *equivariance*.

# %%
torch.manual_seed(0)
first, second = Attention(), Attention()
x = torch.randn(1, T, C)
order = torch.randperm(T)

torch.testing.assert_close(first(x[:, order], causal=False), first(x, causal=False)[:, order])

# %% [markdown]
# The causal mask changes who sees whom. The last position sees everybody, though, and for it
# nothing has changed: shuffle its past, and its output is the same.

# %%
shuffle = torch.cat([torch.randperm(T - 1), torch.tensor([T - 1])])  # the last one stays the last
one = (first(x[:, shuffle]) - first(x))[:, -1].abs().max().item()
two = (second(first(x[:, shuffle])) - second(first(x)))[:, -1].abs().max().item()

print(f"one layer: the last output changes by at most {one:.0e}")
print(f"two layers: by at most {two:.0e}, where outputs vary by {second(first(x)).std():.0e}")
torch.testing.assert_close(first(x[:, shuffle])[:, -1], first(x)[:, -1])
assert two > 100 * one

# %% [markdown]
# Rounding apart, one layer sees a bag of tokens. Two layers see more, and the mask is why. In the
# first layer, position 0 sees one token, position 1 two, position 2 three. After a shuffle these
# are other tokens, so the second layer gets other vectors: some order leaks in. Haviv et al. (2022,
# [arXiv:2203.16634](https://arxiv.org/abs/2203.16634)) found that deep models without any positions
# compete with others, and suspect that they count how many tokens each position sees. We shall see
# how far a small one gets.
#
# ## A table of positions
#
# The simplest remedy is to tell each token where it stands. A token's embedding is a row of a
# learned table; let a second table have a row for each position, and add the two.
#
# Why is adding enough? Take a head's score of a query at $t$ and a key at $s$, with token
# embeddings $e$, position embeddings $p$, and $M$ for the product of its two matrices:
#
# $$(e_t + p_t)^\top M (e_s + p_s)
# = e_t^\top M e_s + e_t^\top M p_s + p_t^\top M e_s + p_t^\top M p_s$$
#
# The first term is what we had. The last knows positions only: with it a head can look *one back*,
# whatever stands there.
#
# The models of this lesson add what a layer found to what was there. Lesson 5 is about that sum.


# %%
class Model(nn.Module):
    def __init__(self, layers, table=True, attention=Attention):
        super().__init__()
        self.token_embedding = nn.Embedding(V, C)
        self.position_embedding = nn.Embedding(T, C) if table else None
        self.layers = nn.ModuleList(attention() for _ in range(layers))
        self.head = nn.Linear(C, V)

    def forward(self, tokens):  # (B, T)
        x = self.token_embedding(tokens)  # (B, T, C)
        if self.position_embedding is not None:
            x = x + self.position_embedding(torch.arange(tokens.shape[1]))  # the same in each row
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)  # (B, T, V)


# %% [markdown]
# ## The proof: shuffled text
#
# We train two models of one layer, without positions and with the table. Then we let both guess the
# character after a context of 32 from the unseen text, and once more after the same context with
# its first 31 characters shuffled.

# %%
contexts = val.unfold(0, T + 1, 8)[: 500 if FAST else None]  # (N, T + 1): one every 8 characters
inputs, targets = contexts[:, :-1], contexts[:, -1]  # (N, T), (N,)
torch.manual_seed(0)
orders = torch.rand(len(inputs), T - 1).argsort(dim=1)  # (N, T - 1): another for each
shuffled = torch.cat([inputs[:, :-1].gather(1, orders), inputs[:, -1:]], dim=1)  # (N, T)


@torch.no_grad()
def last_loss(model, inputs):
    logits = torch.cat([model(part)[:, -1] for part in inputs.split(256)])  # (N, V)
    return F.cross_entropy(logits, targets).item()


torch.manual_seed(1)
bag, ordered = Model(1, table=False), Model(1)
measure({"1 layer, no positions": lambda: bag, "1 layer, table": lambda: ordered}, steps=2000)

for name, model in ("no positions", bag), ("table", ordered):
    as_is, mixed = last_loss(model, inputs), last_loss(model, shuffled)
    print(f"{name:12}  {as_is:.4f} as it is, {mixed:.4f} shuffled")
    if model is bag:
        assert abs(as_is - mixed) < 1e-4
    else:
        assert FAST or mixed > as_is + 0.5

# %% [markdown]
# To the first model the shuffled text is the same text, to the last digit. It knows the last
# character, which nobody moved, and a bag of 31 others. A bigram, with the last character alone,
# pays 2.48, so the bag is worth little. The second model, which reads gibberish when we shuffle, is
# misled and pays almost a nat more.
#
# ## Nothing beyond the table
#
# The table has 32 rows. Position 32, the thirty-third, has none, and nothing says what it would be.
# This is where the *context length* of GPT-2 comes from: how far it can look back is decided before
# it is trained.

# %%
try:
    ordered(val[None, : T + 1])
    raise AssertionError("there is a row too many")
except IndexError as error:
    print(error)

# %% [markdown]
# ## Rotary positions
#
# A table of positions has to learn the same thing many times over. *One back* is row 7 for position
# 8 and row 20 for position 21, and nothing says that these two cases are alike. What matters mostly
# is the *distance*. Can a score depend on the distance alone?
#
# Take two numbers of a query as a point in the plane, two of a key as another, and turn both about
# the origin by the same angle. Their product, which knows their lengths and the angle between them,
# does not change. So if each is turned by an angle proportional to its position, only the
# difference of the positions is left:
#
# $$(R_t\, q) \cdot (R_s\, k) = q \cdot (R_{s-t}\, k)$$
#
# That is *rotary position embedding* (Su et al. 2021,
# [arXiv:2104.09864](https://arxiv.org/abs/2104.09864), equations 16 and 34). Every pair of channels
# of a head turns at another speed. The fast ones tell neighbours apart; the slow ones hardly move
# within the context, and leave a head free to ask only what a token is. Speeds fall from 1 radian
# per position towards 1/1000, in the paper 1/10,000. The paper pairs neighbouring channels; pairing
# each with the one half a head further is the same with the channels renamed.


# %%
def rotate(x, positions):  # (..., T, D), (T,)
    speeds = 1000.0 ** -(torch.arange(0, D, 2) / D)  # (D/2,)
    angles = positions[:, None] * speeds  # (T, D/2)
    cos, sin = angles.cos(), angles.sin()
    a, b = x.chunk(2, dim=-1)  # (..., T, D/2) both: the points are (a, b)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)  # (..., T, D)


def rotary_scores(q, k, positions):
    return rotate(q, positions) @ rotate(k, positions).mT


torch.manual_seed(0)
q, k, here = torch.randn(2, H, T, D), torch.randn(2, H, T, D), torch.arange(T)
torch.testing.assert_close(rotary_scores(q, k, here), rotary_scores(q, k, here + 5))

# nanogpt's own wants (B, T, H, D)
theirs = modern.rotate(q.transpose(1, 2), *modern.rotations(here, D)).transpose(1, 2)
torch.testing.assert_close(rotate(q, here), theirs)

# %% [markdown]
# The scores are the same five positions further on, and `rotate` is what nanogpt's modern model
# has.
#
# The picture shows what a head can do with it: the score of one query and key at each distance. If
# they are alike, it is highest at distance 0. If the key comes out of its matrix already turned,
# the peak moves, here to 8. If both use only the slow pairs, the distance hardly matters. The lower
# peaks are fast pairs that came round again.

# %% alt="Score over distance: peaks at 0 and at 8, and a nearly flat line for slow pairs only"
q = torch.ones(1, D) / math.sqrt(D)
slow = (torch.arange(D) % (D // 2) >= D // 2 - 4) * math.sqrt(2 / D)  # the slower half of the pairs
keys = {
    "query and key alike": (q, q),
    "the key turned by 8": (q, rotate(q, torch.tensor([8]))),
    "slow pairs only": (slow[None], slow[None]),
}
for (name, (query, key)), style in zip(keys.items(), ("-", "--", ":"), strict=True):
    scores = rotate(query.expand(T, D), here) @ key[0]  # (T,): the key stands at 0
    plt.plot(scores, style, color="black", label=name)
plt.xlabel("distance (positions)")
plt.ylabel("score")
plt.legend()
plt.show()

# %% [markdown]
# Nothing is added to the tokens, and no value is turned: positions enter where they are needed, in
# the scores.


# %%
class RotaryAttention(Attention):
    def heads(self, x):
        q, k, v = super().heads(x)
        here = torch.arange(x.shape[1])
        return rotate(q, here), rotate(k, here), v


# %% [markdown]
# ## What it bought
#
# Three models of two layers and four heads, trained alike. Each also guesses the last character of
# our contexts, as they are and shuffled.

# %%
models = {}
for name, parts in {
    "no positions": {"table": False},
    "learned table": {},
    "rotary": {"table": False, "attention": RotaryAttention},
}.items():
    torch.manual_seed(1)  # the same first weights, where they have the same
    models[name] = Model(2, **parts)
losses = measure({name: lambda model=model: model for name, model in models.items()}, steps=2000)
lasts = {
    name: (last_loss(model, inputs), last_loss(model, shuffled)) for name, model in models.items()
}
for name, (as_is, mixed) in lasts.items():
    print(f"{name:13}  last character: {as_is:.2f} as it is, {mixed:.2f} shuffled")

# %% [markdown]
# | two layers | nats a character on unseen text | last character | the same, shuffled |
# | --- | --- | --- | --- |
# | no positions | 2.29 | 2.36 | 2.56 |
# | learned table | 2.08 | 2.11 | 3.29 |
# | rotary | 1.99 | 1.96 | 3.45 |
#
# Here is the leak: without positions, two layers mind a shuffle, by 0.2 nats. They do know
# something about order, though this does not tell how. Being told beats it by 0.2 nats with the
# table, by 0.3 with rotations. The models of Haviv et al. were far larger.
#
# The table costs 2,048 parameters, rotations none, and they are 0.09 better, perhaps as what a
# head learns about a distance holds wherever it occurs.

# %%
none, table, rotary = losses.values()
assert FAST or all(
    abs(a - b) < 0.06 for a, b in zip(losses.values(), (2.29, 2.07, 1.98), strict=True)
)
assert FAST or rotary < table < none
assert FAST or all(as_is + 0.05 < mixed for as_is, mixed in lasts.values())

# %% [markdown]
# Where do they look? Below is the weight that the last position gives to each distance, a mean over
# the heads of the first layer. Without positions all distances are alike, apart from 0: a token can
# recognise its own key. With rotations, four fifths of the weight are on the last four characters,
# with the table about half.

# %% alt="Weight over distance: flat without positions, else falling with the distance"
styles = dict(zip(models, (":", "--", "-"), strict=True))
for name, model in models.items():
    with torch.no_grad():
        model(inputs[:500])
    weights = model.layers[0].weights[:, :, -1].mean(dim=(0, 1))  # (T,): of the last query
    plt.plot(weights.flip(0), styles[name], color="black", label=name)
plt.xlabel("distance (positions)")
plt.ylabel("mean attention weight")
plt.legend()
plt.show()

# %% [markdown]
# And the loss at each position, with contexts of up to 64 where a model can take them:

# %% alt="Loss over position: without positions it rises, rotary is flat up to 32 and then climbs"
longer = val.unfold(0, 2 * T + 1, 8)[: 500 if FAST else None]  # (N, 2T + 1)


@torch.no_grad()
def loss_by_position(model, blocks):
    total = 0
    for part in blocks.split(256):
        logits = model(part[:, :-1]).transpose(1, 2)  # (B, V, T), as F.cross_entropy wants them
        total += F.cross_entropy(logits, part[:, 1:], reduction="none").sum(dim=0)  # (T,)
    return total / len(blocks)


curves = {}
for name, model in models.items():
    length = 2 * T if model.position_embedding is None else T
    curves[name] = loss_by_position(model, longer[:, : length + 1])
    plt.plot(curves[name], styles[name], color="black", label=name)
plt.axvline(T - 0.5, color="0.6")
plt.xlabel("position (trained on those left of the line)")
plt.ylabel("loss (nats per character)")
plt.legend(loc=(0.12, 0.74))
plt.show()
assert FAST or curves["no positions"][24:T].mean() > curves["no positions"][4:12].mean() + 0.05
assert FAST or curves["rotary"][-8:].mean() > curves["rotary"][24:T].mean() + 0.1

# %% [markdown]
# All start with one character to go by. Without positions, the loss soon rises again: of five
# characters in a bag each came lately, of thirty most did not. The table's line ends where the
# table ends. Rotations can be computed for any position, and up to about 55 they still serve. But
# for the slow pairs a distance that never occurred in training is an angle that never occurred, and
# at the very end they do harm. So the context length is a matter of training, too.
#
# ## Exercises
#
# 1. GPT-2's table has a row of 768 numbers for each of 1,024 positions. How many parameters is
#    that? How many would they be for a context of a million? How many do rotations need?
# 2. A point $(a, b)$ is a complex number $a + ib$. Write `rotate` as one product of complex
#    numbers.
# 3. The first Transformer had a table that was not learned (Vaswani et al. 2017,
#    [arXiv:1706.03762](https://arxiv.org/abs/1706.03762), section 3.5): sines and cosines of the
#    position times $10000^{-2i/C}$. Build it, and show that the product of two rows depends on
#    their distance alone.
# 4. Without a mask, is there a depth from which a model without positions can tell order?
# 5. With a mask, and a first token that is like no other, a single head can tell each position its
#    number. Choose scores and values by hand so that it does.

# %% tags=["solution"]
print(f"1. {1024 * 768:,}, and {10**6 * 768:,}; rotations none")
assert ordered.position_embedding.weight.numel() == T * C
assert sum(p.numel() for p in models["rotary"].parameters()) == sum(
    p.numel() for p in models["no positions"].parameters()
)

# 2. Multiplying by a number of length 1 turns; torch.polar makes one of an angle.
x = torch.randn(2, H, T, D)
angles = here[:, None] * 1000.0 ** -(torch.arange(0, D, 2) / D)  # (T, D/2)
turned = torch.complex(*x.chunk(2, dim=-1)) * torch.polar(torch.ones(T, D // 2), angles)
torch.testing.assert_close(torch.cat([turned.real, turned.imag], dim=-1), rotate(x, here))

# 3. sin a sin b + cos a cos b = cos(a − b), and a − b is the distance times the speed.
angles = here[:, None] * 10000.0 ** -(torch.arange(0, C, 2) / C)  # (T, C/2)
sines = torch.cat([angles.sin(), angles.cos()], dim=-1)  # (T, C)
torch.testing.assert_close(sines @ sines.T, (angles[:, None] - angles).cos().sum(dim=-1))
torch.testing.assert_close((sines @ sines.T)[5:, 5:], (sines @ sines.T)[:-5, :-5])

# 4. No: layers that each permute with their input do so one after the other, too.
x = torch.randn(1, T, C)
y = x[:, order]
for layer in (Attention() for _ in range(8)):
    x, y = x + layer(x, causal=False), y + layer(y, causal=False)
torch.testing.assert_close(y, x[:, order])

# 5. Look at all alike, and let only the first have a value: the mean is 1 / (position + 1).
seen = torch.ones(T, T).tril()
weights = seen / seen.sum(dim=1, keepdim=True)  # what softmax makes of equal scores
values = (here == 0).float()  # (T,)
torch.testing.assert_close(1 / (weights @ values) - 1, here.float())

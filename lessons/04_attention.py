# %% [markdown]
# # 2. Attention by hand
#
# The bigram of lesson 1 sees one character. After `h` it gives `e` the same chance whether a `t`
# stood before or an `s`. Everything earlier is lost to it.
#
# Here a position gets to use its past, in three steps: first the plain average of the past, then
# the same average written so that its weights can be changed, and last weights that the text
# itself decides. The third is *attention*, the one part of a Transformer in which positions meet.

# %%
import math

import matplotlib.pyplot as plt
import torch
from lesson import FAST, T, V, decode, encode, measure, val
from torch import nn
from torch.nn import functional as F

from nanogpt.models.gpt import causal_attention

# %% [markdown]
# ## An average of the past
#
# Let every character be a vector of $C$ numbers, its *channels*. A block of $T$ characters is
# then a matrix $x$ of shape $(T, C)$. The simplest way to tell position $t$ about its past is to
# give it the mean of all vectors up to its own. As a loop:

# %%
C = 64
torch.manual_seed(0)
x = torch.randn(T, C)
looped = torch.stack([x[: t + 1].mean(dim=0) for t in range(T)])  # (T, C)

# %% [markdown]
# A mean is a weighted sum, and weighted sums of rows are a product of matrices. Row $t$ of the
# left one says how much of each position goes into position $t$: the same share of all from the
# first to its own, nothing of later ones. The matrix is lower triangular.

# %%
equal = torch.ones(T, T).tril()
equal = equal / equal.sum(dim=1, keepdim=True)  # (T, T): every row sums to 1
print(equal[:5, :5])
torch.testing.assert_close(equal @ x, looped)

# %% [markdown]
# There is a third way to write it. Begin with *scores*, any numbers at all; here all are 0. Put
# $-\infty$ where a position would look into its future. Softmax makes weights of each row, as it
# made chances of logits in lesson 1: none negative, with sum 1. Of $-\infty$ it makes
# $e^{-\infty} = 0$.

# %%
future = torch.ones(T, T, dtype=torch.bool).triu(diagonal=1)
scores = torch.zeros(T, T).masked_fill(future, -math.inf)
torch.testing.assert_close(scores.softmax(dim=1), equal)

# %% [markdown]
# This looks like a detour, but now there is something to turn. Raise one score, and its position
# gets more weight, at the expense of the others. Whatever the scores are, the result is a mixture
# of the past, and it changes smoothly with them, so that gradient descent can find good ones.
#
# ## The text decides
#
# Fixed scores would be the same for every text. They should depend on what stands there: a
# position after a `q` needs nothing more, one in the middle of a word wants to know how the word
# began. So each position makes three vectors from its own, by three learned matrices:
#
# - a *query* $q$: what it is looking for,
# - a *key* $k$: what it can be found by,
# - a *value* $v$: what it tells those who find it.
#
# The score of position $s$ for position $t$ is the dot product $q_t \cdot k_s$: large where the
# two point the same way. The key differs from the value because what makes a thing worth finding
# and what it has to say are two matters. The query differs from the key because looking need not
# be mutual: a vowel may look for the consonant before it, and a consonant for the last space.
#
# All of it in one line (Vaswani et al. 2017, arXiv:1706.03762, equation 1; the mask is in their
# section 3.2.3), with $D$ the number of channels of a query and $M$ the mask, 0 in the past and
# $-\infty$ in the future:
#
# $$\text{softmax}\left(\frac{q k^\top}{\sqrt{D}} + M\right) v$$


# %%
def attention(q, k, v, masked=True):  # (..., T, D) each
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (..., T, T)
    if masked:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(diagonal=1)
        scores = scores.masked_fill(future, -math.inf)
    weights = scores.softmax(dim=-1)
    return weights @ v, weights


q, k, v = torch.randn(3, 8, T, 16)  # (8, T, 16) each: B = 8 texts at once, D = 16
mixed, weights = attention(q, k, v)  # (8, T, 16), (8, T, T)
torch.testing.assert_close(mixed, F.scaled_dot_product_attention(q, k, v, is_causal=True))
torch.testing.assert_close((mixed, weights), causal_attention(q, k, v))
assert (weights.triu(diagonal=1) == 0).all()

# %% [markdown]
# PyTorch's `scaled_dot_product_attention` computes the same, faster, and need not store the
# weights. `causal_attention` is what this project uses to look at them.
#
# ## Why divide by the root of D?
#
# If the numbers in $q$ and $k$ are independent, with mean 0 and variance 1, each product of two
# has variance 1, and their sum over $D$ channels has variance $D$. The more channels, the
# further apart the scores. Softmax turns differences of scores into ratios of weights: with $D =
# 256$ a typical difference is about 20, a ratio of $e^{20}$. Nearly all weight is then on one
# position, picked by chance before anything was learned.
#
# Worse, it stays there. The slope of a weight $w$ in its own score is $w (1 - w)$, and that is
# nothing near $w = 0$ as near $w = 1$: hardly any gradient comes through to say that another
# position had been better. Divided by $\sqrt D$, the scores have variance 1 at any $D$.

# %%
torch.manual_seed(0)
sizes = [1, 4, 16, 64, 256, 1024]
slopes = {"scaled": [], "not scaled": []}
print("    D  variance of scores  largest of 32 weights  the same, scaled")
for D in sizes:
    q, k = torch.randn(1000, 1, D), torch.randn(1000, 32, D)  # a query and 32 keys, 1,000 times
    scores = (q * k).sum(dim=-1)  # (1000, 32)
    largest = {}
    for name, s in (("not scaled", scores), ("scaled", scores / math.sqrt(D))):
        w = s.softmax(dim=-1)
        largest[name] = w.amax(dim=-1).mean()
        slopes[name].append((w * (1 - w)).sum(dim=-1).mean())
    print(f"{D:5} {scores.var():19.1f} {largest['not scaled']:22.2f} {largest['scaled']:17.2f}")
    assert abs(scores.var() / D - 1) < 0.2

# %% alt="Slope of the softmax over D: scaled it is level at 0.93, not scaled it falls to 0.07"
for (name, slope), style in zip(slopes.items(), ("o-", "s:"), strict=True):
    plt.semilogx(sizes, slope, style, color="black", base=2, label=name)
plt.ylim(0, 1)
plt.xlabel("D, channels of query and key")
plt.ylabel("slope w (1 − w), sum of 32 weights")
plt.legend()
plt.show()
assert slopes["not scaled"][-1] < 0.2 < 0.8 < slopes["scaled"][-1]

# %% [markdown]
# ## A model with one head
#
# Queries, keys and values together are called a *head*. Around it goes the least that makes a
# model: a table with a vector for each character, the *embedding*, before it, and a linear layer
# that makes $V$ logits after it. A second table has a vector for each place in the block, which
# is added. Without it a head could not tell near from far: lesson 4 says why.
#
# The models of this lesson differ in `mix` alone. A bigram does not mix. It is close to lesson
# 1's table, now as a product of two, $V \times C$ and $C \times V$.


# %%
class Bigram(nn.Module):
    def __init__(self):
        super().__init__()
        self.token_embedding = nn.Embedding(V, C)
        self.position_embedding = nn.Embedding(T, C)
        self.output = nn.Linear(C, V)

    def embed(self, tokens):  # (..., T)
        places = self.position_embedding.weight[: tokens.shape[-1]]  # (T, C)
        return self.token_embedding(tokens) + places  # (..., T, C)

    def mix(self, x):
        return x

    def forward(self, tokens):  # (B, T)
        return self.output(self.mix(self.embed(tokens)))  # (B, T, V)


class Average(Bigram):
    def mix(self, x):
        t = x.shape[1]
        return equal[:t, :t] @ x


class OneHead(Bigram):
    def __init__(self, masked=True):
        super().__init__()
        self.masked = masked
        self.query, self.key, self.value = (nn.Linear(C, C, bias=False) for _ in range(3))

    def look(self, x):
        return attention(self.query(x), self.key(x), self.value(x), self.masked)

    def mix(self, x):
        return self.look(x)[0]


how = {"steps": 3000, "lr": 4e-3}
trained = {}
found = measure(
    {
        "one head": lambda: trained.setdefault("one head", OneHead()),
        "no mask": lambda: trained.setdefault("no mask", OneHead(masked=False)),
    },
    **how,
)

# %% [markdown]
# ## Why the mask?
#
# Without the mask the loss is absurd: 0.09 nats, where the same model with a mask has 2.32.
# Nobody can guess Shakespeare so well. It does not guess. Position $t$ has to say which character
# stands at $t + 1$, and without a mask it may look there and copy. Measuring on unseen text does
# not catch it, as the answers stand in that text, too.
#
# What catches it is to show the model only the past, ask for the next character, and go on like
# this place by place. Writing asks in just this way.


# %%
@torch.no_grad()
def from_the_past(model):
    blocks = val.unfold(0, T + 1, T)[:1000]  # (1000, T + 1)
    losses = [F.cross_entropy(model(blocks[:, :t])[:, -1], blocks[:, t]) for t in range(1, T + 1)]
    return torch.stack(losses)  # (T,)


@torch.no_grad()
def write(model, length=150):
    torch.manual_seed(0)
    tokens = encode("\n")[None]  # (1, 1)
    for _ in range(length):
        chances = model(tokens[:, -T:])[:, -1].softmax(dim=-1)  # (1, V)
        tokens = torch.cat([tokens, torch.multinomial(chances, 1)], dim=1)
    return decode(tokens[0])


asked = {name: from_the_past(model) for name, model in trained.items()}
for name, model in trained.items():
    mean, last = asked[name].mean(), asked[name][-1]
    print(f"{name}: {found[name]:.2f} on whole blocks")
    print(f"from the past alone: {mean:.2f}, at the last place {last:.2f}")
    print(write(model), "\n")
assert FAST or (found["no mask"] < 0.2 and asked["no mask"].mean() > 4)
assert FAST or abs(found["no mask"] - asked["no mask"][-1] / T) < 0.02
assert abs(found["one head"] - asked["one head"].mean()) < 0.1

# %% [markdown]
# From the past alone it pays more than a model that gives all 65 characters the same chance,
# which would pay 4.17: it is sure of itself, with nothing to be sure of. What it paid on whole
# blocks is due to their last place, after which there is nothing to copy: 2.7 nats there, and one
# place of 32 makes 0.09 of the mean.
#
# With the mask, what a position computes cannot depend on what comes after it. So one pass over a
# block is $T$ honest questions at once, one for each place, and a step of training learns from
# all of them.
#
# ## Where it looks
#
# Row by row, the weights that the trained head gives to the characters of a line that it never
# saw.

# %% alt="Weights of the head over a line: most on a character itself or the one before"
line = "Good morrow, neighbour Baptista."
head = trained["one head"]
with torch.no_grad():
    weights = head.look(head.embed(encode(line)))[1]  # (T, T)

figure, axes = plt.subplots(figsize=(5.4, 5))
axes.imshow(weights)
labels = line.replace(" ", "␣")
axes.set_xticks(range(T), labels, fontsize=8)
axes.set_yticks(range(T), labels, fontsize=8)
axes.set(xlabel="looks at", ylabel="position")
axes.set_title("Darker: more weight", fontsize=9)
axes.grid(False)
plt.show()

# %% [markdown]
# Over all of the validation text, by distance:

# %%
with torch.no_grad():
    average = head.look(head.embed(val.unfold(0, T, T)))[1].mean(dim=0)  # (B, T, T) to (T, T)
near = [average.diagonal(-back)[4:].mean() for back in range(4)]
for back, share in enumerate(near):
    print(f"{back} back: {share:.2f} of the weight")
h, g = 17, 16
assert line[g : h + 1] == "gh"
print(f"the h of neighbour gives {weights[h, g]:.2f} to the g, {weights[h, h]:.2f} to itself")
assert FAST or near[0] > near[1] > near[2] > near[3]

# %% [markdown]
# It stays close. More than two thirds of the weight are on the position's own character, most of
# the rest on the one before: the head has found that nothing tells more about the next character,
# and it found it, like everything, by lowering the loss. But it does not do so everywhere. A
# comma or a space looks almost only at itself. The `h` of `neighbour` looks at the `g` instead:
# what follows on `gh` differs from what follows on other `h`.
#
# It also pays for its choice. The weights sum to 1, so what it gives to the `g` it takes from the
# `h`, and this model has no other way to know which character came last. Lesson 5 gives it one.
#
# ## What it bought
#
# All with the same budget, and one head also without the division by $\sqrt D$, which is what
# multiplying its queries by $\sqrt D$ amounts to.


# %%
class NotScaled(OneHead):
    def look(self, x):
        return attention(math.sqrt(C) * self.query(x), self.key(x), self.value(x))


found |= measure(
    {
        "bigram": lambda: trained.setdefault("bigram", Bigram()),
        "average of the past": lambda: trained.setdefault("average of the past", Average()),
        "one head, not scaled": NotScaled,
    },
    **how,
)

# %% alt="Loss by place: the average grows worse with more past, the head is better than the bigram"
blocks = val.unfold(0, T + 1, T)  # (B, T + 1)
for name, style in {"average of the past": ":", "bigram": "--", "one head": "-"}.items():
    with torch.no_grad():
        logits = trained[name](blocks[:, :-1])  # (B, T, V)
    losses = F.cross_entropy(logits.transpose(1, 2), blocks[:, 1:], reduction="none")  # (B, T)
    plt.plot(range(1, T + 1), losses.mean(dim=0), style, color="black", label=name)
plt.xlabel("characters seen")
plt.ylabel("loss (nats per character)")
plt.ylim(2.2, 3.3)
plt.legend(loc="center right")
plt.show()

# %% [markdown]
# | model | nats a character on unseen text |
# | --- | --- |
# | average of the past | 3.06 |
# | bigram | 2.49 |
# | one head, not scaled | 2.49 |
# | one head | 2.32 |
#
# The average is far worse than the bigram although it sees more. The longer its past, the less is
# left of the last character, the one that matters most: seeing is not enough, one has to choose.
# And what comes out has to suit long averages, so even a single character is of little use to it.
# The head chooses, and is 0.17 nats better than the bigram. It has twice the parameters, but they
# are not the reason: the bigram is already as good as counting made it. Without the division by
# $\sqrt D$ all of that is lost, at this learning rate.
#
# The picture shows the price as well. With a single character to see the head is worse than the
# bigram, as its value matrix has to suit all other places, too. And from about the third
# character on, more past hardly helps: one softmax looks at one neighbourhood. Lesson 3 gives it
# several.

# %%
assert FAST or found["one head"] + 0.08 < found["bigram"] < found["average of the past"] - 0.3
assert FAST or found["one head"] + 0.05 < found["one head, not scaled"]

# %% [markdown]
# ## Exercises
#
# 1. What does a head compute whose queries are all zero?
# 2. Without any training, find queries and keys with which every position looks at the one before
#    it. (Give each position a key of its own.) What does the first position do?
# 3. Let the head see only the last four characters. Which mask does that? What does it cost?
# 4. The head spends most of its weight on the position's own character. Spare it that: let `mix`
#    give the head's result plus `x` itself. What does that buy?

# %% tags=["solution"]
v = torch.randn(T, C)
torch.testing.assert_close(attention(torch.zeros(T, C), torch.randn(T, C), v)[0], equal @ v)
print("1. the average of the past")

keys = torch.eye(T)  # (T, T): D = T, position t has a 1 in channel t
queries = torch.diag(torch.full((T - 1,), 100.0), diagonal=-1)  # row t: 100 in channel t - 1
_, weights = attention(queries, keys, v)
assert (weights.diagonal(-1) > 0.999).all()
print(f"2. the first looks at itself: there is nothing else, weight {weights[0, 0]:.0f}")


# %% tags=["solution"]
class Window(OneHead):
    def mix(self, x):
        near = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril().triu(diagonal=-3)
        q, k, v = self.query(x), self.key(x), self.value(x)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=near)


class HeadAndItself(OneHead):
    def mix(self, x):
        return x + super().mix(x)


found |= measure({"3. four characters": Window, "4. plus itself": HeadAndItself}, **how)
assert FAST or abs(found["3. four characters"] - found["one head"]) < 0.05  # next to nothing
assert FAST or found["4. plus itself"] < found["one head"] - 0.05  # lesson 5 says more

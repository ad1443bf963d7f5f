# %% [markdown]
# # 4. Attention by hand
#
# The bigram of lesson 2 uses one character to predict the next one. The 7-grams of lesson 3 use
# six, but they count: contexts share what they learn only if they end in the same characters. This
# lesson builds *attention*: each position collects information from itself and all earlier
# positions, and the text decides which of them matter (Bahdanau et al. 2014, arXiv:1409.0473).
#
# **Before this lesson:** [lesson 1](01_tensors.md) (shapes, `@`, softmax, `nn.Embedding`,
# `nn.Linear`) and [lesson 2](02_bigram.md) (batches, targets, the loss, the bigram).
#
# **You will see:** one output of attention that you can check with a calculator; why the scores are
# divided by √D; and a model that reads 64 characters and is still no better than the bigram.

# %%
import math

import lesson
import matplotlib.pyplot as plt
import torch
from lesson import SOLUTIONS, T, V, show_scoreboard, train, val_tokens
from pictures import ACCENT, INK, MUTED, arrow, cells, diagram, show, write
from torch import nn
from torch.nn import functional as F

from nanogpt.models.gpt import causal_attention

torch.set_printoptions(precision=2, sci_mode=False)
C = 64  # channels of the model that we train

# %% [markdown]
# ## The average of the past, as a loop
#
# Each position of a text has a vector of $C$ numbers, called its *channels*. The vectors of $T$
# positions form a tensor `x` of shape (T, C). In this example, T is 4 and C is 2. The simplest way
# to use the past is its average: each position gets the mean of its own vector and all earlier
# ones. (The next three steps follow Karpathy's lecture "Let's build GPT".)

# %%
x = torch.tensor([[8.0, 0.0], [4.0, 2.0], [0.0, 4.0], [4.0, 2.0]])  # (T, C) = (4, 2)
loop = torch.stack([x[: t + 1].mean(dim=0) for t in range(4)])  # (T, C): stack joins a list
print(loop)

# %% [markdown]
# The third row is the mean of three vectors: (8 + 4 + 0) / 3 = 4 and (0 + 2 + 4) / 3 = 2.
#
# ## The same average as a matrix product
#
# A mean is a weighted sum, and a matrix product computes weighted sums of rows. Row t of the matrix
# of weights says how much of each position goes into the result of position t. `tril` sets all
# entries above the diagonal to 0: the matrix is *lower triangular*.

# %%
weights = torch.ones(4, 4).tril()  # (T, T)
weights = weights / weights.sum(dim=1, keepdim=True)  # (T, T): each row sums to 1
print(weights)
torch.testing.assert_close(weights @ x, loop)  # an error if the two are not equal

# %% [markdown]
# ## The same average as a softmax of scores
#
# The third version starts from *scores*: any numbers, one for each pair of positions. A *mask*
# hides the later positions: `triu(diagonal=1)` keeps only the entries above the diagonal, and
# `masked_fill` replaces their scores by $-\infty$. The softmax then turns each row of scores into
# weights that are not negative and sum to 1. A hidden position gets the weight $e^{-\infty} = 0$.

# %%
is_later = torch.ones(4, 4, dtype=torch.bool).triu(diagonal=1)  # (T, T): True above the diagonal
scores = torch.zeros(4, 4).masked_fill(is_later, -math.inf)  # (T, T)
print(scores)
torch.testing.assert_close(scores.softmax(dim=-1) @ x, loop)

# %% [markdown]
# All scores are 0 here, so all weights in a row are equal. If one score rises, its position gets
# more weight, and the others get less. So training can change the weights by changing the scores.
#
# ## Queries, keys and values
#
# The scores should depend on the text. So each position computes three vectors of $D$ numbers from
# its own vector (*self-attention*: all three come from the same text):
#
# - a *query* q: what this position looks for;
# - a *key* k: what this position offers to those who look;
# - a *value* v: what this position passes on.
#
# Think of a dictionary in which a query matches all keys a little: the result is a mixture of the
# values. The score of two positions is the dot product of the query of one and the key of the
# other. It is large if they match. In a model, three learned matrices compute q, k and v. Here we
# choose the matrices by hand. The text is `bade`. The four channels of `x` mean: is a vowel, is a
# consonant, and two numbers that stand for the letter (1, 0 for `b`).

# %%
x = torch.tensor([[0.0, 1, 1, 0], [1, 0, -1, 0], [0, 1, 0, 1], [1, 0, 0, -1]])  # (T, C) = (4, 4)
query_matrix = torch.tensor([[0.0, 3], [0, 0], [0, 0], [0, 0]])  # (C, D) = (4, 2)
key_matrix = torch.tensor([[1.0, 0], [0, 1], [0, 0], [0, 0]])  # (C, D)
value_matrix = torch.tensor([[0.0, 0], [0, 0], [1, 0], [0, 1]])  # (C, D)
q, k, v = x @ query_matrix, x @ key_matrix, x @ value_matrix  # (T, D) each
print("    q          k         v")
for t, letter in enumerate("bade"):
    print(letter, q[t].tolist(), k[t].tolist(), v[t].tolist())

# %% [markdown]
# A key says "I am a vowel", (1, 0), or "I am a consonant", (0, 1). The query of a vowel, (0, 3),
# looks for consonants; a number larger than 3 would look more strictly (exercise 1). The query of a
# consonant, (0, 0), looks for nothing. Now the scores, divided by √D (a later section says why),
# the mask, the softmax, and the weighted mean of the values. Each row belongs to the position that
# looks, each column to the position that it looks at:

# %%
scores = q @ k.T / math.sqrt(2)  # (T, T): .T swaps rows and columns; D = 2
masked = scores.masked_fill(is_later, -math.inf)  # (T, T)
weights = masked.softmax(dim=-1)  # (T, T): each row sums to 1
output = weights @ v  # (T, D)
for name, table in {"scores": masked, "weights": weights, "output": output}.items():
    print(name, table, sep="\n")

# %% tags=["test"]
assert [round(n, 2) for n in scores[3].tolist()] == [2.12, 0, 2.12, 0]
assert [round(n, 2) for n in scores[3].exp().tolist()] == [8.34, 1, 8.34, 1]
assert (weights[3] * 1000).round().tolist() == [446, 54, 446, 54]

# %% [markdown]
# You can check the last row, the one of the letter `e`, with a calculator:
#
# - scores for `b`, `a`, `d`, `e`: $3/\sqrt 2 = 2.12$, 0, 2.12, 0;
# - $\exp$ of the scores: 8.34, 1, 8.34, 1, with sum 18.68;
# - weights: 8.34 / 18.68 = 0.446, 1 / 18.68 = 0.054, 0.446, 0.054;
# - output: 0.446 · (1, 0) + 0.054 · (−1, 0) + 0.446 · (0, 1) + 0.054 · (0, −1) = (0.39, 0.39).

# %% alt="Tables of q, k, v, scores, weights, output; shaded: the path of e to (0.39, 0.39)"
axes = diagram(70, 44)


def draw(x, y, title, tensor, filled, width=4.4, digits=0, note=""):
    rows = [
        [f"{n:.{digits}f}".replace("inf", "∞").replace("-", "−") for n in row]
        for row in tensor.tolist()
    ]
    cells(axes, x, y, rows, width, 3, [[i in filled] * len(rows[0]) for i in range(4)])
    write(axes, x + width * len(rows[0]) / 2, y + (3.4 if len(rows[0]) == 4 else 1.6), title)
    for i, letter in enumerate("bade"):
        write(axes, x - 1.5, y - 3 * i - 1.5, letter, bold=True)
        write(axes, x + width * (i + 0.5), y + 1.2, letter if len(rows[0]) == 4 else "", bold=True)
    write(axes, x + width * len(rows[0]) / 2, y - 13.6, note, 8, MUTED)


draw(5, 39, "query q", q, [3], note="looks for")
draw(24, 39, "key k", k, [0, 1, 2, 3], note="offers")
draw(55, 39, "value v", v, [0, 1, 2, 3], note="passes on")
draw(5, 17, "scores q · k / √D", masked, [3], digits=2, note="−∞: hidden by the mask")
draw(31, 17, "weights", weights, [3], digits=2, note="each row sums to 1")
draw(57, 17, "output", output, [3], width=5.5, digits=2, note="weighted means of v")
arrow(axes, (9, 24), (11, 22))
arrow(axes, (27, 24), (18, 22))
arrow(axes, (23.6, 11), (27.5, 11))
write(axes, 25.5, 13, "softmax", 8, MUTED)
arrow(axes, (49.6, 11), (53.5, 11))
arrow(axes, (60, 24), (62, 22))
show("four-tokens")

# %% [markdown]
# `e` finds the two consonants before it, and its output is mostly the mean of their values. `d`
# looks for nothing: its weights are all equal, as in the average of the past. These *attention
# weights* are results, new for each text. The parameters, which training changes, are the three
# matrices.
#
# Why three vectors? The vowels find `b` by its key, "consonant", but its value says which letter it
# is. And a vowel has the key "vowel", but its query looks for consonants.
#
# ## The formula and the function
#
# Vaswani et al. (2017, arXiv:1706.03762, section 3.2) write this in one line, their equation 1. We
# add the mask: 0 for the past and $-\infty$ for later positions.
#
# $$\text{output} = \text{softmax}\left(\frac{q k^\top}{\sqrt{D}} + \text{mask}\right) v$$


# %%
def attention(q, k, v, is_hidden=None):  # q, k, v: (..., T, D); the dots are any axes before
    T, D = q.shape[-2:]
    if is_hidden is None:
        is_hidden = torch.ones(T, T, dtype=torch.bool).triu(diagonal=1)  # (T, T)
    scores = q @ k.transpose(-2, -1) / math.sqrt(D)  # (..., T, T)
    weights = scores.masked_fill(is_hidden, -math.inf).softmax(dim=-1)  # (..., T, T)
    return weights @ v, weights  # (..., T, D), (..., T, T)


torch.testing.assert_close(attention(q, k, v)[0], output)
q, k, v = torch.randn(3, 8, T, 16)  # (B, T, D) each: eight random texts
y, weights = attention(q, k, v)  # (B, T, D), (B, T, T)
torch.testing.assert_close(y, F.scaled_dot_product_attention(q, k, v, is_causal=True))
torch.testing.assert_close((y, weights), causal_attention(q, k, v))

# %% [markdown]
# `transpose(-2, -1)` swaps the last two axes. The function equals `causal_attention` of this
# project and PyTorch's faster `scaled_dot_product_attention`. In [gpt.py](../gpt.py),
# `SelfAttention.forward` has the same lines for `scores`, `weights` and `y`; their shapes have one
# more axis, for several heads ([lesson 5](05_heads.md)).
#
# ## Why divide by √D?
#
# Suppose that the numbers in q and k are independent, with mean 0 and variance 1 (the variance is
# the mean squared distance from the mean). Then each product of two has variance 1, and the sum of
# D products, the score, has variance D. We check this with 1,000 random queries and 64 keys for
# each. `amax` takes the largest weight of each row.

# %%
torch.manual_seed(0)
print("   D  variance  largest weight  divided by √D")
for D in (1, 4, 16, 64, 256, 1024):
    q, k = torch.randn(1000, 1, D), torch.randn(1000, 64, D)
    scores = (q @ k.transpose(-2, -1)).squeeze(1)  # (1000, 64): squeeze removes an axis of length 1
    undivided = scores.softmax(dim=-1).amax(dim=-1).mean()
    divided = (scores / math.sqrt(D)).softmax(dim=-1).amax(dim=-1).mean()
    print(f"{D:4}  {scores.var():8.1f}  {undivided:14.2f}  {divided:13.2f}")

# %% [markdown]
# The last two columns are the mean of the largest weight, without and with the division. With the
# division, it stays near 0.1 for all D. Without it, it rises to 0.95: one random position gets
# almost all weight before any training. Training can hardly change this. The derivative of a
# softmax weight w with respect to its own score is w (1 − w), which is close to 0 when w is close
# to 0 or 1.
#
# ## Attention is causal
#
# *Causal* means that a position does not depend on later ones. The mask guarantees this. We change
# the last of eight tokens and compare the outputs:

# %%
torch.manual_seed(0)
q, k, v = torch.randn(3, 8, 16)  # (T, D) each, T = 8
before = attention(q, k, v)[0]  # (T, D)
for part in (q, k, v):
    part[-1] = torch.randn(16)  # changes the last row of q, k or v in place
after = attention(q, k, v)[0]  # (T, D)
print((before != after).any(dim=1))

# %% [markdown]
# Only the last output changes. So the model can compute the predictions for all T positions of a
# block at once, and no prediction can use its own target.
#
# ## Attention has no order
#
# The output is a sum over positions, and a sum does not depend on the order of its parts. We
# shuffle the first seven positions and look at the output of the last one:

# %%
order = torch.tensor([3, 6, 0, 5, 2, 4, 1, 7])  # (T,): the last position stays last
shuffled = attention(q[order], k[order], v[order])[0]  # (T, D)
torch.testing.assert_close(shuffled[-1], after[-1])

# %% [markdown]
# The output is the same. To attention, the past is a bag of characters: after the `s`, it cannot
# tell `arts` from `rats`. [Lesson 6](06_positions.md) adds positions.
#
# ## A model with one head
#
# Three matrices and the attention with their q, k and v are called a *head*. The smallest model
# around a head has an embedding of C = 64 channels for each character, and a linear layer that
# makes V logits.


# %%
class OneHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.token_embedding = nn.Embedding(V, C)
        self.query = nn.Linear(C, C, bias=False)  # D = C: one head uses all channels
        self.key = nn.Linear(C, C, bias=False)
        self.value = nn.Linear(C, C, bias=False)
        self.output = nn.Linear(C, V)

    def look(self, x):  # (B, T, C) -> (B, T, C), (B, T, T)
        return attention(self.query(x), self.key(x), self.value(x))

    def forward(self, tokens):  # (B, T)
        x = self.token_embedding(tokens)  # (B, T, C)
        y = self.look(x)[0]  # (B, T, C)
        return self.output(y)  # (B, T, V)


# %% [markdown]
# We compare it with three variants: equal weights for all positions; a mask that hides everything
# except the position itself; and the vector `x` of the position added to the result of the head.


# %%
class Average(OneHead):
    def look(self, x):
        return attention(0 * self.query(x), self.key(x), self.value(x))


class OnlyItself(OneHead):
    def look(self, x):
        is_itself = torch.eye(x.shape[1], dtype=torch.bool)  # (T, T): True on the diagonal
        return attention(self.query(x), self.key(x), self.value(x), ~is_itself)  # ~ means not


class PlusItself(OneHead):
    def look(self, x):
        y, weights = super().look(x)
        return x + y, weights


models, losses = {}, {}
for kind in (Average, OnlyItself, OneHead, PlusItself):
    torch.manual_seed(1)
    models[kind] = kind()
    losses[kind] = train(models[kind])
    print(f"{kind.__name__:10} validation loss {losses[kind]:.3f}", flush=True)

# %% [markdown]
# The model that sees only itself is a bigram, and reaches the bigram's 2.48. The average of up to
# 64 characters reaches only 3.16: it contains the current character, but as one of many. One head
# also reaches 2.48 (the difference of 0.003 means little). It sees up to 64 characters and gains
# nothing. Where does it look?

# %% alt="Weight on the own position falls to 0.29 for one head, to 0.02 for one head plus x"
blocks = val_tokens.unfold(0, T, T)  # axis 0 in pieces of length T, T apart: (blocks, T)
own = {}
for kind in (OneHead, PlusItself):
    with torch.no_grad():  # no gradients are needed to look
        weights = models[kind].look(models[kind].token_embedding(blocks))[1]  # (blocks, T, T)
    own[kind] = weights.diagonal(dim1=1, dim2=2).mean(dim=0)  # (T,): weight of t on t
    print(f"{kind.__name__}: {own[kind].mean():.2f} of the weight on the own position")
print(f"equal weights: {(1 / torch.arange(1, T + 1)).mean():.2f}")  # position t: 1 / t
plt.plot(range(1, T + 1), own[OneHead], "-", color=ACCENT)
plt.plot(range(1, T + 1), own[PlusItself], "--", color=INK)
plt.text(22, 0.58, "OneHead: half of the weight,\non average", color=ACCENT)
plt.text(22, 0.13, "PlusItself: the weight goes to the past")
plt.xlabel("position in the block")
plt.ylabel("weight on the own position")
plt.ylim(0, 1)
show("own-position")

# %% tags=["test"]
for loss, value in zip(losses.values(), (3.158, 2.482, 2.479, 2.436), strict=True):
    assert lesson.FAST or abs(loss - value) < 0.02
for share, value in ((own[OneHead], 0.50), (own[PlusItself], 0.08), (own[OneHead][-1], 0.29)):
    assert lesson.FAST or abs(share.mean() - value) < value / 4
assert abs((1 / torch.arange(1, T + 1)).mean() - 0.074) < 0.001
assert 0.97 > undivided > 0.93 > 0.12 > divided > 0.09

# %% [markdown]
# The first position sees only itself, so both lines start at 1. Later, the head has a conflict,
# because the weights of a row sum to 1. The current character is the best clue to the next one, and
# only its weight on itself puts it into the mean: 0.50 on average. Each weight on the past blurs
# it.
#
# If the model adds `x` to the result of the head, the current character takes another path. The
# head then puts only 0.08 of its weight on itself, about as much as equal weights would (0.07), and
# the loss falls to 2.44. This addition is the *residual connection* of [lesson 7](07_depth.md).
#
# ## Scoreboard

# %%
show_scoreboard(4, {"one attention head": losses[OneHead]})

# %% [markdown]
# One head is no better than the bigram, and far behind the 7-grams. The next lessons add what it
# lacks: more heads, positions and residual connections.
#
# ## Three common mistakes
#
# 1. *The softmax over the wrong axis*, `softmax(dim=-2)`: no error, but columns sum to 1
#    instead of rows, and earlier outputs change when a later token changes. Test causality as
#    above.
# 2. *Filling the mask with 0 instead of* $-\infty$: since $e^0 = 1$, later positions keep a weight.
#    The same test finds it. Use `-math.inf`, before the softmax.
# 3. *A mask with* `triu()` *instead of* `triu(diagonal=1)`: the first position sees nothing, not
#    even itself. The softmax of a row of $-\infty$ is `nan` (not a number), and so is the loss.
#
# ## Exercises
#
# 1. Multiply `query_matrix` by 10, or by 0. How do the weights of `e` change? Guess first.
# 2. Choose queries and keys by hand so that each of T = 5 positions looks at the position before
#    it. Give each position a different key. What does the first position do?
# 3. Let the head see only its own and the previous three characters. Which mask does this? Guess
#    the loss first, then train.

# %% tags=["solution"]
if SOLUTIONS:  # run with: python lessons/04_attention.py --solutions
    for factor in (0, 1, 10):  # 0: the average of the past; 10: only the consonants
        weights = attention(factor * x @ query_matrix, x @ key_matrix, x @ value_matrix)[1]
        print(f"1. factor {factor}:", weights[-1])
    assert weights[-1, 0] > 0.499
    keys = torch.eye(5)  # (T, D): position s has a 1 in channel s
    queries = torch.diag(torch.full((4,), 50.0), diagonal=-1)  # row t: 50 in channel t - 1
    weights = attention(queries, keys, keys)[1]
    print("2. the first position can only look at itself:", weights, sep="\n")
    assert (weights.diagonal(-1) > 0.999).all()

    class Window(OneHead):
        def look(self, x):
            visible = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril().triu(diagonal=-3)
            return attention(self.query(x), self.key(x), self.value(x), ~visible)

    torch.manual_seed(1)
    loss = train(Window())
    print(f"3. validation loss {loss:.3f}: a shorter past blurs the current character less")

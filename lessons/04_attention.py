# %% [markdown]
# # 4. Attention by hand
#
# The bigram of lesson 2 uses one character to predict the next one. The 7-grams of lesson 3 use
# six, but they only count: the counts of one context help another one only if both end in the same
# characters. This lesson builds *attention*: each position collects information from itself and all
# earlier positions, and the text decides which of them matter. (The idea comes from translation:
# Bahdanau et al. 2014, arXiv:1409.0473.)
#
# **Before this lesson:** [lesson 1](01_tensors.md) (shapes, `@`, softmax, `nn.Embedding`,
# `nn.Linear`) and [lesson 2](02_bigram.md) (training, the bigram).
#
# **You will see:** one output of attention that you can check with a calculator; why the scores are
# divided by √D; and a model that reads 64 characters and, in this training, equals the bigram.

# %%
import math

import matplotlib.pyplot as plt
import torch
from lesson import SOLUTIONS, T, V, show_scoreboard, train, val_tokens
from pictures import ACCENT, INK, MUTED, arrow, cells, diagram, show, write
from torch import nn
from torch.nn import functional as F

from nanogpt.models.gpt import causal_attention

torch.set_printoptions(precision=2, sci_mode=False)
C = 64  # channels of each position; T = 64 positions in a block; V = 65 characters (lesson.py)

# %% [markdown]
# ## The average so far, as a loop
#
# Each position of a text has a vector of $C$ numbers, called its *channels*. The vectors of $T$
# positions form a tensor `x` of shape (T, C): (64, 64) in our models, here (4, 2). The simplest use
# of earlier positions is an average: each position gets the mean of its own vector and all earlier
# ones. (The next three steps follow Karpathy's lecture "Let's build GPT", 2023.)

# %%
x = torch.tensor([[8.0, 0.0], [4.0, 2.0], [0.0, 4.0], [4.0, 2.0]])  # (T, C) = (4, 2)
loop = torch.stack([x[: t + 1].mean(dim=0) for t in range(4)])  # (T, C): stack joins a list
print(loop)

# %% [markdown]
# The third row is the mean of three: (8 + 4 + 0) / 3 = 4 and (0 + 2 + 4) / 3 = 2.
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
# `masked_fill` replaces their scores by $-\infty$. The softmax turns each row (`dim=-1`: the last
# axis) into weights that sum to 1. A hidden position gets the weight $e^{-\infty} = 0$.

# %%
is_later = torch.ones(4, 4, dtype=torch.bool).triu(diagonal=1)  # (T, T): True above the diagonal
scores = torch.zeros(4, 4).masked_fill(is_later, -math.inf)  # (T, T)
print(scores)
torch.testing.assert_close(scores.softmax(dim=-1) @ x, loop)

# %% [markdown]
# All visible scores are 0 here, so all visible weights of a row are equal. If one score rises, its
# position gets more weight, and the others get less.
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
# The score of two positions is the dot product of the query of one and the key of the other. It is
# large if they match. In a model, three learned matrices compute q, k and v. Here we choose the
# matrices by hand. The text is `bade`. The four channels of `x` mean: is a vowel, is a consonant,
# and two numbers that stand for the letter (1, 0 for `b`).

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


def draw(x, y, title, tensor, note, filled=(3,)):
    rows = [[f"{round(n, 2):g}" for n in row] for row in tensor.tolist()]
    rows = [[n.replace("inf", "∞").replace("-", "−") for n in row] for row in rows]
    columns = len(rows[0])
    cells(axes, x, y, rows, 4.4, 3, [[i in filled] * columns for i in range(4)])
    write(axes, x + 2.2 * columns, y + (3.4 if columns == 4 else 1.6), title)
    write(axes, x + 2.2 * columns, y - 13.6, note, 8, MUTED)
    for i, letter in enumerate("bade"):
        write(axes, x - 1.5, y - 3 * i - 1.5, letter, bold=True)
        write(axes, x + 4.4 * i + 2.2, y + 1.2, letter if columns == 4 else "", bold=True)


draw(5, 39, "query q", q, "looks for")
draw(24, 39, "key k", k, "offers", (0, 1, 2, 3))
draw(58, 39, "value v", v, "passes on", (0, 1, 2, 3))
draw(5, 17, "scores q · k / √D", masked, "−∞: hidden by the mask")
draw(31, 17, "weights", weights, "each row sums to 1")
draw(58, 17, "output", output, "weighted means of v")
for start, end in (((9, 24), (11, 22)), ((27, 24), (18, 22)), ((62, 24), (62, 21))):
    arrow(axes, start, end)
for left, name in ((23.6, "softmax"), (50, "@ v")):
    arrow(axes, (left, 11), (left + 4, 11))
    write(axes, left + 2, 13, name, 8, MUTED)
write(axes, 44, 33, "shaded: what goes into\nthe output of e", 8, MUTED)
show("four-tokens")

# %% [markdown]
# `e` finds the two consonants before it, and its output is mostly the mean of their values. `d`
# looks for nothing: all visible positions have equal weights. These *attention weights* are new for
# each text. The parameters, which training changes, are the three matrices.
#
# Why three vectors? The vowels find `b` by its key, "consonant", but its value says which letter it
# is. And a vowel has the key "vowel", but its query looks for consonants.
#
# ## The formula and the function
#
# Vaswani et al. (2017, arXiv:1706.03762, equation 1) write this in one line. We add the mask: 0 for
# the position itself and earlier ones, $-\infty$ for later ones.
#
# $$\text{output} = \text{softmax}\left(\frac{q k^\top}{\sqrt{D}} + \text{mask}\right) v$$


# %%
def attention(q, k, v):  # q, k, v: (..., T, D); the dots are any axes before
    T, D = q.shape[-2:]
    is_later = torch.ones(T, T, dtype=torch.bool).triu(diagonal=1)  # (T, T)
    scores = q @ k.transpose(-2, -1) / math.sqrt(D)  # (..., T, T)
    weights = scores.masked_fill(is_later, -math.inf).softmax(dim=-1)  # (..., T, T)
    return weights @ v, weights  # (..., T, D), (..., T, T)


torch.testing.assert_close(attention(q, k, v)[0], output)
q, k, v = torch.randn(3, 8, T, 16)  # random numbers; axis 0 gives q, k and v: (B, T, D) each
y, weights = attention(q, k, v)  # (B, T, D), (B, T, T)
torch.testing.assert_close(y, F.scaled_dot_product_attention(q, k, v, is_causal=True))
torch.testing.assert_close((y, weights), causal_attention(q, k, v))

# %% [markdown]
# `transpose(-2, -1)` swaps the last two axes. With more than two axes, `@` multiplies the matrices
# of the last two axes: here the queries of each block with the keys of the same block. Twice the
# positions have four times the scores. The package's `causal_attention` and PyTorch's faster
# function give the same. `SelfAttention.forward` in [gpt.py](../gpt.py) has the same lines, with
# one more axis for heads ([lesson 5](05_heads.md)).
#
# ## Why divide by √D?
#
# Suppose that the numbers in q and k are random, none depending on another, with mean 0 and
# *variance* 1 (the mean squared distance from the mean), as `torch.randn` returns them. Then each
# product of two has variance 1, and the sum of D products, the score, has variance D. Dividing it
# by √D divides its variance by D: 1 again. We check this for 1,000 queries with 64 keys each.

# %%
torch.manual_seed(0)
print("   D  variance  largest weight  divided by √D")
for D in (1, 4, 16, 64, 256, 1024):
    q, k = torch.randn(1000, 1, D), torch.randn(1000, 64, D)
    scores = (q @ k.transpose(-2, -1)).squeeze(1)  # (1000, 64): squeeze removes an axis of length 1
    undivided = scores.softmax(dim=-1).amax(dim=-1).mean()  # amax: the largest of each row
    divided = (scores / math.sqrt(D)).softmax(dim=-1).amax(dim=-1).mean()
    print(f"{D:4}  {scores.var():8.1f}  {undivided:14.2f}  {divided:13.2f}")

# %% [markdown]
# The last two columns are the mean of the largest weight, without and with the division. With the
# division, it stays near 0.1 for all D. Without it, it rises to 0.95: one random position gets
# almost all weight before any training. Training can hardly change this, because the slopes are
# almost 0: the derivative of a softmax weight w with respect to its own score is w (1 − w), which
# is close to 0 if w is close to 0 or 1.
#
# ## Attention is causal
#
# *Causal* means that a position does not depend on later ones. The mask guarantees this. We change
# the last of eight tokens and compare the outputs:

# %%
torch.manual_seed(0)
q, k, v = torch.randn(3, 8, 16)  # (T, D) each, T = 8
before = attention(q, k, v)[0]  # (T, D)
q[-1], k[-1], v[-1] = torch.randn(3, 16)  # changes the last row of each
after = attention(q, k, v)[0]  # (T, D)
print((before != after).any(dim=1))  # True: at least one number of the row has changed

# %% [markdown]
# Only the last output changes. So a model can compute the predictions for all positions at once,
# and no prediction can use its own target.
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
# The output is the same. To one head, a text is a bag of characters: after the `s`, it cannot tell
# `arts` from `rats`. [Lesson 6](06_positions.md) adds positions.
#
# ## A model with one head
#
# The three matrices, together with the attention computed from their q, k and v, are called a
# *head*. The smallest model around a head has an embedding of C = 64 channels for each character,
# and a linear layer that makes V logits.


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
# We compare it with two variants: equal weights for all visible positions, and the vector `x` added
# to the result of the head.


# %%
class Average(OneHead):
    def look(self, x):  # queries of 0: all scores are 0
        return attention(0 * self.query(x), self.key(x), self.value(x))


class PlusItself(OneHead):
    def look(self, x):
        y, weights = super().look(x)
        return x + y, weights


# %% [markdown]
# `train(model)` of [lesson.py](lesson.py) is the loop of lesson 2, for all models of the scoreboard
# from here on: 1,000 steps with Adam, each with 32 random blocks of `train_tokens` (90% of
# Shakespeare); the learning rate rises to 0.0036, then falls to 0. It returns the validation loss,
# the mean over all blocks of `val_tokens` (the rest).

# %%
models, losses = {}, {}
for kind, seeds in {Average: [1], OneHead: [1, 2, 3], PlusItself: [1, 2, 3]}.items():
    for seed in seeds:  # each seed gives other initial parameters
        torch.manual_seed(seed)
        model = models[kind, seed] = kind()
        losses[kind, seed] = train(model)
        print(f"{kind.__name__:10} seed {seed}: loss {losses[kind, seed]:.3f}", flush=True)

# %% [markdown]
# The average reaches only 3.16: it contains the current character, but as one of up to 64. One head
# reaches about 2.48, like the bigram, which sees only the current character. Why not less? We
# measure the weight of a position on itself (the diagonal), and on all with its character:

# %%
blocks = val_tokens[: len(val_tokens) // T * T].view(-1, T)  # (blocks, T)
same = blocks[:, :, None] == blocks[:, None, :]  # (blocks, T, T): True for equal characters
own, alike = {}, {}
for (kind, seed), model in models.items():
    with torch.no_grad():  # no gradients are needed to look
        weights = model.look(model.token_embedding(blocks))[1]  # (blocks, T, T)
    own[kind, seed] = weights.diagonal(dim1=1, dim2=2).mean(dim=0)  # (T,): mean over all blocks
    alike[kind, seed] = (weights * same).sum(dim=-1).mean()
    shares = f"{own[kind, seed].mean():.2f} on itself, {alike[kind, seed]:.2f} on its character"
    print(f"{kind.__name__:10} seed {seed}: weight {shares}")

# %% alt="Weight on the own position (seed 1): falls to 0.29 for one head, to 0.02 for it plus x"
for kind, style, color in ((OneHead, "-", ACCENT), (PlusItself, "--", INK), (Average, ":", MUTED)):
    plt.plot(range(1, T + 1), own[kind, 1], style, color=color)
plt.text(22, 0.56, "OneHead: 0.50 on average", color=ACCENT)
plt.text(22, 0.12, "PlusItself (dashed): little more than with equal weights (dotted)")
plt.xlabel("position in the block (seed 1)")
plt.ylabel("weight on the own position")
show("own-position")

# %% tags=["test"]
from lesson import FAST  # noqa: E402

expected = {Average: 3.158, OneHead: 2.485, PlusItself: 2.441}
assert FAST or all(abs(loss - expected[kind]) < 0.025 for (kind, _), loss in losses.items())
assert FAST or max(abs(own[OneHead, 1].mean() - 0.5), abs(own[OneHead, 1][-1] - 0.29)) < 0.07
assert FAST or all(0.12 < alike[PlusItself, i] < 0.4 < 0.7 < alike[OneHead, i] for i in (1, 2, 3))
assert round(max(0.004 * min((s + 1) / 100, 1 - s / 1000) for s in range(1000)), 4) == 0.0036
assert 0.97 > undivided > 0.93 > 0.122 > alike[Average, 1] > 0.12 > divided > 0.09

# %% [markdown]
# The first position sees only itself, so all lines start at 1. Later positions share the weight
# with more others. But a character has the same key and value wherever it stands, so its
# occurrences add up. Those of the current character, the best clue to the next one, get 0.80 to
# 0.88 of the weight: this head is almost a bigram. The rest adds other clues, but blurs this one.
#
# If the model adds `x` to the result of the head, the current character takes another path. The
# head then gives it only 0.15 to 0.29 of the weight (equal weights: 0.12), and the loss falls to
# about 2.44. This is a *residual connection* ([lesson 7](07_depth.md)).
#
# ## Scoreboard

# %%
show_scoreboard(4, {"one attention head": losses[OneHead, 1]})

# %% [markdown]
# In this training, one head is no better than the bigram, and far behind the 7-grams. The next
# lessons add what it lacks: more heads, positions and residual connections.
#
# ## Three common mistakes
#
# 1. *The softmax over the wrong axis*, `softmax(dim=-2)`: no error, but columns sum to 1 instead of
#    rows, and earlier outputs change when a later token changes. Test causality as above.
# 2. *Filling the mask with 0 instead of* $-\infty$: since $e^0 = 1$, later positions keep a weight.
#    The same test finds it. Use `-math.inf`.
# 3. *A mask with* `triu()` *instead of* `triu(diagonal=1)`: the first position sees nothing, not
#    even itself. The softmax of a row of $-\infty$ is `nan` (not a number), and so is the loss.
#
# ## Exercises
#
# 1. Multiply `query_matrix` by 10, or by −1. How do the weights of `e` change? Guess first.
# 2. Choose queries and keys by hand so that each of T = 5 positions looks at the position before
#    it. Give each position a different key. What does the first position do?
# 3. Let the head see only its own and the previous three characters. Use PyTorch's function with
#    `attn_mask`, which is True for visible positions. Guess the loss first.

# %% tags=["solution"]
if SOLUTIONS:  # run with: python lessons/04_attention.py --solutions
    for factor in (-1, 1, 10):  # -1: vowels look for vowels; 10: only for consonants
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
            visible = torch.ones(T, T, dtype=torch.bool).tril().triu(-3)  # itself and 3 before
            q, k, v = self.query(x), self.key(x), self.value(x)
            return F.scaled_dot_product_attention(q, k, v, attn_mask=visible), None

    torch.manual_seed(1)
    print(f"3. validation loss {train(Window()):.3f}: near characters help more than far ones")

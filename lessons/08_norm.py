# %% [markdown]
# # 8. Layer norm, initialisation, dropout
#
# Lesson 7 made a deep model trainable with residual connections. This lesson adds three pieces.
# *Layer norm* brings the inputs of each layer to the same scale. *Initialisation* chooses the
# weights before the first training step. *Dropout* works against overfitting. Their purpose is a
# training that works, not a more powerful model. When does each of them help?
#
# **Before this lesson:** [lesson 7](07_depth.md) (Transformer block, residual stream) and
# [lesson 2](02_bigram.md) (the loss of equal probabilities, $\ln 65 = 4.17$).
#
# **You will see:**
#
# - a residual stream that grows to about 900,000 with doubled weights, but to 5.5 with layer norm;
# - small initial weights that need layer norm: the loss is 2.50 with it, and 2.75 without;
# - overfitting: after 500 steps instead of 200, the validation loss is 3.11 instead of 2.88.

# %%
import math

import lesson
import matplotlib.pyplot as plt
import torch
from lesson import SOLUTIONS, cross_entropy, evaluate, get_batch, show_scoreboard, train
from pictures import ACCENT, INK, MUTED, PAPER, SOFT, arrow, box, diagram, show, write
from torch import nn

from nanogpt.models.gpt import CausalSelfAttention, GPTConfig

C, H, T, V = 64, 4, 64, 65  # channels, heads, positions in a block, characters in the vocabulary

# %% [markdown]
# ## Layer norm by hand
#
# Layer norm (Ba et al. 2016, [arXiv:1607.06450](https://arxiv.org/abs/1607.06450)) takes a vector,
# subtracts the mean of its numbers, and divides by their standard deviation (*std*: the square root
# of the variance; the variance is the mean squared distance from the mean). For example:

# %%
x = torch.tensor([1.0, 2.0, 3.0, 6.0])  # (C,), C = 4
mean = x.mean()  # 3
variance = ((x - mean) ** 2).mean()  # (4 + 1 + 0 + 9) / 4
y = (x - mean) / (variance + 1e-5).sqrt()
print(f"mean {mean:.1f}, variance {variance:.1f}, result {y}")
torch.testing.assert_close(y, nn.LayerNorm(4)(x))

# %% [markdown]
# The small number 1e-5 prevents a division by zero. `nn.LayerNorm` then multiplies each channel by
# a *gain* and adds a *bias*. Both are parameters (PyTorch's names: `weight` and `bias`). The gains
# start at 1 and the biases at 0, so at first they change nothing.
#
# In a tensor of shape (B, T, C), each position of each text has its own mean and variance. Nothing
# is averaged over the batch or over time:

# %%
torch.manual_seed(0)
norm = nn.LayerNorm(4)
x = 5 + 3 * torch.randn(2, 3, 4)  # (B, T, C)
y = norm(x)  # (B, T, C)
print("first position of the first text:", x[0, 0], "->", y[0, 0].detach())
torch.testing.assert_close(y[1, 2], norm(x[1, 2]))  # a position alone gives the same
torch.testing.assert_close(norm(100 * x + 7), y)  # scale and shift disappear

# %% [markdown]
# So no position sees another one through layer norm, and the other texts of the batch do not
# matter. The last line is the purpose: an input 100 times as large gives the same output.
#
# ## Pre-norm and post-norm
#
# A norm can stand on the residual stream itself, or in the branch that leads to a layer:

# %% alt="Post-norm: the norms stand on the residual stream. Pre-norm: they stand in the branches."
axes = diagram(79, 31)
write(axes, 19, 29, "post-norm (2017): norms on the stream", bold=True)
write(axes, 60, 29, "pre-norm (GPT-2): norms in the branches", bold=True)
for left, is_pre in ((0, False), (42, True)):
    axes.plot([left + 1, left + 36.5], [7, 7], color=ACCENT, linewidth=4, zorder=0)
    for start, layer in ((left + 3, "attention"), (left + 20, "feed_forward")):
        box(axes, start + 5, 22, layer, 12, 4, SOFT)
        arrow(axes, (start + 1.5, 7.3), (start + 1.5, 11.1 if is_pre else 19.8))
        arrow(axes, (start + 1.5, 15 if is_pre else 7.3), (start + 1.5, 19.8))
        arrow(axes, (start + 9, 19.8), (start + 9, 8.4))
        axes.plot(start + 9, 7, "o", color=INK, markerfacecolor=PAPER, markersize=13)
        write(axes, start + 9, 7, "+", 11)
        x, y, width = (start + 1.5, 13.1, 6) if is_pre else (start + 13.2, 7, 5)
        box(axes, x, y, "norm", width, 3.8)
write(axes, 19, 2, "each norm rescales the whole stream", color=MUTED)
write(axes, 60, 2, "nothing but plus signs on the stream", color=ACCENT)
show("pre-norm-post-norm")

# %% [markdown]
# The first Transformer (Vaswani et al. 2017, [arXiv:1706.03762](https://arxiv.org/abs/1706.03762))
# has *post-norm*: `x = norm(x + f(x))`. GPT-2 has *pre-norm*: `x = x + f(norm(x))`, and one last
# norm before the output layer (not in the picture). With pre-norm, the residual stream is a plain
# sum, as in lesson 7. With post-norm, each norm rescales the stream and its gradient.
#
# The argument `norm` chooses the kind: "post", "pre", or "no" norms. The attention is that of
# lesson 7, now from the package (`CausalSelfAttention` in `nanogpt/models/gpt.py`). Dropout is
# explained below; with probability 0 it does nothing.


# %%
class Block(nn.Module):
    def __init__(self, norm, dropout):
        super().__init__()
        self.kind = norm
        Norm = nn.Identity if norm == "no" else nn.LayerNorm  # nn.Identity returns its input
        self.norm1, self.norm2 = Norm(C), Norm(C)
        self.attention = CausalSelfAttention(GPTConfig(n_head=H, n_embd=C))
        self.feed_forward = nn.Sequential(nn.Linear(C, 4 * C), nn.GELU(), nn.Linear(4 * C, C))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        if self.kind == "post":
            x = self.norm1(x + self.dropout(self.attention(x)))  # (B, T, C)
            return self.norm2(x + self.dropout(self.feed_forward(x)))  # (B, T, C)
        x = x + self.dropout(self.attention(self.norm1(x)))  # (B, T, C)
        return x + self.dropout(self.feed_forward(self.norm2(x)))  # (B, T, C)


class Model(nn.Module):
    def __init__(self, n_layer=4, norm="pre", dropout=0.0):
        super().__init__()
        self.token_embedding = nn.Embedding(V, C)
        self.position_embedding = nn.Embedding(T, C)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*[Block(norm, dropout) for _ in range(n_layer)])
        self.norm = nn.LayerNorm(C) if norm == "pre" else nn.Identity()
        self.output = nn.Linear(C, V)

    def embed(self, tokens):
        positions = torch.arange(tokens.shape[1])  # (T,)
        return self.dropout(self.token_embedding(tokens) + self.position_embedding(positions))

    def forward(self, tokens):
        x = self.blocks(self.embed(tokens))  # (B, T, C)
        return self.output(self.norm(x))  # (B, T, V)


# %% [markdown]
# ## The residual stream grows
#
# We pass a batch through 16 fresh Transformer blocks and compute the std of the residual stream
# after each. Training can make weights larger; here, `factor` multiplies all matrices.


# %%
@torch.no_grad()  # computes no gradients
def stream_sizes(norm, factor):
    torch.manual_seed(1)
    model = Model(16, norm)
    for parameter in model.blocks.parameters():
        if parameter.dim() == 2:  # a matrix
            parameter *= factor
    x = model.embed(get_batch(lesson.train_tokens)[0])  # (B, T, C)
    sizes = []
    for block in [nn.Identity(), *model.blocks]:  # the identity: the std before the first block
        x = block(x)  # (B, T, C)
        sizes.append(x.std().item())
    return sizes


# %% alt="Std of the stream after 0 to 16 blocks, matrices × 2: explodes without norms, not with"
sizes = {}
for norm, factor in (("no", 1), ("no", 2), ("pre", 1), ("pre", 2)):
    size = sizes[norm, factor] = stream_sizes(norm, factor)
    print(f"{norm:3} norms, matrices × {factor}: std from {size[0]:.1f} to {size[-1]:,.1f}")
plt.figure(figsize=(6.5, 3.4))
plt.semilogy(sizes["no", 2], color=INK, linestyle="-")
plt.semilogy(sizes["pre", 2], color=ACCENT, linestyle="--")
plt.text(9.5, 1.2e5, "no norms, matrices × 2:\nthe stds multiply", ha="right")
plt.text(16.3, 12, "pre-norm, matrices × 2: the variances add up", color=ACCENT, ha="right")
plt.xlabel("Transformer blocks passed")
plt.ylabel("std of the residual stream")
show("stream")

# %% [markdown]
# Without norms, a layer adds something roughly proportional to its input. So the stds multiply:
# with doubled matrices, each block makes the stream about 2.3 times as large. With pre-norm, each
# layer reads vectors of std 1, however large the stream is. So each adds about the same variance,
# and the std grows only about like the square root of the depth.
#
# ## Learning rates
#
# We train the three kinds for 200 steps with small batches. The learning rate is 0.02 times a
# factor that falls from 1 to 0 (scoreboard: 0.004). With a *warm-up* of 100 steps (lesson 10), the
# factor first rises, but only to 0.67, where it meets the falling one: rate 0.0134. So we also
# start at 0.0134. Each row is one training.

# %%
fast = {}
for rate, warmup in ((0.02, 0), (0.0134, 0), (0.01, 0), (0.02, 100)):
    for norm in ("no", "post", "pre"):
        torch.manual_seed(1)
        loss = train(Model(4, norm), steps=200, learning_rate=rate, batch_size=8, warmup=warmup)
        fast[norm, rate, warmup] = loss
        print(f"rate {rate:<6}, warm-up {warmup:3}, {norm:4} norm: validation loss {loss:.4g}")

# %% [markdown]
# Without norms, the loss explodes at 0.02, but not at 0.0134. With post-norm, the model learns the
# character frequencies and nothing else (3.35), with this seed even at 0.0134. Pre-norm works with
# each. With a warm-up, or at 0.01, all three work. So at high rates, the model without norms needs
# a lower rate, post-norm a lower rate or a warm-up, and pre-norm neither. Xiong et al. (2020,
# [arXiv:2002.04745](https://arxiv.org/abs/2002.04745)) found: post-norm models needed a
# warm-up, pre-norm models did not.
#
# ## Initialisation: the first loss
#
# Before training, the model knows nothing. The best it can do is to give all characters the same
# probability: loss $\ln 65 = 4.17$. A higher first loss means that the model strongly prefers some
# characters without reason. The first training steps only undo this. We draw all matrices from the
# normal distribution with mean 0, once with each of four stds:


# %%
@torch.no_grad()
def draw_weights(model, std, scale=1.0):  # scale: see the next section
    for name, parameter in model.named_parameters():
        if name.endswith(("projection.weight", "feed_forward.2.weight")):  # adds to the stream
            nn.init.normal_(parameter, std=std * scale)
        elif parameter.dim() == 2:
            nn.init.normal_(parameter, std=std)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    return model


inputs, targets = get_batch(lesson.train_tokens)  # (B, T) each
first_losses = {}
for std in (0.02, 0.1, 0.5, 1.0):
    torch.manual_seed(1)
    model = draw_weights(Model(), std)
    first_losses[std] = cross_entropy(model(inputs), targets).item()
    print(f"std {std:4}: first loss {first_losses[std]:5.2f}")

# %% [markdown]
# GPT-2's released code (`src/model.py`) has std 0.02: the first loss is close to 4.17. Only its
# position embeddings have std 0.01; `gpt.py` and this package use 0.02.
#
# ## Initialisation: many additions
#
# A model adds `2 * n_layer` times to the residual stream. The variance of a sum of independent
# random numbers is the sum of their variances: 16 numbers of variance 1 have a sum of variance 16.
# If we divide each of them by $\sqrt{16}$, the sum has variance 1. Likewise, GPT-2 (Radford et al.
# 2019, "Language Models are Unsupervised Multitask Learners", section 2.3) divides the weights of
# the layers that add to the stream (`projection` and the second layer of `feed_forward`) by
# `math.sqrt(2 * n_layer)`. How much does the variance of the stream grow in all blocks?

# %%
growth = {}
for n_layer in (2, 8, 32):
    for scale in (1.0, 1 / math.sqrt(2 * n_layer)):
        torch.manual_seed(1)
        model = draw_weights(Model(n_layer), 0.02, scale)
        x = model.embed(inputs)  # (B, T, C)
        growth[n_layer, scale] = (model.blocks(x).var() / x.var()).item()
        print(f"n_layer {n_layer:2}, scale {scale:.3f}: variance × {growth[n_layer, scale]:.1f}")

# %% [markdown]
# Without this scale, the variance grows with the depth. With it, the factor stays near 1.5.
#
# ## Initialisation: small weights need norms
#
# Our models so far started with PyTorch's initial weights. Are initial weights as in GPT-2 better?
# We train with both for 200 steps with small batches and the scoreboard's learning rate:

# %%
starts = {}
for weights in ("PyTorch", "GPT-2"):
    for norm in ("no", "pre"):
        torch.manual_seed(1)
        model = Model(4, norm)
        if weights == "GPT-2":
            draw_weights(model, 0.02, 1 / math.sqrt(8))
        loss = starts[weights, norm] = train(model, steps=200, batch_size=8)
        print(f"initial weights as in {weights:7}, {norm:3} norm: validation loss {loss:.2f}")

# %% [markdown]
# With PyTorch's initial weights, norms bring nothing: 2.53, and 2.51 without. With GPT-2's smaller
# ones, they help: 2.50, and 2.75 without. The reason is the small embeddings (std 0.02 instead of
# 1). Without norms, the layers read a stream of std 0.03 (in exercise 1: 1.4), and what they return
# is smaller still. Norms bring what they read to std 1.
#
# ## Dropout
#
# A model that sees a small text many times memorises it and becomes worse on other texts: it
# *overfits*. *Dropout* (Srivastava et al. 2014, JMLR 15) makes this harder. In each training step,
# it sets each number of a vector to 0 with probability $p$, and divides the others by $1 - p$. So
# no layer can rely on a single number. Our model drops numbers of the embeddings and of the output
# of each layer.
#
# Why the division? A number $x$ becomes $x / (1 - p)$ with probability $1 - p$, otherwise 0. Its
# mean is $(1 - p) \cdot x / (1 - p) = x$: on average, the next layer gets the same input. Here are
# ten ones after our own dropout, and the mean of 100,000 ones after PyTorch's:

# %%
torch.manual_seed(0)
x, p = torch.ones(10), 0.5
keep = torch.rand(10) >= p  # True with probability 1 - p
print(x * keep / (1 - p))
dropout = nn.Dropout(p)
print(f"mean: {dropout(torch.ones(100_000)).mean():.2f}")
print("unchanged in evaluation:", torch.equal(dropout.eval()(x), x))

# %% [markdown]
# Dropout is for training only. `model.eval()` switches it off, and `model.train()` on again.
#
# ## Overfitting
#
# We train a model of two Transformer blocks on only 4,000 characters, for 200 or 500 steps, and
# measure its loss on them (training) and on 20,000 other characters (validation):

# %%
small, unseen = lesson.train_tokens[:4000], lesson.val_tokens[:20_000]
overfit = {}
for dropout in (0.0, 0.2):
    for steps in (200, 500):
        torch.manual_seed(1)
        train(model := Model(2, dropout=dropout), steps, batch_size=16, tokens=small)
        known, new = evaluate(model, tokens=small), evaluate(model, tokens=unseen)
        overfit[dropout, steps] = known, new
        print(f"dropout {dropout}, {steps} steps: training {known:.2f}, validation {new:.2f}")

# %% [markdown]
# 500 steps read the small text about 128 times: 128 *epochs*. Without dropout, the validation loss
# is 3.11 after 500 steps: more than after 200 (2.88), although the training loss is lower. With
# dropout 0.2, it is 2.96 after 500 steps. This is better, but the shorter training is better
# still. Dropout also slows down the fit: the training loss ends at 2.00 instead of 1.58.
#
# ## Scoreboard
#
# Both models have norms and PyTorch's initial weights.

# %%
losses = {}
for name, dropout in (("with layer norm", 0), ("with dropout 0.1", 0.1)):
    torch.manual_seed(1)
    losses[name] = train(Model(dropout=dropout))
show_scoreboard(8, losses)

# %% tags=["test"]
assert 8.5e5 < sizes["no", 2][-1] < 9.5e5  # 1.4 · 2.3¹⁶ = 860,000
assert 5 < sizes["pre", 2][-1] < 6
assert abs(sizes["pre", 2][8] - math.sqrt((1.4**2 + 5.5**2) / 2)) < 0.4  # √depth, at half of it
assert abs(first_losses[0.02] - math.log(V)) < 0.06 < 0.2 < first_losses[0.1] - math.log(V)
assert all(1.3 < growth[n, 1 / math.sqrt(2 * n)] < 1.7 for n in (2, 8, 32))
assert growth[2, 1.0] < growth[8, 1.0] < growth[32, 1.0]
assert 0.025 < draw_weights(Model(4, "no"), 0.02).embed(inputs).std() < 0.035
if not lesson.FAST:
    found = [*sum(overfit.values(), ()), *list(fast.values())[1:], *starts.values()]
    found += losses.values()
    shown = [2.29, 2.88, 1.58, 3.11, 2.34, 2.88, 2.00, 2.96, 3.35, 2.49, 2.51, 3.35, 2.48]
    shown += [2.45, 2.47, 2.44, 2.43, 2.47, 2.44, 2.51, 2.53, 2.75, 2.50, 1.87, 1.97]
    assert all(abs(a - b) < 0.05 for a, b in zip(found, shown, strict=True)), found
    assert not fast["no", 0.02, 0] <= 4.17  # also for nan
    assert abs(0.02 * max(min((s + 1) / 100, 1 - s / 200) for s in range(200)) - 0.0134) < 1e-6

# %% [markdown]
# Norms alone do not pay off here: 1.87, and 1.81 without. Lesson 9 builds a small GPT-2 with small
# initial weights and the norms that they need. Dropout makes the loss worse (1.97), so lesson 9
# leaves it out: 1,000 steps read each character about twice, too seldom to memorise the text.
#
# ## Three common mistakes
#
# 1. **No `model.eval()` before evaluation.** Dropout stays on. *Symptom:* two evaluations of the
#    same text give different losses. *Remedy:* `model.eval()` before, `model.train()` after.
# 2. **`nn.LayerNorm((T, C))`** averages over time. *Symptom:* the output at the first position
#    changes with the last character: the future leaks (exercise 3). *Remedy:* `nn.LayerNorm(C)`.
# 3. **Too large initial weights.** *Symptom:* the first loss is far above $\ln V$. *Remedy:* print
#    the first loss of new models, and draw smaller weights.
#
# ## Exercises
#
# 1. Give the model without norms GPT-2's initial weights, but larger embeddings: std 1, as in
#    PyTorch. Train for 200 steps with batches of 8. Which loss do you expect?
# 2. Suppose that the logits are independent and normal with std $s$. Show with random numbers that
#    the first loss is about $\ln V + s^2 / 2$ for $s$ up to 2. Why not for $s = 8$? Which $s$ do
#    you expect from an output layer at std 0.1?
# 3. Show that `nn.LayerNorm((T, C))` lets the first position see the last.

# %% tags=["solution"]
if SOLUTIONS:  # run with: python lessons/08_norm.py --solutions
    model = draw_weights(Model(4, "no"), 0.02, 1 / math.sqrt(8))
    for embedding in (model.token_embedding, model.position_embedding):
        nn.init.normal_(embedding.weight)
    loss = train(model, steps=200, batch_size=8)
    print(f"1. loss {loss:.2f}, as with norms: the layers read a stream of std 1.4")
    assert lesson.FAST or 2.45 < loss < 2.59
    # 2. For s = 8, the largest logit gets nearly all the probability, and it grows like s, not s².
    # At std 0.1, a logit is a sum of 64 products, normed number × weight: s = √64 · 0.1 = 0.8.
    for s in (0.8, 2.0, 8.0):
        logits, any_target = s * torch.randn(1, 50_000, V), torch.randint(V, (1, 50_000))
        loss, expected = cross_entropy(logits, any_target).item(), math.log(V) + s**2 / 2
        print(f"2. s = {s}: loss {loss:.2f}; ln V + s²/2 = {expected:.2f}")
        assert (abs(loss - expected) < 0.2) == (s < 8)

    x, changed = torch.randn(2, 1, T, C)  # 3. Both are (B, T, C).
    changed[:, :-1] = x[:, :-1]  # only the last position differs
    for norm, is_same in ((nn.LayerNorm((T, C)), False), (nn.LayerNorm(C), True)):
        assert torch.equal(norm(x)[0, 0], norm(changed)[0, 0]) == is_same

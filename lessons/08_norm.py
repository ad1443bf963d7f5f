# %% [markdown]
# # 8. Layer norm, initialisation, dropout
#
# Lesson 7 made a deep model trainable with residual connections. This lesson adds three pieces.
# *Layer norm* gives each layer inputs of the same size. *Initialisation* chooses the weights before
# the first training step. *Dropout* works against overfitting. None of the three adds expressive
# power; they make training work. When does each of them help?
#
# **Before this lesson:** [lesson 7](07_depth.md) (Transformer block, residual stream) and
# [lesson 2](02_bigram.md) (the loss of equal probabilities, $\ln 65 = 4.17$).
#
# **You will see:**
#
# - a residual stream that grows to about 900,000 without layer norm, and only to 5.5 with it;
# - a learning rate with which only one of two places for the norms works: losses 3.35 and 2.49;
# - overfitting: the validation loss rises from 2.90 to 3.11, while the training loss falls to 1.57.

# %%
import math

import lesson
import matplotlib.pyplot as plt
import torch
from lesson import SOLUTIONS, compare, cross_entropy, evaluate, get_batch, show_scoreboard, train
from pictures import ACCENT, INK, MUTED, PAPER, SOFT, arrow, box, diagram, show, write
from torch import nn
from torch.nn import functional as F

from nanogpt.models.gpt import CausalSelfAttention, GPTConfig

C, H, T, V = 64, 4, 64, 65  # channels, heads, positions in a block, characters in the vocabulary

# %% [markdown]
# ## Layer norm by hand
#
# Layer norm (Ba et al. 2016, [arXiv:1607.06450](https://arxiv.org/abs/1607.06450)) takes a vector,
# subtracts the mean of its numbers, and divides by their standard deviation (*std*: the square root
# of the variance; the variance is the mean squared distance from the mean). Here is a vector of 4
# numbers:

# %%
x = torch.tensor([1.0, 2.0, 3.0, 6.0])  # (C,), C = 4
mean = x.mean()  # 3
variance = ((x - mean) ** 2).mean()  # (4 + 1 + 0 + 9) / 4
y = (x - mean) / (variance + 1e-5).sqrt()
print(f"mean {mean:.1f}, variance {variance:.1f}, result {y}")
torch.testing.assert_close(y, nn.LayerNorm(4)(x))

# %% [markdown]
# The small number 1e-5 prevents a division by zero. `nn.LayerNorm` then multiplies each channel by
# a *gain* and adds a *bias*. Both are parameters. The gains start at 1 and the biases at 0, so that
# at first they change nothing.
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
# A norm can stand at one of two places:

# %% alt="Post-norm: the norms stand on the residual stream. Pre-norm: they stand in the branches."
axes = diagram(79, 31)
write(axes, 19, 29, "post-norm (2017): norms on the stream", bold=True)
write(axes, 60, 29, "pre-norm (GPT-2): norms in the branches", bold=True)
for left, is_pre in ((0, False), (42, True)):
    axes.plot([left + 1, left + 36.5], [7, 7], color=ACCENT, linewidth=4, zorder=0)
    for start, layer in ((left + 3, "attention"), (left + 20, "feed_forward")):
        box(axes, start + 5, 22, layer, 12, 4, SOFT)
        arrow(axes, (start + 1.5, 15 if is_pre else 7.3), (start + 1.5, 19.8))
        arrow(axes, (start + 9, 19.8), (start + 9, 8.4))
        axes.plot(start + 9, 7, "o", color=INK, markerfacecolor=PAPER, markersize=13)
        write(axes, start + 9, 7, "+", 11)
        if is_pre:
            arrow(axes, (start + 1.5, 7.3), (start + 1.5, 11.2))
            box(axes, start + 1.5, 13.2, "norm", 6, 3.8)
        else:
            box(axes, start + 13.2, 7, "norm", 5, 3.8)
write(axes, 19, 2, "each norm rescales the whole stream", color=MUTED)
write(axes, 60, 2, "nothing but plus signs on the stream", color=ACCENT)
show("pre-norm-post-norm")

# %% [markdown]
# The first Transformer (Vaswani et al. 2017, [arXiv:1706.03762](https://arxiv.org/abs/1706.03762))
# has *post-norm*: `x = norm(x + f(x))`. GPT-2 has *pre-norm*: `x = x + f(norm(x))`, and one last
# norm before the output layer. With pre-norm, the residual stream is a plain sum, as in lesson 7.
# With post-norm, each norm rescales the stream, and on the way back also the gradient.
#
# Our model has both kinds, and a third without norms: `nn.Identity` returns its input. The
# attention is that of lesson 7, now from the package: `CausalSelfAttention` in
# `nanogpt/models/gpt.py`. Dropout is explained below; with probability 0 it does nothing.


# %%
class Block(nn.Module):
    def __init__(self, norm, dropout):
        super().__init__()
        self.kind = norm
        Norm = nn.Identity if norm == "no" else nn.LayerNorm
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
# after each. Training changes the weights. To see what larger weights do, `factor` multiplies all
# matrices of the blocks.


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
    for block in [nn.Identity(), *model.blocks]:
        x = block(x)  # (B, T, C)
        sizes.append(x.std().item())
    return sizes


# %% alt="Std of the stream after 0 to 16 blocks: without norm and doubled matrices it explodes"
sizes = {}
for norm, factor in (("no", 1), ("no", 2), ("pre", 2)):
    size = sizes[norm, factor] = stream_sizes(norm, factor)
    print(f"norm {norm}, matrices times {factor}: std {size[0]:.1f}, at the end {size[-1]:,.1f}")
plt.figure(figsize=(6.5, 3.4))
plt.semilogy(sizes["no", 2], color=INK, linestyle="-")
plt.semilogy(sizes["pre", 2], color=ACCENT, linestyle="--")
plt.text(9.5, 1.2e5, "no norms, matrices × 2:\nthe sizes multiply", ha="right")
plt.text(16.3, 12, "pre-norm, matrices × 2: the sizes add up", color=ACCENT, ha="right")
plt.xlabel("Transformer blocks passed")
plt.ylabel("std of the residual stream")
show("stream")

# %% [markdown]
# Without norms, a layer adds something proportional to its input. So the sizes multiply: with
# doubled matrices, each block makes the stream about 2.3 times as large. With pre-norm, each layer
# reads vectors of size 1, however large the stream is. So the sizes only add up.
#
# ## Learning rates
#
# We train the three kinds for 200 steps with small batches, at five times the scoreboard's learning
# rate. There is no warm-up, except in the last row. Each row is one training, so small differences
# may be chance.

# %%
brief = {}
for norm, warmup in (("no", 0), ("post", 0), ("pre", 0), ("post", 100)):
    torch.manual_seed(1)
    brief[norm, warmup] = train(Model(4, norm), 200, 0.02, batch_size=8, warmup=warmup)
    print(f"{norm:4} norm, warm-up {warmup:3}: validation loss {brief[norm, warmup]:.4g}")

# %% [markdown]
# Without norms, the loss explodes. With post-norm the model has 3.35: it learns the character
# frequencies and nothing else. Pre-norm reaches 2.49. With a warm-up, post-norm works too (2.47).
# This agrees with Xiong et al. (2020, [arXiv:2002.04745](https://arxiv.org/abs/2002.04745)): their
# post-norm models needed a warm-up, their pre-norm models did not. So pre-norm allows a larger
# learning rate.
#
# ## Initialisation: the first loss
#
# Before training, the model knows nothing. The best it can do is to give all characters the same
# probability: loss $\ln 65 = 4.17$. A higher first loss means that the model prefers some
# characters strongly, and without reason. The first training steps only undo this. We draw all
# matrices from the normal distribution with mean 0, with four stds:


# %%
@torch.no_grad()
def draw_weights(model, std, scale=1.0):
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
# GPT-2 has std 0.02 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"):
# the first loss is close to 4.17. Only the position embeddings of GPT-2 have std 0.01. `gpt.py` and
# this package use 0.02 for them, too.
#
# ## Initialisation: many additions
#
# A model adds `2 * n_layer` times to the residual stream. The variance of a sum of independent
# random numbers is the sum of their variances: 16 numbers of variance 1 have a sum of variance 16.
# If we divide each of them by $\sqrt{16}$, the sum has variance 1. Likewise, GPT-2 divides the std
# of the layers that add to the stream (`projection` and the second layer of `feed_forward`) by
# `math.sqrt(2 * n_layer)`. How much larger is the variance of the stream after all blocks than
# before them?

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
# Without this scale, the variance grows with the depth. With it, the factor is 1.5 at each depth.
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
# mean is $(1 - p) \cdot x / (1 - p) = x$: on average, the next layer gets the same input. Here is
# one mask for ten ones, and the means of 100,000 masks, our own and those of PyTorch:

# %%
torch.manual_seed(0)
x, p = torch.ones(10), 0.5
mask = torch.rand(10) >= p  # True with probability 1 - p
print(x * mask / (1 - p))
x = torch.tensor([1.0, 2.0, 3.0]).expand(100_000, 3)  # the same row 100,000 times
ours, theirs = x * (torch.rand(100_000, 3) >= p) / (1 - p), F.dropout(x, p)
print("means:", ours.mean(dim=0), theirs.mean(dim=0))  # (3,) each
print("unchanged in evaluation:", torch.equal(nn.Dropout(p).eval()(x), x))

# %% [markdown]
# Dropout is for training only. `model.eval()` switches it off, and `model.train()` on again; our
# `evaluate` calls both.
#
# ## Overfitting
#
# We train a model of two Transformer blocks on only 4,000 characters. Every 100 steps, we measure
# the loss on them (training loss) and on 20,000 characters that it never sees (validation loss).


# %%
def train_and_watch(dropout):
    torch.manual_seed(1)
    model, curve = Model(2, dropout=dropout), []
    small, unseen = lesson.train_tokens[:4000], lesson.val_tokens[:20_000]

    def watch(step, loss):
        if step % 100 == 0:
            curve.append([evaluate(model, tokens=small), evaluate(model, tokens=unseen)])

    train(model, steps=501, batch_size=16, tokens=small, on_step=watch)
    return torch.tensor(curve).T  # (2, number of measurements): training and validation loss


curves = {dropout: train_and_watch(dropout) for dropout in (0.0, 0.2)}
for dropout, (known, new) in curves.items():
    print(f"dropout {dropout}: training loss {known[-1]:.2f}, validation loss {new[-1]:.2f}")

# %% alt="Training loss falls in both panels; validation loss rises only without dropout"
figure, panels = plt.subplots(1, 2, figsize=(7.5, 3.4), sharey=True)
for axes, (dropout, (known, new)) in zip(panels, curves.items(), strict=True):
    steps = 100 * torch.arange(len(known))
    axes.plot(steps, known, "--", color=INK)
    axes.plot(steps, new, "-", color=ACCENT, linewidth=2)
    axes.text(steps[-1], new[-1] + 0.15, "validation loss", color=ACCENT, ha="right")
    axes.text(steps[-1], known[-1] - 0.2, "training loss", color=INK, ha="right")
    axes.set(title=f"dropout {dropout}", xlabel="step", xlim=(0, 510), ylim=(1, 3.6))
panels[0].set_ylabel("loss (nats per character)")
panels[0].text(250, 2.6, "rises: overfitting", color=ACCENT, size=9)
show("overfitting")

# %% [markdown]
# 500 steps read the small text about 128 times: 128 *epochs*. Without dropout, the validation loss
# is lowest at step 100 (2.90), then it rises to 3.11. With dropout 0.2, it ends at 2.96. This is
# better, but not better than stopping at the right step. Dropout also slows down the fit: the
# training loss ends at 2.00 instead of 1.57.
#
# ## Scoreboard
#
# On the whole training text, the scoreboard's 1,000 steps read each character about twice.

# %%
models = {"with layer norm": lambda: Model(), "with dropout 0.1": lambda: Model(dropout=0.1)}
losses = compare(models)
show_scoreboard(8, losses)

# %% tags=["test"]
assert 8.5e5 < sizes["no", 2][-1] < 9.5e5  # 1.4 · 2.3¹⁶ = 860,000
assert 5 < sizes["pre", 2][-1] < 6
assert abs(first_losses[0.02] - math.log(V)) < 0.06 < 0.2 < first_losses[0.1] - math.log(V)
assert all(1.3 < growth[n, 1 / math.sqrt(2 * n)] < 1.7 for n in (2, 8, 32))
assert growth[2, 1.0] < growth[8, 1.0] < growth[32, 1.0]
if not lesson.FAST:
    (known, new), (dropped_known, dropped_new) = curves.values()
    assert new.argmin() == 1
    found = [new.min(), new[-1], known[-1], dropped_new[-1], dropped_known[-1], *brief.values()]
    shown = [2.90, 3.11, 1.57, 2.96, 2.00, found[5], 3.35, 2.49, 2.47]
    found, shown = [*found, *losses.values()], [*shown, 1.87, 1.97]
    assert all(abs(a - b) < 0.07 for a, b in zip(found, shown, strict=True)), found
    assert not found[5] <= 4.17  # also for nan

# %% [markdown]
# In this short training, neither piece pays off: the loss is 1.87 with layer norm (1.81 without),
# and 1.97 with dropout 0.1. The learning rate 0.004 works without norms, and a model that reads the
# text only twice has little time to memorise it. Lesson 9 keeps the norms, because they allow
# larger learning rates, and leaves out dropout.
#
# ## Three common mistakes
#
# 1. **No `model.eval()` before evaluation.** Dropout stays on. Symptom: two evaluations of the same
#    text give different losses. Remedy: `model.eval()` before, `model.train()` after.
# 2. **`nn.LayerNorm((T, C))`** averages over time. Symptom: the output at the first position
#    changes with the last character: the future leaks (exercise 3). Remedy: `nn.LayerNorm(C)`.
# 3. **Too large initial weights.** Symptom: the first loss is far above $\ln V$. Remedy: print the
#    first loss of each new model, and draw smaller weights.
#
# ## Exercises
#
# 1. How many parameters do the norms of the model with four Transformer blocks have?
# 2. The logits are independent and normal with std $s$. Show with random numbers that the first
#    loss is about $\ln V + s^2 / 2$. Which $s$ do you expect from the output layer at std 0.1?
# 3. Show that `nn.LayerNorm((T, C))` lets the first position see the last.

# %% tags=["solution"]
if SOLUTIONS:  # run with: python lessons/08_norm.py --solutions
    # 1. There are 2 · 4 + 1 norms, each with C gains and C biases.
    count = sum(weight.numel() for name, weight in Model().named_parameters() if "norm" in name)
    print("1.", count)
    assert count == 9 * 2 * C

    # 2. After the last norm, a vector has length √C = 8. So s = 8 · 0.1 = 0.8.
    logits, any_target = 0.8 * torch.randn(1, 50_000, V), torch.randint(V, (1, 50_000))
    loss, expected = cross_entropy(logits, any_target).item(), math.log(V) + 0.8**2 / 2
    print(f"2. loss {loss:.2f}; ln V + s²/2 = {expected:.2f}")
    assert abs(loss - expected) < 0.03

    # 3. The mean and variance over all positions depend on the last position.
    x = torch.randn(1, T, C)  # (B, T, C)
    norms = nn.LayerNorm((T, C)), nn.LayerNorm(C)
    changed = torch.cat([x[:, :-1], torch.randn(1, 1, C)], dim=1)  # another last position
    equal = [torch.equal(norm(x)[0, 0], norm(changed)[0, 0]) for norm in norms]
    assert equal == [False, True]

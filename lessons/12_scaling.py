# %% [markdown]
# # 12. Scaling: parameters, data and compute
#
# A larger model, more text, or more training steps: which of them is the best use of a budget? This
# lesson measures it for small models, fits a law to the measurements, and uses a published law to
# judge GPT-3.
#
# **Before this lesson:** [lesson 9](09_gpt.md) (the GPT and its parameters) and
# [lesson 10](10_training.md) (learning rate, overfitting).
#
# **You will see:** with 10 times the budget, another of three model sizes is the best; a law fitted
# to six sizes predicts the losses of a seventh, four times as large, with errors of about 1%; and
# GPT-3 was trained on too little text for its size.
#
# In this lesson, $N$ is the number of parameters and $D$ the number of tokens in the training text.

# %%
import json
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import torch
from lesson import RESULTS, SOLUTIONS, T, V, cross_entropy, get_batch, train, train_tokens
from pictures import ACCENT, INK, MUTED, show
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nanogpt.models import GPT, GPTConfig, flops_per_token

# %% [markdown]
# ## Compute: 6 operations per parameter and token
#
# We measure compute in *operations*: multiplications and additions of floating-point numbers. In
# the forward pass, a linear layer uses each weight once per token: one multiplication, and one
# addition to the sum. These are 2 operations. The backward pass needs two products of the same
# size: one for the gradient of the layer's input, one for the gradient of the weights. These are 4.
# PyTorch can count:

# %%
layer = nn.Linear(3, 5, bias=False)  # 15 weights
x = torch.randn(1, 3, requires_grad=True)  # one token
with FlopCounterMode(display=False) as forward:
    y = layer(x)  # (1, 5)
with FlopCounterMode(display=False) as backward:
    y.backward(torch.ones(1, 5))
counts = forward.get_total_flops(), backward.get_total_flops()
print(f"15 weights: {counts[0]} operations forward, {counts[1]} backward")

# %% [markdown]
# So a training step takes about $6N$ operations per token, and a training on $D$ tokens takes
#
# $$\text{operations} = 6\,N\,D.$$
#
# The papers write $C = 6ND$, with $C$ for compute. If a text is repeated, each repetition counts
# here. We test the rule on a GPT; `SDPBackend.MATH` makes the products of attention countable:

# %%
model = GPT(GPTConfig(n_layer=4, n_head=4, n_embd=128, block_size=T, vocab_size=V))
N = sum(p.numel() for p in model.parameters())
inputs, targets = get_batch(train_tokens, 8)  # (8, T) each
with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
    cross_entropy(model(inputs), targets).backward()
counted = counter.get_total_flops() / inputs.numel()
print(f"N = {N:,}: 6N = {6 * N:,}, counted {counted:,.0f} operations per token")
print(f"flops_per_token of the package: {flops_per_token(model):,}")

# %% tags=["test"]
from lesson import FAST  # noqa: E402

assert counts == (30, 60)
assert round(counted / (6 * N), 2) == 1.06
assert abs(counted / flops_per_token(model) - 1) < 0.01

# %% [markdown]
# The rule is 6% too low here: it forgets the products of queries, keys and values, and it
# counts parameters that no product uses (position embeddings). `flops_per_token` takes both into
# account, so we use it for the small models below.
#
# ## The best size depends on the budget
#
# We train three sizes, first with 3 · 10¹⁰ operations, then with 10 times as many. A smaller model
# gets more steps for the same budget. The learning rate is lower for wider models: Yang et al. 2022
# ([arXiv:2203.03466](https://arxiv.org/abs/2203.03466)) derive 1 / width for Adam.

# %%
losses = {}
print("  budget  channels  parameters  steps  validation loss")
for budget in (3e10, 3e11):
    for n_embd in (16, 32, 64):
        torch.manual_seed(1)
        model = GPT(GPTConfig(1, n_embd // 16, n_embd, T, V))  # 1 Transformer block, heads of 16
        N = sum(p.numel() for p in model.parameters())
        steps = round(budget / (flops_per_token(model) * 32 * T))  # 32 blocks of T tokens
        loss = train(model, steps=steps, learning_rate=0.3 / n_embd, warmup=steps // 10)
        losses[budget, n_embd] = loss
        print(f"{budget:8.0e}  {n_embd:8}  {N:10,}  {steps:5}  {loss:15.3f}", flush=True)

# %% tags=["test"]
if not FAST:
    assert losses[3e10, 16] < losses[3e10, 32] - 0.1 < losses[3e10, 64] - 0.2
    assert losses[3e11, 32] < losses[3e11, 16] - 0.05
    assert losses[3e11, 32] < losses[3e11, 64] - 0.1

# %% [markdown]
# With the small budget, the smallest model is the best: the others get too few steps. With 10 times
# the budget, the middle one is the best, and 16 channels are too few. So a size that is best for
# one budget is wrong for another.
#
# ## Seven sizes, five amounts of text
#
# `nanogpt study scaling` trained seven sizes, from 10 thousand to 28 million parameters, on five
# amounts of Shakespeare's plays (`docs/studies.md`). A run repeats its text until the validation
# loss stops falling, or for 41 million characters.

# %%
study = json.loads((RESULTS / "scaling" / "scaling.json").read_text("utf-8"))
measured = [[cell[name] for cell in study["cells"]] for name in ("N", "D", "loss")]
N, D, L = torch.tensor(measured)  # (35,) each: parameters, characters of text, loss
sizes, texts = N.unique(), D.unique()  # (7,), (5,): the different values, sorted
print("parameters, characters:", *(f"{d / 1e6:6.2f}M" for d in texts))
for n in sizes:
    print(f"{n / 1e6:21.2f}M ", *(f"{loss:7.3f}" for loss in L[n == N]))

# %% [markdown]
# Read the first row: a model of 10 thousand parameters has about the same loss with any text; it is
# too small to use more. Read the first column: with 0.28 million characters, models above
# 0.57 million parameters get no better; they lack text. A larger model *and* more text give the
# lowest loss, at the bottom right.
#
# ## The compute frontier
#
# The study also recorded the loss during the training on all the text. The *frontier* is the lowest
# loss that any model reached with a given number of operations.

# %% alt="Loss over operations of seven sizes; the frontier moves to larger models on the right"
curves = study["curves"]  # for each size: the number of parameters, a list of (operations, loss)
figure, axes = plt.subplots(figsize=(7, 4.2))
names = ("10 k parameters", "41 k", "156 k", "566 k", "2.1 M", "7.0 M", "28 M")
for name, (_, curve) in zip(names, curves, strict=True):
    axes.plot(*zip(*curve, strict=True), color=MUTED, linewidth=1, linestyle="-")
    axes.text(curve[0][0], curve[0][1] + 0.03, name, ha="center")
operations, frontier, _ = zip(*study["frontier"], strict=True)
axes.plot(operations, frontier, color=ACCENT, linewidth=3)
axes.text(2e11, 1.65, "compute frontier", color=ACCENT, weight="bold")
for crossing, _ in study["takeovers"]:
    axes.plot(crossing, np.interp(crossing, operations, frontier), "o", color=INK)
axes.text(1.5e11, 1.35, "● a larger model overtakes\n    the next smaller one")
axes.text(1.3e15, 1.5, "the three largest:\nno crossing yet")
axes.set(xscale="log", xlabel="operations", ylabel="validation loss (nats per character)")
axes.set(xlim=(6e10, 2e16), ylim=(1.1, 2.6))
show("frontier")

# %% [markdown]
# Small models are ahead at first; with more operations, the frontier passes to larger models. (It
# has steps because the study evaluated each model only 25 times.) Seven sizes make six pairs of
# neighbours, but there are only four crossings. We look at each pair when the smaller model ends,
# after 2,500 steps. The larger model has then made about a quarter of its own steps.

# %%
pairs = []
print(f"{'pair':>14}  gain at its own end  still missing")
for (small, curve), (large, large_curve) in pairwise(curves):
    end, small_loss = curve[-1]
    large_loss = np.interp(end, *zip(*large_curve, strict=True))  # interpolated at the same budget
    gain, missing = small_loss - large_curve[-1][1], large_loss - large_curve[-1][1]
    pairs.append((gain, missing))
    print(f"{small / 1e6:5.2f}, {large / 1e6:5.2f} M  {gain:19.3f} {missing:14.3f}")

# %% [markdown]
# The *gain* is how much lower the larger model ends. *Still missing* is how far its loss is above
# its own end at this moment. It is ahead if the gain is more than the missing part. From top to
# bottom, the gain shrinks to 0.025, and the missing part grows to 0.089. So the two largest pairs
# have no crossing: the larger model gets ahead only after the smaller one has ended.
#
# ## A law with three terms
#
# Hoffmann et al. 2022 ([arXiv:2203.15556](https://arxiv.org/abs/2203.15556), the *Chinchilla*
# paper) describe the loss as a sum:
#
# $$L(N, D) = E + \frac{A}{N^\alpha} + \frac{B}{D^\beta}$$
#
# - $E$ remains with unlimited parameters and text: no model can predict a text perfectly.
# - $A / N^\alpha$ is the extra loss of a model with only $N$ parameters: a *power law*. With twice
#   the parameters, it is divided by $2^\alpha$.
# - $B / D^\beta$ is the extra loss because the text has only $D$ tokens, repetitions not counted.
#
# Our models repeat their text, so we also try a law in which only the larger term counts:
# $L = E + \max(A / N^\alpha, B / D^\beta)$. We give $N$ and $D$ in millions; then $A$ and $B$ are
# the extra losses at one million. The five constants are found by training, as in lesson 1: the
# loss to minimise is the mean of the squared relative errors.


# %%
def predict_sum(constants, N, D):
    E, A, alpha, B, beta = constants
    return E + A / N**alpha + B / D**beta


def predict_max(constants, N, D):
    E, A, alpha, B, beta = constants
    return E + torch.maximum(A / N**alpha, B / D**beta)


def fit(predict, N, D, L, steps=2000):
    constants = torch.tensor([1.0, 0.3, 0.3, 0.3, 0.3], requires_grad=True)
    optimizer = torch.optim.Adam([constants])
    for step in range(steps):
        error = (predict(constants, N, D) / L - 1).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - step / steps)
        optimizer.step()
    return constants.detach()


N, D = N / 1e6, D / 1e6  # in millions
for name, predict in (("sum", predict_sum), ("max", predict_max)):
    constants = fit(predict, N, D, L)
    error = (predict(constants, N, D) / L - 1).square().mean().sqrt().item()
    numbers = ", ".join(f"{value:.2f}" for value in constants.tolist())
    print(f"{name}: E, A, α, B, β = {numbers}; root mean square error {error:.1%}")

# %% [markdown]
# The sum does not fit; the maximum does. *Only the scarcer resource, data or parameters, limits the
# loss.* (The study fits an exponent between the two laws, with an error of 0.7%.)
#
# ## A prediction
#
# A law is useful if it predicts models that nobody has trained yet. We fit both laws to the six
# smaller sizes only, and predict the largest model, which is four times as large.

# %%
known = sizes.max() / 1e6 > N  # (35,): true for all but the largest model
held_out = {}
for name, predict in (("sum", predict_sum), ("max", predict_max)):
    constants = fit(predict, N[known], D[known], L[known])
    predicted = predict(constants, N[~known], D[~known])  # (5,): one for each amount of text
    held_out[name] = predicted / L[~known] - 1
    print(name, "predicts", *(f"{loss:.3f}" for loss in predicted), end=": ")
    print("errors", *(f"{error:+.1%}" for error in held_out[name]))
print("measured    ", *(f"{loss:.3f}" for loss in L[~known]))

# %% alt="Loss over parameters for five texts; the law of six sizes predicts the seventh well"
figure, axes = plt.subplots(figsize=(7, 4.2))
grid = torch.logspace(-2, 1.6, 100)  # (100,): 10 thousand to 40 million parameters
for d in texts / 1e6:
    here = d == D
    axes.plot(grid, predict_max(constants, grid, d), color=MUTED, linewidth=1, linestyle="-")
    axes.plot(N[here & known], L[here & known], "o", color=INK, markersize=5)
    axes.plot(N[here & ~known], L[here & ~known], "D", color=ACCENT, markersize=7)
    axes.text(45, predict_max(constants, grid[-1:], d), f"{d:.2f} M characters", va="center")
axes.text(0.009, 1.2, "lines: the law, fitted to ●\n◆ largest model, not in the fit")
axes.text(0.012, 1.4, "too few parameters:\nall texts alike", color=ACCENT)
axes.text(0.4, 1.71, "too little text: all sizes alike", color=ACCENT)
axes.set(xscale="log", xlabel="parameters (millions)", ylabel="validation loss")
axes.set_xlim(0.008, 300)
show("law")

# %% [markdown]
# All errors of the maximum are about 1% or less; the sum is wrong by up to 8%. In the picture, the
# curve on the left is $E + A / N^\alpha$: with too few parameters, more text does not help. Each
# flat line is $E + B / D^\beta$: with too little text, more parameters do not help.
#
# Where does one bottleneck end and the other begin? The answer depends on the criterion. The
# study's law, with all the text, gives two borders. At 13 million parameters, both terms are
# *equal*. But already from 9 million on, *doubling* the text helps more than doubling the
# parameters:

# %%
law = study["free"]["law"]  # E, A, α, B, β, and an exponent p: the sum has p = 1, the maximum p = ∞


def study_loss(N, D):
    size, data = law["A"] / N ** law["alpha"], law["B"] / D ** law["beta"]
    return law["E"] + (size ** law["p"] + data ** law["p"]) ** (1 / law["p"])


sizes_tried, D_all = np.geomspace(1e6, 1e8, 2001), texts.max().item()  # D_all: all characters
is_equal = law["A"] / sizes_tried ** law["alpha"] < law["B"] / D_all ** law["beta"]
is_better = study_loss(sizes_tried, 2 * D_all) < study_loss(2 * sizes_tried, D_all)
print(f"the term of the text is larger from {sizes_tried[is_equal][0] / 1e6:.1f} M parameters on")
print(f"twice the text helps more from {sizes_tried[is_better][0] / 1e6:.1f} M parameters on")

# %% [markdown]
# The borders differ because $\beta$ is more than twice $\alpha$: doubling the text divides its term
# by $2^\beta$, but doubling the parameters divides theirs only by $2^\alpha$.
#
# ## The best split of a budget, and GPT-3
#
# Hoffmann's models see each token about once, and the sum describes them well. A budget of
# operations fixes $D = \text{operations} / 6N$: more parameters mean less text. The best $N$ has
# the lowest loss. We take constants that Besiroglu et al. 2024
# ([arXiv:2404.10102](https://arxiv.org/abs/2404.10102)) fitted to these models, and the budgets of
# GPT-3 (Brown et al. 2020, [arXiv:2005.14165](https://arxiv.org/abs/2005.14165)) and Chinchilla:

# %%
published = 1.8172, 482.01, 0.3478, 2085.43, 0.3658  # E, A, α, B, β; with N and D in ones
gpt3 = 12 * 96 * 12288**2 + (50257 + 2048) * 12288  # blocks, token and position embeddings
choices = torch.logspace(9, 13, 4001, dtype=torch.float64)  # (4001,): 10⁹ to 10¹³ parameters
print("model       parameters  tokens  operations  tokens / N   best N    best D")
for name, n, d in (("GPT-3", gpt3, 300e9), ("Chinchilla", 70e9, 1.4e12)):
    operations = 6 * n * d
    losses_at = predict_sum(published, choices, operations / 6 / choices)  # (4001,)
    best = choices[losses_at.argmin()].item()
    print(f"{name:10}  {n:10.3g}  {d:6.2g}  {operations:10.3g}  {d / n:11.1f}", end="  ")
    print(f"{best:.1e}  {operations / 6 / best:.1e}")

# %% tags=["test"]
table = L.view(7, 5)  # a row for each size, a column for each text
assert table[0].max() - table[0].min() < 0.05
assert table[4:, 0].min() > table[3, 0]
assert table[:, -1].tolist() == sorted(table[:, -1], reverse=True)
assert 40.9e6 < study["runs"][0]["tokens"] < 41e6
gains, missing = zip(*pairs, strict=True)
assert [gain > miss for gain, miss in pairs] == [True] * 4 + [False] * 2
assert [round(gains[-1], 3), round(missing[-1], 3)] == [0.025, 0.089]
assert list(gains) == sorted(gains, reverse=True)
assert {len(curve) for _, curve in curves} == {25}
assert all(0.2 < a[-1][0] / b[-1][0] < 0.42 for (_, a), (_, b) in pairwise(curves))
assert held_out["max"].abs().max() < 0.0115
assert 0.075 < held_out["sum"].abs().max() < 0.09
assert round(study["free"]["error"], 3) == 0.007
assert 13e6 < sizes_tried[is_equal][0] < 13.5e6
assert 9e6 < sizes_tried[is_better][0] < 9.5e6
assert law["beta"] > 2 * law["alpha"]
assert round(gpt3 / 1e9) == 175
assert abs(5.3e10 / gpt3 - 1 / 3) < 0.05
assert abs(9.9e11 / 300e9 - 3) < 0.35
assert 6000 < gpt3 / N.max() / 1e6 < 6300
assert (len(study["takeovers"]), round(study["exponent"], 2)) == (4, 0.86)
assert 145 < 40.96 / D.min() < 146

# %% [markdown]
# Chinchilla is close to the best split, about 20 tokens for each parameter. GPT-3 is not: for the
# same operations, this law prefers a third of the parameters and three times the text.
#
# GPT-3 followed an earlier paper, Kaplan et al. 2020
# ([arXiv:2001.08361](https://arxiv.org/abs/2001.08361)): the best $N$ grows like the operations to
# the power 0.73. Hoffmann et al. found about 0.5, so $N$ and $D$ should grow alike. Porian et al.
# 2024 ([arXiv:2406.19146](https://arxiv.org/abs/2406.19146)) traced the difference to three details
# of the experiments: whether the operations of the output layer were counted, a warm-up too long
# for small models, and optimizer settings that were not chosen for each size.
#
# ## What our law cannot say
#
# - Some of our models repeat their text about 145 times. Muennighoff et al. 2023
#   ([arXiv:2305.16264](https://arxiv.org/abs/2305.16264)) found that up to four epochs are almost
#   as good as new text, and that later epochs help less and less. Our law ignores epochs.
# - At the four crossings, the parameters grow like the operations to the power 0.86. This holds
#   only for our training: all runs have the same number of steps and a constant learning rate.
# - The constants belong to this text, alphabet and training. GPT-3 is 6 thousand times as large as
#   our largest model: too far for our law.
#
# ## What to remember
#
# - A training takes about $6ND$ operations: 2 per parameter and token forward, 4 backward.
# - Each budget has its best size. A larger budget needs a larger model *and* more text.
# - Loss falls like a power law in parameters and text. If a text is repeated many times, only the
#   scarcer resource limits the loss.
# - Check a law on models that were not in the fit.
#
# ## Three common mistakes
#
# 1. **You compare sizes after the same number of steps.** *Symptom*: if there is enough text, the
#    largest model looks best. *Remedy*: compare after the same number of operations.
# 2. **You use one learning rate for all sizes.** *Symptom*: a size looks bad only because its rate
#    is wrong (try 0.019 for 64 channels). *Remedy*: lower the rate for wider models.
# 3. **You judge a law by the points that it was fitted to.** *Symptom*: larger errors for the next
#    size than in the fit, as with the sum. *Remedy*: hold out the largest models.
#
# ## Exercises
#
# 1. How many years does GPT-3's training take on one GPU with $989 \cdot 10^{12}$ operations per
#    second, if it reaches 40% of them?
# 2. For the sum law and a budget of $6ND$, show that the best $N$ grows like the operations to the
#    power $\beta / (\alpha + \beta)$. Check it with the published constants.
# 3. What does the maximum law predict for our largest model with ten times the text? And for ten
#    times the parameters with the same text?

# %% tags=["solution"]
if SOLUTIONS:
    years = 6 * gpt3 * 300e9 / (0.4 * 989e12) / (365 * 24 * 3600)
    print(f"1. {years:.0f} years")
    assert 20 < years < 30
    # At the best N, the derivative of the loss is 0: α A / N^α = β B / D^β, D = operations / 6N.
    best = []
    for operations in (1e21, 1e24):
        losses_at = predict_sum(published, choices, operations / 6 / choices)
        best.append(choices[losses_at.argmin()].item())
    slope = np.log(best[1] / best[0]) / np.log(1e3)
    formula = published[4] / (published[2] + published[4])  # β / (α + β)
    print(f"2. exponent {slope:.3f} by search, {formula:.3f} by the formula")
    assert abs(slope - formula) < 0.01
    constants = fit(predict_max, N, D, L)
    n, d = N.max(), D.max()
    for name, n_new, d_new in (("now", n, d), ("10 × D", n, 10 * d), ("10 × N", 10 * n, d)):
        print(f"3. {name}: {predict_max(constants, n_new, d_new):.3f}")
    assert predict_max(constants, 10 * n, d) == predict_max(constants, n, d)

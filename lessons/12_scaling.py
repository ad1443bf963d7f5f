# %% [markdown]
# # 12. Scaling: parameters, data and compute
#
# A larger model, more text, or more training steps: which is the best use of a budget? This lesson
# measures it for small models, fits a *law* (a formula for the loss) to the measurements, and uses
# a published law to judge GPT-3.
#
# **Before this lesson:** [lesson 9](09_gpt.md) (the GPT and its parameters) and
# [lesson 10](10_training.md) (learning rate, overfitting).
#
# **You will see:** a budget that is 10 times as large needs a larger model; a law fitted to six
# sizes predicts the losses of a seventh, four times as large, with errors of about 1%; and the
# published law recommends a smaller model than GPT-3, trained on more text.
#
# In this lesson, $N$ is the number of parameters, $D$ the number of tokens in the training text.

# %%
import json

import matplotlib.pyplot as plt
import numpy as np
import torch
from lesson import RESULTS, SOLUTIONS, T, V, cross_entropy, get_batch, train, train_tokens
from pictures import ACCENT, INK, MUTED, PAPER, SOFT, show
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nanogpt.models import GPT, GPTConfig, flops_per_token

# %% [markdown]
# ## Compute: 6 operations per parameter and token
#
# We measure compute in *operations*: multiplications and additions of floating-point numbers
# (*FLOPs* in the papers). In the forward pass, a linear layer uses each weight once per token, for
# one multiplication and one addition: 2 operations. The backward pass needs two products of the
# same size: one for the gradient of the layer's input, one for the gradient of the weights. That is
# 4 more. PyTorch can count:

# %%
layer = nn.Linear(3, 5, bias=False)  # 15 weights
x = torch.randn(1, 3, requires_grad=True)  # one token
with FlopCounterMode(display=False) as forward:
    y = layer(x)  # (1, 5)
with FlopCounterMode(display=False) as backward:
    y.backward(torch.ones(1, 5))  # we give the gradient of y: any will do
counts = forward.get_total_flops(), backward.get_total_flops()
print(f"15 weights: {counts[0]} operations forward, {counts[1]} backward")

# %% [markdown]
# So a training takes about
#
# $$\text{operations} = 6\,N \cdot \text{tokens processed}.$$
#
# If a text is read once, this is the $6ND$ of the papers. If it is repeated, each repetition
# counts. We test the rule on a GPT. On a CPU, PyTorch does not see into fast attention;
# `SDPBackend.MATH` selects a version that it can count:

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

assert (counts, round(counted / (6 * N), 2)) == ((30, 60), 1.06)
vectors = sum(p.numel() for p in model.parameters() if p.dim() == 1)  # biases and layer norms
assert counted == flops_per_token(model) - 6 * vectors

# %% [markdown]
# The rule is 6% too low here: it forgets the two products of attention that have no parameters,
# queries with keys and attention weights with values. With $C$ channels, each takes $2CT$
# operations per token in the forward pass of a Transformer block; with the backward pass, both take
# $12CT$. The package adds them (Chowdhery et al. 2022,
# [arXiv:2204.02311](https://arxiv.org/abs/2204.02311)): $6N + 12 \cdot \text{n\_layer} \cdot C
# \cdot T$, with $N$ without position embeddings, which no product uses. (PyTorch leaves out biases
# and norms.) As $N$ is about $12 \cdot \text{n\_layer} \cdot C^2$, the second part is about $T /
# (6C)$ of the first.
#
# ## The best size depends on the budget
#
# We train three sizes, first with 3 · 10¹⁰ operations, then with 10 times as many. A smaller model
# gets more steps for the same budget. With Adam, the best learning rate of the matrices in the
# Transformer blocks falls like 1 / channels (Yang et al. 2022,
# [arXiv:2203.03466](https://arxiv.org/abs/2203.03466)). For simplicity, we divide the rate of all
# weights by the number of channels.

# %%
losses = {}
print("  budget  batch  channels  parameters  steps  validation loss")
for budget, batch_size in ((3e10, 32), (3e10, 8), (3e11, 32)):
    for n_embd in (16, 32, 64):
        torch.manual_seed(1)
        model = GPT(GPTConfig(1, n_embd // 16, n_embd, T, V))  # 1 Transformer block, heads of 16
        N = sum(p.numel() for p in model.parameters())
        steps = round(budget / (flops_per_token(model) * batch_size * T))
        loss = train(model, steps, 0.3 / n_embd, batch_size, warmup=steps // 10)
        losses[budget, batch_size, n_embd] = loss
        print(f"{budget:8.0e}  {batch_size:5}  {n_embd:8}  {N:10,}  {steps:5}  {loss:15.3f}")

# %% tags=["test"]
if not FAST:
    small, smaller_batch, large = torch.tensor(list(losses.values())).view(3, 3)
    assert small[0] < small[1] - 0.1 < small[2] - 0.2
    assert smaller_batch[0] < smaller_batch[1] - 0.1 < smaller_batch[2] - 0.2
    assert (smaller_batch < small - 0.08).all()
    assert large[1] < min(large[0] - 0.05, large[2] - 0.1)

# %% [markdown]
# With the small budget, the smallest model is the best: it gets the most steps. Batches of 8 blocks
# allow four times as many steps; all losses are lower, but the order is the same. With 10 times the
# budget, the middle model is the best, and 16 channels are too few.
#
# ## Seven sizes, five amounts of text
#
# `nanogpt study scaling` trained seven sizes, from 0.01 to 28 million parameters, on five amounts
# of Shakespeare's plays (`docs/studies.md`): the modern model of lesson 13, with blocks of 256
# characters. A run repeats its text until it has read 41 million characters; it ends earlier if the
# validation loss stops falling. With more parameters per character, the study tries more dropout
# and weight decay. Each loss is the lowest of its run and of up to three settings, so it is
# slightly too good (lesson 10).

# %%
study = json.loads((RESULTS / "scaling" / "scaling.json").read_text("utf-8"))
runs = study["cells"]  # one run for each size and amount of text
parameters = torch.tensor([run["N"] / 1e6 for run in runs])  # (35,): in millions
characters = torch.tensor([run["D"] / 1e6 for run in runs])  # (35,): of text, in millions
measured = torch.tensor([run["loss"] for run in runs])  # (35,): validation losses
sizes, texts = parameters.unique(), characters.unique()  # (7,), (5,): the different values, sorted
print("parameters ↓  characters →", *(f"{d:6.2f}M" for d in texts))
for n in sizes:
    print(f"{n:9.2f}M{'':15}", *(f"{loss:7.3f}" for loss in measured[parameters == n]))

# %% [markdown]
# The first row: a model of 0.01 million parameters has about the same loss with any amount of text;
# it is too small to use more. The first column: with 0.28 million characters, models above 0.57
# million parameters get no better; they lack text. A larger model *and* more text give the lowest
# loss, at the bottom right.
#
# ## The compute frontier
#
# The study also recorded the loss during the training on all the text. The *compute frontier* is
# the lowest loss that any model has reached with at most a given number of operations. After the
# warm-up, the study keeps the learning rate constant, so the middle of a run is the same as the end
# of a shorter run. (With a falling rate, the loss in the middle would be too high.) Instead, it
# averages the latest weights: this also evens out the random part of steps.

# %% alt="Loss over operations of seven sizes; the frontier moves to larger models on the right"
figure, axes = plt.subplots(figsize=(7, 4.2))
grid = np.geomspace(2.1e11, 7.5e15, 1000)  # (1000,): numbers of operations
losses_at = np.empty((7, 1000))
for row, (N, curve) in enumerate(study["curves"]):  # curve: a list of (operations, loss)
    operations, curve_losses = np.array(curve).T  # (25,) each
    axes.plot(operations, curve_losses, color=INK, linewidth=1, linestyle="-")
    axes.text(operations[0], curve_losses[0] + 0.03, f"{N / 1e6:.2f} M", ha="center")
    # interp() reads the line between two points; before its first point, a model does not count.
    losses_at[row] = np.interp(np.log(grid), np.log(operations), curve_losses, left=np.inf)
axes.plot(grid, losses_at.min(axis=0), color=SOFT, linewidth=7, linestyle="-", zorder=1)
axes.text(3.6e11, 2.504, "parameters")
axes.text(2e11, 1.65, "compute frontier", color=ACCENT, weight="bold")
axes.set(xscale="log", xlabel="operations", ylabel="validation loss (nats per character)")
axes.set(xlim=(6e10, 2e16), ylim=(1.1, 2.6))
show("frontier")

# %% [markdown]
# With more operations, the frontier passes to ever larger models. All curves end after 41 million
# characters; the losses are still falling there. (Where the frontier is flat, a model has ended,
# and the next larger one is not ahead yet.)
#
# ## A law with three terms
#
# Hoffmann et al. 2022 ([arXiv:2203.15556](https://arxiv.org/abs/2203.15556), the *Chinchilla*
# paper) describe the loss as a sum:
#
# $$L(N, D) = E + \frac{A}{N^\alpha} + \frac{B}{D^\beta}$$
#
# - $E$, the *irreducible loss*, remains with unlimited parameters and text: no model can predict a
#   text perfectly.
# - $A / N^\alpha$, a *power law*, is the extra loss of a model with only $N$ parameters. With twice
#   the parameters, it is divided by $2^\alpha$.
# - $B / D^\beta$ is the extra loss because the text has only $D$ tokens, repetitions not counted.
#
# This law was made for models that read each token about once. Our models repeat their text. So we
# also try another law, with a sixth constant $p$:
#
# $$L = E + \left((A / N^\alpha)^p + (B / D^\beta)^p\right)^{1/p}$$
#
# With $p = 1$, this is the sum. With a large $p$, almost only the larger term counts. We give $N$
# and $D$ in millions; then $A$ and $B$ are the extra losses at one million. We find the constants
# by training, as in lesson 1: the loss is the mean of the squared relative errors.


# %%
def predict(constants, N, D):
    E, A, alpha, B, beta, p = constants
    return E + ((A / N**alpha) ** p + (B / D**beta) ** p) ** (1 / p)


def fit(N, D, L, p, steps=2000):  # p: its first value
    constants = torch.tensor([1.0, 0.3, 0.3, 0.3, 0.3, p], requires_grad=True)
    optimizer = torch.optim.Adam([constants])
    for step in range(steps):
        error = (predict(constants, N, D) / L - 1).square().mean()
        optimizer.zero_grad()
        error.backward()
        if p == 1:
            constants.grad[5] = 0  # the sum: p does not change
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - step / steps)
        optimizer.step()
    return constants.detach()


def rms(errors):  # the root of the mean square
    return errors.square().mean().sqrt().item()


for name, p in (("sum", 1.0), ("with p", 3.0)):
    constants = fit(parameters, characters, measured, p)
    errors = predict(constants, parameters, characters) / measured - 1  # (35,): relative errors
    print(f"{name:6}  E, A, α, B, β, p =", *(f"{value:.2f}" for value in constants), end="; ")
    print(f"error {rms(errors):.1%}")

# %% [markdown]
# The law with $p$ fits better. Its $p$ is about 5: if one term is twice the other, the smaller adds
# less than 1% to the larger. So *almost only the scarcer resource, text or parameters, limits the
# loss*. The constants are uncertain: in the [study](../docs/studies.md), with another fit, $E$ was
# 0.1 to 1.3 (sum) or 0.94 to 1.05 (with $p$) in 95% of fits.
#
# ## A prediction
#
# A useful law predicts models that nobody has trained yet. We fit both laws to the six smaller
# sizes only, and predict the largest model, which is four times as large. A + means that the
# prediction is too high. The *guess*: the same losses as the next smaller model.

# %%
known = parameters < sizes.max()  # (35,): false for the largest model; ~known is the opposite
held_out = {}
for name, p in (("sum", 1.0), ("with p", 3.0)):
    constants = fit(parameters[known], characters[known], measured[known], p)
    errors = predict(constants, parameters, characters) / measured - 1  # (35,)
    print(f"{name:6}  error in the fit {rms(errors[known]):.1%}")
    held_out[name] = errors[~known]  # (5,), one per text
guess = measured[parameters == sizes[-2]]  # (5,): the losses of the next smaller model
held_out["guess"] = guess / measured[~known] - 1
print("\nlargest model", *(f"{d:6.2f}M" for d in texts), "  error")
for name, errors in held_out.items():
    print(f"{name:13}", *(f"{error:+7.1%}" for error in errors), f"{rms(errors):7.1%}")

# %% alt="Loss over parameters for five texts; the law of six sizes predicts the seventh well"
figure, axes = plt.subplots(figsize=(7, 4.2))
line = torch.logspace(-2, 1.6, 100)  # (100,): 0.01 to 40 million parameters
for d, marker in zip(texts, "osD^v", strict=True):
    seen, unseen = (characters == d) & known, (characters == d) & ~known
    style = {"marker": marker, "linestyle": "", "color": INK}
    law = predict(constants, line, d)
    axes.plot(line, law, color=MUTED, linewidth=1, linestyle="-")
    axes.plot(parameters[seen], measured[seen], markersize=5, **style)
    axes.plot(parameters[unseen], measured[unseen], markersize=9, mfc=PAPER, **style)
    axes.text(48, law[-1], f"{d:.2f} M characters", va="center")
axes.text(0.009, 1.18, "lines: the law with p\nfilled: in the fit\nopen: not in the fit")
axes.text(0.012, 1.4, "too few parameters:\nall texts alike", color=ACCENT)
axes.text(0.4, 1.71, "too little text: all sizes alike", color=ACCENT)
axes.set(xscale="log", xlabel="parameters (millions)", ylabel="validation loss")
axes.set_xlim(0.008, 300)
show("law")

# %% [markdown]
# The law with $p$ is wrong by about 1% or less, the sum by up to 8%. The guess has about twice the
# error of the law with $p$. In the picture, the lines meet on the left, at $E + A / N^\alpha$: with
# too few parameters, more text does not help. On the right, the upper lines are flat, at
# $E + B / D^\beta$: with too little text, more parameters do not help.
#
# ## The best split of a budget, and GPT-3
#
# Hoffmann's models see each token about once, and the sum describes them well. A budget of
# operations fixes $D = \text{operations} / 6N$: more parameters mean less text. The best $N$ has
# the lowest loss. The constants printed in that paper do not fit its data well; we take those of
# Besiroglu et al. 2024 ([arXiv:2404.10102](https://arxiv.org/abs/2404.10102)), who fitted them
# again to points read from a figure. The budgets are those of GPT-3 (Brown et al. 2020,
# [arXiv:2005.14165](https://arxiv.org/abs/2005.14165)) and Chinchilla:

# %%
published = 1.8172, 482.01, 0.3478, 2085.43, 0.3658, 1  # E, …, p; N and D not in millions
gpt3 = 12 * 96 * 12288**2 + (50257 + 2048) * 12288  # 96 blocks of 12 C² weights, and embeddings
choices = torch.logspace(9, 13, 4001, dtype=torch.float64)  # (4001,): 10⁹ to 10¹³ parameters
print("model       parameters   tokens   loss   best N   best D  its loss  ratio")
for name, n, d in (("GPT-3", gpt3, 300e9), ("Chinchilla", 70e9, 1.4e12)):
    texts_left = n * d / choices  # (4001,): the tokens that the budget of 6 n d allows
    loss, i = predict(published, choices, texts_left).min(dim=0)  # the lowest, its index
    print(f"{name:10}  {n:10.3g}  {d:7.2g}  {predict(published, n, d):.3f}", end="  ")
    ratio = texts_left[i] / choices[i]
    print(f"{choices[i]:7.1e}  {texts_left[i]:7.1e}  {loss:8.3f}  {ratio:5.0f}")

# %% tags=["test"]
table = measured.view(7, 5)  # a row for each size, a column for each text
assert table[0].max() - table[0].min() < 0.05
assert table[4:, 0].min() > table[3, 0]
assert (table[:, -1].diff() < 0).all()
assert 40.9e6 < study["runs"][0]["tokens"] < 41e6
assert np.bincount(np.diff(losses_at.argmin(axis=0))).tolist() == [993, 6]
assert (1 + 0.5**5) ** (1 / 5) < 1.01
assert [round(n, 1) for n in study["sum"]["bounds"]["E"]] == [0.1, 1.3]
assert [round(n, 2) for n in study["free"]["bounds"]["E"]] == [0.94, 1.05]
assert abs(constants[5] - 5) < 0.2
assert held_out["with p"].abs().max() < 0.0125
assert 0.075 < held_out["sum"].abs().max() < 0.09
assert 0.45 < rms(held_out["with p"]) / rms(held_out["guess"]) < 0.6
half, optimum, double = (predict(published, gpt3 * 0.3 * x, 1e12 / x) for x in (0.5, 1, 2))
assert max(half, double) - optimum < 0.006
assert round(predict(published, gpt3, 300e9) - optimum, 2) == 0.02
at = [predict(published, choices, x * gpt3 * 300e9 / choices).min() for x in (0.58, 0.62)]
assert at[1] < predict(published, gpt3, 300e9) < at[0]
assert abs(5.3e10 / gpt3 - 1 / 3) < 0.05
assert sum(run["falling"] for run in runs) == 22
assert all(run["falling"] for run in runs if run["D"] > 4e6)
read = {run["name"]: run["tokens"] for run in study["runs"]}
epochs = [read[run["run"]] / run["D"] for run in runs if run["D"] == 281360]
assert (round(min(epochs)), round(max(epochs))) == (20, 146)

# %% [markdown]
# (These losses are per token, a piece of a word (lesson 14): do not compare them with ours.)
# Chinchilla is close to the best split, about 20 tokens for each parameter (last column: best $D$ /
# best $N$). For GPT-3's budget, this law recommends a third of the parameters and three times the
# text. The loss is only 0.02 lower, because the optimum is flat: half or twice the best $N$ costs
# about 0.005. Still, with the best split, about 60% of the operations reach GPT-3's loss. A smaller
# model is cheaper to *use*, so later models are often trained with far more tokens for each
# parameter (Touvron et al. 2023, [arXiv:2302.13971](https://arxiv.org/abs/2302.13971); Sardana et
# al. 2023, [arXiv:2401.00448](https://arxiv.org/abs/2401.00448)).
#
# GPT-3 followed an earlier law (Kaplan et al. 2020,
# [arXiv:2001.08361](https://arxiv.org/abs/2001.08361)): the best $N$ grows like the operations to
# the power 0.73, for Hoffmann et al. only about 0.5. Porian et al. 2024
# ([arXiv:2406.19146](https://arxiv.org/abs/2406.19146)) explain the difference by details such as a
# warm-up that is too long for small models.
#
# ## What our law cannot say
#
# - In 22 of the 35 runs, the loss was still falling at the last step. In the fit, too few steps
#   look like too little text or too few parameters.
# - Our models repeat the smallest text 20 to 146 times. Muennighoff et al. 2023
#   ([arXiv:2305.16264](https://arxiv.org/abs/2305.16264)) found that up to four epochs are almost
#   as good as new text, and later epochs help less and less. Our law ignores epochs.
# - The prediction is no blind test: we chose the law after seeing all runs.
# - The constants belong to this text, alphabet and training. The models of the published law are
#   smaller than GPT-3.
#
# ## What to remember
#
# - A training takes about $6N$ operations per processed token: $2N$ forward, $4N$ backward.
# - Each budget has its best size. A larger budget needs a larger model *and* more text.
# - The loss above $E$ falls like a power law in parameters and text. If a text is repeated many
#   times, almost only the scarcer resource limits the loss.
# - Check a law on models that were not in the fit.
#
# ## Three common mistakes
#
# 1. **You compare sizes after the same number of steps.** *Symptom:* if there is enough text, the
#    largest model looks best (the right ends of the curves in the first picture). *Remedy:* compare
#    after the same number of operations.
# 2. **You use one learning rate for all sizes.** *Symptom:* a size looks worse than it is, because
#    its rate is wrong. *Remedy:* search it for each size (lesson 10), or scale it as above.
# 3. **You judge a law by the points that it was fitted to.** *Symptom:* the next size has larger
#    errors (the sum in "A prediction"). *Remedy:* hold out the largest models.
#
# ## Exercises
#
# 1. How many years does GPT-3's training take on one GPU with $989 \cdot 10^{12}$ operations per
#    second, if it reaches 40% of them?
# 2. For the sum law and a budget of $6ND$, show that the best $N$ grows like the operations to the
#    power $\beta / (\alpha + \beta)$. Check it with the published constants.
# 3. Fit the law with $p$ without the largest text, and predict the seven losses on it. Are the
#    errors larger than in the fit?

# %% tags=["solution"]
if SOLUTIONS:
    years = 6 * gpt3 * 300e9 / (0.4 * 989e12) / (365 * 24 * 3600)
    print(f"1. {years:.0f} years")
    assert 20 < years < 30
    # At the best N, the derivative of the loss is 0: α A / N^α = β B / D^β. D is operations / 6N,
    # so N^(α + β) = α A / (β B) · (operations / 6)^β. Take the root of degree α + β.
    best = []
    for operations in (1e21, 1e24):
        loss = predict(published, choices, operations / (6 * choices))
        best.append(choices[loss.argmin()].item())
    slope = np.log(best[1] / best[0]) / np.log(1e3)
    formula = published[4] / (published[2] + published[4])  # β / (α + β)
    print(f"2. exponent {slope:.3f} by search, {formula:.3f} by the formula")
    assert abs(slope - formula) < 0.01
    smaller, largest = characters < texts.max(), characters == texts.max()  # (35,) each
    constants = fit(parameters[smaller], characters[smaller], measured[smaller], 3.0)
    errors = predict(constants, parameters, characters) / measured - 1  # (35,)
    print("3. errors:", *(f"{error:+.1%}" for error in errors[largest]))
    print(f"   {rms(errors[largest]):.1%}, in the fit {rms(errors[smaller]):.1%}")
    assert rms(errors[smaller]) < rms(errors[largest]) < 0.011

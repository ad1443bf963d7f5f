# %% [markdown]
# # 12. Scaling: parameters, data and compute
#
# A larger model, more text, or more training steps: which of them is the best use of a budget? This
# lesson measures it for small models, fits a *law* (a formula for the loss) to the measurements,
# and uses a published law to judge GPT-3.
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
from pictures import ACCENT, INK, MUTED, show
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nanogpt.models import GPT, GPTConfig, flops_per_token

# %% [markdown]
# ## Compute: 6 operations per parameter and token
#
# We measure compute in *operations*: multiplications and additions of floating-point numbers
# (*FLOPs* in the papers; FLOP/s is a speed: operations per second). In the forward pass, a linear
# layer uses each weight once per token: one multiplication, and one addition to the sum. These are
# 2 operations. The backward pass needs two products of the same size: one for the gradient of the
# layer's input, one for the gradient of the weights. These are 4. PyTorch can count:

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
# So a training step takes about $6N$ operations per token:
#
# $$\text{operations} = 6\,N \cdot \text{tokens processed}.$$
#
# If a text is read once, this is the $C = 6ND$ of the papers, with $C$ for compute. If it is
# repeated, each repetition counts. We test the rule on a GPT. PyTorch does not see into its fast
# attention; `SDPBackend.MATH` selects a version of attention that it can count:

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
# The rule is 6% too low here, because it forgets the products of queries, keys and values. The
# package adds them (Chowdhery et al. 2022, [arXiv:2204.02311](https://arxiv.org/abs/2204.02311)):
# $6N + 12 \cdot \text{n\_layer} \cdot C \cdot T$, with $N$ without position embeddings, which no
# product uses. (It also counts biases and layer norms; PyTorch counts products only.) The more
# channels, the better is $6N$ alone. Our models are small, so we use `flops_per_token` below.
#
# ## The best size depends on the budget
#
# We train three sizes, first with 3 · 10¹⁰ operations, then with 10 times as many. A smaller model
# gets more steps for the same budget. With Adam, the best learning rate of the hidden weights falls
# like 1 / channels (Yang et al. 2022, [arXiv:2203.03466](https://arxiv.org/abs/2203.03466)). For
# simplicity, we divide the rate of all weights.

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
# With the small budget, the smallest model is the best: it gets the most steps. With 10 times the
# budget, the middle one is the best, and 16 channels are too few. So a size that is best for one
# budget can be wrong for another.
#
# ## Seven sizes, five amounts of text
#
# `nanogpt study scaling` trained seven sizes, from 10 thousand to 28 million parameters, on five
# amounts of Shakespeare's plays (`docs/studies.md`): the modern model of lesson 13, with blocks of
# 256 characters. A run repeats its text until it has read 41 million characters; it ends earlier if
# the validation loss stops falling. If a model overfits, the study tries stronger regularisation.

# %%
study = json.loads((RESULTS / "scaling" / "scaling.json").read_text("utf-8"))
cells = study["cells"]  # one for each size and amount of text
parameters = torch.tensor([cell["N"] / 1e6 for cell in cells])  # (35,): in millions
characters = torch.tensor([cell["D"] / 1e6 for cell in cells])  # (35,): of text, in millions
measured = torch.tensor([cell["loss"] for cell in cells])  # (35,): validation losses
sizes, texts = parameters.unique(), characters.unique()  # (7,), (5,): the different values, sorted
print("parameters, characters:", *(f"{d:6.2f}M" for d in texts))
for n in sizes:
    print(f"{n:21.2f}M ", *(f"{loss:7.3f}" for loss in measured[parameters == n]))

# %% [markdown]
# Read the first row: a model of 10 thousand parameters has about the same loss with any text; it is
# too small to use more. Read the first column: with 0.28 million characters, models above
# 0.57 million parameters get no better; they lack text. A larger model *and* more text give the
# lowest loss, at the bottom right.
#
# ## The compute frontier
#
# The study also recorded the loss during the training on all the text. The *compute frontier* is
# the lowest loss that any model has reached within a number of operations.

# %% alt="Loss over operations of seven sizes; the frontier moves to larger models on the right"
figure, axes = plt.subplots(figsize=(7, 4.2))
names = ("10 k parameters", "41 k", "156 k", "566 k", "2.1 M", "7.0 M", "28 M")
grid = np.geomspace(2.1e11, 7.5e15, 1000)  # (1000,): numbers of operations
losses_at = np.empty((7, 1000))
for row, (_, curve) in enumerate(study["curves"]):  # curve: a list of (operations, loss)
    operations, curve_losses = np.array(curve).T  # (25,) each
    axes.plot(operations, curve_losses, color=MUTED, linewidth=1, linestyle="-")
    axes.text(operations[0], curve_losses[0] + 0.03, names[row], ha="center")
    # interp() reads the line between two points; before its first point, a model does not count.
    losses_at[row] = np.interp(np.log(grid), np.log(operations), curve_losses, left=np.inf)
axes.plot(grid, losses_at.min(axis=0), color=ACCENT, linewidth=3)
axes.text(2e11, 1.65, "compute frontier", color=ACCENT, weight="bold")
axes.set(xscale="log", xlabel="operations", ylabel="validation loss (nats per character)")
axes.set(xlim=(6e10, 2e16), ylim=(1.1, 2.6))
show("frontier")

# %% [markdown]
# Small models are ahead at first; with more operations, the frontier passes to larger and larger
# models. All curves end after 41 million characters; the losses are still falling there.
# (Where the frontier is flat, a model has ended, and the next larger one is not ahead yet.)
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
# - $A / N^\alpha$ is the extra loss of a model with only $N$ parameters: a *power law*. With twice
#   the parameters, it is divided by $2^\alpha$.
# - $B / D^\beta$ is the extra loss because the text has only $D$ tokens, repetitions not counted.
#
# Our models repeat their text, so we also try a law in which only the larger term counts:
# $L = E + \max(A / N^\alpha, B / D^\beta)$. We give $N$ and $D$ in millions; then $A$ and $B$ are
# the extra losses at one million. We find the five constants by training, as in lesson 1: the
# loss to minimise is the mean of the squared relative errors. The learning rate falls to 0.


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


for name, predict in (("sum", predict_sum), ("max", predict_max)):
    constants = fit(predict, parameters, characters, measured)
    error = predict(constants, parameters, characters) / measured - 1  # (35,): relative errors
    numbers = ", ".join(f"{value:.2f}" for value in constants.tolist())
    print(f"{name}: E, A, α, B, β = {numbers}", end="; ")
    print(f"error {error.square().mean().sqrt():.1%}, largest {error.abs().max():.1%}")

# %% [markdown]
# (The first error is the root of the mean square.) The maximum fits much better: *almost only the
# scarcer resource, data or parameters, limits the loss*. Its largest error is at a corner, where
# both are scarce. The study rounds the corner with a sixth constant, $p$, and gets an error of
# 0.7%: $L = E + ((A / N^\alpha)^p + (B / D^\beta)^p)^{1/p}$. With $p = 1$, this is the sum; with a
# very large $p$, the maximum. The best $p$ is 5.1.
#
# ## A prediction
#
# A law is useful if it predicts models that nobody has trained yet. We fit both laws to the six
# smaller sizes only, and predict the largest model, which is four times as large.

# %%
known = parameters < sizes.max()  # (35,): false for the largest model; ~known is the opposite
held_out = {}
for name, predict in (("sum", predict_sum), ("max", predict_max)):
    constants = fit(predict, parameters[known], characters[known], measured[known])
    predicted = predict(constants, parameters[~known], characters[~known])  # (5,), one per text
    held_out[name] = predicted / measured[~known] - 1
guess = measured[parameters == sizes[-2]]  # (5,): the losses of the next smaller model
held_out["guess"] = guess / measured[~known] - 1
print("measured   ", *(f"{loss:6.3f}" for loss in measured[~known]))
for name, errors in held_out.items():
    print(f"error {name:5}", *(f"{error:+6.1%}" for error in errors))

# %% alt="Loss over parameters for five texts; the law of six sizes predicts the seventh well"
figure, axes = plt.subplots(figsize=(7, 4.2))
line = torch.logspace(-2, 1.6, 100)  # (100,): 10 thousand to 40 million parameters
for d in texts:
    here = characters == d
    axes.plot(line, predict_max(constants, line, d), color=MUTED, linewidth=1, linestyle="-")
    axes.plot(parameters[here & known], measured[here & known], "o", color=INK, markersize=5)
    axes.plot(parameters[here & ~known], measured[here & ~known], "D", color=ACCENT, markersize=7)
    axes.text(45, predict_max(constants, line[-1:], d), f"{d:.2f} M characters", va="center")
axes.text(0.009, 1.2, "lines: the law, fitted to ●\n◆ largest model, not in the fit")
axes.text(0.012, 1.4, "too few parameters:\nall texts alike", color=ACCENT)
axes.text(0.4, 1.71, "too little text: all sizes alike", color=ACCENT)
axes.set(xscale="log", xlabel="parameters (millions)", ylabel="validation loss")
axes.set_xlim(0.008, 300)
show("law")

# %% [markdown]
# The errors of the maximum are about 1% or less; the sum is wrong by up to 8% (5.9% in the study,
# which minimises the Huber loss, as Hoffmann et al. do). The guess "the same losses as the next
# smaller model" already has errors of about 2% or less, so the law halves the error. In the
# picture, the curve on the left is $E + A / N^\alpha$: with too few parameters, more text does not
# help. Each flat line is $E + B / D^\beta$: with too little text, more parameters do not help. The
# point far above the curve is a corner: the law is too optimistic there.
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
published = 1.8172, 482.01, 0.3478, 2085.43, 0.3658  # E, A, α, B, β; N and D not in millions
gpt3 = 12 * 96 * 12288**2 + (50257 + 2048) * 12288  # 96 blocks of 12 C² weights, and embeddings
choices = torch.logspace(9, 13, 4001, dtype=torch.float64)  # (4001,): 10⁹ to 10¹³ parameters
print("model       parameters   tokens   loss   best N   best D   loss")
for name, n, d in (("GPT-3", gpt3, 300e9), ("Chinchilla", 70e9, 1.4e12)):
    operations = 6 * n * d
    texts_left = operations / (6 * choices)  # (4001,): the tokens that the budget allows
    loss, best = predict_sum(published, choices, texts_left).min(dim=0)  # the lowest, its index
    print(f"{name:10}  {n:10.3g}  {d:7.2g}  {predict_sum(published, n, d):.3f}", end="  ")
    print(f"{choices[best]:7.1e}  {texts_left[best]:7.1e}  {loss:.3f}")

# %% tags=["test"]
table = measured.view(7, 5)  # a row for each size, a column for each text
assert table[0].max() - table[0].min() < 0.05
assert table[4:, 0].min() > table[3, 0]
assert table[:, -1].tolist() == sorted(table[:, -1], reverse=True)
assert 40.9e6 < study["runs"][0]["tokens"] < 41e6
assert (losses_at.argmin(axis=0)[1:] >= losses_at.argmin(axis=0)[:-1]).all()
assert set(losses_at.argmin(axis=0)) == set(range(7))
assert held_out["max"].abs().max() < 0.0115
assert 0.075 < held_out["sum"].abs().max() < 0.09
assert round(study["free"]["error"], 3) == 0.007
assert round(study["free"]["law"]["p"], 1) == 5.1
assert error.abs().argmax() == ((parameters == sizes[1]) & (characters == texts[0])).nonzero()
study_errors = [abs(predicted / loss - 1) for _, loss, predicted in study["sum"]["held_out"]]
assert round(max(study_errors), 3) == 0.059
rms = {name: errors.square().mean().sqrt() for name, errors in held_out.items()}
assert held_out["guess"].abs().max() < 0.0225
assert 0.5 < rms["max"] / rms["guess"] < 0.6
assert 0.045 < rms["sum"] < 0.055
half = predict_sum(published, gpt3 * 0.3 / 2, 300e9 / 0.3 * 2)
optimum = predict_sum(published, gpt3 * 0.3, 300e9 / 0.3)
double = predict_sum(published, gpt3 * 0.3 * 2, 300e9 / 0.3 / 2)
assert max(half, double) - optimum < 0.006
assert 0.015 < predict_sum(published, gpt3, 300e9) - optimum < 0.018
assert round(gpt3 / 1e9) == 175
assert abs(5.3e10 / gpt3 - 1 / 3) < 0.05
assert abs(9.9e11 / 300e9 - 3) < 0.35
assert sum(cell["falling"] for cell in cells) == 22
assert all(cell["falling"] for cell in cells if cell["D"] > 4e6)
runs = {run["name"]: run["tokens"] / run["D"] for run in study["runs"]}
epochs = [runs[cell["run"]] for cell in cells if cell["D"] == 281360]
assert (round(min(epochs)), round(max(epochs))) == (20, 146)

# %% [markdown]
# Chinchilla is close to the best split, about 20 tokens for each parameter. For GPT-3's budget,
# this law recommends a third of the parameters and three times the text. But the loss is less than
# 1% lower: the optimum is flat, and half or twice the best $N$ costs about 0.005. And a smaller
# model is cheaper to *use*. So later models are often trained with far more than 20 tokens for each
# parameter (Touvron et al. 2023, [arXiv:2302.13971](https://arxiv.org/abs/2302.13971); Sardana et
# al. 2023, [arXiv:2401.00448](https://arxiv.org/abs/2401.00448)).
#
# GPT-3 followed an earlier law (Kaplan et al. 2020,
# [arXiv:2001.08361](https://arxiv.org/abs/2001.08361)), which recommends larger models: the best
# $N$ grows like the operations to the power 0.73, for Hoffmann et al. only about 0.5. Porian et al.
# 2024 ([arXiv:2406.19146](https://arxiv.org/abs/2406.19146)) explain the difference by details of
# the experiments, such as a warm-up that is too long for small models. So a law is only as good as
# its experiments.
#
# ## What our law cannot say
#
# - In 22 of the 35 runs, the loss was still falling at the last step. In the fit, too few steps
#   look like too little text or too few parameters.
# - Our models repeat the smallest text 20 to 146 times. Muennighoff et al. 2023
#   ([arXiv:2305.16264](https://arxiv.org/abs/2305.16264)) found that up to four epochs are almost
#   as good as new text, and that later epochs help less and less. Our law ignores epochs.
# - The constants belong to this text, alphabet and training. The published law has limits, too: its
#   models are smaller than GPT-3, and their text is another.
#
# ## What to remember
#
# - A training takes about $6ND$ operations: 2 per parameter and token forward, 4 backward.
# - Each budget has its best size. A larger budget needs a larger model *and* more text.
# - The loss above $E$ falls like a power law in parameters and text. If a text is repeated many
#   times, almost only the scarcer resource limits the loss.
# - Check a law on models that were not in the fit.
#
# ## Three common mistakes
#
# 1. **You compare sizes after the same number of steps.** *Symptom*: if there is enough text, the
#    largest model looks best (the ends of the curves). *Remedy*: compare after the same number of
#    operations.
# 2. **You use one learning rate for all sizes.** *Symptom*: a size looks worse than it is, because
#    its rate is wrong. *Remedy*: lower the rate for wider models.
# 3. **You judge a law by the points that it was fitted to.** *Symptom*: larger errors for the next
#    size (the sum: 5% instead of 3.6%). *Remedy*: hold out the largest models.
#
# ## Exercises
#
# 1. How many years does GPT-3's training take on one GPU with $989 \cdot 10^{12}$ operations per
#    second, if it reaches 40% of them?
# 2. For the sum law and a budget of $6ND$, show that the best $N$ grows like the operations to the
#    power $\beta / (\alpha + \beta)$. Check it with the published constants.
# 3. Fit the maximum law without the largest text, and predict the losses of the seven models on it.
#    Are the errors larger than in the fit?

# %% tags=["solution"]
if SOLUTIONS:
    years = 6 * gpt3 * 300e9 / (0.4 * 989e12) / (365 * 24 * 3600)
    print(f"1. {years:.0f} years")
    assert 20 < years < 30
    # At the best N, the derivative of the loss is 0: α A / N^α = β B / D^β. D is operations / 6N,
    # so N^(α + β) = α A / (β B) · (operations / 6)^β. Take the root of degree α + β.
    best = []
    for operations in (1e21, 1e24):
        loss = predict_sum(published, choices, operations / (6 * choices))
        best.append(choices[loss.argmin()].item())
    slope = np.log(best[1] / best[0]) / np.log(1e3)
    formula = published[4] / (published[2] + published[4])  # β / (α + β)
    print(f"2. exponent {slope:.3f} by search, {formula:.3f} by the formula")
    assert abs(slope - formula) < 0.01
    smaller, largest = characters < texts.max(), characters == texts.max()  # (35,) each
    constants = fit(predict_max, parameters[smaller], characters[smaller], measured[smaller])
    predicted = predict_max(constants, parameters[largest], characters[largest])  # (7,)
    errors = predicted / measured[largest] - 1
    print("3. errors:", *(f"{error:+.1%}" for error in errors), "(in the fit 1.4%)")

# %% [markdown]
# # 10. Training: cross-entropy, gradients, Adam, learning rate, overfitting
#
# Lessons 4 to 9 called `train()`. This lesson opens it.
#
# **Before this lesson:** [lesson 1](01_tensors.md) (gradients, the training loop), [lesson
# 2](02_bigram.md) (softmax, the loss) and [lesson 9](09_gpt.md) (the model).
#
# **You will see:** a backward pass by hand; gains of 0.33 nats from momentum and 0.07 more from
# Adam in 400 steps; and a model that overfits a short text after about 250 steps.

# %%
import math

import matplotlib.pyplot as plt
import torch
from lesson import SOLUTIONS, T, V, cross_entropy, evaluate, get_batch, shorten, train_tokens
from pictures import ACCENT, INK, MUTED, arrow, cells, diagram, show, write
from torch import nn
from torch.nn import functional as F

from nanogpt.models.gpt import Block, GPTConfig

STEPS = shorten(400)  # steps of each training; fewer in a quick test

# %% [markdown]
# ## Softmax and cross-entropy
#
# A tiny alphabet has the letters a, b, c. A model gives them the logits $z = (2, 1, -1)$. Softmax
# turns logits into probabilities: $p_i = e^{z_i} / \sum_j e^{z_j}$. The target is b. Its *one-hot
# vector* $y = (0, 1, 0)$ has a 1 at the target. The *cross-entropy* is $-\sum_i y_i \ln p_i$. Only
# the term of the target is not 0, so the loss is $-\ln p_b$.

# %%
logits = torch.tensor([2.0, 1.0, -1.0])
y = torch.tensor([0.0, 1.0, 0.0])
p = logits.exp() / logits.exp().sum()  # (3,)
print(f"probabilities {p}, loss {-(y * p.log()).sum():.2f}")
large = torch.tensor([1000.0, 999.0, 0.0])
print(f"large logits: {large.exp()}, probabilities {large.exp() / large.exp().sum()}")

# %% [markdown]
# The formula fails for large logits: 32-bit numbers end at about $e^{88}$, larger powers are
# infinite (`inf`), and infinity divided by infinity is not a number (`nan`). The *log-sum-exp*
# trick subtracts the largest logit $z_{\max}$ from all logits. This divides numerator and
# denominator of $p_i$ by the same number, so $p_i$ stays the same, and no power is above 1. Now
# $p_b = e^{z_b - z_{\max}} / \sum_j e^{z_j - z_{\max}}$. The logarithm of a fraction is a
# difference, so the loss $-\ln p_b$ is $\ln \sum_j e^{z_j - z_{\max}} - (z_b - z_{\max})$.


# %%
def stable_loss(logits, target):
    shifted = logits - logits.max()
    return shifted.exp().sum().log() - shifted[target]


print(f"loss of the large logits: {stable_loss(large, 1):.4f}")
torch.testing.assert_close(stable_loss(logits, 1), F.cross_entropy(logits, torch.tensor(1)))

# %% [markdown]
# ## The gradient of the loss: p − y
#
# Without the trick, the loss is $\ln \sum_j e^{z_j} - z_b$. Take its derivative with respect to
# $z_i$. The derivative of $\ln u$ is $u' / u$, and only one power in the sum depends on $z_i$, so
# the first term gives $e^{z_i} / \sum_j e^{z_j} = p_i$. The second term gives 1 for the target and
# 0 for the others: $y_i$. So the gradient is $p - y$: negative for the target, positive for all
# others. A step against it raises only the logit of the target.
#
# ## Backpropagation through one linear layer
#
# Now a tiny model produces these logits. The current letter has the embedding $x = (1, 2)$, and a
# linear layer computes $z_i = \sum_j W_{ij} x_j$. The slope of $z_i$ for $W_{ij}$ is $x_j$, and for
# $x_j$ it is $W_{ij}$. The chain rule multiplies it by $(p - y)_i$, the slope of the loss for
# $z_i$. A weight changes one logit only, but $x_j$ changes all, so its products are added:
#
# $$\frac{\partial\,\text{loss}}{\partial W_{ij}} = (p - y)_i\, x_j \qquad
# \frac{\partial\,\text{loss}}{\partial x_j} = \sum_i (p - y)_i\, W_{ij}$$
#
# ($\partial$ marks partial derivatives, lesson 1.) Autograd gives the same gradients. `torch.outer`
# multiplies each number of a vector by each of another; `retain_grad` keeps a result's gradient.

# %%
x = torch.tensor([1.0, 2.0], requires_grad=True)
W = torch.tensor([[2.0, 0.0], [-1.0, 1.0], [1.0, -1.0]], requires_grad=True)
z = W @ x  # (3, 2) @ (2,) -> (3,)
z.retain_grad()
loss = F.cross_entropy(z, torch.tensor(1))
loss.backward()
torch.testing.assert_close(z.grad, p - y)  # (3,)
torch.testing.assert_close(W.grad, torch.outer(p - y, x.detach()))  # (3, 2)
torch.testing.assert_close(x.grad, (p - y) @ W.detach())  # (3,) @ (3, 2) -> (2,)

# %% alt="Forward: W and x, z, p, loss 1.35. Backward from loss: p - y, then times W and times x"
axes = diagram(72, 42)
write(axes, 1, 40, "forward: values", 10, align="left", bold=True)
write(axes, 1, 21.5, "backward: gradients", 10, ACCENT, "left", bold=True)
parts = [(3, 34.5, "W", W), (18, 33, "x", x), (36, 34.5, "z", z), (50, 34.5, "p", p)]
parts += [(3, 14.5, "∂loss/∂W", W.grad), (18, 13, "∂loss/∂x", x.grad)]
parts += [(36, 14.5, "∂loss/∂z", z.grad), (63.5, 31.5, "loss", loss)]
parts += [(63.5, 11.5, "∂loss/∂loss", torch.tensor(1.0))]
for left, top, name, tensor in parts:
    rows = [[f"{value:.2f}" for value in row] for row in tensor.view(-1, 1 + ("W" in name))]
    cells(axes, left, top, rows, 5.5, 3, [[top < 20] * len(row) for row in rows], name)
steps = [(24, 35.5, 30, "product"), (42, 49.5, 30, "softmax"), (56, 63, 30, "−ln $p_b$")]
steps += [(63, 42, 10, "p − y"), (35.5, 24, 10, "times W")]
for start, end, height, text in steps:
    color, style = (INK, "-") if height == 30 else (ACCENT, "--")
    arrow(axes, (start, height), (end, height), color=color, style=style)
    write(axes, (start + end) / 2, height + 1.5, text, 8, color)
write(axes, 16, 30, "@", 11)
arrow(axes, (38.8, 5), (8.5, 5), color=ACCENT, style="--", bend=-0.16)
write(axes, 23.5, 1, "times x", 8, ACCENT)
show("graph")

# %% [markdown]
# The backward pass starts with the slope of the loss for itself, 1. One formula, $p - y$, goes back
# through logarithm and softmax together, so the picture has no gradient of $p$. In a deeper model,
# $\partial\,\text{loss} / \partial x$ goes on into the layer that computed $x$.
#
# ## Momentum and Adam
#
# *Gradient descent* moves a weight $w$ against its gradient $g$: $w \leftarrow w - \eta g$, where
# $\eta$ is the learning rate. *Stochastic gradient descent*, SGD, takes $g$ from a random batch.
# *Momentum* uses a sum of all gradients so far, in which older ones count less. With a number
# $\beta$ below 1, usually 0.9: $s \leftarrow \beta s + g$, then $w \leftarrow w - \eta s$.
# Gradients with opposite signs cancel. A constant gradient adds up to
# $g + \beta g + \beta^2 g + \dots = g / (1 - \beta) = 10 g$.
#
# Adam (Kingma & Ba 2014, [arXiv:1412.6980](https://arxiv.org/abs/1412.6980)) keeps two *running
# means* for each weight, in which new values count most: $m$ of the gradient, and $v$ of its
# square. By default, $\beta_1 = 0.9$ and $\beta_2 = 0.999$:
#
# $$m \leftarrow \beta_1 m + (1 - \beta_1)\, g \qquad v \leftarrow \beta_2 v + (1 - \beta_2)\, g^2$$
#
# Both start at 0, so at first they are too small: after step 1, $m$ is only $0.1\,g$. After step
# $k$, the factors of the gradients in $m$ sum to $1 - \beta_1^k$ instead of 1. The *bias
# correction* divides by this sum. Then Adam moves the weight; $\varepsilon$ avoids division by 0:
#
# $$\hat m = \frac{m}{1 - \beta_1^k} \qquad \hat v = \frac{v}{1 - \beta_2^k} \qquad
# w \leftarrow w - \eta\, \frac{\hat m}{\sqrt{\hat v} + \varepsilon}$$


# %%
def adam_step(w, g, m, v, step, rate, beta1=0.9, beta2=0.999):
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
    return w - rate * m_hat / (v_hat.sqrt() + 1e-8), m, v


factors = torch.tensor([1.0, 25.0])  # the loss is (w₀² + 25 w₁²) / 2, its gradient factors * w
w, m, v = torch.tensor([-10.0, 2.0]), torch.zeros(2), torch.zeros(2)
copy = nn.Parameter(w.clone())
optimizer = torch.optim.Adam([copy], lr=0.4)
for step in (1, 2, 3):
    copy.grad = g = factors * w
    w, m, v = adam_step(w, g, m, v, step, rate=0.4)
    optimizer.step()
    print(f"step {step}: gradient {g}, new weights {w}")
    torch.testing.assert_close(w, copy.detach())

# %% [markdown]
# Our weights equal those of `torch.optim.Adam`. In step 1 the gradients are −10 and 50, but both
# weights move by 0.4, the learning rate: the division by $\sqrt{\hat v}$ removes the size of the
# gradient. If a gradient changes sign in each step, $\hat m$ is small, but $\hat v$ is not: Adam
# makes long steps where gradients agree, and short ones where they change at random. GPTs often use
# $\beta_2 = 0.95$ (Brown et al. 2020, [arXiv:2005.14165](https://arxiv.org/abs/2005.14165); also
# `gpt.py`): then $v$ is a mean of about $1/(1-\beta_2) = 20$ steps.
#
# ## The model, and weight decay
#
# From here on, we train a GPT with one Transformer block. Its output layer is not tied, and its
# initial weights are PyTorch's.
#
# *Weight decay* makes weights a little smaller in each step. This limits their size, and can reduce
# overfitting (below). PyTorch's AdamW (Loshchilov & Hutter 2017,
# [arXiv:1711.05101](https://arxiv.org/abs/1711.05101)) also multiplies them by $1 - \eta \lambda$,
# where $\lambda$ is the strength. Our runs do without it.


# %%
class Model(nn.Module):
    def __init__(self, C=64):
        super().__init__()
        self.token_embedding, self.position_embedding = nn.Embedding(V, C), nn.Embedding(T, C)
        self.block = Block(GPTConfig(n_head=4, n_embd=C))
        self.norm, self.output = nn.LayerNorm(C), nn.Linear(C, V)

    def forward(self, tokens):
        positions = self.position_embedding(torch.arange(tokens.shape[1]))  # (T, C)
        x = self.token_embedding(tokens) + positions  # (B, T, C)
        return self.output(self.norm(self.block(x)))  # (B, T, V)


# %% [markdown]
# ## SGD against Adam
#
# Each run of `fit` has the same weights at the start, and the same 400 batches of 16 blocks.
# Without `warmup`, the learning rate stays constant. The next sections explain `schedule`, `clip`.


# %%
def schedule(step, steps, warmup):
    return min((step + 1) / warmup, 1 - step / steps)


def fit(kind, rate, warmup=0, clip=math.inf, tokens=train_tokens, every=0, steps=STEPS, **settings):
    """Return the loss of each step, and validation losses: every `every` steps or at the end."""
    torch.manual_seed(1)
    model, losses, validation = Model(), [], []
    optimizer = kind(model.parameters(), lr=rate, **settings)
    torch.manual_seed(0)
    for step in range(steps):
        inputs, targets = get_batch(tokens, batch_size=16)
        loss = cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        if warmup:
            optimizer.param_groups[0]["lr"] = rate * schedule(step, steps, warmup)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % (every or steps) == 0:
            validation.append(evaluate(model))
    return losses, validation


SGD, Adam = torch.optim.SGD, torch.optim.Adam
runs = {("SGD", rate): fit(SGD, rate) for rate in (0.3, 1, 3)}
runs |= {("momentum", rate): fit(SGD, rate, momentum=0.9) for rate in (0.3, 1, 3)}
runs |= {("Adam", rate): fit(Adam, rate) for rate in (0.003, 0.01, 0.03, 0.1)}
for (name, rate), (_, validation) in runs.items():
    print(f"{name:8}  learning rate {rate:<5}  validation loss {validation[-1]:.4g}")

# %% [markdown]
# The best runs: SGD 2.54, momentum 2.21, Adam 2.14. Momentum gives most of the gain; Adam adds
# 0.07. At 3 times their best rate, SGD and momentum *diverge* here: the loss grows until it is not
# a number (`nan`). At 3 times its best rate, Adam still reaches 2.15, so its rate is easier to
# find. The price of Adam is memory: $m$ and $v$ are two more numbers for each weight.
#
# ## A schedule for the learning rate
#
# Large steps move far at the start; small steps settle in a low point at the end. A *schedule*
# tries to give both. `gpt.py` multiplies its rate by `schedule(step, 1300, 100)`. In the *warm-up*,
# the rate rises: the first steps are the most likely to diverge. Adam's $v$ is then a mean of few
# squares, so dividing by its root is unreliable (Liu et al. 2019,
# [arXiv:1908.03265](https://arxiv.org/abs/1908.03265)). Then the rate falls along a line to 0. (The
# smaller factor counts; both meet at 0.93.) Now train with a warm-up of 40 steps; at 0.1 also with
# the falling line only (`warmup=1`).

# %%
scheduled = {("schedule", rate): fit(Adam, rate, warmup=40) for rate in (0.003, 0.01, 0.03, 0.1)}
scheduled["no warm-up", 0.1] = fit(Adam, 0.1, warmup=1)
final = {key: validation[-1] for key, (_, validation) in (runs | scheduled).items()}
for name, rate in scheduled:
    print(f"{name:10}  learning rate {rate:<5}  validation loss {final[name, rate]:.3f}")

# %% alt="Loss over learning rate: constant is best at 0.01; with schedule, best at 0.03 and lower"
lines = [("Adam", "constant", MUTED, "o--"), ("schedule", "with schedule", ACCENT, "s-")]
for name, text, color, style in lines:
    line = {rate: loss for (run, rate), loss in final.items() if run == name}
    lowest = min(line, key=line.get)
    plt.semilogx(*zip(*line.items(), strict=True), style, color=color)
    plt.text(lowest, line[lowest] - 0.18, f"best: {line[lowest]:.2f}", ha="center", color=color)
    plt.text(0.11, line[0.1], text, va="center", color=color)
plt.gca().set(xlabel="learning rate", ylabel="validation loss", xlim=(2e-3, 0.25), ylim=(1.8, 3.3))
show("sweep")

# %% [markdown]
# Both lines fall and rise again: a small rate does not get far in 400 steps, and the steps of a
# large one are too long. At 0.1 the schedule improves the loss from 3.2 to 2.2, and the falling
# line alone only to 3.0. At small rates, the schedule is worse, because its mean rate is only about
# half as large. The best losses, 2.13 and 2.14, are almost equal. Now 1,000 steps:

# %%
constant = fit(Adam, 0.01, steps=shorten(1000))[1][-1]
falling = fit(Adam, 0.03, warmup=40, steps=shorten(1000))[1][-1]
print(f"after 1,000 steps: constant rate {constant:.2f}, with schedule {falling:.2f}")

# %% [markdown]
# At these two rates, the schedule gains 0.07.
#
# ## Clipping, epochs, batches
#
# One unusual batch can have a huge gradient. *Clipping* treats all gradients of a model as one long
# vector. It shortens this vector to a limit (1 in `gpt.py`) if it is longer (Pascanu et al. 2012,
# [arXiv:1211.5063](https://arxiv.org/abs/1211.5063)). SGD diverged at 3. With clipping:

# %%
clipped = fit(SGD, 3, clip=1.0)[1][-1]
print(f"SGD, learning rate 3, gradients clipped to length 1: validation loss {clipped:.2f}")

# %% [markdown]
# Clipping makes the larger rate safe: the best SGD run is 2.46 instead of 2.54.
#
# An *epoch* is one pass over the text: 1,003,854 / 64 / 16 = 980 steps. A larger batch gives
# a less random gradient and often allows a larger learning rate, but needs more time and memory.
# (*Gradient accumulation* adds up the gradients of small batches before one step.) Now you can read
# [`train` in gpt.py](../gpt.py#L153-L167).
#
# ## Overfitting: when to stop
#
# 400 steps are 0.41 epochs of the training text, but 41 epochs of 10,000 characters.

# %%
training, validation = fit(Adam, 0.01, tokens=train_tokens[:10_000], every=25)
stop = 25 * (validation.index(min(validation)) + 1)
print(f"validation loss {min(validation):.2f} after {stop} steps, {validation[-1]:.2f} at the end")

# %% alt="The training loss falls to the end; the validation loss is lowest at a marked step"
losses = torch.tensor(training).unfold(0, 25, 25).mean(dim=1)  # means of the 25 steps before
ends = range(25, STEPS + 1, 25)
lines = [(losses, "training", "--", MUTED), (validation, "validation", "-", ACCENT)]
for line, text, style, color in lines:
    plt.plot(ends, line, style, color=color)
    plt.text(STEPS * 1.02, line[-1], f"{text}: {line[-1]:.2f}", va="center", color=color)
plt.plot(stop, min(validation), "o", color="none", markeredgecolor=INK, markersize=13)
plt.text(stop, min(validation) - 0.15, f"stop here: {min(validation):.2f}", ha="center")
plt.gca().set(xlim=(0, STEPS * 1.3), xlabel="step", ylabel="loss (nats per character)")
show("overfitting")

# %% [markdown]
# The training loss falls to the end. The validation loss is lowest after about 250 steps, then
# rises from 2.70 to 2.88: the model is *overfitting*, it memorises its text. *Early stopping*
# keeps the weights with the lowest validation loss. It is slightly too low: we chose the step by it
# (lesson 2: *test text*). Other remedies: more text, a smaller model, dropout, weight decay.
#
# **Distillation** also lowers the validation loss (Hinton et al. 2015,
# [arXiv:1503.02531](https://arxiv.org/abs/1503.02531)): a *student* learns the probabilities of
# trained models, its *teachers*. In nanogpt's [study](../docs/studies.md), students are better than
# their teachers together.

# %% tags=["test"]
from lesson import FAST  # noqa: E402

assert (len(train_tokens), len(train_tokens) // T // 16) == (1_003_854, 980)
assert (round(400 / 980, 2), round(400 * 16 * T / 10_000)) == (0.41, 41)
assert abs(F.cross_entropy(torch.eye(65), torch.arange(65)) - 3.20) < 0.005  # perfect probabilities
assert round(max(schedule(step, 1300, 100) for step in range(1300)), 2) == 0.93
if not FAST:
    told = {("SGD", 1): 2.54, ("momentum", 1): 2.21, ("Adam", 0.01): 2.14, ("schedule", 0.03): 2.13}
    told, final["clipped", 3] = told | {("clipped", 3): 2.46}, clipped
    for (name, rate), value in told.items():
        assert abs(final[name, rate] - value) < 0.04
        same = [loss for (run, _), loss in final.items() if run == name and loss < 10]
        assert final[name, rate] <= min(same) + 0.02
    for name, value in {"Adam": 3.2, "schedule": 2.2, "no warm-up": 3.0}.items():
        assert abs(final[name, 0.1] - value) < 0.2
    gains = {("SGD", 1): 0.40, ("momentum", 1): 0.07, ("Adam", 0.03): 0.01}  # over Adam, 0.01
    assert all(abs(final[run] - final["Adam", 0.01] - gains[run]) < 0.04 for run in gains)
    assert all(math.isnan(final[name, 3]) for name in ("SGD", "momentum"))
    assert final["schedule", 0.003] > final["Adam", 0.003] + 0.05
    assert abs(constant - falling - 0.07) < 0.04
    assert 175 <= stop <= 300
    assert abs(min(validation) - 2.70) + abs(validation[-1] - 2.88) < 0.13

# %% [markdown]
# ## What to remember
#
# - The gradient of the cross-entropy at the logits is $p - y$.
# - The step of Adam does not depend on the size of the gradients; it is short if they are random.
# - Search the learning rate in factors of 3. A warm-up allows larger rates.
# - The validation loss says when to stop; the training loss does not.
#
# ## Three common mistakes
#
# 1. **Softmax before `F.cross_entropy`**, which applies softmax itself. *Symptom:* the loss stays
#    above $\ln(e + 64) - 1 = 3.20$: with 65 characters, the best "logits" are then 1 for the target
#    and 0 for the 64 others. *Remedy:* pass logits.
# 2. **`clip_grad_norm_` after `optimizer.step()`.** *Symptom:* no error, but clipping does
#    nothing. *Remedy:* `zero_grad`, `backward`, clip, `step`.
# 3. **Two settings compared at one learning rate.** *Symptom:* at 0.003 the schedule looks harmful,
#    at 0.1 very good. *Remedy:* several rates for each; compare the lowest losses.
#
# ## Exercises
#
# 1. Leave the bias correction out of Adam. How long is its first step, compared with the rate?
# 2. The older weight decay adds $\lambda w$ to the gradient. Compare it with AdamW: take 2,000
#    weights that start at 1. Half of them get random gradients of standard deviation 1
#    (`torch.randn`), the others gradients 100 times as large. Which weights decay in 1,000
#    steps with $\lambda = 0.1$ and the rate 0.001, and why?

# %% tags=["solution"]
if SOLUTIONS:
    print(f"1. 0.1 g / √(0.001 g²): {0.1 / math.sqrt(0.001):.2f} times the learning rate")
    # 2. AdamW shrinks both alike. In the gradient, Adam divides the decay by √v̂ too.
    for name, decay, added in (("AdamW", 0.1, 0.0), ("in the gradient", 0.0, 0.1)):
        torch.manual_seed(0)
        weight = nn.Parameter(torch.ones(2, 1000))
        optimizer = torch.optim.AdamW([weight], lr=0.001, weight_decay=decay)
        for _ in range(1000):
            weight.grad = torch.randn(2, 1000) * torch.tensor([[1.0], [100.0]])
            weight.grad += added * weight.detach()
            optimizer.step()
        small, large = weight.detach().mean(dim=1).tolist()
        print(f"2. {name}: {small:.3f} and {large:.3f} are left")
        assert abs(small - 0.905) + abs(large - (0.905 if decay else 0.999)) < 0.03

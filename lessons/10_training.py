# %% [markdown]
# # 8. Training
#
# Up to now a model was handed to `fit`, and came back trained. This lesson opens it. There are four
# things in it: a loss that can be computed without overflow, a rule that moves the weights, a size
# for the moves, and an order in which the text is read. And one question that no loop can answer by
# itself: when to stop.

# %%
import copy
import math

import matplotlib.pyplot as plt
import torch
from lesson import FAST, T, V, batch, train, validation
from torch import nn
from torch.nn import functional as F

C, H = 64, 4

# %% [markdown]
# ## The loss
#
# A model gives *logits* $z$, one number for each character. Softmax makes chances of them,
# $p_i = e^{z_i} / \sum_j e^{z_j}$, and the model pays $-\ln p_y$ for the character $y$ that came.
# Written down just like this it fails: a float of 32 bits ends at about $e^{88}$, and the quotient
# of two infinities is not a number.


# %%
def naive(logits, targets):  # (..., V), (...)
    p = logits.exp() / logits.exp().sum(dim=-1, keepdim=True)
    return -p.gather(-1, targets[..., None]).log().mean()


print(naive(torch.tensor([[1000.0, 999.0, 0.0]]), torch.tensor([1])))

# %% [markdown]
# Add a constant to all logits, and numerator and denominator grow by the same factor. So we may
# subtract the largest logit first. No exponent is then above 0, at least one is 0, and the powers
# sum to something between 1 and $V$. Taking the logarithm at once,
# $\ln p_y = z_y - \ln \sum_j e^{z_j}$, keeps even tiny chances from being rounded to 0. This is
# called the *log-sum-exp* trick.


# %%
def cross_entropy(logits, targets):  # (..., V), (...)
    z = logits - logits.max(dim=-1, keepdim=True).values
    log_p = z - z.exp().sum(dim=-1, keepdim=True).log()  # (..., V)
    return -log_p.gather(-1, targets[..., None]).mean()


print(cross_entropy(torch.tensor([[1000.0, 999.0, 0.0]]), torch.tensor([1])))
assert naive(torch.tensor([[1000.0, 999.0, 0.0]]), torch.tensor([1])).isnan()

torch.manual_seed(0)
logits, targets = torch.randn(500, V, requires_grad=True), torch.randint(V, (500,))
loss = cross_entropy(logits, targets)
torch.testing.assert_close(loss, F.cross_entropy(logits, targets))
torch.testing.assert_close(loss, naive(logits, targets))

# %% [markdown]
# Its gradient is as plain as one could wish: chances minus truth,
# $\partial\,\text{loss} / \partial z_i = p_i - [i = y]$. Each logit is pushed down by the chance it
# was given, the right one up by the chance that it lacked. A model that is certain and right is
# left alone.

# %%
loss.backward()
p, one_hot = logits.detach().softmax(dim=-1), F.one_hot(targets, V)  # (500, V) both
torch.testing.assert_close(logits.grad, (p - one_hot) / 500)  # the loss is a mean over 500

# %% [markdown]
# ## Gradient descent, and momentum
#
# `backward` does the rest: from these it finds the gradient $g$ of the loss with respect to every
# weight $w$. *Gradient descent* moves a little against it, $w \leftarrow w - \eta g$. The *learning
# rate* $\eta$ says how little. With a gradient from a random batch instead of the whole text it is
# *stochastic* gradient descent, SGD.
#
# Its trouble is a valley: steep across, hardly sloping along. The rate must be small enough for the
# steep direction, and then the other takes forever. *Momentum* is one remedy. It moves by a running
# sum of gradients, $v \leftarrow \beta v + g$ and $w \leftarrow w - \eta v$. What points now here,
# now there, cancels; what always points the same way adds up, to $1 / (1 - \beta)$ times as much.


# %%
class Descent:
    """With beta 0, gradient descent."""

    def __init__(self, parameters, beta=0.0):
        self.parameters, self.beta = list(parameters), beta
        self.v = [torch.zeros_like(p) for p in self.parameters]

    @torch.no_grad()
    def step(self, lr):
        for p, v in zip(self.parameters, self.v, strict=True):
            v.mul_(self.beta).add_(p.grad)
            p -= lr * v


# %% [markdown]
# ## Adam
#
# The other remedy is a rate for each weight. *Adam* (Kingma & Ba 2014,
# [arXiv:1412.6980](https://arxiv.org/abs/1412.6980), algorithm 1) keeps two running means for every
# number: $m$ of its gradients, and $v$ of their squares.
#
# $$m \leftarrow \beta_1 m + (1 - \beta_1) g \qquad v \leftarrow \beta_2 v + (1 - \beta_2) g^2$$
#
# Both begin at 0, so at first they are too small. After $t$ steps, their weights sum to
# $1 - \beta^t$; divided by that, they are means again:
#
# $$\hat m = \frac{m}{1 - \beta_1^t} \qquad \hat v = \frac{v}{1 - \beta_2^t}$$
#
# The step is
#
# $$w \leftarrow w - \eta\, \frac{\hat m}{\sqrt{\hat v} + \varepsilon}$$
#
# Multiply the loss by a thousand, and all but nothing changes. A weight whose gradient stays the
# same moves by $\eta$ a step, however small that gradient is; one that is pushed about moves less.
# So $\eta$ is a distance, and the same one will do for all weights.
#
# *Weight decay* pulls every weight towards zero, a little at each step, so that what no gradient
# asks for fades. Adding $\lambda w$ to the gradient, the old way, puts it through Adam's division:
# weights with large gradients would then hardly decay. AdamW (Loshchilov & Hutter 2017,
# [arXiv:1711.05101](https://arxiv.org/abs/1711.05101)) takes it out again, and shrinks the weights
# by themselves, $w \leftarrow (1 - \eta \lambda)\, w$. That is one line. The trainings below leave
# $\lambda$ at 0.


# %%
class Adam:
    def __init__(self, parameters, betas=(0.9, 0.999), eps=1e-8, decay=0.0):
        self.parameters, self.betas, self.eps, self.decay = list(parameters), betas, eps, decay
        self.m = [torch.zeros_like(p) for p in self.parameters]
        self.v = [torch.zeros_like(p) for p in self.parameters]
        self.t = 0

    @torch.no_grad()
    def step(self, lr):
        self.t += 1
        unbias_m, unbias_v = (1 - beta**self.t for beta in self.betas)
        for p, m, v in zip(self.parameters, self.m, self.v, strict=True):
            m.lerp_(p.grad, 1 - self.betas[0])  # m + (1 - β₁)(g - m)
            v.lerp_(p.grad.square(), 1 - self.betas[1])
            p *= 1 - lr * self.decay  # AdamW
            p -= lr * (m / unbias_m) / ((v / unbias_v).sqrt() + self.eps)


# %% [markdown]
# A valley 25 times steeper across than along, and what each makes of it in 40 steps:

# %% alt="Paths in a valley: descent zigzags, momentum swings round, Adam cuts across diagonally"
x, y = torch.meshgrid(torch.linspace(-11, 3, 60), torch.linspace(-3, 3, 60), indexing="xy")
plt.contour(x, y, (x**2 + 25 * y**2) / 2, levels=12, colors="0.85", linewidths=0.8)
ways = {
    "gradient descent": (lambda w: Descent(w), 0.07, "o-"),
    "momentum": (lambda w: Descent(w, beta=0.8), 0.03, "s--"),
    "Adam": (lambda w: Adam(w), 0.4, "^:"),
}
for name, (make, lr, style) in ways.items():
    w = nn.Parameter(torch.tensor([-10.0, 2.0]))
    optimizer, path = make([w]), [w.tolist()]
    for _ in range(40):
        w.grad = w.detach() * torch.tensor([1.0, 25.0])
        optimizer.step(lr)
        path.append(w.tolist())
    plt.plot(*zip(*path, strict=True), style, color="black", markersize=3, label=name, lw=0.8)
    print(f"{name:17} ends {math.hypot(*path[-1]):.2f} from the lowest point")
plt.xlabel("first weight")
plt.ylabel("second weight")
plt.legend(loc="upper right")
plt.show()
# %% [markdown]
# Descent swings across the valley at every step and creeps along it. Momentum, at less than half
# the rate, swings more slowly and gathers speed along the valley. Adam, which sees two directions
# and scales both, sets off diagonally as if the valley were round. But its steps keep their length,
# so it runs past the lowest point and has to come back. We shall need that below.
#
# ## Are they torch's?
#
# Here is the model for the rest of this lesson: a GPT like that of lesson 7, of two blocks, and
# shorter, with torch's initialisation and a head of its own, with a bias. Twenty steps with our
# optimizers and twenty with torch's have to leave the same weights.


# %%
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(C), nn.LayerNorm(C)
        self.qkv, self.projection = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.feed_forward = nn.Sequential(nn.Linear(C, 4 * C), nn.GELU(), nn.Linear(4 * C, C))

    def forward(self, x):  # (B, T, C)
        B, T, _ = x.shape
        qkv = self.qkv(self.norm1(x)).view(B, T, 3, H, C // H)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, D) each
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.projection(y.transpose(1, 2).flatten(2))
        return x + self.feed_forward(self.norm2(x))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.token_embedding, self.position_embedding = nn.Embedding(V, C), nn.Embedding(T, C)
        self.blocks = nn.Sequential(Block(), Block())
        self.norm, self.head = nn.LayerNorm(C), nn.Linear(C, V)

    def forward(self, tokens):  # (B, T)
        x = self.token_embedding(tokens) + self.position_embedding(torch.arange(tokens.shape[1]))
        return self.head(self.norm(self.blocks(x)))  # (B, T, V)


def after_20(optimizer, lr=None):
    """The weights, as one vector in 64 bits; torch's optimizers know their rate, ours are told."""
    torch.manual_seed(0)
    model = Model().double()
    optimizer = optimizer(model.parameters())
    for _ in range(20):
        inputs, targets = batch(train, 4)
        model.zero_grad()
        cross_entropy(model(inputs), targets).backward()
        optimizer.step(lr) if lr else optimizer.step()
    return nn.utils.parameters_to_vector(model.parameters()).detach()


pairs = {
    "descent": (Descent, lambda w: torch.optim.SGD(w, 0.01)),
    "momentum": (lambda w: Descent(w, 0.9), lambda w: torch.optim.SGD(w, 0.01, momentum=0.9)),
    "Adam": (Adam, lambda w: torch.optim.Adam(w, 0.01)),
    "AdamW": (lambda w: Adam(w, decay=0.1), lambda w: torch.optim.AdamW(w, 0.01, weight_decay=0.1)),
}
for name, (ours, theirs) in pairs.items():
    mine, torchs = after_20(ours, 0.01), after_20(theirs)
    print(f"{name:8}  differs by at most {(mine - torchs).abs().max():.0e}")
    torch.testing.assert_close(mine, torchs, rtol=1e-9, atol=1e-9)

# %% [markdown]
# ## SGD against Adam
#
# Does such a model need a rate for each weight? Look at the gradients of an untrained one:

# %%
torch.manual_seed(1)
model = Model()
inputs, targets = batch(train, 256)
cross_entropy(model(inputs), targets).backward()
for name in ("token_embedding.weight", "blocks.0.qkv.weight", "norm.bias", "head.bias"):
    p = model.get_parameter(name)
    size, gradient = (x.square().mean().sqrt() for x in (p, p.grad))
    print(f"{name:22}  weights of size {size:.2f}, gradients of size {gradient:.5f}")

# %% [markdown]
# The biases of the head have gradients almost sixty times as large as the embeddings. A rate of 0.3
# would move the former by a tenth of their size; the latter would need more than 200. SGD has one
# rate for both, and has to take the one that does not break the most sensitive part.
#
# The loop that trains is short: draw a batch, compute the loss and its gradient, move. `batch`
# draws blocks that begin anywhere in the text. Each optimizer gets a few rates, and those of SGD,
# with momentum and without, go up until it breaks.


# %%
STEPS, SIZE = 20 if FAST else 500, 16


def anywhere(step):
    return batch(train, SIZE)


def learn(optimizer, lr, falls=False, blocks=anywhere, steps=STEPS, watch=None):
    """A model trained from the same seed as any other, and the loss of each batch."""
    torch.manual_seed(1)
    model, losses = Model(), []
    optimizer = optimizer(model.parameters())
    torch.manual_seed(0)
    for step in range(steps):
        inputs, targets = blocks(step)  # (B, T) both
        loss = cross_entropy(model(inputs), targets)
        model.zero_grad()
        loss.backward()
        optimizer.step(lr * (1 - step / steps) if falls else lr)
        losses.append(loss.item())
        if watch:
            watch(step, model)
    return model, losses


def unseen(model):
    return validation(model, part=0.1 if FAST else 1.0)


def momentum(parameters):
    return Descent(parameters, beta=0.9)


tried = {"SGD": (Descent, (0.5, 1, 2)), "momentum": (momentum, (0.25, 0.5, 1))}
tried["Adam"] = Adam, (0.001, 0.003, 0.01, 0.03, 0.1)
runs = {}
for name, (optimizer, rates) in tried.items():
    for lr in rates:
        model, losses = learn(optimizer, lr)
        runs[name, lr] = unseen(model), losses
        print(f"{name:8}  rate {lr:<5}  {runs[name, lr][0]:.3f}")


def best(name):
    """The lowest loss of an optimizer, its rate, and the losses on the way."""
    found = [(loss, lr, losses) for (n, lr), (loss, losses) in runs.items() if n == name]
    return min(run for run in found if math.isfinite(run[0]))


# %% alt="Loss over steps: SGD falls most slowly, momentum much faster, Adam fastest"
for name, style in (("SGD", ":"), ("momentum", "--"), ("Adam", "-")):
    _, lr, losses = best(name)
    smooth = torch.tensor(losses).unfold(0, 20, 10).mean(dim=1)
    label = f"{name}, rate {lr}"
    plt.plot(torch.arange(len(smooth)) * 10 + 10, smooth, style, color="black", label=label)
plt.xlabel("step")
plt.ylabel("loss (nats per character)")
plt.legend()
plt.show()

# %% [markdown]
# It does need it, or at least likes it. Momentum, with its rate well chosen, comes fairly close.
# But its best rate is half of one that breaks it, and for Adam 0.003 and 0.03 are both within 0.1
# of the best. Adam pays with memory: two more numbers for each weight.
#
# ## The learning rate
#
# Too small a rate has not got far when the steps are used up. With too large a one the weights
# cannot settle: like Adam in the valley, they run past the lowest point and back. So let the rate
# start high, to get far, and fall to 0, to settle. Here it falls along a straight line, beside the
# constant rates from above.

# %%
for lr in tried["Adam"][1]:
    model, losses = learn(Adam, lr, falls=True)
    runs["falling", lr] = unseen(model), losses
    print(f"Adam, falling from {lr:<5}  {runs['falling', lr][0]:.3f}")

# %% alt="Final loss over learning rate: U-shaped, the falling one lower at high rates"
for name, style in (("Adam", "o--"), ("falling", "s-")):
    rates = tried["Adam"][1]
    label = "falling to 0" if name == "falling" else "constant"
    plt.semilogx(rates, [runs[name, lr][0] for lr in rates], style, color="black", label=label)
plt.xlabel("learning rate")
plt.ylabel("loss on unseen text (nats per character)")
plt.legend()
plt.show()

# %% [markdown]
# The loss over the rate, on a logarithmic axis, is a U. It is wide at the bottom and has a wall on
# the right. So rates are tried in factors of three, not in steps of 0.001. Falling is worth 0.03 at
# 0.01 and more on the right, where there is something to settle. On the left it makes things worse:
# a rate that is too small anyway only gets smaller. Compare schedules each at its own best rate.
#
# Larger models also let the rate *rise* over the first steps, a *warm-up*; exercise 5 of lesson 6
# has a case that needs it.
#
# ## Epochs, and the order of things
#
# Once through the whole text is an *epoch*. Our 500 steps of 16 blocks of 32 characters are a
# quarter of one. Why draw blocks at random instead of reading on from the beginning? A batch should
# be a fair sample of the text. Sixteen neighbouring blocks are from one scene, with its few
# speakers and its subject, and the next batch pulls elsewhere. That is the usual argument. Let us
# see:

# %%
print(f"{len(train) / (SIZE * T):,.0f} steps are an epoch")


def in_order(order):
    blocks = train[: STEPS * SIZE * T + 1]
    inputs, targets = blocks[:-1].view(-1, T)[order], blocks[1:].view(-1, T)[order]  # (N, T) both
    return lambda step: (inputs[SIZE * step :][:SIZE], targets[SIZE * step :][:SIZE])


torch.manual_seed(0)
orders = {}
count = STEPS * SIZE
for name, order in (("in order", torch.arange(count)), ("shuffled", torch.randperm(count))):
    orders[name] = unseen(learn(Adam, 0.01, falls=True, blocks=in_order(order))[0])
    print(f"the first {count * T:,} characters, {name}: {orders[name]:.3f}")
print(f"as many from anywhere: {runs['falling', 0.01][0]:.3f}")

# %% [markdown]
# In this case the argument does not hold: the same blocks, read in order or shuffled, teach about
# the same. What costs more than a tenth of a nat is to have read only the first quarter of the
# plays. Random blocks are a sample of everything, whenever one stops. And in the next epoch they
# are cut elsewhere, so nothing comes twice quite alike.
#
# ## When to stop
#
# With less text, epochs pass quickly. Of 10,000 characters, 800 steps are 41 epochs. Lesson 6 had
# such a case, and held it off with dropout. *Early stopping* does not prevent overfitting; it looks
# at unseen text now and then, and keeps the weights that did best.

# %%
seen, kept = [], {"loss": math.inf}


def evaluate(step, model):
    if step % 50 == 0:
        loss = validation(model, part=0.2)
        seen.append((step, loss))
        if loss < kept["loss"]:
            kept.update(loss=loss, step=step, weights=copy.deepcopy(model.state_dict()))


few = train[:10_000]
model, losses = learn(
    Adam, 0.005, blocks=lambda step: batch(few, SIZE), steps=20 if FAST else 800, watch=evaluate
)
last = unseen(model)
model.load_state_dict(kept["weights"])
first = unseen(model)
print(f"at the end {last:.3f}, kept from step {kept['step']}: {first:.3f}")

# %% alt="Training loss falls to the end, that on unseen text has its lowest point early"
smooth = torch.tensor(losses).unfold(0, 20, 10).mean(dim=1)
plt.plot(torch.arange(len(smooth)) * 10 + 10, smooth, ":", color="black", label="of the batches")
plt.plot(*zip(*seen, strict=True), "-", color="black", label="of unseen text")
plt.axvline(kept["step"], color="0.6")
plt.xlabel("step")
plt.ylabel("loss (nats per character)")
plt.legend()
plt.show()

# %% [markdown]
# The loss of the batches falls to the end, and looks like success. On unseen text the best model is
# that of step 300 (the grey line), after fifteen epochs, and what follows costs half a nat. No
# training loss could have told. One caution: a text that chose between models has become part of
# the training, a little. Who wants an honest last number keeps a third piece that nothing looked
# at.
#
# ## What it bought
#
# The same model, the same 500 batches; each optimizer at the best of its rates.

# %%
model, losses = learn(momentum, best("momentum")[1], falls=True)
runs["momentum, falling", best("momentum")[1]] = unseen(model), losses
for name in ("SGD", "momentum", "momentum, falling", "Adam", "falling"):
    loss, lr, _ = best(name)
    print(f"{name:17}  {loss:.3f}  at rate {lr}")

# %% [markdown]
# | optimizer | best rate | nats a character on unseen text |
# | --- | --- | --- |
# | SGD | 1 | 2.39 |
# | momentum | 0.5 | 2.21 |
# | momentum, falling | 0.5 | 2.19 |
# | Adam | 0.01 | 2.13 |
# | Adam, falling | 0.01 | 2.10 |
#
# The optimizer alone is worth 0.26 nats, with the same model and the same text. Most of that
# is already in momentum, once somebody has found its rate. Adam adds almost 0.1, and a range of
# rates that is wide enough to hit. The falling rate adds 0.02 to 0.03, which is hardly more
# than two seeds differ by. After a quarter of an epoch there may not be much to settle yet.

# %%
sgd, heavy, heavy_falling, adam, falling = (
    best(name)[0] for name in ("SGD", "momentum", "momentum, falling", "Adam", "falling")
)
assert FAST or falling - 0.02 < adam < heavy - 0.02 < sgd - 0.1
assert FAST or falling < heavy_falling < heavy + 0.03
assert FAST or all(
    abs(a - b) < 0.06 for a, b in ((sgd, 2.39), (heavy, 2.21), (adam, 2.13), (falling, 2.10))
)
assert FAST or runs["falling", 0.001][0] > runs["Adam", 0.001][0] + 0.05
assert FAST or abs(orders["in order"] - orders["shuffled"]) < 0.08
assert FAST or runs["falling", 0.01][0] < min(orders.values()) - 0.06
assert FAST or first < last - 0.2

# %% [markdown]
# ## Exercises
#
# 1. After as many random blocks as are an epoch, how much of the text has never been read? Guess,
#    then count.
# 2. Leave the bias corrections out of Adam. How long is its first step?
# 3. One batch in a thousand may have a huge gradient. *Clipping* scales all gradients down together
#    when their common length is above 1. Write it.
# 4. Let 1,000 weights begin at 1, with random gradients from $N(0, 1)$, and 1,000 more with
#    gradients from $N(0, 100^2)$. Compare decay as AdamW has it with $\lambda w$ added to the
#    gradient, for $\lambda = 0.1$.

# %% tags=["solution"]
# 1. A character is in one block on average, and in none with chance 1/e: blocks overlap.
torch.manual_seed(0)
read = torch.zeros(len(train), dtype=torch.bool)
starts = torch.randint(len(train) - T, (len(train) // T, 1))
read[starts + torch.arange(T)] = True
print(f"1. {1 - read.float().mean():.3f} were not read, 1/e is {1 / math.e:.3f}")
assert abs(1 - read.float().mean() - 1 / math.e) < 0.01

# 2. m is 0.1 g and v is 0.001 g², so m / √v is ±3.16: too long by a factor of three. With the
# corrections, it is exactly the rate.
w = nn.Parameter(torch.zeros(5))
w.grad = torch.tensor([-100.0, -1.0, 0.01, 1.0, 100.0])
Adam([w]).step(0.01)
torch.testing.assert_close(w.detach(), -0.01 * w.grad.sign())
g = w.grad
without = 0.01 * (0.1 * g) / (0.001 * g.square()).sqrt()  # (5,)
print(f"2. {without.abs().mean():.4f} instead of 0.01")
assert abs(without.abs().mean() - 0.01 * math.sqrt(10)) < 1e-4


# 3.
def clip(parameters, longest=1.0):
    gradients = [p.grad for p in parameters]
    length = math.sqrt(sum(g.square().sum().item() for g in gradients))
    for g in gradients:
        g *= min(1, longest / length)


two = [Model(), Model()]
for model in two:
    model.load_state_dict(two[0].state_dict())
    (100 * cross_entropy(model(inputs), targets)).backward()
clip(two[0].parameters())
nn.utils.clip_grad_norm_(two[1].parameters(), 1.0)
for mine, torchs in zip(two[0].parameters(), two[1].parameters(), strict=True):
    torch.testing.assert_close(mine.grad, torchs.grad, rtol=1e-4, atol=1e-6)

# 4. AdamW shrinks both alike. In the gradient, the decay is divided by 100 for the second.
for name, decay, added in (("AdamW", 0.1, 0.0), ("added to the gradient", 0.0, 0.1)):
    w = nn.Parameter(torch.ones(2, 1000))
    optimizer = Adam([w], decay=decay)
    for _ in range(1000):
        w.grad = torch.randn(2, 1000) * torch.tensor([[1.0], [100.0]]) + added * w.detach()
        optimizer.step(0.001)
    small, large = w.detach().mean(dim=1).tolist()
    print(f"4. {name}: {small:.3f} and {large:.3f} are left")
    assert abs(small - 0.905) < 0.02
    assert abs(large - (0.905 if decay else 0.999)) < 0.02

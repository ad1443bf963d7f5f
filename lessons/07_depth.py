# %% [markdown]
# # 5. Feed-forward layers and residual connections
#
# Attention moves information between positions. Two things are missing before we can build a deep
# model. Each position should be able to *do* something with what it gathered: that is the
# feed-forward layer. And many blocks, one after the other, should be trainable at all: that takes
# the residual connection, a single plus sign.

# %%
import math

import matplotlib.pyplot as plt
import torch
from lesson import FAST, T, V, batch, cross_entropy, measure, train, validation
from torch import nn
from torch.nn import functional as F

C, H = 64, 4
D = C // H

# %% [markdown]
# ## A mean is not a thought
#
# What attention gives a position is a weighted mean of values. The weights are found in a clever
# way, but once they are there, the rest is linear. Put a linear layer on top that makes logits, and
# it does not matter whether it is applied after the mean or before it:

# %%
torch.manual_seed(0)
weights = torch.randn(T, T).softmax(dim=-1)  # each row sums to 1, as attention's do
values, head = torch.randn(T, C), torch.randn(C, V)

votes = values @ head  # (T, V): what each position alone would say
torch.testing.assert_close((weights @ values) @ head, weights @ votes, atol=1e-4, rtol=1e-4)

# %% [markdown]
# So each character in the context casts its votes for what comes next, and attention adds them up.
# `t` votes for what likes to follow a `t`, `h` for what likes to follow an `h`. How much a vote
# counts depends on who asks; what it says does not. That `t` *and* `h` together call for an `e` is
# more than a sum of votes.
#
# ## Out, bend, and back
#
# The remedy is a small network that every position applies to its own vector, all of them the same
# one: from $C$ channels out to $4C$, through a function that is not linear, and back to $C$.
#
# $$f(x) = W_2\, g(W_1 x + b_1) + b_2$$
#
# Each of the $4C$ numbers in the middle asks one question: how much of this row of $W_1$ is in $x$,
# and is it more than $-b_1$? Where the answer is no, $g$ makes it next to nothing. Where it is yes,
# a column of $W_2$ is added to the output. A row that needs *both* `t` and `h` to get over its
# threshold is the *and* that was missing. The factor 4 is that of the first Transformer (Vaswani et
# al. 2017, [arXiv:1706.03762](https://arxiv.org/abs/1706.03762)), and a habit since.
#
# Without the bend, $W_2 W_1$ would be one matrix, and all for nothing. The plainest bend is ReLU,
# $\max(0, x)$. GPT-2 has GELU (Hendrycks and Gimpel 2016,
# [arXiv:1606.08415](https://arxiv.org/abs/1606.08415)): $x\,\Phi(x)$, where $\Phi(x)$ is the chance
# that a normally distributed number is below $x$. It has no corner, and lets some gradient through
# on the left, too. The paper also gives a formula with tanh that was faster then, and GPT-2 was
# trained with that one.


# %%
def gelu(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


x = torch.linspace(-4, 4, 161)
exact = x * torch.distributions.Normal(0, 1).cdf(x)
torchs_gelu = nn.GELU(approximate="tanh")
torch.testing.assert_close(gelu(x), torchs_gelu(x))
torch.testing.assert_close(exact, F.gelu(x))
print(f"the two differ by at most {(gelu(x) - exact).abs().max():.0e}")
assert (gelu(x) - exact).abs().max() < 1e-3

# %% alt="GELU and ReLU: both zero on the far left and x on the far right; GELU has no corner"
plt.figure(figsize=(5, 3))
plt.plot(x, gelu(x), color="black", label="GELU")
plt.plot(x, x.relu(), "--", color="0.5", label="ReLU")
plt.xlabel("x")
plt.ylabel("g(x)")
plt.legend()
plt.show()

# %% [markdown]
# Attention and a feed-forward layer make a *block*: first communicate, then think. The attention is
# that of lesson 3; for it and for GELU we take torch's own, which compute the same faster.


# %%
class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(C, 3 * C)
        self.projection = nn.Linear(C, C)

    def forward(self, x):  # (B, T, C)
        B, T, _ = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, H, D).permute(2, 0, 3, 1, 4)  # (B, H, T, D) each
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.projection(y.transpose(1, 2).flatten(2))  # (B, T, C)


class FeedForward(nn.Module):
    def __init__(self, bend=torchs_gelu):
        super().__init__()
        self.out, self.back = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)
        self.bend = bend

    def forward(self, x):  # (B, T, C)
        return self.back(self.bend(self.out(x)))  # (B, T, 4C) in between


def blocks(n):
    return [part for _ in range(n) for part in (Attention(), FeedForward())]


class Model(nn.Module):
    def __init__(self, parts, residual):
        super().__init__()
        self.residual = residual
        self.token_embedding = nn.Embedding(V, C)
        self.position_embedding = nn.Embedding(T, C)
        self.parts = nn.ModuleList(parts)
        self.head = nn.Linear(C, V)

    def stream(self, tokens):  # (B, T)
        x = self.token_embedding(tokens) + self.position_embedding(torch.arange(tokens.shape[1]))
        seen = [x]  # (B, T, C) each: what goes into the parts, and what comes out of the last
        for part in self.parts:
            x = x + part(x) if self.residual else part(x)
            seen.append(x)
        return seen

    def forward(self, tokens):
        return self.head(self.stream(tokens)[-1])  # (B, T, V)


# %% [markdown]
# ## Stacking them fails
#
# Let us put eight blocks on top of each other, each taking what the one below it made, untrained,
# with the weights that torch draws. Then two questions. On the way up: how much do the vectors
# still differ between positions and texts? On the way down: how long is the gradient of the loss
# with respect to them? A block that gets a tiny gradient is told almost nothing about what to do
# better.
#
# We ask the same of a model with a small change, which comes next.


# %%
def at_start(residual):
    torch.manual_seed(1)
    model = Model(blocks(8), residual).double()  # more digits, as some numbers get tiny
    inputs, targets = batch(train, 32)
    seen = model.stream(inputs)[::2]  # 9 of (B, T, C): before the first block, and after each
    loss = cross_entropy(model.head(seen[-1]), targets)
    gradients = torch.autograd.grad(loss, seen)
    spread = [x.std(dim=(0, 1)).norm().item() for x in seen]
    return spread, [gradient.norm().item() for gradient in gradients]


plain, residual = at_start(residual=False), at_start(residual=True)
print("                             | with residuals")
print("block  differences  gradient | differences  gradient")
for block, row in enumerate(zip(*plain, *residual, strict=True)):
    print("{:5}  {:11.0e}  {:8.0e} | {:11.1f}  {:8.3f}".format(block, *row))

# %% alt="In eight blocks the gradient shrinks to a ten-billionth; with residuals it stays level"
figure, axes = plt.subplots(1, 2, sharex=True)
titles = "differences between vectors", "gradient of the loss"
for axis, title, without, with_ in zip(axes, titles, plain, residual, strict=True):
    axis.semilogy(with_, "o-", color="black", markersize=4, label="with residuals")
    axis.semilogy(without, "s--", color="0.4", markersize=4, label="without")
    axis.set(xlabel="after block", ylabel=f"{title} (norm)")
axes[0].legend()
plt.show()

ratios = torch.tensor(plain[1][1:]) / torch.tensor(plain[1][:-1])
assert ratios.min() > 5  # from block to block
assert max(residual[1]) < 3 * min(residual[1])

# %% [markdown]
# On a logarithmic axis, a straight line is a constant factor. Each block divides the gradient by 14
# to 39, and no wonder. torch draws the weights of a layer with $n$ inputs between $\pm 1/\sqrt n$,
# with variance $1/3n$, which makes vectors shorter: the two layers on the way through attention
# together divide by 3, the two of the feed-forward by 3 again, and GELU has slope 1/2 around zero.
# That makes 18 a block, up or down, and $18^8$ is $10^{10}$. What attention averages over positions
# shrinks differences between them further.
#
# At the top all contexts look the same, to more digits than float32 has. At the bottom no gradient
# is left.
#
# ## One plus sign
#
# Now the change. Let a part not replace what it was given, but add to it: $x + f(x)$ instead of
# $f(x)$.
#
# ```text
#          ┌── attention ──┐         ┌── feed-forward ──┐
#          │               ▼         │                  ▼
# x ───────┴───────────────+─────────┴──────────────────+─────── to the next block
# ```
#
# Going down, the gradient is multiplied by the derivative of each part. That was $f'$, and a
# product of sixteen small things is very small. Now it is $1 + f'$, where 1 is the identity matrix:
#
# $$(1 + f_{16}')\,(1 + f_{15}') \cdots (1 + f_1') = 1 + \text{terms with } f'$$
#
# However small they are, the 1 is there: the loss speaks to the first block as loudly as to the
# last. That is the level line in the picture.
#
# Think of it as a *stream* that runs from the embeddings to the head. Each part reads from it, and
# writes into it by adding. What one wrote stays for all that follow. An untrained block does little
# harm, as it adds little.
#
# This comes from image recognition. He et al. (2015,
# [arXiv:1512.03385](https://arxiv.org/abs/1512.03385)) saw deeper networks do *worse*, on their
# training data, too. Yet a deeper one could do as well as a shallow one by copying what it gets in
# its additional layers. Apparently copying is hard to learn. With $x + f(x)$ it is what happens
# when $f$ does nothing. Their networks had batch normalisation, and they
# doubted that gradients vanished in them; our failure is the cruder one.
#
# ## What it bought

# %%
torch.manual_seed(1)
deep = Model(blocks(8), residual=True)
identity = nn.Identity()
models = {
    "1 block, attention alone": lambda: Model([Attention()], residual=False),
    "1 block, no bend": lambda: Model([Attention(), FeedForward(identity)], residual=False),
    "1 block": lambda: Model(blocks(1), residual=False),
    "2 blocks": lambda: Model(blocks(2), residual=False),
    "8 blocks": lambda: Model(blocks(8), residual=False),
    "1 block, residual": lambda: Model(blocks(1), residual=True),
    "8 blocks, residual": lambda: deep,
}
seen = []  # the loss of every step of every model, one after the other
losses = measure(models, steps=800, watch=lambda step, loss: seen.append(loss))

# %% [markdown]
# | model | nats a character on unseen text |
# | --- | --- |
# | 1 block, attention alone | 2.36 |
# | 1 block, feed-forward without the bend | 2.34 |
# | 1 block | 2.22 |
# | 2 blocks | 2.44 |
# | 8 blocks | 3.35 |
# | 1 block with residuals | 2.15 |
# | 8 blocks with residuals | 1.93 |
#
# The feed-forward layer is worth 0.14 nats, and the bend is what makes it so: with as many
# parameters and no bend it is 0.02. Without residuals, a second block already does harm, and eight
# learn how frequent the characters are, no more: that was 3.35 in lesson 1. They got 3.35 and 3.36
# with learning rates of 0.0003 and 0.01 as well. With the plus sign the same eight blocks, with as
# many parameters, are by far the best of all.
#
# Each had 800 steps: the same text, not the same time. Eight blocks take six or seven times as long
# as one.

# %% alt="Loss over steps: eight blocks stay at 3.3, one reaches 2.2, eight with residuals 1.8"
curves = torch.tensor(seen).view(len(models), -1, 10).mean(dim=2)  # (7, steps / 10)
styles = {"1 block": ":", "8 blocks": "--", "8 blocks, residual": "-"}
for name, curve in zip(models, curves, strict=True):
    if name in styles:
        plt.plot(range(5, 10 * len(curve), 10), curve, styles[name], color="black", label=name)
plt.xlabel("step")
plt.ylabel("loss (nats per character)")
plt.legend()
plt.show()

# %%
shown = (2.36, 2.34, 2.22, 2.44, 3.35, 2.15, 1.93)
assert FAST or all(abs(a - b) < 0.1 for a, b in zip(losses.values(), shown, strict=True))
assert FAST or losses["1 block"] < losses["1 block, no bend"] - 0.05
assert FAST or losses["8 blocks"] > 3.2
assert FAST or losses["2 blocks"] > losses["1 block"] + 0.05
assert FAST or losses["8 blocks, residual"] < losses["1 block, residual"] - 0.1

# %% [markdown]
# ## Exercises
#
# 1. How many parameters has the attention of a block, and how many its feed-forward layer, in terms
#    of $C$? Which has more?
# 2. Without the bend, which single matrix and which bias replace the two layers?
# 3. Is exactly one of two inputs on? Train two layers on the four cases, with the bend and without.
#    What is the best loss without, and why?
# 4. A block without residuals shrinks its input about 18 times, by four matrices. By what number
#    should all matrices of the blocks be multiplied to stop that? Try it. Does this make residuals
#    superfluous?
# 5. Leave one block out of the trained model with residuals, each in turn. Which can it do without?
#    (Veit et al. 2016, [arXiv:1605.06431](https://arxiv.org/abs/1605.06431), did this to networks
#    that recognise images.)

# %% tags=["solution"]
count = {type(part).__name__: sum(p.numel() for p in part.parameters()) for part in blocks(1)}
assert count == {"Attention": 4 * C**2 + 4 * C, "FeedForward": 8 * C**2 + 5 * C}
print("1.", ", ".join(f"{name} {number:,}" for name, number in count.items()))

# 2. W₂(W₁x + b₁) + b₂ = (W₂W₁)x + (W₂b₁ + b₂)
flat, x = FeedForward(identity), torch.randn(T, C)
one = F.linear(x, flat.back.weight @ flat.out.weight, flat.back(flat.out.bias))
torch.testing.assert_close(one, flat(x), atol=1e-5, rtol=1e-4)

# 3. A sum of two votes cannot do it. The best it can say is one half for each: ln 2 = 0.693.
points = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]])
answers = torch.tensor([0.0, 1, 1, 0])
for bend in (identity, nn.GELU()):
    torch.manual_seed(0)
    small = nn.Sequential(nn.Linear(2, 8), bend, nn.Linear(8, 1))
    optimizer = torch.optim.Adam(small.parameters(), lr=0.03)
    for _ in range(500):
        loss = F.binary_cross_entropy_with_logits(small(points)[:, 0], answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"3. {type(bend).__name__}: {loss:.4f}")
    assert loss > 0.69 if bend is identity else loss < 0.05

# 4. By the fourth root of 18, a little over 2: the differences no longer vanish. But that is only
# the start. Trained as above with all matrices doubled, such a model reached 3.34 when we tried.
torch.manual_seed(1)
model = Model(blocks(8), residual=False)
with torch.no_grad():
    for parameter in model.parts.parameters():
        if parameter.ndim == 2:  # a matrix, not a bias
            parameter *= 18**0.25
    seen = model.stream(batch(train, 32)[0])[::2]
spread = torch.stack([x.std(dim=(0, 1)).norm() for x in seen])
print("4.", " ".join(f"{x:.0f}" for x in spread))
assert spread.max() < 10 * spread.min()

# 5. Every one is missed, none is vital: what the others wrote is still in the stream.
whole, parts = validation(deep, part=0.05), deep.parts
for i in range(8):
    deep.parts = parts[: 2 * i] + parts[2 * i + 2 :]
    print(f"5. without block {i + 1}: {validation(deep, part=0.05) - whole:+.3f}")
deep.parts = parts

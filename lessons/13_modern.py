# %% [markdown]
# # 11. What was learned since 2019
#
# The GPT of lesson 7 is that of 2019. Models of today are still the same thing: a stream,
# attention, feed-forward, residual connections. But nearly every part has been exchanged for one
# that is simpler, steadier, or learns faster. This lesson takes the block of GPT-2 and exchanges
# ten parts, one after the other, until it is `nanogpt/models/modern.py`, trained by another
# optimizer. Then it measures what each was worth here. Some of them bought nothing.

# %%
import itertools
import math
import statistics
import time

import matplotlib.pyplot as plt
import torch
from lesson import FAST, T, V, batch, cross_entropy, train, validation
from torch import nn
from torch.nn import functional as F

from nanogpt.models import GPT, GPTConfig, Modern, ModernConfig
from nanogpt.muon import Muon, orthogonalise
from nanogpt.optim import Adam

L, C, H = 4, 64, 2
D = C // H

# %% [markdown]
# ## Nine parts
#
# *RMSNorm* (Zhang & Sennrich 2019, arXiv:1910.07467). Layer norm subtracts the mean, divides by the
# standard deviation, then applies a gain and a bias per channel. RMSNorm only divides by the root
# of the mean square: every vector gets the length $\sqrt C$. It was as good in their experiments,
# for less work. nanogpt leaves out the gains, too: the matrix that follows can multiply its columns
# by anything.
#
# *No biases* (as in PaLM, Chowdhery et al. 2022, arXiv:2204.02311, where large models trained more
# steadily without). Less to store and to move. What a bias can do, a channel that is always on can
# do as well.
#
# *Rotary* positions (Su et al. 2021, arXiv:2104.09864), which lesson 4 built. Queries and keys are
# turned by an angle that grows with the position, so that their product depends on the distance.
# Nothing has to be learned for it, and nothing is added to the stream.
#
# *QK-norm* (Henry et al. 2020, arXiv:2010.04245). If queries and keys grow, so do the scores, and a
# softmax of large scores looks at one position only and hardly learns any more. Dehghani et al.
# 2023 (arXiv:2302.05442) saw a large model diverge from that. So queries and keys get the length
# $\sqrt D$ each, and a score $q \cdot k / \sqrt D$ cannot be more than $\sqrt D$.
#
# *ReLU²* (So et al. 2021, "Primer", arXiv:2109.08668). The square of ReLU in place of GELU, found
# by a computer's search among programs. It is cheap, exactly zero for every negative input, and
# lets two features multiply: where both feed one hidden channel, its square contains their product.
#
# *Zero start* (Zhang et al. 2019, "Fixup", arXiv:1901.09321). The two matrices by which a block
# writes into the stream begin at zero. So the whole block begins as if it were not there, and takes
# part as soon as it has something to say. The other matrices can then begin larger, with a standard
# deviation of $0.5 / \sqrt C$ instead of 0.02.
#
# *Own head*. GPT-2 reads its token table backwards to get logits (Press & Wolf 2017,
# arXiv:1608.05859). A head of its own costs $CV$ parameters and begins at zero, so that the first
# guess is fair. The table may then begin at $N(0, 1)$, and what comes out of it is normed.
#
# *Look-back* (after Primer, which has convolutions behind its projections). At the start of the
# stream each position adds some of the token before and of the one before that, per channel as much
# as it learns. Which three characters came last is then known before the first block, for $2C$
# numbers; without, a head of attention has to find out how to look one back.
#
# *Softcap* (Gemma 2, 2024, arXiv:2408.00118). The logits $z$ become $15 \tanh(z / 15)$: nearly the
# same around 0, and never beyond ±15. No confidence is so great that a surprise costs hundreds of
# nats.

# %% alt="Left: GELU and squared ReLU; right: logits with a softcap bend away from the diagonal"
figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.8))
x, z = torch.linspace(-3, 2, 101), torch.linspace(-40, 40, 101)
left.plot(x, F.gelu(x, approximate="tanh"), color="black", linestyle="--", label="GELU")
left.plot(x, F.relu(x).square(), color="black", label="ReLU²")
left.set(xlabel="input", ylabel="output")
right.plot(z, z, color="0.6", linestyle=":", label="as they are")
right.plot(z, 15 * torch.tanh(z / 15), color="black", label="softcap")
right.set(xlabel="logit from the head", ylabel="logit")
left.legend()
right.legend()
plt.show()

# %% [markdown]
# ## One model with nine switches
#
# The model takes the names of the parts that are on. One product makes the queries and keys of all
# heads, $2H$ vectors of $D$ numbers; another makes the values.

# %%
PARTS = ["RMSNorm", "no biases", "rotary", "QK-norm", "ReLU²", "zero start", "own head"]
PARTS += ["look-back", "softcap"]


def make_norm(parts):
    if "RMSNorm" in parts:
        return nn.RMSNorm(C, elementwise_affine=False)
    return nn.LayerNorm(C, bias="no biases" not in parts)


class Block(nn.Module):
    def __init__(self, parts):
        super().__init__()
        self.parts, bias = parts, "no biases" not in parts
        self.norm1, self.norm2 = make_norm(parts), make_norm(parts)
        self.qk, self.v = nn.Linear(C, 2 * C, bias), nn.Linear(C, C, bias)
        self.projection = nn.Linear(C, C, bias)
        self.up, self.down = nn.Linear(C, 4 * C, bias), nn.Linear(4 * C, C, bias)

    def attention(self, x, cos, sin):  # (B, T, C)
        qk, v = self.qk(x).unflatten(2, (2 * H, D)), self.v(x).unflatten(2, (H, D))
        if "QK-norm" in self.parts:
            qk = F.rms_norm(qk, (D,))
        if "rotary" in self.parts:
            a, b = qk.chunk(2, dim=-1)  # (B, T, 2H, D / 2) both: pairs of channels
            qk = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
        q, k = qk.chunk(2, dim=2)  # (B, T, H, D) both
        q, k, v = (heads.transpose(1, 2) for heads in (q, k, v))  # (B, H, T, D)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.projection(y.transpose(1, 2).flatten(2))  # (B, T, C)

    def feed_forward(self, x):
        h = self.up(x)  # (B, T, 4C)
        h = F.relu(h).square() if "ReLU²" in self.parts else F.gelu(h, approximate="tanh")
        return self.down(h)  # (B, T, C)

    def forward(self, x, cos, sin):
        x = x + self.attention(self.norm1(x), cos, sin)
        return x + self.feed_forward(self.norm2(x))


class Transformer(nn.Module):
    def __init__(self, parts=()):
        super().__init__()
        self.parts = parts
        self.token_embedding = nn.Embedding(V, C)
        if "rotary" not in parts:
            self.position_embedding = nn.Embedding(T, C)
        if "look-back" in parts:
            self.look_back = nn.Parameter(torch.zeros(2, C))
        self.blocks = nn.ModuleList(Block(parts) for _ in range(L))
        self.norm = make_norm(parts)
        angles = torch.arange(T)[:, None, None] * 1000 ** (-torch.arange(D // 2) / (D // 2))
        self.turns = angles.cos(), angles.sin()  # (T, 1, D / 2) both
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                wide = "zero start" in parts and isinstance(module, nn.Linear)
                nn.init.normal_(module.weight, std=0.5 / math.sqrt(C) if wide else 0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for block in self.blocks:
            for last in (block.projection, block.down):
                std = 0 if "zero start" in parts else 0.02 / math.sqrt(2 * L)
                nn.init.normal_(last.weight, std=std)
        if "own head" in parts:
            self.head = nn.Linear(C, V, bias=False)
            nn.init.zeros_(self.head.weight)
            nn.init.normal_(self.token_embedding.weight)

    def forward(self, tokens):  # (B, T)
        x = self.token_embedding(tokens)  # (B, T, C)
        if "look-back" in self.parts:
            near, far = self.look_back
            past = F.pad(x, (0, 0, 2, 0))  # (B, 2 + T, C): nothing comes before the text
            x = x + near * past[:, 1:-1] + far * past[:, :-2]
        if "rotary" not in self.parts:
            x = x + self.position_embedding.weight
        if "own head" in self.parts:
            x = F.rms_norm(x, (C,))
        for block in self.blocks:
            x = block(x, *self.turns)
        head = self.head if "own head" in self.parts else self.token_embedding
        z = F.linear(self.norm(x), head.weight)  # (B, T, V)
        return 15 * torch.tanh(z / 15) if "softcap" in self.parts else z


# %% [markdown]
# Is it what we say it is? With all switches off it must be nanogpt's `GPT`, with all on `Modern`.
# We give these random weights, copy them, and compare the logits. Some parts are about how weights
# begin, so we also compare how large fresh ones are.


# %%
def renamed(state):
    """The weights of nanogpt's models, by the names that they have here."""
    ours = {}
    for name, tensor in state.items():
        for old, new in {
            "attention.": "",
            "feed_forward.0": "up",
            "feed_forward.2": "down",
            "feed_forward.": "",
            "look_back.weight": "look_back",
        }.items():
            name = name.replace(old, new)
        if "qkv" in name:
            qk, v = tensor.split([2 * C, C])
            ours |= {name.replace("qkv", "qk"): qk, name.replace("qkv", "v"): v}
        else:
            ours[name] = tensor
    return ours


torch.manual_seed(0)
shape = {"n_layer": L, "n_head": H, "n_embd": C, "block_size": T, "vocab_size": V}
tokens = torch.randint(V, (8, T))
for parts, theirs in (((), GPT(GPTConfig(**shape))), (PARTS, Modern(ModernConfig(**shape)))):
    mine = Transformer(parts)
    for name, weight in renamed(theirs.state_dict()).items():
        spread = mine.get_parameter(name).std(), weight.std()
        torch.testing.assert_close(*spread, rtol=0.1, atol=0.0)
    for weight in theirs.parameters():
        nn.init.normal_(weight, std=0.3)
    mine.load_state_dict(renamed(theirs.state_dict()))
    expected = theirs(tokens)  # (8, T, V)
    torch.testing.assert_close(mine(tokens), expected, rtol=1e-4, atol=1e-4)
    print(f"{type(theirs).__name__}: equal logits, of a spread of {expected.std():.1f}")

# %% [markdown]
# ## The tenth part: Muon
#
# Adam looks at each weight by itself. But most weights are part of a matrix, and what counts about
# a matrix is what it does to vectors. Take its gradient $G$ apart, $G = U \Sigma V^T$ (the singular
# value decomposition): pairs of directions, out and in, each with a size. A few sizes are large,
# most are small, so that a step along $G$ moves along the few directions and all but ignores the
# rest.
#
# *Muon* (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) puts all sizes to 1: the
# step is $U V^T$ of the momentum. Every direction moves equally far, the rare ones too. To compute
# $U$ and $V$ would take long. But odd polynomials of a matrix change nothing but its singular
# values:
#
# $$X \leftarrow a X + b\,(X X^T) X + c\,(X X^T)^2 X$$
#
# makes $a \sigma + b \sigma^3 + c \sigma^5$ of each singular value $\sigma$. With $a, b, c$ chosen
# so that small ones grow fast, a few rounds of this *Newton-Schulz* iteration bring all of them
# near 1, by nothing but products of matrices. Near is enough.


# %%
def orthogonalised(G, rounds=5):
    X = G / G.norm()  # (rows, columns): no singular value is above 1
    for _ in range(rounds):
        A = X @ X.mT  # (rows, rows)
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    return X


torch.manual_seed(0)
G = torch.randn(C, 4 * C)
sizes = torch.linalg.svdvals(orthogonalised(G))  # (C,)
print(f"singular values from {sizes.min():.2f} to {sizes.max():.2f}")
assert 0.6 < sizes.min() < sizes.max() < 1.3
torch.testing.assert_close(orthogonalised(G), orthogonalise(G[None])[0], rtol=1e-3, atol=1e-4)

# %% [markdown]
# That was a random matrix. The gradient of a real one is more one-sided. Here is that of `down` in
# the first block of GPT-2, at the very start. The last singular value is zero and stays so: layer
# norm takes out the mean, so no gradient goes there.

# %% alt="A gradient's singular values fall to a thousandth; orthogonalised, most are near 1"
model = Transformer()
inputs, targets = batch(train, 64)
cross_entropy(model(inputs), targets).backward()
G = model.blocks[0].down.weight.grad  # (C, 4C)
figure, axes = plt.subplots()
for X, style, name in (
    (G / G.norm(), ":", "gradient, divided by its norm"),
    (orthogonalised(G), "-", "orthogonalised"),
):
    axes.semilogy(range(1, C + 1), torch.linalg.svdvals(X), style, color="black", label=name)
axes.set(xlabel="singular value, from the largest", ylabel="size")
axes.legend()
plt.show()

# %% [markdown]
# Muon moves the matrices of the blocks; `qk` counts as two, queries and keys. Adam moves the rest:
# tables, head, look-back. nanogpt's Muon is this function, Nesterov's momentum, and a factor
# for tall matrices.
#
# ## The ladder
#
# All get the same: 360 steps of 16 × 32 characters, the same characters in the same order. The rate
# rises for 50 steps, then falls to 0. A gradient longer than 1 is scaled down to 1; without that,
# GPT-2's block was now and then thrown off. For all rungs but the last the rate is Adam's 0.008,
# about the best for the first rung, and not far below the best for the last but one. The last has
# the rates of nanogpt's preset `tiny-fast`: 0.05 for Muon, 0.03 for what is left to Adam.
#
# Each is trained twice, with different first weights and different text. How far the two are apart
# shows what is noise.


# %%
def learn(model, seed, lr=8e-3, muon_lr=0.0, steps=360):
    """Train a model; gives the milliseconds of its fastest step."""
    named = dict(model.named_parameters())
    matrices = {n: p for n, p in named.items() if "blocks." in n and p.dim() == 2 and muon_lr}
    rest = {n: p for n, p in named.items() if n not in matrices}
    movers = [(Adam(rest, betas=(0.9, 0.99)), lr)]
    if matrices:
        halves = {n: 2 for n in matrices if n.endswith("qk.weight")}
        muon = Muon(matrices, momentum=0.9, precision=torch.float32, stacked=halves)
        movers.append((muon, muon_lr))
    torch.manual_seed(100 + seed)  # the same batches for every model
    clock, steps = [], 4 if FAST else steps
    for step in range(steps):
        began = time.perf_counter()
        inputs, targets = batch(train, 16)  # (16, T) both
        loss = cross_entropy(model(inputs), targets)
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        part = min(1, (step + 1) / 50) * (1 - step / steps)
        for mover, rate in movers:
            mover.step(torch.tensor(part * rate))
        clock.append(1e3 * (time.perf_counter() - began))
    return min(clock)


def losses_of(name, parts, seeds=(0, 1), **how):
    losses = []
    for seed in seeds:
        torch.manual_seed(seed)
        model = Transformer(parts)
        learn(model, seed, **how)
        losses.append(validation(model, part=0.05 if FAST else 0.5))
    print(f"{name:12}", ", ".join(f"{loss:.3f}" for loss in losses))
    return losses


rungs = {"GPT-2": {"parts": []}}
rungs |= {f"+ {name}": {"parts": PARTS[:i]} for i, name in enumerate(PARTS, 1)}
rungs["+ Muon"] = {"parts": PARTS, "lr": 0.03, "muon_lr": 0.05}
ladder = {name: losses_of(name, **how) for name, how in rungs.items()}

# %%
means = {name: statistics.mean(losses) for name, losses in ladder.items()}
noise = math.sqrt(statistics.mean(statistics.variance(losses) for losses in ladder.values()))
print(f"standard deviation between seeds: {noise:.3f}")
names = list(means)
for before, after in itertools.pairwise(names):
    print(f"{after:12} {means[before] - means[after]:+.3f}")

# %% [markdown]
# And the time of a step: the fastest of many, in turns, so that all share in what else the machine
# does.

# %%
clock = dict.fromkeys(names, math.inf)
for _ in range(1 if FAST else 8):
    for name, how in rungs.items():
        other = {key: value for key, value in how.items() if key != "parts"}
        clock[name] = min(clock[name], learn(Transformer(how["parts"]), 0, steps=4, **other))
for name, ms in clock.items():
    print(f"{name:12} {ms:4.1f} ms")

# %% [markdown]
# Two controls. Is it Muon, or the higher rates and the longer step? All nine parts again, with Adam
# at a good rate for them and half as many steps again. And was the head of its own a mistake? Muon
# without it.

# %%
with_adam = losses_of("Adam, longer", PARTS, seeds=[0], lr=0.015, steps=540)
without = [name for name in PARTS if name != "own head"]
tied = losses_of("Muon, tied", without, seeds=[0], lr=0.03, muon_lr=0.05)

# %% [markdown]
# ## What it bought

# %% alt="Validation loss of each rung, two dots each, falling from 2.27 to 1.89, with steps back"
figure, axes = plt.subplots()
for i, losses in enumerate(ladder.values()):
    axes.plot(losses, [i] * len(losses), "o", color="black", markersize=4)
axes.plot(means.values(), range(len(means)), color="0.6", zorder=0)
axes.set_yticks(range(len(means)), names)
axes.invert_yaxis()
axes.set_xlabel("validation loss (nats per character)")
plt.show()

# %% [markdown]
# | | validation loss, two seeds | gain of the mean |
# | --- | --- | --- |
# | GPT-2 | 2.275, 2.260 | |
# | + RMSNorm | 2.326, 2.277 | −0.034 |
# | + no biases | 2.286, 2.311 | 0.003 |
# | + rotary | 2.182, 2.163 | 0.126 |
# | + QK-norm | 2.135, 2.146 | 0.032 |
# | + ReLU² | 2.070, 2.101 | 0.055 |
# | + zero start | 2.051, 2.060 | 0.030 |
# | + own head | 2.138, 2.112 | −0.070 |
# | + look-back | 2.078, 2.057 | 0.057 |
# | + softcap | 2.081, 2.058 | −0.002 |
# | + Muon | 1.902, 1.875 | 0.181 |
# | *nine parts, Adam at 0.015, 540 steps* | 1.945 | |
# | *Muon, head tied* | 1.924 | |
#
# Seeds differ by 0.018 (one standard deviation), and that is also what a gain between two means of
# two is uncertain by. Only what is well above 0.036 should be believed.
#
# So four parts stand out: Muon, rotary positions, look-back and ReLU². QK-norm and the zero start
# are likely, though two seeds do not settle it. No biases and the softcap bought nothing that we
# can measure. RMSNorm without gains, if anything, cost a little. Neither leaving out biases nor
# RMSNorm was ever meant to lower the loss: they take 3,456 parameters and some operations away. A
# step is as fast as before, though: on a processor, at this size, the time goes elsewhere. And a
# softcap is an insurance; after 360 steps there is little to insure.
#
# The head of its own cost 0.07, together with what comes with it here, a larger table and a norm
# behind that. Perhaps because it must learn from zero what the tied one shares with the table.
# With Muon, and a higher rate for table and head, it is 0.02 better than the tied one, which is no
# more than noise. At this size we could do without.
#
# Not all of the last step is Muon's. At a higher rate and with half as many steps again, Adam comes
# to 1.945. A step with Muon takes less than one and a half times as long, and the same seed gets
# 1.902: better by 0.04 in less time, though one seed each is not much to go by.
#
# Gains depend on the order, on the size of the model and on the length of the run. `docs/log.md`
# has similar measurements of a model twice as wide: there Muon was worth 0.10, QK-norm 0.03,
# look-back 0.02 for one character and 0.015 for the second, and neither zero start nor softcap
# stood out. In the ladder of the README, with 10 million parameters and 1,000 steps at the same
# rate, GPT has 1.511 and the modern parts 1.453; with Muon it is 1.456, no better. The text was
# then read 16 times, and what learns faster also learns by heart faster. Some parts pay only where
# we cannot look, in models a thousand times larger that would diverge without. A table like this is
# true for the size at which it was made; for another, measure again.
#
# And much is left out. SwiGLU, a gate in the feed-forward layer (Shazeer 2020, arXiv:2002.05202),
# most large models have where ours has ReLU². Grouped queries share keys and values among heads,
# for a smaller cache (Ainslie et al. 2023, arXiv:2305.13245). In a mixture of experts each token
# uses a few of many feed-forward layers (Shazeer et al. 2017, arXiv:1701.06538). FlashAttention
# (Dao et al. 2022, arXiv:2205.14135) changes no result, only how often memory is read; torch has it
# inside.

# %%
gain = {after: means[before] - means[after] for before, after in itertools.pairwise(names)}
assert FAST or gain["+ rotary"] > 0.04
assert FAST or gain["+ ReLU²"] > 0.01
assert FAST or gain["+ Muon"] > 0.08
assert FAST or gain["+ own head"] < 0.02
assert FAST or max(abs(gain[f"+ {name}"]) for name in ("RMSNorm", "no biases", "softcap")) < 0.07
assert FAST or means["GPT-2"] - means["+ Muon"] > 0.25
assert FAST or means["+ Muon"] < with_adam[0] - 0.02
assert FAST or abs(ladder["+ Muon"][0] - tied[0]) < 0.08

# %% [markdown]
# ## Exercises
#
# 1. How many parameters does each part add or take away? Write it in $V$, $T$, $C$ and $L$, and
#    check.
# 2. A logit of 0, 15 or 60 comes from the head: what part of the gradient gets through the softcap?
# 3. With QK-norm no score is above $\sqrt D$. How much weight can one of 32 positions get at most
#    if all others have a score of 0, and how much with 4 heads instead of 2?
# 4. Below which size does a singular value not come to 0.5 in five rounds of Newton-Schulz? And why
#    is $U V^T$ not changed when the gradient is multiplied by 1,000?

# %% tags=["solution"]
expected = {
    "RMSNorm": -2 * C * (2 * L + 1),  # gains and biases of the norms
    "no biases": -9 * C * L,  # 2C of qk, C of v, of projection and of down, 4C of up
    "rotary": -T * C,
    "QK-norm": 0,
    "ReLU²": 0,
    "zero start": 0,
    "own head": C * V,
    "look-back": 2 * C,
    "softcap": 0,
}
counts = [
    sum(p.numel() for p in Transformer(PARTS[:i]).parameters()) for i in range(len(PARTS) + 1)
]
for (name, change), (before, after) in zip(
    expected.items(), itertools.pairwise(counts), strict=True
):
    assert after - before == change
    if change:
        print(f"1. {name}: {change:+,}")

z = torch.tensor([0.0, 15.0, 60.0], requires_grad=True)
(15 * torch.tanh(z / 15)).sum().backward()  # 1 - tanh²(z / 15)
print("2.", ", ".join(f"{part:.3f}" for part in z.grad.tolist()))
torch.testing.assert_close(z.grad, 1 - torch.tanh(z.detach() / 15) ** 2)

for heads in (2, 4):
    scores = torch.zeros(T)
    scores[0] = math.sqrt(C // heads)
    weight = scores.softmax(dim=0)[0]
    print(f"3. {heads} heads: a score up to {scores[0]:.1f}, a weight up to {weight:.2f}")
assert weight < 0.7

sizes = torch.logspace(-5, 0, 1000)
after = sizes
for _ in range(5):
    after = 3.4445 * after - 4.7750 * after**3 + 2.0315 * after**5
smallest = sizes[(after < 0.5).nonzero().max() + 1]
print(f"4. from {smallest:.4f} of the norm on; the norm is divided out first")
assert 0.0005 < smallest < 0.005
torch.testing.assert_close(orthogonalised(1000 * G), orthogonalised(G), rtol=1e-3, atol=1e-4)

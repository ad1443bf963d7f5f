# %% [markdown]
# # 13. The Transformer since 2019, part by part
#
# The GPT of lesson 9 is GPT-2, from 2019. Newer models have the same plan, but other parts. This
# lesson explains ten of them, which together make the model of
# [nanogpt/models/modern.py](../nanogpt/models/modern.py). Then it measures what each part brings.
#
# **Before this lesson:** [lesson 9](09_gpt.md) (the whole GPT), [lesson 6](06_positions.md) (rotary
# positions) and [lesson 10](10_training.md) (Adam).
#
# **You will see:** ten parts of a few lines each; a loss that falls from 2.33 to 1.94 with them,
# although most parts alone do not help at this small budget; and the optimizer Muon.

# %%
import math
from functools import partial

import torch
from drawings import draw_old_and_new
from lesson import SOLUTIONS, V, evaluate, get_batch, shorten, train_tokens
from pictures import show
from torch import nn
from torch.nn import functional as F

from nanogpt.models import Modern, ModernConfig, modern
from nanogpt.muon import Muon, orthogonalise

T, C, H, D, n_layer = 64, 64, 4, 16, 2

# %% [markdown]
# Read both models from bottom to top. Blue boxes are new; the next sections explain them. Three of
# the ten parts are not boxes: no biases, and two changes of the initial weights.

# %% alt="GPT-2 beside the modern model: eight of its nine boxes are marked as new"
draw_old_and_new()
show("blocks")

# %% [markdown]
# ## RMSNorm
#
# Layer norm subtracts the mean, divides by the standard deviation, and has a gain and a bias per
# channel. **RMSNorm** (Zhang and Sennrich 2019,
# [arXiv:1910.07467](https://arxiv.org/abs/1910.07467)) only divides by the root of the mean square:
#
# $$\text{RMSNorm}(x) = x \Big/ \sqrt{\tfrac{1}{C} \textstyle\sum_i x_i^2}$$
#
# The paper keeps the gains. nanogpt leaves them out: where a matrix follows the norm, it can do the
# same. It also has one more RMSNorm after the embeddings.


# %%
class RMSNorm(nn.Module):
    def forward(self, x):
        return x / (x.square().mean(dim=-1, keepdim=True) + 1e-7).sqrt()  # the shape of x


x = torch.tensor([3.0, 1.0, 2.0, 6.0])  # (4,)
print("layer norm:", F.layer_norm(x, (4,)).numpy().round(2))
print("RMSNorm:   ", RMSNorm()(x).numpy().round(2))

# %% [markdown]
# ## Rotary positions and QK-norm
#
# **Rotary positions** (lesson 6) replace the table of positions: they rotate queries and keys.
#
# **QK-norm** normalises each query and key: to length 1 (Henry et al. 2020,
# [arXiv:2010.04245](https://arxiv.org/abs/2010.04245)), with layer norm (Dehghani et al. 2023,
# [arXiv:2302.05442](https://arxiv.org/abs/2302.05442)) or, in nanogpt, with RMSNorm. Here, both
# have length $\sqrt D$, so no score $q \cdot k / \sqrt D$ is above $\sqrt D$. Without it, scores
# can grow until softmax gives everything to one position; then its gradient vanishes.


# %%
class Rotary(nn.Module):
    def forward(self, x):  # (B, T, H, D)
        cos, sin = modern.rotations(torch.arange(x.shape[1]), x.shape[3])
        return modern.rotate(x, cos, sin)  # (B, T, H, D)


torch.manual_seed(0)
query, keys = 5 * torch.randn(D), 5 * torch.randn(4, D)  # (D,), (4, D): large
print("weights:             ", (keys @ query / math.sqrt(D)).softmax(dim=0).numpy().round(2))
query, keys = RMSNorm()(query), RMSNorm()(keys)  # (D,), (4, D)
print("weights with QK-norm:", (keys @ query / math.sqrt(D)).softmax(dim=0).numpy().round(2))

# %% [markdown]
# ## ReLU² and soft cap
#
# So et al. (2021, "Primer", [arXiv:2109.08668](https://arxiv.org/abs/2109.08668)) let a computer
# search for models that need less training. Two of its changes gained most. One is
# $\text{ReLU}^2(x) = \max(0, x)^2$: exactly 0 for negative inputs, and steep for large ones.
#
# A **soft cap** keeps each logit $z$ between $-c$ and $c$: it becomes $c \tanh(z / c)$. ($\tanh u$
# is almost $u$ near 0, goes to ±1, and has the slope $1 - \tanh^2 u$.) Gemma 2 (Google 2024,
# [arXiv:2408.00118](https://arxiv.org/abs/2408.00118)) caps the output logits at $c = 30$, and the
# attention scores at 50. nanogpt caps only the output, at 15. This limits the loss of a mistake.


# %%
class SquaredReLU(nn.Module):
    def forward(self, x):
        return F.relu(x).square()


class SoftCap(nn.Module):
    def forward(self, logits):
        return 15 * torch.tanh(logits / 15)


# %% [markdown]
# ## Look-back
#
# In GPT-2, heads must learn to find the previous characters. Primer's other change is a *causal
# depthwise convolution*: it adds the two previous positions to each query, key and value, with
# learned weights per channel. nanogpt does this only once, with the embeddings $e_t$, and calls it
# **look-back**: $x_t = e_t + w_1 e_{t-1} + w_2 e_{t-2}$. Each $w$ has $C$ numbers.


# %%
class LookBack(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, C))  # no effect at the start

    def forward(self, x):
        past = F.pad(x, (0, 0, 2, 0))  # (B, 2 + T, C): two zero vectors before the text
        return x + self.weight[0] * past[:, 1:-1] + self.weight[1] * past[:, :-2]  # (B, T, C)


# %% [markdown]
# ## Untied output, no biases, and other initial weights
#
# GPT-2's output layer is *tied*: it has the weights of the token embedding. The modern model has an
# **untied** output layer with $VC$ separate weights. They start at 0, so all characters are equally
# likely at first. The token embedding starts with the standard deviation 1 instead of 0.02.
#
# **No biases**: linear layers compute $Wx$ instead of $Wx + b$. Large models then train more stably
# (Chowdhery et al. 2022, "PaLM", [arXiv:2204.02311](https://arxiv.org/abs/2204.02311)).
#
# **Start at zero** (Zhang et al. 2019, "Fixup",
# [arXiv:1901.09321](https://arxiv.org/abs/1901.09321)): the last matrices of attention and
# feed-forward start as 0. So each Transformer block first passes $x$ on unchanged.
#
# **Larger start**: the other matrices there start with the standard deviation $0.5 / \sqrt C$, here
# 0.0625, instead of 0.02. So their outputs are half as large as their inputs, for every $C$.
#
# ## The model from parts
#
# `Transformer` receives its parts as arguments; the dictionaries `old` and `new` list them.
# (`unflatten` cuts an axis in two. As in nanogpt, `qk` holds two matrices: queries, keys.)


# %%
class AddPositions(nn.Embedding):  # the learned table of GPT-2
    def __init__(self):
        super().__init__(T, C)
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x):
        return x + self.weight[: x.shape[1]]  # (B, T, C)


# partial(nn.LayerNorm, C) is a function: called without arguments, it returns nn.LayerNorm(C).
old = {"embedding": [AddPositions], "norm": partial(nn.LayerNorm, C), "bias": True}
old |= {"qk_parts": [], "activation": partial(nn.GELU, "tanh"), "is_tied": True}
old |= {"cap": nn.Identity, "std": 0.02, "last_std": 0.02 / math.sqrt(2 * n_layer)}
new = {"embedding": [LookBack, RMSNorm], "norm": RMSNorm, "bias": False}
new |= {"qk_parts": [RMSNorm, Rotary], "activation": SquaredReLU, "is_tied": False}
new |= {"cap": SoftCap, "std": 0.5 / math.sqrt(C), "last_std": 0}


class Block(nn.Module):
    def __init__(self, norm, bias, qk_parts, activation):
        super().__init__()
        self.norm1, self.norm2 = norm(), norm()
        self.qk, self.v = nn.Linear(C, 2 * C, bias), nn.Linear(C, C, bias)
        self.projection = nn.Linear(C, C, bias)
        self.qk_parts = nn.Sequential(*[part() for part in qk_parts])  # one after the other
        up, down = nn.Linear(C, 4 * C, bias), nn.Linear(4 * C, C, bias)
        self.feed_forward = nn.Sequential(up, activation(), down)

    def attention(self, x):
        q, k = self.qk(x).unflatten(2, (2 * H, D)).chunk(2, dim=2)  # (B, T, H, D) each
        q, k, v = self.qk_parts(q), self.qk_parts(k), self.v(x).unflatten(2, (H, D))
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))  # (B, H, T, D) each
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, H, T, D)
        return self.projection(y.transpose(1, 2).flatten(2))  # (B, T, C)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))  # (B, T, C)
        return x + self.feed_forward(self.norm2(x))  # (B, T, C)


class Transformer(nn.Module):
    def __init__(self, embedding, norm, bias, qk_parts, activation, is_tied, cap, std, last_std):
        super().__init__()
        self.token_embedding = nn.Embedding(V, C)
        self.embedding = nn.Sequential(*[part() for part in embedding])
        blocks = [Block(norm, bias, qk_parts, activation) for _ in range(n_layer)]
        self.blocks = nn.Sequential(*blocks)
        self.norm, self.output, self.cap = norm(), nn.Linear(C, V, bias=False), cap()
        nn.init.zeros_(self.output.weight)
        if is_tied:
            nn.init.normal_(self.token_embedding.weight, std=0.02)
            self.output.weight = self.token_embedding.weight  # the same parameter
        for name, weight in self.blocks.named_parameters():
            is_last = name.endswith(("projection.weight", "feed_forward.2.weight"))
            if weight.dim() == 2:
                nn.init.normal_(weight, std=last_std if is_last else std)
            elif name.endswith("bias"):
                nn.init.zeros_(weight)

    def forward(self, tokens):
        x = self.embedding(self.token_embedding(tokens))  # (B, T, C)
        return self.cap(self.output(self.norm(self.blocks(x))))  # (B, T, V)


# %% [markdown]
# All new parts together make nanogpt's model: with the same weights, it gives the same logits.

# %%
torch.manual_seed(0)
theirs, mine = Modern(ModernConfig(n_layer, H, C, T, V)), Transformer(**new)
for weight, their_weight in zip(mine.parameters(), theirs.parameters(), strict=True):  # same order
    nn.init.normal_(their_weight, std=0.3)  # no zeros: every weight counts
    weight.data.copy_(their_weight)
tokens = torch.randint(V, (8, T))  # (B, T)
torch.testing.assert_close(mine(tokens), theirs(tokens), rtol=1e-4, atol=1e-4)

# %% [markdown]
# RMSNorm, rotary positions, no biases and, more and more, QK-norm are common today; ReLU², soft cap
# and look-back are rare. Of two other common parts, nanogpt has only the second. In **grouped-query
# attention** (Ainslie et al. 2023, [arXiv:2305.13245](https://arxiv.org/abs/2305.13245)), several
# query heads share one key head and one value head, so the cache of [lesson 11](11_generation.md)
# is smaller. In **SwiGLU** (Shazeer 2020, [arXiv:2002.05202](https://arxiv.org/abs/2002.05202)), a
# third matrix computes a *gate*, which opens or closes each hidden channel of feed-forward layers.
#
# ## Muon: an optimizer for matrices
#
# Adam treats each weight alone. But a matrix acts as a whole: it turns input directions into output
# directions. Each matrix is a product $G = U \Sigma V^\top$, its *singular value decomposition*
# ($V$ is not the vocabulary here). The columns of $U$ have length 1 and are perpendicular, and so
# are those of $V$: $U^\top U$ and $V^\top V$ are the identity. $\Sigma$ is 0 except on its
# diagonal, the **singular values** $\sigma_i$: $G$ turns column $i$ of $V$ into $\sigma_i$ times
# column $i$ of $U$. In a gradient, few are large, so a step moves along few directions.
#
# **Muon** (Jordan et al. 2024, [post](https://kellerjordan.github.io/posts/muon/)) brings the
# singular values near 1, because directions with small ones may matter. The step is roughly $U
# V^\top$. Five rounds of a *Newton-Schulz iteration* compute it. At the start, $X = G / \lVert G
# \rVert$: $\lVert G \rVert^2$, the sum of all squared numbers in $G$, equals $\sum_i \sigma_i^2$,
# so no singular value of $X$ is above 1. With $a = 3.4445$, $b = -4.775$ and $c = 2.0315$:
#
# $$X \leftarrow a X + b\,(X X^\top) X + c\,(X X^\top)^2 X$$
#
# As $X^\top = V \Sigma U^\top$, $U^\top U$ and $V^\top V$ drop out of $X X^\top X = U \Sigma^3
# V^\top$. Each $\sigma$ becomes $a \sigma + b \sigma^3 + c \sigma^5$: $3.4 \sigma$ if it is small.

# %%
torch.manual_seed(1)
model = Transformer(**old)
inputs, targets = get_batch(train_tokens)  # (B, T) each
F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()
G = model.blocks[0].v.weight.grad  # (C, C)
after = orthogonalise(G[None])[0]  # (C, C)
for name, matrix in (("gradient", G / G.norm()), ("after Newton-Schulz", after)):
    sizes = torch.linalg.svdvals(matrix)  # (C,): from the largest to the smallest
    print(f"{name:19}", *[f"{sizes[i - 1]:.4f}" for i in (1, 2, 8, 32, 48, 64)])

# %% [markdown]
# These are the singular values number 1, 2, 8, 32, 48 and 64, sorted in each row. The first was
# about 400 times as large as number 32; now it is smaller: five rounds turn 0.9808 into 0.72, and
# 0.0024 into 0.98. All above 0.002 are now between 0.68 and 1.21. Number 48 needs more rounds.
# Number 64 stays 0: inputs of `v`, and so rows of G, sum to 0.
#
# The optimizer applies this to a running mean of the gradients (like Adam's $m$) of each matrix in
# the Transformer blocks. As Jordan et al. advise, Adam trains embeddings, output and vectors.
#
# ## What does each part bring?
#
# The budget is small: 2 Transformer blocks, 300 steps of 16 blocks of text. We put each part alone
# into the old model, then all ten. Adam trains the matrices of the Transformer blocks with a
# learning rate of 0.008 (for GPT-2, 0.004 is as good; 0.016 and 0.03 are worse); in the last two
# rows, Muon has 0.05. Adam trains the rest with 0.03.
# Warm-up and linear fall multiply all rates by at most 0.75. Some rows have a second seed.

# %%
one_part = {"GPT-2": {}, "QK-norm": {"qk_parts": [RMSNorm]}, "no biases": {"bias": False}}
one_part |= {"RMSNorm": {"norm": RMSNorm, "embedding": [AddPositions, RMSNorm]}}
one_part |= {"ReLU²": {"activation": SquaredReLU}, "start at zero": {"last_std": 0}}
one_part |= {"larger start": {"std": new["std"]}, "untied output": {"is_tied": False}}
one_part |= {"soft cap": {"cap": SoftCap}, "rotary": {"embedding": [], "qk_parts": [Rotary]}}
one_part |= {"look-back": {"embedding": [AddPositions, LookBack]}}
one_part |= {"both of these": {"embedding": [LookBack], "qk_parts": [Rotary]}, "all ten": new}
steps, losses = shorten(300), {}


def fit(model, matrix_rate=0.008, muon_rate=0):
    weights = dict(model.named_parameters())
    matrices = {name: w for name, w in weights.items() if "blocks" in name and w.dim() == 2}
    rest = [w for name, w in weights.items() if name not in matrices]
    adam = torch.optim.Adam([{"params": rest}, {"params": list(matrices.values())}])
    stacked = {name: 2 for name in matrices if "qk" in name}  # two matrices in one
    muon = Muon(matrices, precision=torch.float32, stacked=stacked)
    torch.manual_seed(0)  # the same batches for every model
    for step in range(steps):
        inputs, targets = get_batch(train_tokens, batch_size=16)  # (B, T) each
        model.zero_grad()
        F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()
        share = min((step + 1) / 100, 1 - step / steps)  # warm-up, then a linear fall
        adam.param_groups[0]["lr"], adam.param_groups[1]["lr"] = 0.03 * share, matrix_rate * share
        adam.step()  # a rate of 0 does not change the matrices
        if muon_rate:
            muon.step(torch.tensor(muon_rate * share))  # it needs a tensor
    return evaluate(model)


rows = [(name, {**old, **parts}, 0.008, 0) for name, parts in one_part.items()]
rows += [("GPT-2, Muon", old, 0, 0.05), ("all ten, Muon", new, 0, 0.05)]
print("model          seed 1 seed 2")
for name, parts, *rates in rows:
    losses[name] = []
    for seed in (1, 2) if name.startswith(("GPT-2", "all ten")) else (1,):
        torch.manual_seed(seed)
        losses[name].append(fit(Transformer(**parts), *rates))
    print(f"{name:14}", *[f"{loss:.3f} " for loss in losses[name]], flush=True)

# %% [markdown]
# The mean of the two runs of GPT-2 is 2.33; each gain below is the distance to it. Runs of one
# model differ by up to 0.02, so we believe only gains above 0.05:
#
# - **Rotary positions and look-back** gain more than 0.2 each. Both make the previous character
#   easy to find. So their gains do not add: both together gain 0.32.
# - **The larger start** gains 0.08. The start at zero alone gains nothing.
# - **The other six** gain nothing that we can see. (RMSNorm also adds a norm to the embedding, and
#   untied output starts it 50 times larger.) Some have other aims: RMSNorm and no biases save work;
#   QK-norm and soft cap prevent failures of larger models.
# - **All ten** gain 0.39. **Muon** gains 0.24 with GPT-2. With all ten, it is only 0.02 below Adam:
#   too little to believe.
#
# Gains also depend on size, budget and learning rates. In nanogpt's `study ladder`
# ([results](../docs/studies.md)), models of about 10.7 million parameters were trained for 1,000
# steps. GPT-2 reached 1.511, the modern model, with half as many heads, 1.453, and with Muon (and
# other settings) 1.456.
#
# ## What to remember
#
# - Parts that make the previous characters easy to find gain most here. Their gains do not add.
# - Muon makes a step about equally long in most directions of a matrix.
# - A gain is true for the size and budget of its measurement. For others, measure again.
#
# ## Three common mistakes
#
# 1. **A comparison that changes two things**, such as the optimizer of the matrices and the rate of
#    the rest. *Symptom:* a gain that has another cause. *Remedy:* a *control*: only one thing
#    differs. (Search for the best rate of each optimizer.)
# 2. **Both matrices of the feed-forward start at zero.** Then each one gets a gradient of zero from
#    the other. *Symptom:* both are exactly 0 after training. *Remedy:* only the last one is 0.
# 3. **Muon for the matrices, and no optimizer for the rest.** *Symptom:* no error, but embeddings
#    and output do not change. *Remedy:* give Adam all weights that Muon does not have.
#
# ## Exercises
#
# 1. How many parameters does each part add to GPT-2's model, or remove?
# 2. Logits of 0, 15 and 60 pass the soft cap. Which fraction of their gradient gets through?
# 3. From all ten, take look-back out; or put the table in place of rotary positions; or do both.

# %% tags=["test"]
import lesson  # noqa: E402

means = {name: sum(runs) / len(runs) for name, runs in losses.items()}
gains = {name: means["GPT-2"] - mean for name, mean in means.items()}
before, after = torch.linalg.svdvals(G / G.norm()), torch.linalg.svdvals(after)  # (C,) each
assert 0.68 < after[before > 0.002].min() < after.max() < 1.21 < 300 < before[0] / before[31] < 500
if not lesson.FAST:
    assert abs(means["GPT-2"] - 2.33) < 0.04 > abs(means["all ten"] - 1.94)
    assert max(max(runs) - min(runs) for runs in losses.values()) < 0.04
    shown = {"larger start": 0.08, "both of these": 0.32, "all ten": 0.39, "GPT-2, Muon": 0.24}
    assert all(abs(gains[name] - gain) < 0.04 for name, gain in shown.items())
    assert sorted(gains.values())[7] < 0.05 < 0.2 < min(gains["rotary"], gains["look-back"])
    assert abs(gains["all ten, Muon"] - gains["all ten"] - 0.02) < 0.02
rungs = lesson.json.loads((lesson.RESULTS / "ladder.json").read_text("utf-8"))["rungs"][-3:]
found = [(r["name"], round(r["val_loss"], 3), round(r["parameters"] / 1e6, 1)) for r in rungs]
assert found == [("gpt", 1.511, 10.8), ("modern", 1.453, 10.7), ("muon", 1.456, 10.7)]
assert max(min((step + 1) / 100, 1 - step / 300) for step in range(300)) == 0.75

# %% tags=["solution"]
if SOLUTIONS:  # run with: python lessons/13_modern.py --solutions
    count = sum(p.numel() for p in Transformer(**old).parameters())
    for name, parts in one_part.items():
        weights = Transformer(**{**old, **parts}).parameters()
        print(f"1. {name}: {sum(p.numel() for p in weights) - count:+,}")
    fractions = [1 - math.tanh(z / 15) ** 2 for z in (0, 15, 60)]  # the derivative of the soft cap
    print("2.", [round(fraction, 3) for fraction in fractions])
    neither = {"embedding": [AddPositions, RMSNorm], "qk_parts": [RMSNorm]}
    table = {**neither, "embedding": [AddPositions, LookBack, RMSNorm]}
    less = {"look-back": {"embedding": [RMSNorm]}, "rotary": table, "both": neither}
    for name, parts in less.items():
        torch.manual_seed(1)
        print(f"3. without {name}: {fit(Transformer(**{**new, **parts})):.3f}")
    print("Each does much of the work of the other.")

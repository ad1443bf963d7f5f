# %% [markdown]
# # 13. The Transformer since 2019, part by part
#
# The GPT of lesson 9 is GPT-2, from 2019. Newer models have the same plan, but other parts. This
# lesson replaces the parts one by one until the model is that of
# [nanogpt/models/modern.py](../nanogpt/models/modern.py). Then it measures what each part brings.
#
# **Before this lesson:** [lesson 9](09_gpt.md) (the whole GPT), [lesson 6](06_positions.md) (rotary
# positions) and [lesson 10](10_training.md) (Adam).
#
# **You will see:** nine parts of a few lines each; their sum, which is nanogpt's model; and a loss
# that falls from 2.36 to 1.92 at a small budget, although most parts alone do not help there.

# %%
import json
import math
from functools import partial

import torch
from drawings import draw_old_and_new
from lesson import RESULTS, SOLUTIONS, V, evaluate, get_batch, shorten, train, train_tokens
from pictures import show
from torch import nn
from torch.nn import functional as F

from nanogpt.models import Modern, ModernConfig, modern
from nanogpt.muon import Muon, orthogonalise

T, C, H, D, n_layer = 64, 64, 4, 16, 2

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
# The paper keeps the gains. nanogpt leaves them out: the next matrix can do the same.


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
# **QK-norm** (Henry et al. 2020, [arXiv:2010.04245](https://arxiv.org/abs/2010.04245)) is RMSNorm
# for each query and key. Both then have length $\sqrt D$, so no score $q \cdot k / \sqrt D$ is
# above $\sqrt D$. Without it, scores grow with the weights: softmax then gives everything to one
# position, and its gradient vanishes.


# %%
class Rotary(nn.Module):
    def forward(self, x):  # (B, T, H, D)
        cos, sin = modern.rotations(torch.arange(x.shape[1]), x.shape[3])
        return modern.rotate(x, cos, sin)  # (B, T, H, D)


torch.manual_seed(0)
query, keys = 5 * torch.randn(D), 5 * torch.randn(4, D)  # (D,), (4, D): large numbers
print("weights:             ", (keys @ query / math.sqrt(D)).softmax(dim=0).numpy().round(2))
query, keys = RMSNorm()(query), RMSNorm()(keys)  # (D,), (4, D)
print("weights with QK-norm:", (keys @ query / math.sqrt(D)).softmax(dim=0).numpy().round(2))

# %% [markdown]
# ## ReLU²
#
# So et al. (2021, "Primer", [arXiv:2109.08668](https://arxiv.org/abs/2109.08668)) let a computer
# search for better Transformers. It found $\text{ReLU}^2(x) = \max(0, x)^2$: exactly 0
# for negative inputs, and steeper for large ones.


# %%
class SquaredReLU(nn.Module):
    def forward(self, x):
        return F.relu(x).square()


x = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0])  # (5,)
print("GELU: ", nn.GELU("tanh")(x).numpy().round(2))
print("ReLU²:", SquaredReLU()(x).numpy().round(2))

# %% [markdown]
# ## Untied output and soft cap
#
# GPT-2's output layer is *tied*: it has the weights of the token embedding. The modern model has an
# **untied** output layer with $VC$ separate weights.
#
# A **soft cap** keeps each logit $z$ between $-c$ and $c$: it becomes $c \tanh(z / c)$. Gemma 2
# (2024, [arXiv:2408.00118](https://arxiv.org/abs/2408.00118)) caps the output logits at $c = 30$,
# and the attention scores at 50. nanogpt caps only the output, at 15. This limits the loss of a
# confident mistake:


# %%
class SoftCap(nn.Module):
    def forward(self, logits):
        return 15 * torch.tanh(logits / 15)


logits, target = torch.tensor([[1.0, 10.0, 100.0]]), torch.tensor([0])  # (1, 3), (1,)
for z in (logits, SoftCap()(logits)):  # (1, 3) each
    print(f"logits {z[0].numpy().round(1)}: loss {F.cross_entropy(z, target):.1f}")

# %% [markdown]
# ## Look-back
#
# In GPT-2, heads must learn to find the previous characters. **Look-back** adds the two previous
# embeddings to each embedding $e_t$, with learned weights per channel:
# $x_t = e_t + w_1 e_{t-1} + w_2 e_{t-2}$. Primer does so in the attention.


# %%
class LookBack(nn.Module):
    def __init__(self, C=C):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, C))  # no effect at the start

    def forward(self, x):
        past = F.pad(x, (0, 0, 2, 0))  # (B, 2 + T, C): two zero vectors before the text
        return x + self.weight[0] * past[:, 1:-1] + self.weight[1] * past[:, :-2]  # (B, T, C)


look_back = LookBack(C=1)
look_back.weight.data = torch.tensor([[0.1], [0.01]])  # (2, C): for one and two positions back
print(look_back(torch.tensor([[[1.0], [2.0], [3.0]]])).flatten().detach().numpy())

# %% [markdown]
# ## No biases, and a start at zero
#
# **No biases**: linear layers compute $Wx$ instead of $Wx + b$, as in PaLM (Chowdhery et al. 2022,
# [arXiv:2204.02311](https://arxiv.org/abs/2204.02311)).
#
# **Start at zero** (Zhang et al. 2019, "Fixup",
# [arXiv:1901.09321](https://arxiv.org/abs/1901.09321)): the last matrices of attention and
# feed-forward start as 0. So each Transformer block first passes $x$ on unchanged.
#
# ## The model from parts
#
# `Transformer` receives its parts as arguments. The dictionaries `old` and `new` list them.


# %%
class AddPositions(nn.Embedding):  # the learned table of GPT-2
    def __init__(self):
        super().__init__(T, C)
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x):
        return x + self.weight[: x.shape[1]]  # (B, T, C)


# partial(nn.GELU, "tanh") is a function: called without arguments, it returns nn.GELU("tanh").
old = {"embedding": [AddPositions], "norm": partial(nn.LayerNorm, C), "bias": True}
old |= {"qk_parts": [], "activation": partial(nn.GELU, "tanh"), "is_tied": True}
old |= {"cap": nn.Identity, "starts_at_zero": False}
new = {"embedding": [LookBack, RMSNorm], "norm": RMSNorm, "bias": False}
new |= {"qk_parts": [RMSNorm, Rotary], "activation": SquaredReLU, "is_tied": False}
new |= {"cap": SoftCap, "starts_at_zero": True}


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
    def __init__(self, embedding, norm, bias, qk_parts, activation, is_tied, cap, starts_at_zero):
        super().__init__()
        self.token_embedding = nn.Embedding(V, C)
        self.embedding = nn.Sequential(*[part() for part in embedding])
        blocks = [Block(norm, bias, qk_parts, activation) for _ in range(n_layer)]
        self.blocks = nn.Sequential(*blocks)
        self.norm, self.output, self.cap = norm(), nn.Linear(C, V, bias=False), cap()
        nn.init.zeros_(self.output.weight)
        if is_tied:
            self.output.weight = nn.init.normal_(self.token_embedding.weight, std=0.02)
        for name, weight in self.blocks.named_parameters():
            is_last = name.endswith(("projection.weight", "feed_forward.2.weight"))
            if weight.dim() == 2 and starts_at_zero:
                nn.init.normal_(weight, std=0 if is_last else 0.5 / math.sqrt(C))
            elif weight.dim() == 2:
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * n_layer) if is_last else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(weight)

    def forward(self, tokens):
        x = self.embedding(self.token_embedding(tokens))  # (B, T, C)
        return self.cap(self.output(self.norm(self.blocks(x))))  # (B, T, V)


# %% [markdown]
# The sum of the new parts is nanogpt's model: with the same weights, it gives the same logits.

# %%
torch.manual_seed(0)
theirs, mine = Modern(ModernConfig(n_layer, H, C, T, V)), Transformer(**new)
for weight, their_weight in zip(mine.parameters(), theirs.parameters(), strict=True):
    nn.init.normal_(their_weight, std=0.3)  # no zeros: every weight counts
    weight.data.copy_(their_weight)
tokens = torch.randint(V, (8, T))  # (B, T)
torch.testing.assert_close(mine(tokens), theirs(tokens), rtol=1e-4, atol=1e-4)

# %% [markdown]
# Two more parts are common, but nanogpt does not use them. With **grouped-query attention**
# (Ainslie et al. 2023, [arXiv:2305.13245](https://arxiv.org/abs/2305.13245)), several query heads
# share one key head and one value head, so the cache of [lesson 11](11_generation.md) is smaller.
# **SwiGLU** (Shazeer 2020, [arXiv:2002.05202](https://arxiv.org/abs/2002.05202)) multiplies the
# hidden channels of the feed-forward layer by a *gate*, which a third matrix computes from $x$.
#
# ## Muon: an optimizer for matrices
#
# Adam treats each weight alone. But a matrix acts as a whole: it turns input directions into output
# directions. The *singular value decomposition* $G = U \Sigma V^\top$ shows them: input directions
# in $V$, output directions in $U$, and a size for each pair, the **singular value**, in $\Sigma$.
# In a gradient $G$, a few sizes are large and most are small, so a step along $G$ moves along few
# directions.
#
# **Muon** (Jordan et al. 2024, [post](https://kellerjordan.github.io/posts/muon/)) makes all
# singular values about 1: the step is roughly $U V^\top$. Five rounds of a *Newton-Schulz
# iteration* do this, with matrix products only:
#
# $$X \leftarrow a X + b\,(X X^\top) X + c\,(X X^\top)^2 X$$
#
# Each round turns a singular value $\sigma$ into $a \sigma + b \sigma^3 + c \sigma^5$ and keeps the
# directions. [nanogpt/muon.py](../nanogpt/muon.py) has it in the function `orthogonalise`.

# %%
torch.manual_seed(1)
model = Transformer(**old)
inputs, targets = get_batch(train_tokens)  # (B, T) each
F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()
G = model.blocks[0].v.weight.grad  # (C, C)
after = orthogonalise(G[None])[0]  # (C, C)
for name, matrix in (("gradient", G / G.norm()), ("after Newton-Schulz", after)):
    sizes = torch.linalg.svdvals(matrix)  # (C,): the singular values, from the largest
    print(f"{name:19}", sizes[[0, 1, 3, 7, 15, 31]].numpy().round(3))

# %% [markdown]
# The singular values number 1, 2, 4, 8, 16 and 32 are now of similar size. The optimizer applies
# this to the momentum, a running mean of the gradients, of each matrix in the Transformer blocks.
# Adam trains the rest.
#
# ## What does each part bring?
#
# The budget is small: 2 Transformer blocks, 300 steps of 16 blocks of text. We put each part alone
# into the old model, then all nine. The last two rows use Muon for the matrices of the Transformer
# blocks, and the learning rates of nanogpt's preset `tiny-fast`: 0.05 for Muon, 0.03 for Adam. Some
# rows have two runs with different seeds, which show how much is chance.

# %%
one_part = {"GPT-2": {}, "RMSNorm": {"norm": RMSNorm}, "QK-norm": {"qk_parts": [RMSNorm]}}
one_part |= {"rotary": {"embedding": [], "qk_parts": [Rotary]}, "no biases": {"bias": False}}
one_part |= {"ReLU²": {"activation": SquaredReLU}, "start at zero": {"starts_at_zero": True}}
one_part |= {"untied output": {"is_tied": False}, "soft cap": {"cap": SoftCap}}
one_part |= {"look-back": {"embedding": [AddPositions, LookBack]}, "all nine": new}
steps, losses = shorten(300), {}


def train_with_muon(model):
    weights = dict(model.named_parameters())
    matrices = {name: w for name, w in weights.items() if "blocks" in name and w.dim() == 2}
    stacked = {name: 2 for name in matrices if "qk" in name}  # a query and a key matrix in one
    muon = Muon(matrices, precision=torch.float32, stacked=stacked)
    adam = torch.optim.Adam([w for name, w in weights.items() if name not in matrices])
    torch.manual_seed(0)  # the same batches as in train()
    for step in range(steps):
        inputs, targets = get_batch(train_tokens, batch_size=16)  # (B, T) each
        model.zero_grad()
        F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()
        share = min((step + 1) / 100, 1 - step / steps)  # the schedule of train()
        muon.step(torch.tensor(0.05 * share))
        adam.param_groups[0]["lr"] = 0.03 * share
        adam.step()
    return evaluate(model)


small = partial(train, steps=steps, learning_rate=8e-3, batch_size=16)
rows = [(name, {**old, **parts}, small) for name, parts in one_part.items()]
rows += [("GPT-2, Muon", old, train_with_muon), ("all nine, Muon", new, train_with_muon)]
for name, parts, fit in rows:
    losses[name] = []
    for seed in (1, 2) if name.startswith(("GPT-2", "all nine")) else (1,):
        torch.manual_seed(seed)
        losses[name].append(fit(Transformer(**parts)))
    print(f"{name:14}", *[f"{loss:.3f}" for loss in losses[name]], flush=True)

# %% [markdown]
# The two runs of GPT-2 differ by 0.06, so we believe only larger gains:
#
# - **Rotary positions and look-back** gain more than 0.2 each. Both make the previous character
#   easy to find. With GPT-2's table, this takes longer.
# - **The start at zero** gains 0.07, hardly more than chance.
# - **The other six** gain nothing that we can see. Some have other aims: RMSNorm and no biases save
#   work; QK-norm and soft cap prevent failures of larger models.
# - **All nine** gain 0.32 together.
# - **Muon** gains 0.27 alone, and 0.12 on top of the nine.
#
# All rows without Muon have one learning rate, which may suit some better than others. Gains also
# depend on size and budget. nanogpt's `study ladder` trained models of 10.8 and 10.7 million
# parameters for 1,000 steps on a GPU:

# %%
rungs = json.loads((RESULTS / "ladder.json").read_text("utf-8"))["rungs"]
for rung in rungs[-3:]:
    print(f"{rung['name']:6} {rung['val_loss']:.3f}")

# %% [markdown]
# There the modern parts gain 0.06, and Muon (1.456) is no better than AdamW (1.453).
#
# ## What to remember
#
# - Muon makes a step about equally long in all directions of a matrix.
# - A gain is true for the size and budget of its measurement. For others, measure again.
#
# ## Three common mistakes
#
# 1. **Rotation first, then a norm with gains.** The gains scale the two channels of a pair
#    differently. Symptom: scores change if all positions grow by 10. Remedy: first the norm with
#    its gains, then the rotation.
# 2. **Both matrices of the feed-forward start at zero.** Then each one gets a gradient of zero from
#    the other. Symptom: both are still exactly 0 after training. Remedy: only the last one is 0.
# 3. **Muon for the matrices, and no optimizer for the rest.** Symptom: no error, but embeddings and
#    output do not change. Remedy: give Adam all weights that Muon does not have.
#
# ## Exercises
#
# 1. How many parameters does each part add to GPT-2's model, or remove?
# 2. Logits of 0, 15 and 60 pass the soft cap. Which fraction of their gradient gets through?

# %% tags=["test"]
from lesson import FAST  # noqa: E402

means = {name: sum(runs) / len(runs) for name, runs in losses.items()}
gains = {name: means["GPT-2"] - mean for name, mean in means.items()}
if not FAST:
    assert abs(means["GPT-2"] - 2.36) < 0.05 > abs(means["all nine, Muon"] - 1.92)
    assert min(gains["rotary"], gains["look-back"]) > 0.2
    assert abs(losses["GPT-2"][0] - losses["GPT-2"][1]) < 0.1
    assert abs(gains["start at zero"] - 0.07) < 0.05
    assert abs(gains["all nine"] - 0.32) < 0.06
    assert abs(means["all nine"] - means["all nine, Muon"] - 0.12) < 0.04
    six = ("RMSNorm", "QK-norm", "no biases", "ReLU²", "untied output", "soft cap")
    assert max(gains[name] for name in six) < 0.06
    assert abs(gains["GPT-2, Muon"] - 0.27) < 0.06
assert [rung["name"] for rung in rungs[-3:]] == ["gpt", "modern", "muon"]
assert [round(rung["val_loss"], 3) for rung in rungs[-3:]] == [1.511, 1.453, 1.456]
assert [round(rung["parameters"] / 1e6, 1) for rung in rungs[-3:]] == [10.8, 10.7, 10.7]
keys, gain = torch.randn(1, T, 1, D), torch.rand(D)  # (B, T, H, D)
cos, sin = modern.rotations(torch.arange(T + 10), D)
early, late = (gain * modern.rotate(keys, cos[i : i + T], sin[i : i + T]) for i in (0, 10))
assert not torch.allclose(early[0, :, 0] @ early[0, :, 0].T, late[0, :, 0] @ late[0, :, 0].T)
up, down = torch.zeros(C, C, requires_grad=True), torch.zeros(C, C, requires_grad=True)
(F.relu(torch.randn(5, C) @ up) @ down).sum().backward()
assert up.grad.abs().max() == down.grad.abs().max() == 0

# %% tags=["solution"]
if SOLUTIONS:  # run with: python lessons/13_modern.py --solutions
    before = sum(p.numel() for p in Transformer(**old).parameters())
    for name in ("RMSNorm", "rotary", "untied output", "look-back", "no biases", "all nine"):
        model = Transformer(**{**old, **one_part[name]})
        print(f"1. {name}: {sum(p.numel() for p in model.parameters()) - before:+,}")

    z = torch.tensor([0.0, 15.0, 60.0], requires_grad=True)  # (3,)
    SoftCap()(z).sum().backward()
    print("2.", z.grad.numpy().round(3))
    assert ((z.grad - 1 + (z.detach() / 15).tanh().square()).abs() < 1e-6).all()

# %% [markdown]
# # 7. The whole GPT
#
# Six lessons made six pieces: tokens become vectors, positions are added, heads carry information
# from the past to the present, feed-forward layers work on it, residual connections and layer norm
# keep all of that trainable. Here they are put together, and nothing new is needed. The result is
# GPT-2 (Radford et al. 2019), smaller; and it is the model in `nanogpt/models/gpt.py`, number for
# number, which is proved below.

# %%
import math

import matplotlib.pyplot as plt
import torch
from lesson import FAST, T, V, batch, cross_entropy, decode, encode, measure, val
from torch import nn
from torch.nn import functional as F

from nanogpt.models import GPT as TheirGPT
from nanogpt.models import GPTConfig

# %% [markdown]
# ## From the bottom to the top
#
# A model reads from tokens to logits, so let us follow one batch of $B$ texts with $T$ characters.
# All the way up there is one tensor, the *stream*, with a vector of $C$ numbers for every position:
# $(B, T, C)$.
#
# 1. Each token looks up its vector, each position its own; their sum begins the stream.
# 2. A *block* adds to it twice. First attention: what the position gathered from those before it.
#    Then the feed-forward layer: what it makes of that. Both read the stream through a layer norm.
# 3. After the last block one more layer norm, then the *head*: the product with every token's
#    vector. The larger it is, the likelier that token comes next.
#
# Attention first. The heads share one product for all queries, keys and values, as in lesson 3.


# %%
class Attention(nn.Module):
    def __init__(self, C, H):
        super().__init__()
        self.H = H
        self.qkv = nn.Linear(C, 3 * C)
        self.projection = nn.Linear(C, C)

    def forward(self, x):  # (B, T, C)
        B, T, C = x.shape
        q, k, v = (
            self.qkv(x).view(B, T, 3, self.H, C // self.H).permute(2, 0, 3, 1, 4)
        )  # (B, H, T, D)
        scores = q @ k.transpose(-2, -1) / math.sqrt(C // self.H)  # (B, H, T, T)
        future = torch.ones(T, T, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(future, -math.inf).softmax(dim=-1)
        y = weights @ v  # (B, H, T, D)
        return self.projection(y.transpose(1, 2).reshape(B, T, C))  # heads side by side


# %% [markdown]
# A block has the two parts, and in front of each a norm. The sum is the residual connection: the
# stream runs past both parts, and each only adds what it has to say.


# %%
class Block(nn.Module):
    def __init__(self, C, H):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(C), Attention(C, H)
        self.norm2 = nn.LayerNorm(C)
        self.up, self.down = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)

    def forward(self, x):  # (B, T, C)
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


# %% [markdown]
# The head could have a matrix of its own, of $V \times C$ numbers. GPT-2 uses the table of the
# token vectors a second time (Press & Wolf 2017, arXiv:1608.05859): a token whose vector is near to
# what the stream says is a token that fits. It saves parameters, and every token's vector learns
# from both of its roles.


# %%
class GPT(nn.Module):
    def __init__(self, C=64, H=4, L=4):
        super().__init__()
        self.tokens = nn.Embedding(V, C)
        self.positions = nn.Embedding(T, C)
        self.blocks = nn.Sequential(*[Block(C, H) for _ in range(L)])
        self.norm = nn.LayerNorm(C)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        for block in self.blocks:  # what is added to the stream: smaller, the more blocks add to it
            for last in (block.attention.projection, block.down):
                nn.init.normal_(last.weight, std=0.02 / math.sqrt(2 * L))

    def forward(self, tokens):  # (B, T)
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))  # (B, T, C)
        return self.norm(self.blocks(x)) @ self.tokens.weight.T  # (B, T, V)


# %% [markdown]
# That is all of it, in some fifty lines. Before it has learned anything it should give every
# character about the same chance, and so pay about $\ln 65 = 4.17$. This is worth a look whenever a
# model is written: a first loss far above says that something is wrong with the initialisation.

# %%
torch.manual_seed(0)
model = GPT()
inputs, targets = batch(val, 16)  # (16, T) both
first = cross_entropy(model(inputs), targets).item()
print(f"first loss {first:.3f}, ln V {math.log(V):.3f}")
assert abs(first - math.log(V)) < 0.1

# %% [markdown]
# ## Where the parameters are
#
# Attention has four matrices of $C \times C$: queries, keys, values and the projection. The
# feed-forward layer has two of $C \times 4C$. So a block has about $12 C^2$ parameters, two thirds
# of them in the feed-forward layer, and the whole about $12 L C^2$, whatever the context. The
# tables matter in small models only, or with large vocabularies. (`nanogpt explain tiny` counts the
# parts of any size like that, and says what memory and time a training takes.)

# %% alt="Parameters of the model by part: the feed-forward layers have two thirds"
parts = {
    "token vectors": [model.tokens],
    "position vectors": [model.positions],
    "attention": [block.attention for block in model.blocks],
    "feed-forward": [each for block in model.blocks for each in (block.up, block.down)],
    "layer norms": [model.norm, *[n for b in model.blocks for n in (b.norm1, b.norm2)]],
}
counts = {
    name: sum(p.numel() for p in nn.ModuleList(part).parameters()) for name, part in parts.items()
}
assert sum(counts.values()) == sum(p.numel() for p in model.parameters())

figure, axes = plt.subplots(figsize=(7, 2.2))
bars = axes.barh(list(counts), list(counts.values()), color="0.5")
axes.bar_label(bars, [f"{count:,}" for count in counts.values()], padding=4)
axes.invert_yaxis()
axes.margins(x=0.15)
axes.set_xlabel("parameters")
axes.grid(False)
plt.show()

# %% [markdown]
# ## It is the model that this project trains
#
# `nanogpt/models/gpt.py` writes the same with dropout, a cache for writing, and attention in one
# fused kernel that never stores the weights. Give it our numbers, and it must give our logits.
# Names are all that differs.

# %%
theirs = TheirGPT(GPTConfig(n_layer=4, n_head=4, n_embd=64, block_size=T, vocab_size=V)).eval()
renamed = {
    name.replace("tokens.", "token_embedding.")
    .replace("positions.", "position_embedding.")
    .replace("up.", "feed_forward.0.")
    .replace("down.", "feed_forward.2."): numbers
    for name, numbers in model.state_dict().items()
}
theirs.load_state_dict(renamed)  # raises where a name or a shape is not the same
torch.testing.assert_close(model(inputs), theirs(inputs))
print("same logits, to", f"{(model(inputs) - theirs(inputs)).abs().max():.0e}")

# %% [markdown]
# ## What it bought
#
# The whole, with one block and with four, at the same budget: 1,500 batches of 32 blocks, at a
# learning rate that rises for 100 steps and falls all the way to nothing. For comparison, the
# bigram of lesson 1 has 2.48.

# %%
trained = {}


def remember(name, make):
    """The maker, which also keeps what it made."""

    def made():
        trained[name] = make()
        return trained[name]

    return made


makers = {"one block": lambda: GPT(L=1), "four blocks": GPT}
losses = measure(
    {name: remember(name, make) for name, make in makers.items()}, steps=1500, lr=3e-3, warmup=100
)


# %%
@torch.no_grad()
def write(model, prompt, length):
    tokens = encode(prompt)[None]  # (1, N)
    for _ in range(length):
        p = model(tokens[:, -T:])[:, -1].softmax(dim=-1)  # (1, V): what follows the last one
        tokens = torch.cat([tokens, torch.multinomial(p, 1)], dim=1)
    return decode(tokens[0].tolist())


torch.manual_seed(0)
print(write(trained["four blocks"].eval(), "ROMEO:", 300))

# %% [markdown]
# | model | validation loss (nats per character) |
# | --- | --- |
# | bigram | 2.48 |
# | one block | 1.93 |
# | four blocks | 1.90 |
#
# One block with all its pieces is worth more than half a nat. The other three buy little here: they
# look back at the same 32 characters, and 1,500 batches are few. Size, context and training pay
# together. The preset `tiny`, four blocks of twice the width that see 64 characters for 2,400
# batches, gets to 1.73; `baby`, six blocks of six times the width and 256 characters, to 1.45.

# %%
assert FAST or losses["four blocks"] < losses["one block"] < 2.2

# %% [markdown]
# ## Exercises
#
# 1. How many parameters has a GPT of 12 blocks, 768 channels, a context of 1024 and a vocabulary of
#    50,257, which is GPT-2's? Count by the formulas of this lesson first.
# 2. Show that nothing looks ahead: change the last character of a text, and see which logits
#    change.
# 3. If the head had a matrix of its own: how many parameters more would that be here, and for
#    GPT-2?
# 4. Swap the order in a block: first the feed-forward layer, then attention. Is it the same model?

# %% tags=["solution"]
L, C, T2, V2 = 12, 768, 1024, 50257
block = 4 * C * C + 4 * C + 8 * C * C + 5 * C + 4 * C  # matrices, biases, two norms
total = V2 * C + T2 * C + L * block + 2 * C
print(f"1. {total:,}")
assert total == 124_439_808

changed = inputs.clone()
changed[:, -1] = (changed[:, -1] + 1) % V
different = (model(changed) != model(inputs)).any(dim=-1)  # (B, T)
print("2. positions whose logits changed:", different.any(dim=0).nonzero().flatten().tolist())
assert different[:, -1].all()
assert not different[:, :-1].any()

print(f"3. here {V * 64:,}, for GPT-2 {V2 * C:,}")
assert V * 64 == 4160


class Swapped(Block):
    def forward(self, x):
        x = x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))
        return x + self.attention(self.norm1(x))


swapped = Swapped(64, 4)
swapped.load_state_dict(model.blocks[0].state_dict())
x = torch.randn(2, T, 64)
assert not torch.allclose(swapped(x), model.blocks[0](x))
print("4. no: the feed-forward layer no longer sees what attention of the same block gathered")

# %% [markdown]
# # 9. The whole GPT
#
# Lessons 4 to 8 built the parts of a GPT. How do they fit together? This lesson assembles them into
# the three classes of [gpt.py](../gpt.py#L81-L149), follows a text through them, counts the
# parameters, and trains the result. Only two details are new: the output layer and the initial
# weights.
#
# **Before this lesson:** [lesson 5](05_heads.md) (heads), [lesson 6](06_positions.md) (position
# embedding), [lesson 7](07_depth.md) (feed-forward layers, residual connections) and
# [lesson 8](08_norm.md) (layer norm, initial weights).
#
# **You will see:** a picture of the whole model; a GPT of 208,320 parameters that computes the same
# as the GPT of `gpt.py` and that of the package; and its validation loss, 1.91 nats per character.
# The bigram of lesson 2 has 2.48.

# %%
import importlib
import json
import math
import sys

import lesson
import matplotlib.pyplot as plt
import torch
from lesson import SOLUTIONS, T, V, alphabet, cross_entropy, decode, encode, get_batch, train
from model_picture import draw_model
from pictures import FILL, INK, MUTED, PAPER, SOFT, show
from torch import nn

from nanogpt import models

# %% [markdown]
# ## The whole model in one picture
#
# Read the picture from top to bottom, with the text "First Cit" as an example. The letters are
# those of `gpt.py`: B texts in a batch, T positions, C channels, V characters in the vocabulary.

# %% alt="The whole GPT, from tokens (B, T) down the residual stream to probabilities (B, T, V)"
text = "First Cit"
tokens = encode(text)[None]  # (1, T): a batch of one text
draw_model(text, tokens[0].tolist(), target="i", C=64, V=V)
show("model")

# %% [markdown]
# The vertical line is the residual stream `x`. Its shape is always (B, T, C), so a model can have
# any number of Transformer blocks. Attention and the feed-forward layer both read the stream
# through a layer norm, and add their result to it. The row at the bottom shows the targets: the
# model predicts the next character at all positions at once.
#
# ## Attention
#
# The first class is the attention of lesson 5, with [the names of gpt.py](../gpt.py#L81-L104).
# `chunk(3, dim=-1)` cuts the last dimension into three equal parts.


# %%
class SelfAttention(nn.Module):
    def __init__(self, C, H):
        super().__init__()
        self.n_head = H
        self.qkv = nn.Linear(C, 3 * C)
        self.projection = nn.Linear(C, C)

    def forward(self, x):
        B, T, C = x.shape
        H, D = self.n_head, C // self.n_head
        q, k, v = self.qkv(x).chunk(3, dim=-1)  # (B, T, C) each
        q, k, v = (part.view(B, T, H, D).transpose(1, 2) for part in (q, k, v))  # (B, H, T, D)
        scores = q @ k.transpose(-2, -1) / math.sqrt(D)  # (B, H, T, T)
        is_later = torch.ones(T, T, dtype=torch.bool).triu(diagonal=1)  # (T, T)
        weights = scores.masked_fill(is_later, -math.inf).softmax(dim=-1)  # (B, H, T, T)
        y = (weights @ v).transpose(1, 2).reshape(B, T, C)  # heads side by side
        return self.projection(y)  # (B, T, C)


# %% [markdown]
# ## The Transformer block
#
# [The second class](../gpt.py#L107-L121) is the grey box of the picture. Each line of `forward` is
# one branch: a layer reads `x`, and its result is added to `x`.


# %%
class Block(nn.Module):
    def __init__(self, C, H):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(C), nn.LayerNorm(C)
        self.attention = SelfAttention(C, H)
        self.feed_forward = nn.Sequential(nn.Linear(C, 4 * C), nn.GELU("tanh"), nn.Linear(4 * C, C))

    def forward(self, x):
        x = x + self.attention(self.norm1(x))  # (B, T, C)
        return x + self.feed_forward(self.norm2(x))  # (B, T, C)


# %% [markdown]
# ## From tokens to logits
#
# [The third class](../gpt.py#L124-L149) is the whole picture. Two things are new:
#
# - **The output layer is tied.** It has no weights of its own: it uses the weights of
#   `token_embedding` again (Press and Wolf 2017, arXiv:1608.05859). The logit of a character is the
#   dot product of `x` with the vector of that character, so it is large if the two are similar.
# - **The initial weights are those of GPT-2** (Radford et al. 2019): random numbers with standard
#   deviation 0.02. The $2 \cdot \text{n\_layer}$ layers that add to the stream get smaller numbers,
#   divided by $\sqrt{2 \cdot \text{n\_layer}}$, so that the stream stays small.


# %%
class GPT(nn.Module):
    def __init__(self, vocab_size, block_size, n_layer, n_head, n_embd):
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, n_embd)
        self.position_embedding = nn.Embedding(block_size, n_embd)
        self.blocks = nn.Sequential(*[Block(n_embd, n_head) for _ in range(n_layer)])
        self.norm = nn.LayerNorm(n_embd)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:  # matrices; layer norms and biases have one dimension
                adds = name.endswith(("projection.weight", "feed_forward.2.weight"))
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * n_layer) if adds else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(weight)

    def forward(self, tokens):
        positions = torch.arange(tokens.shape[1])  # (T,)
        x = self.token_embedding(tokens) + self.position_embedding(positions)  # (B, T, C)
        x = self.norm(self.blocks(x))  # (B, T, C)
        return x @ self.token_embedding.weight.T  # (B, T, V)


# %% [markdown]
# ## One text on its way through the model
#
# These lines do the same as `forward`, one step at a time, and print the shape after each step.

# %%
torch.manual_seed(1)
sizes = {"vocab_size": V, "block_size": T, "n_layer": 4, "n_head": 4, "n_embd": 64}
model = GPT(**sizes)
print("tokens               ", tuple(tokens.shape), tokens[0].tolist())
x = model.token_embedding(tokens)
print("token embedding      ", tuple(x.shape))
x = x + model.position_embedding(torch.arange(len(text)))
print("+ position embedding ", tuple(x.shape))
for number, block in enumerate(model.blocks, start=1):
    x = block(x)
    print(f"Transformer block {number}  ", tuple(x.shape))
x = model.norm(x)
print("last layer norm      ", tuple(x.shape))
logits = x @ model.token_embedding.weight.T
print("logits               ", tuple(logits.shape))
torch.testing.assert_close(logits, model(tokens))


# %% [markdown]
# The last of the nine rows of logits predicts the character after "First Cit". Softmax turns it
# into probabilities. `topk(5)` returns the five largest numbers and their indices.


# %%
@torch.no_grad()
def print_most_likely(model, text):
    logits = model(encode(text)[None])[0, -1]  # (V,): at the last position
    p, next_tokens = logits.softmax(dim=-1).topk(5)  # (5,) each
    likely = [f"{alphabet[t]!r} {value:.1%}" for t, value in zip(next_tokens, p, strict=True)]
    print(f"{text!r} continues with", ", ".join(likely))


print(f"all characters equally likely: {1 / V:.1%} each")
print_most_likely(model, text)

# %% [markdown]
# The untrained model gives all characters nearly the same probability. Its first loss is therefore
# near $\ln 65 = 4.17$. Check this in every model that you write: a first loss far above $\ln V$
# means that the initial weights are wrong.

# %%
torch.manual_seed(0)
inputs, targets = get_batch(lesson.val_tokens)  # (B, T) each
first_loss = cross_entropy(model(inputs), targets)
print(f"first loss {first_loss.item():.2f}, ln V = {math.log(V):.2f}")

# %% tags=["test"]
assert abs(first_loss.item() - math.log(V)) < 0.03
assert tokens[0].tolist() == [18, 47, 56, 57, 58, 1, 15, 47, 58]  # those of docs/gpt.svg
lines = (lesson.HERE.parent / "gpt.py").read_text("utf-8").splitlines()
for number, start in ((81, "class Self"), (107, "class Block"), (124, "class GPT")):
    assert lines[number - 1].startswith(start)  # the links to gpt.py

# %% [markdown]
# ## Does it look ahead?
#
# A position must not see later characters, because they hold its target. To check this, change the
# last character of the text and compare the logits.

# %%
changed = encode("First Cis")[None]  # (1, T)
difference = (model(changed) - model(tokens)).abs().sum(dim=-1)[0]  # (T,)
print("change of the logits at each position:", [round(d, 3) for d in difference.tolist()])

# %% [markdown]
# Only the last position changes, so the mask works in all heads of all Transformer blocks.
#
# ## Where the parameters are
#
# A linear layer from $a$ to $b$ channels has $a \cdot b$ weights and $b$ biases. Attention has four
# matrices of $C \times C$ (query, key, value, projection). The feed-forward layer has two of
# $C \times 4C$. This gives $12\,C^2$ weights for each Transformer block, and $13\,C$ for its biases
# and layer norms:
#
# $$\text{parameters} = V C + T C + \text{n\_layer}\,(12\,C^2 + 13\,C) + 2\,C$$


# %%
def count_by_part(V, T, n_layer, C):
    return {
        "token embedding": V * C,
        "position embedding": T * C,
        "attention": n_layer * (4 * C * C + 4 * C),
        "feed_forward": n_layer * (8 * C * C + 5 * C),
        "layer norms": n_layer * 4 * C + 2 * C,
    }


parts = count_by_part(V, T, n_layer=4, C=64)
print(parts)
print(f"sum {sum(parts.values()):,}, model {sum(p.numel() for p in model.parameters()):,}")

# %% alt="Shares of the parameters: attention 32%, feed_forward 64% here; 23%, 46% in GPT-2"
gpt2 = count_by_part(V=50257, T=1024, n_layer=12, C=768)
figure, axes = plt.subplots(figsize=(7, 2.2))
for y, (label, counts) in enumerate([("this model", parts), ("smallest GPT-2", gpt2)]):
    total, left = sum(counts.values()), 0.0
    axes.text(-0.01, y, f"{label}\n{total:,}", ha="right", va="center", size=9)
    for (name, count), color in zip(counts.items(), [SOFT, MUTED, FILL, PAPER, INK], strict=True):
        share = count / total
        axes.barh(y, share, 0.6, left, color=color, edgecolor=INK)
        if share > 0.1:
            axes.text(left + share / 2, y, f"{name}\n{share:.0%}", ha="center", va="center", size=9)
        left += share
axes.text(0, -0.4, "token and position embedding 2% each", size=8, va="bottom")
axes.invert_yaxis()
axes.axis("off")
show("parameters")

# %% [markdown]
# In every size, the feed-forward layers have twice the weights of attention. The token embedding is
# 2% of this model. In the smallest GPT-2 it is 31%, because that vocabulary has 50,257 tokens. So
# tying saves 4,160 parameters here, and 38.6 million there.

# %% tags=["test"]
assert sum(parts.values()) == sum(p.numel() for p in model.parameters()) == 208320
assert difference[:-1].max() == 0 < difference[-1]
assert round(gpt2["token embedding"] / 1e6, 1) == 38.6
assert [round(100 * count / 208320) for count in parts.values()] == [2, 2, 32, 64, 1]
assert [round(100 * count / 124439808) for count in gpt2.values()] == [31, 1, 23, 46, 0]

broken = GPT(**sizes)
nn.init.normal_(broken.token_embedding.weight)
assert cross_entropy(broken(inputs), targets).item() > 40
scores = torch.zeros(3, 3).masked_fill(torch.ones(3, 3, dtype=torch.bool).triu(), -math.inf)
assert scores.softmax(dim=-1)[0].isnan().all()
assert model.position_embedding.num_embeddings == T

# %% [markdown]
# ## The same model in gpt.py and in the package
#
# [nanogpt/models/gpt.py](../nanogpt/models/gpt.py) has the same model, with dropout, a fused kernel
# for attention, and a cache for generation. Both files use the names of this lesson, so
# `load_state_dict` can copy the weights from model to model. It raises an error if any name or
# shape differs.

# %%
sys.path.append(str(lesson.HERE.parent))
lesson_0 = importlib.import_module("gpt")  # the file gpt.py
for other in (lesson_0.GPT(**sizes), models.GPT(models.GPTConfig(**sizes))):
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(inputs), model(inputs))
largest = (other(inputs) - model(inputs)).abs().max().item()
print(f"same logits; the largest difference is {largest:.0e}")

# %% [markdown]
# `assert_close` raises an error unless all numbers agree up to rounding. The three models compute
# the same function.
#
# ## Training
#
# Now the model trains with the budget of the scoreboard: 1,000 steps of 32 blocks of 64 characters.
# Besides the loss we print the perplexity,
#
# $$\text{perplexity} = e^{\text{loss}}$$
#
# A perplexity of $n$ means: the model is as uncertain as if $n$ characters were equally likely.

# %%
loss = train(model)
print(f"validation loss {loss:.3f}, perplexity {math.exp(loss):.2f}")
print_most_likely(model, text)

# %% [markdown]
# Before training, the perplexity was 65, and that of the bigram is 12; now it is below 7. After
# "First Cit" the model expects "i", as in "First Citizen". It also generates text. In each round,
# `torch.multinomial` draws one token with the given probabilities.

# %%
torch.manual_seed(0)
written = encode("ROMEO:")[None]  # (1, 6)
for _ in range(200):
    p = model(written[:, -T:])[:, -1].softmax(dim=-1)  # (1, V)
    written = torch.cat([written, torch.multinomial(p, num_samples=1)], dim=1)
print(decode(written[0]))

# %% [markdown]
# ## More training, more parameters, longer context
#
# The package trains larger GPTs of the same kind (`nanogpt presets` lists them). Compare them with
# the model that counts 7-grams, from lesson 3:
#
# | model | parameters | context | characters read | validation loss |
# | --- | --- | --- | --- | --- |
# | 7-grams, Kneser-Ney | 872,748 counts | 6 | 1.0 million | 1.517 |
# | GPT of this lesson | 208,320 | 64 | 2.0 million | 1.91 |
# | preset `tiny` | 809,856 | 64 | 1.8 million | 1.73 |
# | preset `baby` | 10,770,816 | 256 | 32.8 million | 1.45 |
#
# The 7-grams take a second to count, and they are better than this GPT and than `tiny`. Both GPTs
# are small, and they read each character of the training text only about twice. `baby` beats the
# 7-grams: it has 52 times the parameters of our GPT, a longer context, and 16 times the training,
# which took one minute on a large GPU. Counts stop improving after a few characters, because longer
# contexts are too rare. A GPT can use a longer context: it treats similar contexts alike.
# Lesson 12 measures how the loss falls with size and training.

# %% tags=["test"]
assert lesson.FAST or abs(loss - 1.906) < 0.02
assert lesson.FAST or 6.6 < math.exp(loss) < 6.9
assert round(math.exp(2.482)) == 12
assert lesson.FAST or model(tokens)[0, -1].argmax().item() == encode("i").item()
runs = {}
for name in ("preset_tiny_cpu", "versus_nanogpt_h100", "ladder"):
    runs[name] = json.loads((lesson.RESULTS / f"{name}.json").read_text("utf-8"))
tiny = [run["best"]["val_loss"] for run in runs["preset_tiny_cpu"]["runs"]]
baby = runs["versus_nanogpt_h100"]["runs"]["nanogpt baby"][0]
rungs = {rung["name"]: rung for rung in runs["ladder"]["rungs"]}
counting, with_norm = rungs["kneser-ney"], rungs["layer-norm"]
assert [round(rungs["residuals"]["val_loss"], 2), round(with_norm["val_loss"], 2)] == [1.86, 1.54]
assert round(with_norm["parameters"] / 1e6, 1) == 1.8
assert [round(sum(tiny) / 3, 2), round(baby["best"]["val_loss"], 2)] == [1.73, 1.45]
assert [round(counting["val_loss"], 3), counting["parameters"]] == [1.517, 872748]
assert counting["seconds"] < 1 < 55 < baby["seconds"] < 70
presets = importlib.import_module("nanogpt.runs.presets").PRESETS
for name, count, read in ("tiny", 809856, 1.8), ("baby", 10770816, 32.8):
    c, training = presets[name].config.model, presets[name].config.train
    assert sum(count_by_part(V, c.block_size, c.n_layer, c.n_embd).values()) == count
    assert round(training.steps * training.batch_size * c.block_size / 1e6, 1) == read
assert [round(10770816 / 208320), round(32.8 / 2.048)] == [52, 16]

# %% [markdown]
# ## Scoreboard

# %%
lesson.show_scoreboard(9, {"GPT": loss})

# %% tags=["test"]
rows = json.loads(lesson.SCOREBOARD.read_text("utf-8")) if lesson.SCOREBOARD.exists() else []
others = {row["model"]: row["loss"] for row in rows if row["lesson"] in (7, 8)}
if not lesson.FAST and len(others) == 5:
    assert 1.80 < others["with residual connections"] < 1.82
    assert others["with residual connections"] < others["with layer norm"] < loss

# %% [markdown]
# The GPT is far below the bigram, but the best row is "with residual connections", 1.81. In a small
# model and a short training, layer norm and GPT-2's initial weights cost a little. They pay in
# larger models: in `nanogpt study ladder`, with 1.8 million parameters, layer norm lowers the loss
# from 1.86 to 1.54.
#
# ## Three common mistakes
#
# 1. **A tied output layer with PyTorch's initial embedding.** `nn.Embedding` draws numbers with
#    standard deviation 1, so the logits are large. Symptom: the first loss is above 40 instead of
#    4.17. Remedy: standard deviation 0.02.
# 2. **A mask that hides the position itself**, `triu()` instead of `triu(diagonal=1)`. The first
#    position then sees nothing; softmax divides 0 by 0. Symptom: the loss is `nan` from the first
#    step. Remedy: hide later positions only.
# 3. **A text that is longer than the block.** `position_embedding` has a vector for T positions
#    only. Symptom: `IndexError: index out of range in self`. Remedy: give the model the last T
#    tokens, `tokens[:, -T:]`.
#
# ## Exercises
#
# 1. How many parameters does the preset `baby` have (6 Transformer blocks, 384 channels, context
#    of 256, 65 characters)? First estimate with $12\,C^2$ for each Transformer block.
# 2. Change the first character of "First Cit". Which positions get new logits?
# 3. Compute the gradient of the loss on "First Cit". Which vectors of `token_embedding` get one?
#    Which would get one if the output layer had weights of its own?

# %% tags=["solution"]
if SOLUTIONS:  # run with: python lessons/09_gpt.py --solutions
    count = sum(count_by_part(V, T=256, n_layer=6, C=384).values())
    print(f"1. {count:,}; the estimate is {6 * 12 * 384**2:,}")

    difference = (model(encode("Tirst Cit")[None]) - model(tokens)).abs().sum(dim=-1)[0]  # (T,)
    print("2. all positions:", [round(d, 1) for d in difference.tolist()])
    assert difference.min() > 0

    model.zero_grad()
    cross_entropy(model(tokens[:, :-1]), tokens[:, 1:]).backward()
    count = (model.token_embedding.weight.grad.abs().sum(dim=1) > 0).sum().item()
    print(f"3. {count} of {V}, because each is a possible next character. With separate weights")
    print(f"   only those of the {len(set(text[:-1]))} different characters in the input.")
    assert count == V

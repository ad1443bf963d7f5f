# %% [markdown]
# # 9. The whole GPT
#
# Lessons 4 to 8 built the parts of a GPT. How do they fit together? This lesson assembles them into
# the three classes of [gpt.py](../gpt.py#L81-L149), follows a text through them, counts the
# parameters, and trains the result. Only two details are new: the output layer uses the weights of
# the token embedding again, and GELU is approximated.
#
# **Before this lesson:** [lesson 5](05_heads.md) (heads), [lesson 6](06_positions.md) (position
# embedding), [lesson 7](07_depth.md) (feed-forward layers, residual connections) and
# [lesson 8](08_norm.md) (layer norm, GPT-2's initial weights).
#
# **You will see:** a picture of the whole model; a GPT of 208,320 parameters that computes the same
# as those of `gpt.py` and the package `nanogpt`; and its validation loss, 1.91 nats per character.
# The bigram of lesson 2 has 2.48.

# %%
import importlib
import math
import sys

import lesson
import torch
from drawings import draw_model
from lesson import SOLUTIONS, T, V, alphabet, cross_entropy, decode, encode, get_batch, train
from pictures import show
from torch import nn

from nanogpt import models

# %% [markdown]
# ## The whole model in one picture
#
# Read the picture from top to bottom, with the text "First Cit" as an example. The letters are
# those of `gpt.py`: B texts in a batch, T positions, C channels, V characters in the vocabulary.
# Here C is 64. The text has T = 9 positions; a text has at most 64, the block size. (In the code,
# the constant `T` is the block size. Inside `forward`, `T` is the length of the given text.)

# %% alt="The whole GPT, from tokens (B, T) down the residual stream to probabilities (B, T, V)"
text = "First Cit"
tokens = encode(text)[None]  # (1, T): None adds an axis, the batch
draw_model(text, tokens[0].tolist(), target="i", C=64, V=V)
show("model")

# %% [markdown]
# The vertical line is the residual stream `x`. Its shape is always (B, T, C), so a model can have
# any number of Transformer blocks. The first plus sign adds the position embedding. Attention and
# the feed-forward layer both read the stream (at a dot) through a layer norm, and add their result
# to it (at a plus sign). The row at the bottom does not come from the model: it shows the targets,
# the correct next characters. The model predicts the next character at all positions at once.
#
# ## Attention
#
# [The first class](../gpt.py#L81-L104) is the attention of lesson 5. `chunk(3, dim=-1)` cuts the
# last axis into three equal parts. Then `view` and `transpose` give each head its own (T, D).


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
        y = weights @ v  # (B, H, T, D)
        y = y.transpose(1, 2).reshape(B, T, C)  # (B, T, C): the heads side by side
        return self.projection(y)  # (B, T, C)


# %% [markdown]
# ## The Transformer block
#
# [The second class](../gpt.py#L107-L121) is the large grey box. Each line of `forward` is
# one branch: a layer reads `x`, and its result is added to `x`. `nn.GELU("tanh")` is the
# approximation of GELU that GPT-2 uses; the two differ by less than 0.001.


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
# [The third class](../gpt.py#L124-L149) is the whole picture. Its output layer is *tied*: it has no
# separate weights, but uses those of `token_embedding` (Press and Wolf 2017,
# [arXiv:1608.05859](https://arxiv.org/abs/1608.05859)). The logit of a character is the dot product
# of `x`, after the last norm, and the vector of that character. It is largest for vectors that are
# long and point in a direction similar to `x`.
#
# The initial weights are those of lesson 8. Matrices and embedding tables get random numbers with
# standard deviation 0.02. Two layers of each Transformer block add to the stream: `projection` and
# the second linear layer, `feed_forward.2`. Their numbers are divided by
# $\sqrt{2 \cdot \text{n\_layer}}$. Biases start at 0, and the gains of layer norms (named `weight`
# in PyTorch) at 1.


# %%
class GPT(nn.Module):
    def __init__(self, vocab_size, block_size, n_layer, n_head, n_embd):
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, n_embd)
        self.position_embedding = nn.Embedding(block_size, n_embd)
        self.blocks = nn.Sequential(*[Block(n_embd, n_head) for _ in range(n_layer)])
        self.norm = nn.LayerNorm(n_embd)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:  # matrices; layer norms and biases have one axis
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
# These lines do the same as `forward`, step by step. The last line checks that.

# %%
torch.manual_seed(1)
sizes = {"vocab_size": V, "block_size": T, "n_layer": 4, "n_head": 4, "n_embd": 64}
model = GPT(**sizes)
print("tokens               ", tuple(tokens.shape), tokens[0].tolist())
x = model.token_embedding(tokens) + model.position_embedding(torch.arange(len(text)))
print("sum of the embeddings", tuple(x.shape))
for number, block in enumerate(model.blocks, start=1):
    x = block(x)
    print(f"Transformer block {number}  ", tuple(x.shape))
logits = model.norm(x) @ model.token_embedding.weight.T
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


print_most_likely(model, text)

# %% [markdown]
# The untrained model gives all characters similar probabilities, near $1/65 = 1.5\%$. (`t` is first
# because it is the current character: the output is tied, and `x` contains the vector of `t`.) So
# the first loss, the mean of $-\ln p(\text{target})$, is near $\ln 65 = 4.17$. Check this in every
# model: if it is far above $\ln V$, look for a mistake, first in the initial weights.

# %%
torch.manual_seed(0)
inputs, targets = get_batch(lesson.val_tokens)  # (32, 64) each
first_loss = cross_entropy(model(inputs), targets)
print(f"first loss {first_loss.item():.2f}, ln V = {math.log(V):.2f}")

# %% [markdown]
# ## Does it look ahead?
#
# A position must not see later characters, because they hold its target. To check this, change the
# last character of the text, and sum the changes of the 65 logits at each position.

# %%
changed = encode("First Cis")[None]  # (1, T)
difference = (model(changed) - model(tokens)).abs().sum(dim=-1)[0]  # (T,)
print("change of the logits at each position:", [round(d, 3) for d in difference.tolist()])

# %% [markdown]
# Only the last position changes. Without the mask, earlier logits would change, too.
#
# ## Where the parameters are
#
# A linear layer from $a$ to $b$ channels has $a \cdot b$ weights and $b$ biases. Attention has four
# matrices of $C \times C$: `qkv` holds those of queries, keys and values; `projection` is the
# fourth. The feed-forward layer has two of $C \times 4C$. This gives $12\,C^2$ weights for each
# Transformer block. Its biases are $3C + C = 4C$ in attention and $4C + C = 5C$ in the feed-forward
# layer. Each of its two layer norms has $C$ gains and $C$ biases, together $4C$. The embeddings
# have $V C$ and $T C$ ($T$ is the block size), and the last layer norm has $2C$:
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
gpt2 = count_by_part(V=50257, T=1024, n_layer=12, C=768)
total, total2 = sum(parts.values()), sum(gpt2.values())
print("                       this model        smallest GPT-2")
for part, n in parts.items():
    print(f"{part:20} {n:7,} {n / total:4.0%} {gpt2[part]:15,} {gpt2[part] / total2:4.0%}")
print(f"{'sum':20} {total:7,} {total2:20,}")
print(f"in the model         {sum(p.numel() for p in model.parameters()):7,}")

# %% [markdown]
# In models of every size, the feed-forward layers have twice the weights of attention. The token
# embedding is 2% of this model. In the smallest GPT-2 it is 31%, because that vocabulary has 50,257
# tokens. So tying saves 4,160 parameters here, and 38.6 million there.

# %% tags=["test"]
assert abs(first_loss.item() - math.log(V)) < 0.03
assert (model(inputs).argmax(dim=-1) == inputs).float().mean() > 0.95  # the current character
assert tokens[0].tolist() == [18, 47, 56, 57, 58, 1, 15, 47, 58]  # those of docs/gpt.svg
lines = (lesson.HERE.parent / "gpt.py").read_text("utf-8").splitlines()
for number, start in ((81, "class Self"), (107, "class Block"), (124, "class GPT")):
    assert lines[number - 1].startswith(start)  # the links to gpt.py
assert total == sum(p.numel() for p in model.parameters()) == 208320
x = torch.linspace(-6, 6, 1000)
assert (nn.GELU()(x) - nn.GELU("tanh")(x)).abs().max() < 0.001
assert difference[:-1].max() == 0 < difference[-1]
broken = GPT(**sizes)
nn.init.normal_(broken.token_embedding.weight)
assert cross_entropy(broken(inputs), targets).item() > 40
assert (broken(inputs).argmax(dim=-1) == inputs).float().mean() > 0.99
scores = torch.zeros(3, 3).masked_fill(torch.ones(3, 3, dtype=torch.bool).triu(), -math.inf)
assert scores.softmax(dim=-1)[0].isnan().all()

# %% [markdown]
# ## The same model in gpt.py and in the package
#
# [nanogpt/models/gpt.py](../nanogpt/models/gpt.py) has the same model, with dropout (lesson 8), a
# faster function for attention (with other rounding), and a cache for generation (lesson 11). It
# and `gpt.py` use the names of this lesson. `state_dict()` returns the parameters of a model by
# name. `load_state_dict` copies them into another model; if a name or shape differs, it fails.

# %%
sys.path.append(str(lesson.HERE.parent))  # the folder of gpt.py
gpt = importlib.import_module("gpt")  # like `import gpt`
others = {"gpt.py": gpt.GPT(**sizes), "package": models.GPT(models.GPTConfig(**sizes))}
for name, other in others.items():
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(inputs), model(inputs))
    largest = (other(inputs) - model(inputs)).abs().max().item()
    print(f"{name}: same logits; the largest difference is {largest:.1g}")

# %% [markdown]
# ## Training
#
# The budget of the scoreboard is 1,000 steps of 32 blocks of 64 characters, with Adam. The learning
# rate rises to 0.0036 and falls again (lesson 10). The perplexity is $e^{\text{loss}}$ (lesson 2).

# %%
loss = train(model)
print(f"validation loss {loss:.3f}, perplexity {math.exp(loss):.2f}")
print_most_likely(model, text)

# %% [markdown]
# The perplexity has fallen from 65 to less than 7: the model is as uncertain as if about 7
# characters were equally likely. For the bigram, the number is 12. After "First Cit" the model
# expects "i", as in "First Citizen". It also generates text. In each round, the model reads the
# last 64 characters, and `torch.multinomial` samples the next token from the probabilities.

# %%
torch.manual_seed(0)
generated = encode("ROMEO:")[None]  # (1, 6)
with torch.no_grad():
    for _ in range(200):
        logits = model(generated[:, -T:])[:, -1]  # (1, V): at the last position
        token = torch.multinomial(logits.softmax(dim=-1), num_samples=1)  # (1, 1)
        generated = torch.cat([generated, token], dim=1)
print(decode(generated[0]))

# %% [markdown]
# It looks like a play, and many words are English, but the sentences have no meaning.
#
# ## More training, more parameters, longer context
#
# The package trains larger GPTs of the same kind. A *preset* is a model with its training settings
# (`nanogpt presets` lists all). Compare one of them with the model of lesson 3 that counts 7-grams:
#
# | model | parameters | context, at most | characters read | validation loss |
# | --- | --- | --- | --- | --- |
# | 7-grams, Kneser-Ney | 872,748 counts | 6 | 1.0 million | 1.517 |
# | GPT of this lesson | 208,320 | 64 | 2.0 million | 1.91 |
# | preset `baby` | 10,770,816 | 256 | 32.8 million | 1.45 |
#
# The first row is from [lesson 3](03_counting.md), the last from the [presets](../docs/presets.md):
# 2,000 steps of 64 blocks of 256 characters. The package counts the 7-grams in less than a second.
# They are better than this GPT, which is small and reads each character of the training text only
# about twice. `baby` beats the 7-grams. It has 52 times the parameters of our GPT and a longer
# context, and it reads 16 times as many characters. This is about 52 · 16 ≈ 800 times the
# computation: one minute on a large GPU. Lesson 12 measures the effect of size and training.

# %% tags=["test"]
assert lesson.FAST or abs(loss - 1.906) < 0.02
assert round(max(0.004 * min((s + 1) / 100, 1 - s / 1000) for s in range(1000)), 4) == 0.0036
assert lesson.FAST or model(tokens)[0, -1].argmax().item() == encode("i").item()
files = [lesson.RESULTS / f"{name}.json" for name in ("versus_nanogpt_h100", "ladder")]
versus, ladder = (lesson.json.loads(file.read_text("utf-8")) for file in files)
baby, rungs = versus["runs"]["nanogpt baby"][0], {rung["name"]: rung for rung in ladder["rungs"]}
counting, with_norm = rungs["kneser-ney"], rungs["layer-norm"]
found = [rungs["residuals"]["val_loss"], with_norm["val_loss"], with_norm["parameters"] / 1e6]
found += [counting["val_loss"], counting["parameters"], baby["best"]["val_loss"]]
assert [round(number, 3) for number in found] == [1.856, 1.544, 1.841, 1.517, 872748, 1.448]
assert counting["seconds"] < 1 < 55 < baby["seconds"] < 70
preset = importlib.import_module("nanogpt.runs.presets").PRESETS["baby"].config
c = preset.model
assert sum(count_by_part(V, c.block_size, c.n_layer, c.n_embd).values()) == 10770816
assert (preset.train.steps, preset.train.batch_size, c.block_size) == (2000, 64, 256)
found = [math.exp(2.482), 2000 * 64 * 256 / 1e5, 10770816 / 208320, 32.8 / 2.048, 52 * 16 / 100]
assert [round(number) for number in found] == [12, 328, 52, 16, 8]
rows = lesson.json.loads(lesson.SCOREBOARD.read_text("utf-8"))
earlier = [round(row["loss"], 2) for row in rows if row["lesson"] in (7, 8)]
assert [earlier[2], earlier[3], min(earlier)] == [1.81, 1.87, 1.81]

# %% [markdown]
# ## Scoreboard

# %%
lesson.show_scoreboard(9, {"GPT": loss})

# %% [markdown]
# The best row of a neural model is "with residual connections", 1.81. It has no layer norm, but
# PyTorch's larger initial weights. The row "with layer norm", 1.87, has them, too. It is better
# than the GPT by so little that this may be chance (exercise 2). With larger weights, norms bring
# nothing in these short trainings; with small ones, as in the GPT, they help (lesson 8). The
# [ladder](../docs/studies.md#the-ladder) of the package shows this for a GPT with 1.8 million
# parameters and small weights: layer norm lowers its loss from 1.86 to 1.54.
#
# ## Three common mistakes
#
# 1. **A tied output layer with PyTorch's initial embedding.** `nn.Embedding` draws numbers with
#    standard deviation 1. A vector of 64 such numbers has a dot product of about 64 with itself.
#    At first, `x` is similar to the vector of its own character, so the model is certain that each
#    character repeats. *Symptom:* a first loss above 40. *Remedy:* standard deviation 0.02.
# 2. **A mask that hides the position itself**, `triu()` instead of `triu(diagonal=1)`. The first
#    position then sees nothing, and the softmax of a row of $-\infty$ is `nan`. *Symptom:* the loss
#    is `nan` from the first step. *Remedy:* hide later positions only.
# 3. **A text that is longer than the block.** `position_embedding` has vectors for 64 positions
#    only. *Symptom:* `IndexError: index out of range in self` (on a GPU, a CUDA error). *Remedy:*
#    give the model the last 64 tokens, `tokens[:, -T:]`.
#
# ## Exercises
#
# 1. How many parameters does the preset `baby` have (6 Transformer blocks, 384 channels, context of
#    256, 65 characters)? First estimate with $12\,C^2$ for each Transformer block.
# 2. Give all linear layers PyTorch's initial weights, `layer.reset_parameters()`, and train again.
#    Then train both kinds of GPT after `torch.manual_seed(2)`. Which initial weights are better?
# 3. Compute the gradient of the loss for inputs "First Ci" and targets "irst Cit". Which vectors of
#    `token_embedding` get a gradient that is not 0? And if the output layer had separate weights?

# %% tags=["solution"]
if SOLUTIONS:  # run with: python lessons/09_gpt.py --solutions
    count = sum(count_by_part(V, T=256, n_layer=6, C=384).values())
    print(f"1. {count:,}; the estimate is {6 * 12 * 384**2:,}")
    losses = [loss]  # seed 1, small weights
    for seed, has_larger in ((1, True), (2, False), (2, True)):
        torch.manual_seed(seed)
        other = GPT(**sizes)
        for layer in other.modules():
            if has_larger and isinstance(layer, nn.Linear):
                layer.reset_parameters()
        losses.append(train(other))
    print(f"2. seed 1: {loss:.3f}, with PyTorch's weights {losses[1]:.3f}")
    print(f"   seed 2: {losses[2]:.3f}, with PyTorch's weights {losses[3]:.3f}: no clear winner")
    assert lesson.FAST or (losses[1] < losses[0] and losses[2] < losses[3])

    model.zero_grad()
    cross_entropy(model(tokens[:, :-1]), tokens[:, 1:]).backward()
    count = (model.token_embedding.weight.grad.abs().sum(dim=1) > 0).sum().item()
    print(f"3. {count} of {V}: each probability is above 0, so each logit changes the loss. With")
    print(f"   separate weights: the {len(set(text[:-1]))} different characters of the input.")
    assert count == V

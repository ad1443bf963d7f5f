# %% [markdown]
# # 1. A text, its tokens, and a model that counts
#
# A *language model* answers one question: given what was written so far, how likely is each thing
# that could come next? Whoever can answer it can write: pick something likely, append it, ask
# again. This lesson builds the smallest such model, twice, once by counting and once by gradient
# descent. Both find nearly the same table, which is how we know that the second way works before we
# use it for models whose answer nobody can count.

# %%
import math

import matplotlib.pyplot as plt
import torch
from lesson import FAST, batch, cross_entropy, text
from torch import nn

print(f"{len(text):,} characters\n")
print(text[:148])

# %% [markdown]
# ## Tokens
#
# A model computes with numbers, so every distinct character gets one. The pieces that a text is cut
# into are called *tokens*, all of them together the *vocabulary*. Characters are the simplest
# choice: few symbols, nothing unknown, but long sequences. Larger models take pieces of words.

# %%
alphabet = sorted(set(text))
V = len(alphabet)
number = {character: i for i, character in enumerate(alphabet)}
tokens = torch.tensor([number[character] for character in text])  # (N,)

print(V, "different:", repr("".join(alphabet)))
print(tokens[:18].tolist(), "is", repr("".join(alphabet[i] for i in tokens[:18])))

# %% [markdown]
# What we want to know is how well a model does on text that it has *not* seen. So the last tenth is
# put aside, and never trained on. Everything here is measured on it.

# %%
train, val = tokens.tensor_split([int(0.9 * len(tokens))])
print(f"{len(train):,} to learn from, {len(val):,} to measure with")

# %% [markdown]
# ## How good is a guess?
#
# A model that gave the character which did come the probability $p$ pays $-\ln p$ for it. Was it
# certain and right, that is 0; the more surprised it is, the more it pays. The mean over a text is
# the *cross-entropy*, measured in *nats* per character (with a logarithm to base 2 it would be
# *bits*).
#
# A model that knows nothing gives each of the 65 characters the same chance and pays
# $\ln 65 = 4.17$ everywhere. Any training that starts from fair guesses starts there.
#
# A model that only knows how frequent each character is does better. What it pays on a text with
# just these frequencies is their *entropy*, $H = -\sum_i p_i \ln p_i$: no model that ignores the
# context can pay less.

# %%
p = torch.bincount(train, minlength=V) / len(train)  # (V,)
entropy = -(p * p.clamp(min=1e-9).log()).sum().item()
unigram = -p.clamp(min=1e-9)[val].log().mean().item()

print(f"all equal       {math.log(V):.4f} nats a character")
print(f"entropy         {entropy:.4f}")
print(f"on unseen text  {unigram:.4f}")

# %% [markdown]
# ## The bigram, by counting
#
# After a `q` comes a `u`. A *bigram* model looks at one character, the last, and has for each a row
# with the chances of what follows. All it takes is to count pairs. One is added to each count, so
# that a pair that never occurred is unlikely instead of impossible: otherwise a single surprise
# would cost $-\ln 0 = \infty$.

# %%
pairs = train[:-1] * V + train[1:]  # (N - 1,): each pair as one number
counts = torch.bincount(pairs, minlength=V * V).view(V, V) + 1
counted = counts / counts.sum(dim=1, keepdim=True)  # (V, V): every row sums to 1

counted_loss = -counted[val[:-1], val[1:]].log().mean().item()
print(f"bigram by counting: {counted_loss:.4f}")
after_q = counted[number["q"]]
print("after q:", ", ".join(f"{alphabet[i]} {after_q[i]:.3f}" for i in after_q.topk(3).indices))

# %% alt="Which character follows which: the darker, the likelier"
figure, axes = plt.subplots(figsize=(6, 5.4))
axes.imshow(counted.sqrt())
labels = [{"\n": "↵", " ": "␣"}.get(c, c) for c in alphabet]
axes.set_xticks(range(V), labels, fontsize=5)
axes.set_yticks(range(V), labels, fontsize=5)
axes.set(xlabel="next character", ylabel="last character")
axes.set_title("Darker: likelier (square root of the chance)", fontsize=9)
axes.grid(False)
plt.show()

# %% [markdown]
# ## The same by gradient descent
#
# Now as all larger models do it. The table holds *logits* $z$, any numbers at all, and
# $\text{softmax}(z)_i = e^{z_i} / \sum_j e^{z_j}$ makes chances of a row. It begins with zeros: all
# equal. Then, over and over: take some pairs, compute the loss, ask how it would change with each
# number in the table (the *gradient*), move every number a little the other way.
#
# `cross_entropy` is the mean of $-\ln \text{softmax}(z)_\text{target}$; we build it in lesson 8.
# The step size is huge, as a row of a rare character has a tiny gradient, and falls from 100 to 0,
# so that the last steps settle.


# %%
class Bigram(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(V, V))

    def forward(self, tokens):  # (B, T)
        return self.table[tokens]  # (B, T, V): for every token, the row of logits


torch.manual_seed(0)
model, losses = Bigram(), []
steps = 300 if FAST else 4000
for step in range(steps):
    inputs, targets = batch(train, 64, 64)  # (64, 64) both
    loss = cross_entropy(model(inputs), targets)
    (gradient,) = torch.autograd.grad(loss, model.parameters())  # (V, V)
    with torch.no_grad():
        model.table -= 100 * (1 - step / steps) * gradient
    losses.append(loss.item())

learned_loss = cross_entropy(model(val[None, :-1]), val[None, 1:]).item()
print(f"bigram by gradient descent: {learned_loss:.4f}")

# %% alt="Loss over steps: it falls from 4.17 to the loss of the counted bigram"
plt.plot(losses, color="0.6", linewidth=1, label="of each batch")
plt.axhline(counted_loss, color="black", linestyle=":", label="by counting, on unseen text")
plt.xlabel("step")
plt.ylabel("loss (nats per character)")
plt.legend()
plt.show()

# %% [markdown]
# ## Do they agree?
#
# They aim at slightly different tables. Counting added one to everything, so after a `q`, which is
# always followed by a `u`, it keeps a tenth for letters that never came; gradient descent learns
# that nothing else comes. Rows of frequent characters agree. Rows of rare ones differ, and hardly
# ever matter.

# %%
learned = model.table.detach().softmax(dim=1)  # (V, V)
far = (learned - counted).abs().sum(dim=1) / 2  # (V,): total variation distance of each row
frequent = p > 0.01

print(f"rows of frequent characters differ by {far[frequent].max():.3f} at most")
print(f"losses differ by {abs(learned_loss - counted_loss):.4f}")
assert abs(learned_loss - counted_loss) < (0.5 if FAST else 0.01)
assert FAST or far[frequent].max() < 0.05

# %% [markdown]
# ## It writes
#
# Draw a character by its chance, look up the row of that one, draw again.

# %%
torch.manual_seed(0)
token, written = number["\n"], []
for _ in range(200):
    token = torch.multinomial(counted[token], 1).item()
    written.append(alphabet[token])
print("".join(written))

# %% [markdown]
# ## What it bought
#
# | model | nats a character on unseen text |
# | --- | --- |
# | all equal | 4.17 |
# | frequencies | 3.35 |
# | bigram | 2.48 |
#
# Frequencies are worth 0.8 nats, one character of context almost 0.9 more. The text is gibberish
# with the right letters in the right neighbourhood.
#
# A table with ten characters of context would have $65^{11}$ entries, nearly all for pasts that
# nobody ever wrote. To look back further, a model has to find out by itself what in the past
# matters: lesson 2.

# %%
assert round(math.log(V), 2) == 4.17
assert round(unigram, 2) == 3.35
assert round(counted_loss, 2) == 2.48

# %% [markdown]
# ## Exercises
#
# 1. Count trigrams: what follows each *pair* of characters. What do they pay on unseen text? What
#    does the smoothing do to them?
# 2. How many nats does a model pay on average that is certain of the right character half of the
#    time, and gives all 65 the same chance in the other half?
# 3. A loss of 2.48 nats per character: how many bits is that, and into how many bytes could a file
#    of a million characters be packed with this model?

# %% tags=["solution"]
triples = (train[:-2] * V + train[1:-1]) * V + train[2:]  # (N - 2,)
asked = (val[:-2] * V + val[1:-1]) * V + val[2:]
times = torch.bincount(triples, minlength=V**3)
for smoothing in (1.0, 0.1, 0.01):
    rows = times.view(V * V, V) + smoothing
    trigram = -(rows / rows.sum(dim=1, keepdim=True)).flatten()[asked].log().mean().item()
    print(f"1. trigrams, {smoothing} added to each count: {trigram:.3f}")
assert trigram < counted_loss
# 0.1 is best: more gives chances to what never comes, less makes what does come a surprise.

certain_or_lost = 0.5 * 0 + 0.5 * math.log(V)
print(f"2. {certain_or_lost:.2f} nats")
assert abs(certain_or_lost - 2.087) < 1e-3

bits = counted_loss / math.log(2)
print(f"3. {bits:.2f} bits a character, so {1e6 * bits / 8:,.0f} bytes for a million")
assert abs(bits - 3.58) < 0.01

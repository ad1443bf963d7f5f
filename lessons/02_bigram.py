# %% [markdown]
# # 2. A text, its tokens, and the bigram
#
# A *language model* reads the beginning of a text and gives each possible next character a
# probability. This lesson turns a text into numbers, measures how good such probabilities are, and
# builds the simplest useful model, the *bigram*: first by counting, then by training.
#
# **Before this lesson:** [lesson 1](01_tensors.md): indexing, `keepdim`, softmax, `nn.Embedding`,
# and the training loop.
#
# **You will see:** three losses that fall from 4.17 to 3.35 to 2.48; 200 characters written by a
# table of counts; and a training that finds almost the same table without counting.
#
# ## From characters to tokens
#
# Our text is Tiny Shakespeare: a million characters from Shakespeare's plays.

# %%
import math

import torch
from lesson import SOLUTIONS, show_scoreboard, text
from matplotlib import pyplot as plt
from pictures import ACCENT, INK, MUTED, arrow, cells, diagram, show, write
from torch import nn
from torch.nn import functional as F

print(f"{len(text):,} characters. The first 70:")
print(text[:70])

# %% [markdown]
# A model computes with numbers, so each different character gets a number, its *token*. All tokens
# together are the *vocabulary*; V is its size. Larger models use parts of words as tokens
# ([lesson 14](14_bpe.md)).

# %%
alphabet = "".join(sorted(set(text)))
V = len(alphabet)
token_of = {character: token for token, character in enumerate(alphabet)}


def encode(text):
    return torch.tensor([token_of[character] for character in text])  # (number of characters,)


def decode(tokens):
    return "".join(alphabet[token] for token in tokens)


print(V, "different characters:", repr(alphabet))
print(encode("First"), decode(encode("First")))

# %% [markdown]
# ## Training text and validation text
#
# A model can memorise its training text. Only text that it has never seen shows whether it learned
# something about the language. So we hold out the last 10% as *validation text*: the model never
# trains on it, and every loss on the scoreboard is measured on it.

# %%
tokens = encode(text)
cut = int(0.9 * len(tokens))
train_tokens, val_tokens = tokens[:cut], tokens[cut:]
print(f"{len(train_tokens):,} tokens for training, {len(val_tokens):,} for validation")

# %% [markdown]
# ## The shift by one
#
# The model should predict the next character. So the *target* of each token is the token after it:
# inputs and targets are the same text, shifted by one. A *block* of T tokens has T targets, so it
# trains T predictions at once. Here, T is 8:

# %%
block = train_tokens[:9]  # (T + 1,) with T = 8
inputs, targets = block[:-1], block[1:]  # (T,) each
for t in range(8):
    context, target = decode(inputs[: t + 1]), decode(targets[t : t + 1])
    print(f"when the input is {context!r}, the target is {target!r}")

# %% [markdown]
# A block is a window on the text. The targets are the same window, moved by one character:

# %% alt="The inputs are the characters 0 to 7 of the text, the targets the characters 1 to 8"
axes = diagram(74, 19)
characters = list(text[:14].replace(" ", "␣"))
lines = [("text", 17, 0, 14, ()), ("inputs", 12, 0, 8, (0, 1, 2)), ("targets", 7, 1, 9, (3,))]
for name, y, start, stop, marked in lines:
    write(axes, 10, y - 1.5, name, align="right")
    filled = [[i in marked for i in range(start, stop)]]
    cells(axes, 12 + 4 * start, y, [characters[start:stop]], 4, 3, filled, size=10)
arrow(axes, (22.4, 8.9), (25.6, 7.1), color=ACCENT)
write(axes, 16, 2, "when the input is 'Fir', the target is 's'", 9, ACCENT, "left")
write(axes, 50, 10.5, "one block, T = 8", 9, MUTED, "left")
write(axes, 50, 5.5, "the same window, moved by one", 9, MUTED, "left")
show("shift")

# %% [markdown]
# Training uses a *batch*: B blocks from random places of the text. `torch.randint` gives random
# starts. Broadcasting adds the numbers 0 to T to each start: the positions of one block per row.
# [gpt.py](../gpt.py) has the same function.


# %%
def get_batch(tokens, batch_size, block_size):
    starts = torch.randint(len(tokens) - block_size, (batch_size, 1))  # (B, 1)
    blocks = tokens[starts + torch.arange(block_size + 1)]  # (B, 1) + (T + 1,) -> (B, T + 1)
    return blocks[:, :-1], blocks[:, 1:]  # (B, T) each


torch.manual_seed(0)
inputs, targets = get_batch(train_tokens, batch_size=3, block_size=8)
for row in range(3):
    print(f"{decode(inputs[row])!r:12} -> {decode(targets[row])!r}")

# %% [markdown]
# ## The loss: the mean of −ln p
#
# How good are the probabilities of a model? Look at $p$, the probability that the model gave to the
# correct character. The loss of this character is $-\ln p$:

# %%
for p in (0.99, 0.5, 0.1, 1 / 65, 0.001):
    print(f"p = {p:.4f}   -ln p = {-math.log(p):.3f}")

# %% [markdown]
# The smaller $p$ is, the larger is the loss. The mean over a text is the loss of the model, called
# *cross-entropy*. Its unit is the *nat*, because the logarithm is the natural one. A model that
# knows nothing gives all 65 characters the same probability. Its loss is $\ln 65 = 4.174$ nats per
# character.
#
# The *perplexity* expresses the same as a number of characters:
#
# $$\text{perplexity} = e^{\text{loss}}$$
#
# For the model that knows nothing, it is $e^{4.174} = 65$. A model with perplexity 12 is as
# uncertain as a choice among 12 equally likely characters.
#
# ## Character frequencies
#
# A first improvement: a space is more likely than a `z`. `torch.bincount` counts how often each
# token occurs in the training text.

# %%
frequencies = torch.bincount(train_tokens, minlength=V) / len(train_tokens)  # (V,)
frequency_loss = -frequencies[val_tokens].log().mean().item()
print(f"p(space) = {frequencies[token_of[' ']]:.3f}, p(z) = {frequencies[token_of['z']]:.4f}")
print(f"loss {frequency_loss:.3f}, perplexity {math.exp(frequency_loss):.1f}")

# %% [markdown]
# ## The bigram, by counting
#
# After a `q`, a `u` is almost certain. A bigram model predicts the next character from the last one
# only. It is a table with V rows and V columns: row $a$ contains the probabilities of all
# characters after $a$. To count all pairs at once, each pair $(a, b)$ gets the number
# $a \cdot V + b$.

# %%
pairs = train_tokens[:-1] * V + train_tokens[1:]  # (number of pairs,)
counts = torch.bincount(pairs, minlength=V * V).view(V, V)  # (V * V,) -> (V, V)
counted = (counts + 1) / (counts + 1).sum(dim=1, keepdim=True)  # (V, V): each row sums to 1
print(f"q is followed by u {counts[token_of['q'], token_of['u']]} times")
print(f"p(u after q) = {counted[token_of['q'], token_of['u']]:.3f}")

# %% [markdown]
# Why + 1? The validation text has pairs that never occur in the training text. With $p = 0$, their
# loss $-\ln 0$ would be infinite. Adding 1 to all counts is the simplest *smoothing*.


# %%
def table_loss(table, tokens):
    p = table[tokens[:-1], tokens[1:]]  # (number of pairs,): p of each correct next character
    return -p.log().mean().item()


counted_train, counted_val = table_loss(counted, train_tokens), table_loss(counted, val_tokens)
print(f"training text {counted_train:.3f}, validation text {counted_val:.3f}")
print(f"perplexity on validation text {math.exp(counted_val):.1f}")

# %% alt="The table of all pairs: dark cells are likely pairs; the rows of $, & and 3 are grey"
labels = [{"\n": "↵", " ": "␣"}.get(character, character) for character in alphabet]
plt.figure(figsize=(8.6, 8.6))
axes = plt.gca()
axes.imshow(counted.sqrt(), interpolation="nearest")
axes.set_xticks(range(V), labels, fontsize=8)
axes.set_yticks(range(V), labels, fontsize=8)
axes.set(xlabel="next character", ylabel="last character")
axes.grid(False)
column, row = token_of["u"], token_of["q"]
arrow(axes, (29, row), (column - 0.8, row), color="black")
write(axes, 28.5, row, "u after q: 0.898", 9, "black", "right")
write(axes, 25.5, token_of["h"], "hardly any capital after a small letter", 9, "black")
write(axes, 25, token_of[","], "rare characters: grey because of the + 1", 9, "black")
arrow(axes, (25, 5.2), (25, token_of["&"] + 0.4), color="black")
arrow(axes, (25, 6.8), (25, token_of["3"] - 0.4), color="black")
show("table")

# %% [markdown]
# The darker a cell is, the more likely is the next character after the last one; ↵ is the line
# break, ␣ the space. Vowels often follow consonants. The rows of `$`, `&` and `3` are grey stripes:
# these characters are so rare that the + 1 in all 65 cells outweighs their few counts.
#
# ## Generating text
#
# The model can write. Start with a line break. Sample a character from its row, move to that
# character's row, and repeat. `torch.multinomial` samples a token with the given probabilities.

# %%
torch.manual_seed(0)
token, generated = token_of["\n"], []
for _ in range(200):
    token = torch.multinomial(counted[token], 1).item()
    generated.append(token)
print(decode(generated))

# %% [markdown]
# The text is nonsense, but most pairs of neighbours look right. The model cannot spell long words,
# because it sees only the last character.
#
# ## The same table, by training
#
# The parameters of a larger model cannot be counted, so they are trained. We try training where we
# know the result. The table becomes an `nn.Embedding`: its row for a token holds V scores, called
# *logits*, one for each next character. Softmax turns them into probabilities. All logits start at
# 0, so all characters are equally likely. `F.cross_entropy` applies the softmax and returns the
# mean of $-\ln p$. The learning rate starts at 0.1 and falls to 0, so that the last steps change
# little.

# %%
torch.manual_seed(0)
model = nn.Embedding(V, V)
nn.init.zeros_(model.weight)
optimizer = torch.optim.Adam(model.parameters())
losses, steps = [], 300
for step in range(steps):
    inputs, targets = get_batch(train_tokens, batch_size=32, block_size=64)  # (B, T) each
    logits = model(inputs)  # (B, T) -> (B, T, V)
    # flatten merges axes: (B, T, V) -> (B * T, V) and (B, T) -> (B * T,)
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / steps)
    optimizer.step()
    losses.append(loss.item())

learned = model.weight.detach().softmax(dim=1)  # (V, V); detach: outside the record of autograd
learned_train, learned_val = table_loss(learned, train_tokens), table_loss(learned, val_tokens)
print("         training  validation")
print(f"counted  {counted_train:8.3f}  {counted_val:10.3f}")
print(f"learned  {learned_train:8.3f}  {learned_val:10.3f}")

# %% alt="The loss of the batches falls from 4.17 to the counted loss on the training text, 2.455"
_, (left, right) = plt.subplots(1, 2, width_ratios=(1, 2), figsize=(8.4, 3.4))
for axes in (left, right):
    axes.plot(losses, color=MUTED, linewidth=0.8)
    axes.axhline(counted_val, color=ACCENT, linestyle="--", linewidth=2)
    axes.axhline(counted_train, color=INK, linewidth=2)
    axes.set_xlabel("step")
means = torch.tensor(losses).view(-1, 20).mean(dim=1)  # (300,) -> (15, 20) -> (15,)
right.plot(range(10, 300, 20), means, "o", color=INK)
left.set(ylabel="loss", title="all 300 steps")
right.set(xlim=(100, 395), xticks=(100, 200, 300), ylim=(2.38, 2.56), title="the end, enlarged")
write(right, 303, 2.525, "grey: each batch", 9, MUTED, "left")
write(right, 303, counted_val + 0.008, "counted, validation", 9, ACCENT, "left")
write(right, 303, counted_train + 0.008, "counted, training", 9, INK, "left")
write(right, 303, counted_train - 0.009, "● mean of 20 batches", 9, INK, "left")
show("training")

# %% [markdown]
# The loss of the batches falls to about 2.46, close to the counted loss on the same *training*
# text. Both tables have a higher loss on the validation text, because they come from the training
# text. So never compare the training loss of one model with the validation loss of another.
#
# ## Do the two tables agree?
#
# Compare the two rows of a character: add the absolute differences of their probabilities. Half of
# this sum is the probability that must be moved to turn one row into the other.

# %%
moved = (learned - counted).abs().sum(dim=1) / 2  # (V,)
print("character  occurrences  probability to move")
for character in "e tqZ3":
    count = counts[token_of[character]].sum()
    print(f"{character!r:9}  {count:11,}  {moved[token_of[character]]:19.3f}")

# %% [markdown]
# Frequent characters: yes. If a character is more than 1% of the text, less than 0.05 must be
# moved. Rare characters: no, for two reasons. First, the + 1 matters there: in the row of `q`, it
# gives 0.10 to 64 characters that never follow. Training has no + 1. Second, a character such as
# `3` occurs only a few times in the batches, so its row is not yet fully trained. Rare rows hardly
# change the loss: 2.489 against 2.482.
#
# ## Scoreboard

# %%
board = {"all characters equally likely": math.log(V)}
board |= {"character frequencies": frequency_loss, "bigram": counted_val}
show_scoreboard(2, board)

# %% [markdown]
# The frequencies of characters save 0.83 nats, and knowing the last character saves another 0.87.
# The next step is to look at more than one character: [lesson 3](03_counting.md) counts longer
# contexts.

# %% tags=["test"]
assert abs(math.log(V) - 4.174) < 0.001
assert abs(frequency_loss - 3.347) < 0.001
assert abs(counted_train - 2.455) < 0.001
assert abs(counted_val - 2.482) < 0.001
assert 11.5 < math.exp(counted_val) < 12.5
assert abs(counted[token_of["q"], token_of["u"]] - 0.898) < 0.001
assert (counts[val_tokens[:-1], val_tokens[1:]] == 0).sum() == 187
assert abs(learned_train - 2.461) < 0.003
assert abs(learned_val - 2.489) < 0.003
assert abs(sum(losses[-100:]) / 100 - 2.46) < 0.015
assert losses[60] < 2.6
assert moved[frequencies > 0.01].max() < 0.05
assert moved[token_of["3"]] > 0.2
assert counts[token_of["q"]].sum() == counts[token_of["q"], token_of["u"]] == 563
assert abs(64 / (563 + 65) - 0.10) < 0.005
torch.manual_seed(0)
batches = torch.stack([get_batch(train_tokens, 32, 64)[0] for _ in range(steps)])
assert (batches == token_of["3"]).sum() < 40
assert abs(math.log(V) - frequency_loss - 0.83) < 0.005
assert abs(frequency_loss - counted_val - 0.87) < 0.005

# %% [markdown]
# ## Three common mistakes
#
# 1. Targets that are not shifted. *Symptom:* the loss falls almost to 0, but the generated text
#    repeats one character: the model learned to copy its input. *Remedy:* print one block.
# 2. No smoothing. *Symptom:* the loss on the validation text is infinite, because 187 of its pairs
#    never occur in the training text. *Remedy:* add 1 to the counts.
# 3. No `keepdim` in the sum. *Symptom:* the loss is still 2.482, but rows sum to anything between
#    0.08 and 10.8. Each count is divided by the sum for the second character of its pair instead of
#    the first; over a text this gives the same loss, because each character is once the first and
#    once the second of a pair. *Remedy:* check that each row sums to 1.
#
# ## Exercises
#
# 1. A model gives the correct character the probability 1 in half of all cases, and $1/65$ in the
#    other half. What is its loss?
# 2. How many bits per character are 2.482 nats? How many bytes would a million characters need, if
#    the bigram compressed them perfectly?
# 3. Add 0.01, 0.1, 10 instead of 1 to the counts. What happens to the two losses, and why?
# 4. Build a bigram that reads backwards: it predicts each character from the next one. Is this
#    easier? Compare its loss with 2.482 and explain.

# %% tags=["test"]
unsmoothed = counts / counts.sum(dim=1, keepdim=True)
assert table_loss(unsmoothed, val_tokens) == math.inf
wrong = (counts + 1) / (counts + 1).sum(dim=1)
assert abs(table_loss(wrong, val_tokens) - 2.482) < 0.001
assert abs(wrong.sum(dim=1).min() - 0.08) < 0.005
assert abs(wrong.sum(dim=1).max() - 10.8) < 0.05
copier = nn.Embedding(V, V)
optimizer = torch.optim.Adam(copier.parameters(), lr=0.1)
for _ in range(100):
    inputs, _ = get_batch(train_tokens, 32, 64)
    loss = F.cross_entropy(copier(inputs).flatten(0, 1), inputs.flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
assert loss < 0.05
e = token_of["e"]
assert copier.weight[e].softmax(dim=0)[e] > 0.95

# %% tags=["solution"]
if SOLUTIONS:
    print(f"1. ln 65 / 2 = {math.log(65) / 2:.3f} nats")
    bits = counted_val / math.log(2)
    print(f"2. {bits:.2f} bits, {1_000_000 * bits / 8:,.0f} bytes")
    assert abs(bits - 3.58) < 0.01

    for added in (0.01, 0.1, 1, 10):
        table = (counts + added) / (counts + added).sum(dim=1, keepdim=True)
        on_train, on_val = table_loss(table, train_tokens), table_loss(table, val_tokens)
        print(f"3. + {added:<4}: training {on_train:.3f}, validation {on_val:.3f}")
    print("   Less smoothing fits the training text better, but makes new pairs cost more.")

    backward = (counts + 1).T / (counts + 1).T.sum(dim=1, keepdim=True)
    backward_loss = table_loss(backward, val_tokens.flip(0))
    print(
        f"4. backwards: {backward_loss:.3f}. The same: both tables have the same counts of pairs,"
    )
    print("   and each character of a text is once the first and once the second of a pair.")
    assert abs(backward_loss - counted_val) < 0.001

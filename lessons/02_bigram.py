# %% [markdown]
# # 2. A text, its tokens, and the bigram
#
# A *language model* reads the beginning of a text and gives each possible next character a
# probability. This lesson turns a text into numbers, measures how good such probabilities are, and
# builds the *bigram*, which predicts a character from the one before: by counting and by training.
#
# **Before this lesson:** [lesson 1](01_tensors.md): indexing, `keepdim`, softmax, `nn.Embedding`,
# and the training loop.
#
# **You will see:** three models, each better than the last, with losses of 4.17, 3.35 and 2.48; 200
# characters generated from a table of counts; and a training that finds almost the same table.
#
# ## From characters to tokens
#
# `lesson.py` loads Tiny Shakespeare (Karpathy 2015): a million characters of Shakespeare's plays.

# %%
import math

import torch
from lesson import SOLUTIONS, show_scoreboard, text
from matplotlib import pyplot as plt
from pictures import ACCENT, MUTED, arrow, cells, diagram, show, write
from torch import nn
from torch.nn import functional as F

print(f"{len(text):,} characters. The first 70:")
print(text[:70])

# %% [markdown]
# A model computes with numbers, so each different character gets a number, its *token*. All tokens
# together are the *vocabulary*; V is its size. ([Lesson 14](14_bpe.md) uses parts of words.)

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
# The alphabet starts with the line break, `\n`, and the space. `F` and `f` are two characters.
#
# ## Training text and validation text
#
# A large model can memorise its training text. Only text that it has never seen shows whether it
# learned something about the language. So the last 10% become the *validation text*: no model of
# this course trains on it, and we compare models by their loss on it. (Research keeps a third part,
# the *test text*, for the final result: the lowest validation loss of many models is partly luck.)

# %%
tokens = encode(text)
cut = int(0.9 * len(tokens))
train_tokens, val_tokens = tokens[:cut], tokens[cut:]
print(f"{len(train_tokens):,} tokens for training, {len(val_tokens):,} for validation")

# %% [markdown]
# ## The shift by one
#
# The model should predict the next character. So the *target* of each token is the token after it:
# inputs and targets are the same text, shifted by one. A model reads a *block* of T tokens and
# makes T predictions, one for each target. To predict a target, it may use all tokens of the block
# before this target: the *context*. Here, T = 8:

# %%
inputs, targets = train_tokens[0:8], train_tokens[1:9]  # (T,) each
for t in range(8):
    context, target = decode(inputs[: t + 1]), alphabet[targets[t]]
    print(f"when the input is {context!r}, the target is {target!r}")

# %% [markdown]
# Models from lesson 4 on use the whole context; the bigram uses only its last character.

# %% alt="The inputs are the characters 0 to 7 of the text, the targets the characters 1 to 8"
axes = diagram(74, 19)
characters = list(text[:14].replace(" ", "␣"))
lines = [("text", 17, 0, 14, ()), ("inputs", 12, 0, 8, (0, 1, 2)), ("targets", 6.5, 1, 9, (3,))]
for name, y, start, stop, marked in lines:
    write(axes, 10, y - 1.5, name, align="right")
    filled = [[i in marked for i in range(start, stop)]]
    cells(axes, 12 + 4 * start, y, [characters[start:stop]], 4, 3, filled, size=10)
for x in (14, 18, 22):
    arrow(axes, (x, 8.9), (25.6, 6.6), color=ACCENT)
write(axes, 16, 1.2, "when the input is 'Fir', the target is 's'", 9, ACCENT, "left")
write(axes, 50, 10.5, "one block, T = 8", 9, MUTED, "left")
write(axes, 50, 5, "the same window, moved by one", 9, MUTED, "left")
show("shift")

# %% [markdown]
# Each step of a training uses a *batch*: B blocks from random places of the text (the whole text
# would take too long). `torch.randint(n, shape)` returns random integers from 0 to n − 1, here the
# starts of the blocks. After the last possible start, there are exactly T more tokens. Broadcasting
# adds 0, 1, …, T to each start: the positions of a block and of the token after it.


# %%
def get_batch(tokens, batch_size, block_size):
    starts = torch.randint(len(tokens) - block_size, (batch_size, 1))  # (B, 1)
    positions = starts + torch.arange(block_size + 1)  # (B, 1) + (T + 1,) -> (B, T + 1)
    blocks = tokens[positions]  # (B, T + 1)
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
# The smaller $p$ is, the larger is the loss. Why the logarithm? The probability of a whole text is
# the product of the $p$ of its characters, each given the characters before it. The logarithm turns
# this product into a sum. So a lower loss means a higher probability of the text.
#
# The loss of the model is the mean over all $N$ characters of a text, the *cross-entropy*
# $-\frac{1}{N} \sum_{i=1}^{N} \ln p_i$. Its unit is the *nat*, because the logarithm is natural. A
# model that knows nothing gives each of the 65 characters the probability 1/65. Its loss is
# $\ln 65 = 4.174$ nats per character. Even a perfect model does not reach 0, because most texts can
# continue in several ways.
#
# The *perplexity* expresses the loss as a number of characters:
# $\text{perplexity} = e^{\text{loss}}$. The model that knows nothing has $e^{4.174} = 65$. A
# perplexity of 12 means: as uncertain as a choice among 12 equally likely characters.
#
# ## Character frequencies
#
# A first improvement: a space is more likely than a `z`. `torch.bincount` counts how often each
# token occurs in the training text (`minlength=V`: all V tokens get a count, even if it is 0). The
# loss is measured on the validation text:

# %%
frequencies = torch.bincount(train_tokens, minlength=V) / len(train_tokens)  # (V,)
p = frequencies[val_tokens]  # (number of characters,): looks up p of each correct character
frequency_loss = -p.log().mean().item()
print(f"p(space) = {frequencies[token_of[' ']]:.3f}, p(z) = {frequencies[token_of['z']]:.4f}")
print(f"loss {frequency_loss:.3f}, perplexity {math.exp(frequency_loss):.1f}")

# %% [markdown]
# ## The bigram, by counting
#
# A bigram model predicts the next character from the last one only. It is a table with V rows and V
# columns: row $a$ contains the probabilities of all characters after $a$. First we count all pairs.
# Each pair $(a, b)$ gets the number $a \cdot V + b$: its place if the rows of the table are written
# one after the other. So `view` turns the list of counts into the table.

# %%
pairs = train_tokens[:-1] * V + train_tokens[1:]  # (number of pairs,)
counts = torch.bincount(pairs, minlength=V * V).view(V, V)  # (V * V,) -> (V, V)
q, u = token_of["q"], token_of["u"]
print(f"q occurs {counts[q].sum()} times, and is followed by u {counts[q, u]} times")

# %% [markdown]
# The next step adds 1 to all counts, and divides each row by its sum. Why + 1? The validation text
# has pairs that never occur in the training text. With $p = 0$, their loss $-\ln 0$ would be
# infinite. Adding 1 is the simplest *smoothing* (Laplace's rule).

# %%
counted = (counts + 1) / (counts + 1).sum(dim=1, keepdim=True)  # (V, V): each row sums to 1
print(f"p(u after q) = {counts[q, u] + 1} / {(counts[q] + 1).sum()} = {counted[q, u]:.3f}")

# %% [markdown]
# The loss needs $p$ of each pair in a text. As in lesson 1, two index tensors are read in pairs:


# %%
def table_loss(table, tokens):
    p = table[tokens[:-1], tokens[1:]]  # (number of pairs,): p of each correct next character
    return -p.log().mean().item()


counted_train, counted_val = table_loss(counted, train_tokens), table_loss(counted, val_tokens)
print(f"training text {counted_train:.3f}, validation text {counted_val:.3f}")
print(f"perplexity on validation text {math.exp(counted_val):.1f}")

# %% alt="Rows: last character; dark cells: likely next characters; the rows of $, &, 3 are grey"
labels = [{"\n": "↵", " ": "␣"}.get(character, character) for character in alphabet]
plt.figure(figsize=(8.6, 8.6))
axes = plt.gca()
axes.imshow(counted.sqrt(), vmin=0, vmax=1, interpolation="nearest")  # root: small p are visible
axes.set_xticks(range(V), labels, fontsize=8)
axes.set_yticks(range(V), ["↵", "space", *labels[2:]], fontsize=8)
axes.set(xlabel="next character", ylabel="last character")
axes.grid(False)
arrow(axes, (29, q), (u - 0.8, q), color="black")
write(axes, 28.5, q, "u after q: 0.898", 9, "black", "right")
never = "no capital after a lower-case letter:\np comes from the + 1 only"
write(axes, 25.5, token_of["h"], never, 9, "black")
write(axes, 25, token_of[","], "rare characters: grey because of the + 1", 9, "black")
arrow(axes, (25, 5.2), (25, token_of["&"] + 0.4), color="black")
arrow(axes, (25, 6.8), (25, token_of["3"] - 0.4), color="black")
show("table")

# %% [markdown]
# The darker a cell is, the more likely is the next character after the last one: black is $p = 1$,
# white is almost 0 (the picture shows $\sqrt{p}$). ↵ is the line break, ␣ the space. After most
# punctuation comes one of these two. Vowels often follow consonants. Rare characters have grey
# rows, above all `$`, `&` and `3`: each occurs fewer than 65 times, and the + 1 adds 65.
#
# ## Generating text
#
# The model can generate text. Start in the row of the line break. *Sample* the next character:
# choose it at random, with the probabilities of this row (`torch.multinomial`). Move to the row of
# the new character, and repeat. (This is a *Markov chain*; Shannon used one in 1948.)

# %%
torch.manual_seed(0)
token, generated = token_of["\n"], []
for _ in range(200):
    token = torch.multinomial(counted[token], 1).item()  # 1: one sample
    generated.append(token)
print(decode(generated))

# %% [markdown]
# The text is nonsense, but most pairs of neighbours are pairs of English. The model cannot spell
# long words, because it sees only the last character.
#
# ## The same table, by training
#
# Counting works only for tables. The models from lesson 4 on are not tables, so they must be
# trained. We first try training where we know the result. The table becomes an `nn.Embedding`: its
# row for a token holds V scores, called *logits*, one for each next character. Softmax turns them
# into probabilities. All logits start at 0, so the first loss is $\ln 65 = 4.174$.
#
# Which table has the lowest possible loss on the training text? The counts, without + 1, divided by
# the sums of their rows (*maximum likelihood*). Let $f_b$ be the share of $b$ among the characters
# after $a$ in the text, and $p_b$ the probability in row $a$. The mean loss after $a$ is $-\sum_b
# f_b \ln p_b$. It is lowest if $p_b = f_b$, because $\ln x \le x - 1$: $\sum_b f_b \ln p_b - \sum_b
# f_b \ln f_b = \sum_b f_b \ln(p_b/f_b) \le \sum_b (p_b - f_b) \le 0$ (for the $b$ after $a$ in the
# text: the $f_b$ sum to 1, the $p_b$ to at most 1). Training moves towards this: the slope of the
# logit of $b$ is $p_b - f_b$ ([lesson 10](10_training.md)), so steps raise it if $p_b < f_b$.
#
# `F` is `torch.nn.functional`. `F.cross_entropy` applies the softmax and returns the mean of
# $-\ln p$. It wants a list of targets and one row of logits for each, so `flatten` merges the axes
# B and T. The learning rate starts at 0.1 and falls to 0, so that the last steps change little.

# %%
torch.manual_seed(0)
model = nn.Embedding(V, V)
nn.init.zeros_(model.weight)
optimizer = torch.optim.Adam(model.parameters())  # the loop sets the learning rate
steps, losses = 300, []
for step in range(steps):
    inputs, targets = get_batch(train_tokens, batch_size=32, block_size=64)  # (B, T) each
    logits = model(inputs)  # (B, T) -> (B, T, V)
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())  # (B * T, V) and (B * T,)
    optimizer.zero_grad()
    loss.backward()
    optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / steps)  # the learning rate
    optimizer.step()
    losses.append(loss.item())
print(f"loss of the first batch {losses[0]:.3f}, of the last batch {losses[-1]:.3f}")

# %% [markdown]
# Now compare the two tables. `detach` returns a tensor without its record for gradients.

# %%
learned = model.weight.detach().softmax(dim=1)  # (V, V)
learned_train, learned_val = table_loss(learned, train_tokens), table_loss(learned, val_tokens)
best = counts / counts.sum(dim=1, keepdim=True)  # (V, V)
best_train = table_loss(best, train_tokens)
print(f"lowest possible training loss {best_train:.3f}\n         training  validation")
print(f"counted  {counted_train:8.3f}  {counted_val:10.3f}")
print(f"learned  {learned_train:8.3f}  {learned_val:10.3f}")

# %% alt="The loss of the batches falls from 4.17 towards the lowest possible training loss, 2.452"
_, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.2))
left.plot(losses, color=MUTED, linewidth=0.8)
means = torch.tensor(losses).view(-1, 50).mean(dim=1)  # (300,) -> (6, 50) -> (6,)
right.plot(range(75, 300, 50), means[1:], "o-", color=MUTED)
for axes in (left, right):
    axes.axhline(best_train, color=ACCENT, linestyle="--", linewidth=2)
    axes.set_xlabel("step")
left.set(ylabel="loss", title="loss of each batch")
right.set(xlim=(50, 300), ylim=(2.44, 2.49), title="means of 50 batches, from step 50")
write(right, 303, best_train, "lowest\npossible", 9, ACCENT, "left")
show("training")

# %% [markdown]
# The batches come from the training text, so their loss falls towards 2.452, the lowest possible
# one. A batch is only a part of this text, so its loss can also be lower. Both tables fit the
# training text a little better than the validation text. So never compare the training loss of one
# model with the validation loss of another.
#
# ## Do the two tables agree?
#
# How much probability must be moved to turn the counted row of a character into the learned one?
# Add the absolute differences of the rows and divide by 2, because each moved part is counted
# twice: in the cell that loses it, and in the cell that gains it (*total variation distance*).

# %%
moved = (learned - counted).abs().sum(dim=1) / 2  # (V,)
print("character  occurrences  probability to move")
largest = moved[frequencies > 0.01].max()  # an index of True and False keeps where it is True
for character in "e tqZ3":
    count = counts[token_of[character]].sum()
    print(f"{character!r:9}  {count:11,}  {moved[token_of[character]]:19.3f}")
print(f"largest of all characters that are more than 1% of the text: {largest:.3f}")

# %% [markdown]
# For frequent characters, the tables almost agree. For rare characters, they often do not, because
# of the + 1: in the row of `q`, it gives 64 / 628 = 0.102 to characters that never follow. The
# learned row gives them only 0.017, so 0.085 must be moved. (A learned row starts with equal
# probabilities, so that of `3` is also still 0.336 away from `best`.) Rare characters hardly change
# the losses, 2.489 and 2.482.
#
# ## Scoreboard

# %%
board = {"all characters equally likely": math.log(V), "character frequencies": frequency_loss}
board["bigram"] = counted_val
show_scoreboard(2, board)

# %% [markdown]
# The frequencies of characters save 0.83 nats, and knowing the last character saves another 0.87.
# The next step is a longer context: [lesson 3](03_counting.md).
#
# ## Three common mistakes
#
# 1. Targets that are not shifted: each target is the input itself. *Symptom:* the loss falls almost
#    to 0, but the generated text repeats one character. *Remedy:* print one block, as above.
# 2. No smoothing. *Symptom:* the loss on the validation text is infinite, because at 187 places it
#    has a pair that never occurs in the training text. *Remedy:* add 1 to the counts.
# 3. No `keepdim` in the sum, so the count of a pair is divided by the sum for its second character.
#    *Symptom:* none in the loss: it is still 2.482 (exercise 4). But rows sum to anything between
#    0.08 and 10.8. *Remedy:* check that each row sums to 1.
#
# ## Exercises
#
# 1. A model gives the correct character the probability 1 in half of all cases, and $1/65$ in the
#    other half. What are its loss and its perplexity?
# 2. One bit is $\ln 2$ nats. How many bits per character are 2.482 nats? How many bytes of 8 bits
#    do a million characters need if a compressor spends $-\log_2 p$ bits on each character?
# 3. Add 0.01, 0.1, 10 instead of 1 to the counts. What happens to the two losses, and why?
# 4. Build a bigram that reads backwards: it predicts each character from the next one. Compare its
#    loss with 2.482, and its table with that of mistake 3. Explain both.

# %% tags=["test"]
p_qu, first = counted[q, u], losses[0]
measured = math.log(V), first, frequency_loss, counted_train, best_train, counted_val, p_qu
for value, stated in zip(measured, (4.174, 4.174, 3.347, 2.455, 2.452, 2.482, 0.898), strict=True):
    assert abs(value - stated) < 0.001
assert abs(learned_train - 2.461) + abs(learned_val - 2.489) < 0.006
assert abs(math.log(V) - frequency_loss - 0.83) + abs(frequency_loss - counted_val - 0.87) < 0.01
assert max(counts[token_of[character]].sum() for character in "$&3") < 65
assert (counts[val_tokens[:-1], val_tokens[1:]] == 0).sum() == 187
assert abs(sum(losses[-100:]) / 100 - 2.46) < 0.015
lower, upper = (torch.tensor([f(c) for c in alphabet]) for f in (str.islower, str.isupper))
assert counts[lower][:, upper].sum() == 0
gap = (best - learned)[token_of["3"]].abs().sum() / 2
assert max(largest, abs(gap - 0.336)) < 0.05
assert abs(1 - learned[q, u] - 0.017) + abs(moved[q] - 0.085) < 0.003
row = model.weight.detach()[q].requires_grad_()
(best[q] @ -row.log_softmax(dim=0)).backward()
torch.testing.assert_close(row.grad, learned[q] - best[q])
assert steps * 32 * 64 * frequencies[token_of["3"]] < 40
wrong = (counts + 1) / (counts + 1).sum(dim=1)
assert abs(table_loss(wrong, val_tokens) - 2.482) < 0.001
lowest, highest = wrong.sum(dim=1).aminmax()
assert (round(lowest.item(), 2), round(highest.item(), 1)) == (0.08, 10.8)
assert F.cross_entropy(20 * torch.eye(V), torch.arange(V)) < 0.001  # mistake 1: copies of the input

# %% tags=["solution"]
if SOLUTIONS:
    print(f"1. ln 65 / 2 = {math.log(65) / 2:.3f} nats; perplexity √65 = {math.sqrt(65):.2f}")
    bits = counted_val / math.log(2)
    print(f"2. {bits:.2f} bits, {1_000_000 * bits / 8:,.0f} bytes")
    for added in (0.01, 0.1, 1, 10):
        table = (counts + added) / (counts + added).sum(dim=1, keepdim=True)
        on_train, on_val = table_loss(table, train_tokens), table_loss(table, val_tokens)
        print(f"3. + {added:<4}: training {on_train:.3f}, validation {on_val:.3f}")
    print("   Less smoothing fits the training text better, but gives new pairs a smaller p.")
    print("   With + 10, the frequent pairs lose too much: both losses are higher.")
    backward_counts = counts.T + 1  # (V, V): row = next character, column = last character
    backward = backward_counts / backward_counts.sum(dim=1, keepdim=True)
    backward_loss = table_loss(backward, val_tokens.flip(0))  # flip(0): the last token comes first
    print(f"4. backwards: {backward_loss:.3f}. The count of a pair is divided by the sum for its")
    print("   second character, not its first. Each character of a text except its ends is once")
    print("   first and once second: same loss. Mistake 3's table is almost this one, transposed.")
    assert torch.allclose(backward.T, (counts + 1) / (counts + 1).sum(dim=1), rtol=0.03)
    assert abs(backward_loss - counted_val) < 0.001

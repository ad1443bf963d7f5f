# %% [markdown]
# # 3. Counting well: longer contexts and smoothing
#
# The bigram of lesson 2 looks at one character and has a validation loss of 2.48. A longer context
# says more about the next character. How far does counting get, without a neural network?
#
# **Before this lesson:** [lesson 2](02_bigram.md): the loss (the mean of $-\ln p$, in nats per
# character), training and validation text, and why the bigram adds 1 to each count.
#
# **You will see:** why the simplest smoothing gets worse with long contexts; a model that uses
# nearly the same counts and has a loss of 1.517; and what a GPT needs to beat it.
#
# ## n-grams
#
# An *n-gram* is a sequence of n characters in a text. Here, its last character is the one that the
# model has to predict, and the n − 1 characters before it are its *context*. A bigram is a 2-gram.
# Python's `Counter` is a dictionary that maps each n-gram to its count.

# %%
import json
import math
from collections import Counter

import matplotlib.pyplot as plt
import torch
from lesson import RESULTS, SOLUTIONS, V, alphabet, show_scoreboard, text, train_tokens, val_tokens
from pictures import ACCENT, INK, MUTED, show

from nanogpt.text.kneser_ney import KneserNey  # from the package of this project; used below

train_text, val_text = text[: len(train_tokens)], text[len(train_tokens) :]


def count_ngrams(text, n):
    """Count each piece of n characters: a Counter that maps the piece to its count."""
    return Counter(text[i : i + n] for i in range(len(text) - n + 1))


print(count_ngrams("to be or not to be", 3).most_common(4))

# %% [markdown]
# ## The problem: contexts that never occur
#
# There are $65^{n-1}$ possible contexts of n − 1 characters. How many of them occur in the training
# text, how many only once, and how much of the validation text has a context that is *unseen*: that
# never occurs in the training text? (For n = 1, the only context is the empty one.)

# %%
orders = [count_ngrams(train_text, n) for n in range(9)]  # orders[n] counts the n-grams
print("n   possible contexts  in the training text  only once  validation text unseen")
for n in range(1, 10):
    contexts = orders[n - 1]  # the contexts of n-grams are the (n - 1)-grams
    once = sum(count == 1 for count in contexts.values()) / len(contexts)
    val_contexts = [val_text[i : i + n - 1] for i in range(len(val_text) - n + 1)]
    unseen = sum(context not in contexts for context in val_contexts) / len(val_contexts)
    print(f"{n} {V ** (n - 1):19,} {len(contexts):21,} {once:10.0%} {unseen:23.1%}")

# %% [markdown]
# Unseen contexts need no memory. But for n = 8, 35% of the validation text has an unseen context.
#
# ## Add-one smoothing fails
#
# The bigram adds 1 to each count. For longer n-grams, this takes two dictionaries: the count of
# each n-gram, and the total count of each context (`ngram[:-1]`). A `Counter` returns 0 for a key
# that it does not contain. The first characters of the validation text have shorter contexts.

# %%
counts, totals = Counter(), Counter()
for ngrams in orders[1:8]:  # 1-grams to 7-grams
    for ngram, count in ngrams.items():
        counts[ngram] = count
        totals[ngram[:-1]] += count


def add_one(ngram):
    """Return the probability of the last character after the characters before it."""
    return (counts[ngram] + 1) / (totals[ngram[:-1]] + V)


def validation_loss(probability, n):
    """Return the mean of -ln p over the validation text, with n-grams."""
    ngrams = [val_text[max(0, i - n + 1) : i + 1] for i in range(len(val_text))]
    return -sum(math.log(probability(ngram)) for ngram in ngrams) / len(ngrams)


def measure(probability):
    losses = [validation_loss(probability, n) for n in range(1, 8)]
    print(*[f"n={n}: {loss:.3f}" for n, loss in enumerate(losses, start=1)], sep="  ")
    return losses


losses = {"add one": measure(add_one)}

# %% [markdown]
# The loss falls until n = 4 and then rises, to 3.03 for n = 7. The + 1 adds 65 characters to each
# context, and most long contexts occurred far fewer than 65 times. Take one that occurred once: the
# character that followed gets a probability of only (1 + 1) / (1 + 65) = 3%. The other 64 get 97%,
# although none of them ever followed. After an unseen context, each character gets 1/65.
#
# ## Interpolation: shorter contexts help
#
# After an unseen context, not all characters are equally likely, because a shorter context still
# has data. *Interpolation* (Jelinek and Mercer 1980) mixes the predictions: start with 1/65; then
# each context that occurs in the training text, the longest last, replaces half of the prediction.


# %%
def half_and_half(ngram):
    p = 1 / V
    for length in range(1, len(ngram) + 1):  # from no context to the longest context
        part = ngram[-length:]
        total = totals[part[:-1]]
        if total > 0:
            p = 0.5 * counts[part] / total + 0.5 * p
    return p


losses["half and half"] = measure(half_and_half)

# %% [markdown]
# The lowest loss is now 1.585 instead of 1.953, with the same counts. But every context gets the
# same half, so up to n = 3, the loss is higher than with add one. A context that occurred 10,000
# times deserves more than half, and one that occurred once deserves less.
#
# ## Discounting: how much is a count worth?
#
# Take the 7-grams that occur once in the first half of the training text. How often do they occur
# in the second half, on average? And those that occur twice, three times, and so on?

# %%
middle = len(train_text) // 2
first, second = count_ngrams(train_text[:middle], 7), count_ngrams(train_text[middle:], 7)
worth = {}
for count in range(1, 6):
    ngrams = [ngram for ngram in first if first[ngram] == count]
    worth[count] = sum(second[ngram] for ngram in ngrams) / len(ngrams)
    print(f"{count} in the first half, {worth[count]:.2f} in the second half")

# %% [markdown]
# In new text, a count of 1 is worth 0.65 less, and a count of 5 is worth 1.44 less. So
# *discounting* (Ney, Essen and Kneser 1994) subtracts a *discount* from each count. A large count
# hardly changes; a count of 1 loses most of its value. For one context, *total* is the sum of the
# counts of its n-grams, and *reserved* the sum of their discounts. So the part reserved / total of
# the probability is free. It goes to the shorter context. (After an unseen one, everything does.)
#
# $$p(\text{next} \mid \text{context}) = \frac{\text{count} - \text{discount}}{\text{total}} +
# \frac{\text{reserved}}{\text{total}} \cdot p(\text{next} \mid \text{shorter context})$$
#
# We use three discounts, for the counts 1, 2, and 3 or more. If $N_c$ n-grams occur c times, a
# count of c is worth about $(c + 1) \cdot N_{c+1} / N_c$ in new text (Good 1953). Chen and Goodman
# (1999, *An empirical study of smoothing techniques*, eq. 17) multiply this by a `ratio` below 1.
# The discount is c minus this. You can take the formula as given:


# %%
def estimate_discounts(ngrams):
    """Return the discounts of the counts 0, 1, 2, and 3 or more."""
    occurring = Counter(ngrams.values())  # maps a count to the number of n-grams that have it
    if min(occurring[count] for count in (1, 2, 3, 4)) == 0:
        return [0, 0.5, 1, 1.5]  # too few n-grams for an estimate (single characters)
    ratio = occurring[1] / (occurring[1] + 2 * occurring[2])
    estimates = [c - (c + 1) * ratio * occurring[c + 1] / occurring[c] for c in (1, 2, 3)]
    return [0, *(max(0, estimate) for estimate in estimates)]


print("discounts of 7-grams:", *[f"{number:.2f}" for number in estimate_discounts(orders[7])])

# %% [markdown]
# Before the shorter context adds its part, a count of 1 is worth 1 − 0.71 = 0.29, and a count of 2
# is worth 0.87. (We measured 0.35 and 1.08.) The model stores counts, totals and what is reserved:


# %%
class SmoothedCounts:
    """A model of discounted counts, interpolated with those of all shorter contexts."""

    def __init__(self, orders):
        self.counts, self.totals, self.reserved = {}, Counter(), Counter()
        self.discounts = [estimate_discounts(ngrams) for ngrams in orders]
        for ngrams, discounts in zip(orders, self.discounts, strict=True):
            for ngram, count in ngrams.items():
                self.counts[ngram] = count
                self.totals[ngram[:-1]] += count
                self.reserved[ngram[:-1]] += discounts[min(count, 3)]

    def probability(self, ngram):
        p = 1 / V
        for length in range(1, len(ngram) + 1):
            part, context = ngram[-length:], ngram[-length:-1]  # "EO:" and "EO" if length is 3
            if context in self.totals:
                count = self.counts.get(part, 0)
                discounted = count - self.discounts[length - 1][min(count, 3)]
                p = (discounted + self.reserved[context] * p) / self.totals[context]
        return p


# %%
discounting = SmoothedCounts(orders[1:8])
for context in ("ROMEO:", "e king"):
    followers = sum(ngram[:-1] == context for ngram in orders[7])  # different characters after it
    total, reserved = discounting.totals[context], discounting.reserved[context]
    print(f"{context!r}: total {total}, {followers} followers, reserved {reserved / total:.0%}")
losses["discounting"] = measure(discounting.probability)

# %% [markdown]
# The totals are similar. But only one character follows `ROMEO:`, so the model trusts it more. Up
# to n = 4, discounting is better than half and half, but then it is worse. Why? For n = 7, 18% of
# the validation characters after a known context are *new*: they never follow it in the training
# text. The model reserves 35% on average. But most of it goes to known followers, as they follow
# the shorter context, too. New ones get 9%, and their mean loss is 4.7 (half and half: 11%, 4.1).
#
# ## Kneser-Ney: count left neighbours
#
# For shorter contexts, Kneser and Ney (1995, *Improved backing-off for m-gram language modeling*)
# count something else: after how many *different* characters does an n-gram occur? An example:

# %%
left_neighbours = Counter(ngram[1:] for ngram in orders[4])  # each different 4-gram once
for ngram in ("ugh", "ugg"):
    before = sorted(longer[0] for longer in orders[4] if longer[1:] == ngram)
    print(f"{ngram!r}: count {counts[ngram]}, left neighbours {left_neighbours[ngram]}: {before}")

# %% [markdown]
# `ugh` is frequent, but mostly in `ough` and `augh`, and a longer context, such as `oug`, already
# predicts this `h`. The short context `ug` is needed after other letters, as in `struggle`. There,
# `g` is a better guess. So the counts of a shorter context should not repeat what longer ones know.
#
# Each *different* 4-gram gives one left neighbour to the 3-gram at its end. The loop below starts
# with the counts of the longest n-grams, which stay as they are. Each round counts the left
# neighbours of the n-grams that are one character shorter. This is *modified Kneser-Ney smoothing*.

# %%
levels = [orders[7]]
for _ in range(6):
    levels.insert(0, Counter(ngram[1:] for ngram in levels[0]))  # left neighbours
kneser_ney = SmoothedCounts(levels)
kneser_ney_loss = validation_loss(kneser_ney.probability, 7)
print(f"7-grams, Kneser-Ney: {kneser_ney_loss:.4f}")

# %% [markdown]
# With raw counts for the shorter contexts, the loss was 1.706. The package `nanogpt` has the same
# model, but faster ([`kneser_ney.py`](../nanogpt/text/kneser_ney.py)). We use it for all n:

# %%
train, val = train_tokens.numpy(), val_tokens.numpy()  # the package uses NumPy arrays
losses["Kneser-Ney"] = [KneserNey(train, n, V).loss(val) for n in range(1, 10)]
print(*[f"n={n}: {loss:.3f}" for n, loss in enumerate(losses["Kneser-Ney"], start=1)], sep="  ")

# %% alt="Loss by n: add one rises from n = 5 to 3.03; Kneser-Ney is lowest, 1.517 at n = 7"
figure, axes = plt.subplots(figsize=(7, 4))
styles = [(MUTED, "-", 1.3), (INK, ":", 1.3), (INK, "--", 1.3), (ACCENT, "-", 2.5)]
for values, (color, style, width) in zip(losses.values(), styles, strict=True):
    axes.plot(range(1, len(values) + 1), values, style, color=color, linewidth=width)
axes.text(5.9, 2.7, "add one", color=MUTED, ha="right")
axes.text(7.1, 1.78, "discounting", va="center")
axes.text(7.1, 1.6, "half and half", va="center")
axes.text(7, 1.3, "Kneser-Ney: 1.517 at n = 7", color=ACCENT, ha="center")
axes.plot(7, losses["Kneser-Ney"][6], "o", color=ACCENT)
axes.set(xlabel="n", ylabel="validation loss (nats per character)", ylim=(1.1, 3.65))
axes.set_title("All models count the same text: the smoothing decides")
show("smoothing")

# %% [markdown]
# Why does n = 8 not help (1.519)? In 35% of the validation text, the context of 7 characters is
# unseen. There, n = 8 also uses six characters, but counts left neighbours of the 7-grams, not how
# often they occur: its loss is 0.009 lower. In 37%, the context occurred 1 to 9 times: too little
# data, so its loss is 0.016 higher. In 28%, the losses differ by less than 0.001: the seventh
# character adds almost nothing. (We chose n by this loss, but n = 6 to 9 differ by under 0.01.)
#
# ## It generates text

# %%
torch.manual_seed(0)
sample = "\n"
for _ in range(400):
    p = torch.tensor([kneser_ney.probability(sample[-6:] + following) for following in alphabet])
    sample += alphabet[torch.multinomial(p, 1).item()]
print(sample)

# %% [markdown]
# The sample has names, words and lines like those of Shakespeare, but its sentences mean nothing:
# the model chooses each character from the last six alone.
#
# ## Counting against GPTs
#
# The package also has GPTs of several sizes, its [presets](../docs/presets.md). We load losses on
# the same validation text: of one training of the preset `baby`, and three of the smaller `tiny`.

# %% alt="The loss of a GPT, baby, falls below the line of the 7-grams, 1.517, at step 1,000"
runs = json.loads((RESULTS / "preset_tiny_cpu.json").read_text("utf-8"))["runs"]
tiny = sum(run["best"]["val_loss"] for run in runs) / len(runs)
run = json.loads((RESULTS / "versus_nanogpt_h100.json").read_text("utf-8"))["runs"]["nanogpt baby"]
baby = {point["step"]: point["val_loss"] for point in run[0]["evaluations"]}
print(f"tiny: {runs[0]['parameters']:,} parameters, trained {runs[0]['seconds']:.0f} s on 2 cores")
figure, axes = plt.subplots(figsize=(7, 3.6))
axes.plot(baby.keys(), baby.values(), "o-", color=INK, markersize=4)
axes.text(430, 1.93, "GPT baby, 10.8M (million) parameters")
axes.axhline(kneser_ney_loss, color=ACCENT, linewidth=2.5)
axes.text(2040, 1.535, "7-grams, Kneser-Ney: 1.517", color=ACCENT, ha="right")
axes.axhline(tiny, color=MUTED, linestyle="--")
axes.text(2040, tiny + 0.018, f"GPT tiny after its training: {tiny:.3f}", ha="right")
axes.set(xlabel="training step of baby", ylabel="validation loss")
axes.axis((200, 2050, 1.3, 2.1))
axes.set_title("A GPT of 10.8M parameters needs about 1,000 steps to be as good as counting")
show("gpts")

# %% [markdown]
# `tiny` reads up to 64 characters, the 7-grams only six, but its mean loss, 1.572, is above theirs.
# `baby` reads up to 256. It equals the 7-grams after 1,000 steps of 64 blocks and ends at 1.448. So
# counting beats a small GPT with a short training, but not a larger one with more training.
#
# ## What counting cannot do
#
# First, similar contexts share nothing if they end in different characters. The frequent `my lord`
# could help to predict what follows the rare `my lady`, but the model counts each alone (it sees
# six characters, so `my lord` is `y lord` for it). Second, the memory grows with the text:

# %%
for context in ("y lord", "y lady"):
    p = kneser_ney.probability(context + ",")
    print(f"{context!r} occurs {orders[6][context]:3} times; probability of a comma {p:.2f}")
print(f"the 7-grams and shorter n-grams: {len(kneser_ney.counts):,} counts")

# %% [markdown]
# The 362 occurrences of `y lord` do not help with `y lady`: the model has only the 19 of `y lady`,
# and shorter contexts, such as `lady`. And there are more counts than `tiny` has parameters. A
# neural network can do both better: it gives similar contexts similar vectors, and its size does
# not depend on the length of the text. We start in [lesson 4](04_attention.md).
#
# ## Scoreboard

# %%
show_scoreboard(3, {"7-grams, Kneser-Ney": kneser_ney_loss})

# %% [markdown]
# Six characters of context, well smoothed, lower the loss of the bigram by almost a nat. The next
# lessons start with small, briefly trained neural networks: their loss is much higher.
#
# ## Three common mistakes
#
# 1. You count n-grams of the whole text, including the validation text. *Symptom:* the loss is far
#    too low (0.94 for n = 7) and keeps falling as n grows. *Remedy:* count only the training text.
# 2. You count left neighbours for the longest n-grams, too. *Symptom:* the loss is 1.576 instead of
#    1.517. *Remedy:* the longest n-grams keep their raw counts.
# 3. You do not distribute what is reserved. *Symptom:* `math.log` raises a `ValueError`, because
#    new characters have p = 0. *Remedy:* check that the 65 probabilities after a context sum to 1.
#
# ## Exercises
#
# 1. Add 0.01 instead of 1 to each count. Which n is best now, and what is its loss?
# 2. Show from the formula: if the probabilities of all 65 characters after the shorter context sum
#    to 1, those after the context do, too. Check it for `the ki`.
# 3. Compare the loss of the 7-grams on the first letters of words and on later letters. Explain.

# %% tags=["solution"]
if SOLUTIONS:
    little = measure(lambda ngram: (counts[ngram] + 0.01) / (totals[ngram[:-1]] + 0.01 * V))
    print(f"1. n = 5: {little[4]:.3f}, still far above Kneser-Ney")
    p = [kneser_ney.probability("the ki" + character) for character in alphabet]
    print(f"2. {sum(p):.6f} = (total − reserved) / total + reserved / total · 1")
    assert abs(sum(p) - 1) < 1e-9 < round(min(little), 3) == round(little[4], 3) == 1.770
    groups = {True: [], False: []}  # is the character before a letter, too?
    for i in range(7, len(val_text)):
        if val_text[i].isalpha():
            p = kneser_ney.probability(val_text[i - 6 : i + 1])
            groups[val_text[i - 1].isalpha()].append(-math.log(p))
    later, first = [sum(group) / len(group) for group in groups.values()]
    print(f"3. first {first:.2f}, later {later:.2f}: six characters rarely show which word follows")
    assert (round(first, 2), round(later, 2)) == (2.95, 1.22)

# %% tags=["test"]
lowest = [(v.index(min(v)) + 1, round(min(v), 3)) for v in losses.values()]
assert lowest == [(4, 1.953), (6, 1.585), (5, 1.661), (7, 1.517)]
assert abs(kneser_ney_loss / losses["Kneser-Ney"][6] - 1) < 1e-10
assert max(losses["Kneser-Ney"][5:]) - min(losses["Kneser-Ney"]) < 0.01
assert sum(count < 65 for count in orders[6].values()) > 0.99 * len(orders[6])
assert ["struggle" in train_text, *(round(worth[i], 2) for i in (1, 2, 5))] == [1, 0.35, 1.08, 3.56]
known = [i for i in range(6, len(val_text)) if totals[val_text[i - 6 : i]]][::9]
shares = torch.zeros(4)  # new characters; reserved; what new ones get from two models
for i in known:
    context = val_text[i - 6 : i]
    new = [context + character for character in alphabet if not counts[context + character]]
    reserved = discounting.reserved[context] / discounting.totals[context]
    left = [sum(map(p, new)) for p in (discounting.probability, half_and_half)]
    shares += torch.tensor([val_text[i - 6 : i + 1] in new, reserved, *left])
assert (shares / len(known) - torch.tensor([0.18, 0.35, 0.09, 0.11])).abs().max() < 0.01
ngrams = [n for i in known if not counts[n := val_text[i - 6 : i + 1]]]  # with a new character
for p, expected in ((discounting.probability, 4.66), (half_and_half, 4.07)):
    assert abs(sum(-math.log(p(n)) for n in ngrams) / len(ngrams) - expected) < 0.05
occurred = torch.tensor([orders[7][val_text[i - 7 : i]] for i in range(7, len(val_text))])
groups = [occurred == 0, (occurred > 0) & (occurred < 10), occurred >= 10]
assert [round(group.double().mean().item(), 2) for group in groups] == [0.35, 0.37, 0.28]
p7, p8 = [torch.from_numpy(KneserNey(train, n, V).probabilities(val)[7:]) for n in (7, 8)]
assert [int(1000 * (p7 / p8).log()[group].mean()) for group in groups] == [-9, 16, 0]
assert (round(tiny, 3), round(baby[1000], 2), round(baby[2000], 4)) == (1.572, 1.51, 1.4485)
whole = torch.cat([train_tokens, val_tokens]).numpy()
assert round(KneserNey(whole, 7, V).loss(val), 2) == 0.94 > KneserNey(whole, 8, V).loss(val)
only_neighbours = KneserNey(train, 8, V)
only_neighbours.orders.pop()  # leaves the 7-grams, with the numbers of their left neighbours
assert round(only_neighbours.loss(val), 3) == 1.576

# %% [markdown]
# # 3. Counting well: longer contexts and smoothing
#
# The bigram of lesson 2 looks at one character and has a validation loss of 2.48. A longer context
# says more about the next character. How low can the loss get by counting alone, without a neural
# network? The answer is a model that every GPT should be compared with.
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

from nanogpt.text.kneser_ney import KneserNey

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
print("n  possible contexts  in the training text  only once  validation text unseen")
unseen = {}
for n in range(1, 10):
    contexts = orders[n - 1]
    once = sum(count == 1 for count in contexts.values()) / len(contexts)
    val_contexts = [val_text[i : i + n - 1] for i in range(len(val_text) - n + 1)]
    unseen[n] = sum(context not in contexts for context in val_contexts) / len(val_contexts)
    print(f"{n} {V ** (n - 1):18,} {len(contexts):21,} {once:10.0%} {unseen[n]:23.1%}")

# %% [markdown]
# A dictionary holds only the contexts that occur, so memory is not the problem. But for n = 8, 35%
# of the validation text has a context without any data.
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
# The loss falls until n = 4 and then rises, to 3.03 for n = 7. Most long contexts occur only once.
# The character that followed gets a probability of only (1 + 1) / (1 + 65) = 3%. The other 64
# characters get 97%, although none of them ever followed.
#
# ## Interpolation: shorter contexts help
#
# After an unseen context, not all characters are equally likely, because a shorter context still
# has data. *Interpolation* mixes the predictions: start with equal probabilities, and let each
# longer context replace half of the prediction so far. An unseen context changes nothing.


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
# In new text, a count of 1 is worth 0.65 less, and a count of 5 is worth 1.44 less. (The halves
# also contain different plays.) So *discounting* subtracts a *discount* from each count. A large
# count hardly changes; a count of 1 loses most of its value. The discounts of all n-grams with the
# same context sum to *reserved*, and their counts to *total*. The shorter context gets *reserved*:
#
# $$p(\text{next} \mid \text{context}) = \frac{\text{count} - \text{discount}}{\text{total}} +
# \frac{\text{reserved}}{\text{total}} \cdot p(\text{next} \mid \text{shorter context})$$
#
# Chen and Goodman (1999, *An empirical study of smoothing techniques*, eq. 17) use three discounts,
# for the counts 1, 2, and 3 or more. The function below estimates them from the numbers of n-grams
# that occur once, twice, three times and four times.


# %%
def estimate_discounts(ngrams):
    """Return the discounts of the counts 0, 1, 2, and 3 or more."""
    occurring = Counter(ngrams.values())  # maps a count to the number of n-grams that have it
    if min(occurring[count] for count in (1, 2, 3, 4)) == 0:
        return [0, 0.5, 1, 1.5]  # too few n-grams for an estimate
    ratio = occurring[1] / (occurring[1] + 2 * occurring[2])
    estimates = [c - (c + 1) * ratio * occurring[c + 1] / occurring[c] for c in (1, 2, 3)]
    return [0, *(max(0, estimate) for estimate in estimates)]


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
        """Return the probability of the last character after the characters before it."""
        p = 1 / V
        for length in range(1, len(ngram) + 1):
            part, context = ngram[-length:], ngram[-length:-1]
            if context in self.totals:
                count = self.counts.get(part, 0)
                discounted = count - self.discounts[length - 1][min(count, 3)]
                p = (discounted + self.reserved[context] * p) / self.totals[context]
        return p


discounting = SmoothedCounts(orders[1:8])
print("discounts of 7-grams:", *[f"{discount:.2f}" for discount in discounting.discounts[-1]])
for context in ("ROMEO:", "e king"):
    share = discounting.reserved[context] / discounting.totals[context]
    print(f"{context!r}: total {discounting.totals[context]}, reserved {share:.0%}")
losses["discounting"] = measure(discounting.probability)

# %% [markdown]
# The two contexts have similar totals. But one character follows `ROMEO:`, and 12 different ones
# follow `e king`. So the model trusts `ROMEO:` more, and reserves less for the shorter context.
#
# Up to n = 4, discounting is better than half and half, but then it is worse. The next section
# shows why.
#
# ## Kneser-Ney: count left neighbours
#
# The model relies on a shorter context mostly where the longer one has little or no data. So the
# counts of the shorter one should not repeat what longer ones know. Kneser and Ney (1995, *Improved
# backing-off for m-gram language modeling*) count something else: after how many *different*
# characters does an n-gram occur? Two 3-grams as an example:

# %%
left_neighbours = Counter(ngram[1:] for ngram in orders[4])
for ngram in ("ugh", "ugg"):
    before = sorted(longer[0] for longer in orders[4] if longer[1:] == ngram)
    print(f"{ngram!r}: count {counts[ngram]}, left neighbours {left_neighbours[ngram]}: {before}")

# %% [markdown]
# `ugh` is frequent, but only in pieces like `ough` and `augh`, which longer contexts know. After
# other letters, as in `struggle`, `g` is a better guess than `h` for the character after `ug`.
#
# Each *different* 4-gram is one left neighbour of the 3-gram at its end. The loop below starts with
# the counts of the longest n-grams, which stay as they are. Each round counts the left neighbours
# of the n-grams that are one character shorter. This is *modified Kneser-Ney smoothing*.


# %%
def make_kneser_ney(text, n):
    orders = [count_ngrams(text, n)]
    for _ in range(n - 1):
        orders.insert(0, Counter(ngram[1:] for ngram in orders[0]))  # left neighbours
    return SmoothedCounts(orders)


kneser_ney = make_kneser_ney(train_text, 7)
kneser_ney_loss = validation_loss(kneser_ney.probability, 7)
print(f"7-grams, Kneser-Ney: {kneser_ney_loss:.4f}")

# %% [markdown]
# A loss of 1.517, against 1.706 with normal counts for the shorter contexts. The package has the
# same model with sorted arrays ([`kneser_ney.py`](../nanogpt/text/kneser_ney.py)), which are faster
# than dictionaries. Both agree to ten digits:

# %%
train, val = train_tokens.numpy(), val_tokens.numpy()
mine = [kneser_ney.probability(val_text[max(0, i - 6) : i + 1]) for i in range(1000)]
package = torch.from_numpy(KneserNey(train, 7, V).probabilities(val[:1000]))
torch.testing.assert_close(torch.tensor(mine, dtype=torch.float64), package, rtol=1e-10, atol=0)

losses["Kneser-Ney"] = [KneserNey(train, n, V).loss(val) for n in range(1, 10)]
print(*[f"n={n}: {loss:.3f}" for n, loss in enumerate(losses["Kneser-Ney"], start=1)], sep="  ")

# %% alt="Loss by n: add one rises from n = 5 to 3.03; Kneser-Ney is lowest, 1.517 at n = 7"
figure, axes = plt.subplots(figsize=(7, 4))
styles = [(MUTED, "-", 1.3), (INK, ":", 1.3), (INK, "--", 1.3), (ACCENT, "-", 2.5)]
for values, (color, style, width) in zip(losses.values(), styles, strict=True):
    axes.plot(range(1, len(values) + 1), values, style, color=color, linewidth=width)
axes.text(5.9, 2.7, "add one", color=MUTED, ha="right")
axes.text(7.1, 1.73, "discounting", va="center")
axes.text(7.1, 1.6, "half and half", va="center")
axes.text(7, 1.35, "Kneser-Ney: 1.517 at n = 7", color=ACCENT, ha="center")
axes.plot(7, losses["Kneser-Ney"][6], "o", color=ACCENT)
axes.set(xlabel="n", ylabel="validation loss (nats per character)", ylim=(1.1, 3.65))
axes.set_title("All models count the same text: the smoothing decides")
show("smoothing")

# %% [markdown]
# Why does n = 8 not help (1.519)? The table above has the reason: 68% of the contexts of 7
# characters occur only once. They hardly add to what shorter contexts know. (The validation loss
# itself chose n = 7. This makes little difference: the losses for n = 6 to 9 differ by under 0.01.)
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
# The [presets](../docs/presets.md) of this package are GPTs of several sizes. Files hold their
# losses on the same texts: of one training of `baby`, and three trainings of the smaller `tiny`.

# %% alt="The loss of a GPT, baby, falls below the line of the 7-grams, 1.517, at step 1,000"
runs = json.loads((RESULTS / "preset_tiny_cpu.json").read_text("utf-8"))["runs"]
tiny = sum(run["best"]["val_loss"] for run in runs) / len(runs)
run = json.loads((RESULTS / "versus_nanogpt_h100.json").read_text("utf-8"))["runs"]["nanogpt baby"]
baby = {point["step"]: point["val_loss"] for point in run[0]["evaluations"]}

figure, axes = plt.subplots(figsize=(7, 3.6))
axes.plot(baby.keys(), baby.values(), "o-", color=INK, markersize=4)
axes.text(430, 1.9, "GPT baby, 10.8M parameters")
axes.axhline(kneser_ney_loss, color=ACCENT, linewidth=2.5)
axes.text(2040, 1.535, "7-grams, Kneser-Ney: 1.517", color=ACCENT, ha="right")
axes.axhline(tiny, color=MUTED, linestyle="--")
axes.text(2040, tiny + 0.018, f"GPT tiny after its training: {tiny:.3f}", ha="right")
axes.set(xlabel="training step of baby", ylabel="validation loss")
axes.axis((200, 2050, 1.3, 2.1))
axes.set_title("A GPT of 10.8M parameters needs about 1,000 steps to be as good as counting")
show("gpts")

# %% [markdown]
# `tiny` has 809,856 parameters and trains for two minutes. Its mean loss is 1.727, above that of
# the 7-grams. `baby` is level with the 7-grams after 1,000 steps and ends at 1.448. So counting
# beats a small GPT with a short training, and a larger GPT with enough training beats counting.
#
# ## What counting cannot do
#
# First, similar contexts share nothing. `my lord` and `my lady` are used alike, but the model has
# to count what follows each of them. Second, the memory grows with the text:

# %%
for context in ("y lord", "y lady"):
    p = kneser_ney.probability(context + ",")
    print(f"{context!r} occurs {orders[6][context]:3} times; probability of a comma {p:.2f}")
print(f"the 7-grams and shorter n-grams: {len(kneser_ney.counts):,} counts")

# %% [markdown]
# These are more counts than `tiny` has parameters. A neural network can do both better: it gives
# similar contexts similar vectors, and its size does not depend on the length of the text. The
# first part of one comes in [lesson 4](04_attention.md).
#
# ## Scoreboard

# %%
show_scoreboard(3, {"7-grams, Kneser-Ney": kneser_ney_loss})

# %% [markdown]
# Six characters of context, well smoothed, lower the loss of the bigram by almost a nat. The neural
# networks of the next lessons are small and train for a short time; they start far above this row.
#
# ## Three common mistakes
#
# 1. You count n-grams of the whole text, including the validation text. Symptom: the loss is far
#    too low (0.94 for n = 7) and keeps falling as n grows. Remedy: count only the training text.
# 2. You count left neighbours for the longest n-grams, too. Symptom: the loss is 1.576 instead of
#    1.517. Remedy: the longest n-grams keep their normal counts.
# 3. You subtract the discounts but do not distribute what is reserved. Symptom: `math.log` raises a
#    `ValueError`, because unseen n-grams have the probability 0. Remedy: check that the
#    probabilities of all 65 characters after a context sum to 1.
#
# ## Exercises
#
# 1. Add 0.01 instead of 1 to each count. Which n is best now, and what is its loss?
# 2. What is the sum of the probabilities of all 65 characters after `the ki`? Why?
# 3. Which letters are hard to predict? Compare the loss of the 7-grams on the first letter of a
#    word with the loss on the later letters. Explain the difference.

# %% tags=["solution"]
if SOLUTIONS:

    def add_little(ngram):
        return (counts[ngram] + 0.01) / (totals[ngram[:-1]] + 0.01 * V)

    little = measure(add_little)
    assert round(little[4], 3) == min(round(loss, 3) for loss in little) == 1.770
    print("1. n = 5: 1.770, still far above Kneser-Ney")

    p = [kneser_ney.probability("the ki" + character) for character in alphabet]
    print(f"2. {sum(p):.6f}: the shorter contexts distribute exactly what the discounts take away")
    assert abs(sum(p) - 1) < 1e-9

    groups = {"first": [], "later": []}
    for i in range(7, len(val_text)):
        if val_text[i].isalpha():
            group = groups["later" if val_text[i - 1].isalpha() else "first"]
            group.append(-math.log(kneser_ney.probability(val_text[i - 6 : i + 1])))
    means = {name: round(sum(group) / len(group), 2) for name, group in groups.items()}
    print(f"3. {means}: six characters complete a word, but they seldom show which word comes next")
    assert means == {"first": 2.95, "later": 1.22}

# %% tags=["test"]
assert round(unseen[8], 2) == 0.35
assert [round(min(v), 3) for v in losses.values()] == [1.953, 1.585, 1.661, 1.517]
assert [v.index(min(v)) + 1 for v in losses.values()] == [4, 6, 5, 7]
assert [round(losses[name][6], 2) for name in losses] == [3.03, 1.59, 1.71, 1.52]
assert [round(losses["discounting"][6], 3), round(losses["Kneser-Ney"][7], 3)] == [1.706, 1.519]
one, half, discounted, _ = (torch.tensor(values[:7]) for values in losses.values())
assert (discounted < half).tolist() == [True] * 4 + [False] * 3
assert (half > one).tolist() == [True] * 3 + [False] * 4
assert max(losses["Kneser-Ney"][5:]) - min(losses["Kneser-Ney"]) < 0.01
assert [round(count - worth[count], 2) for count in (1, 5)] == [0.65, 1.44]
assert round(list(orders[7].values()).count(1) / len(orders[7]), 2) == 0.68
followers = [sum(context + c in orders[7] for c in alphabet) for context in ("ROMEO:", "e king")]
assert followers == [1, 12]
assert "struggle" in train_text
assert (round(tiny, 3), round(baby[1000], 2), round(baby[2000], 4)) == (1.727, 1.51, 1.4485)
assert 809_856 == runs[0]["parameters"] < len(kneser_ney.counts) == 872_748
assert [100 < run["seconds"] < 140 for run in runs] == [True] * 3
whole = torch.cat([train_tokens, val_tokens]).numpy()
assert round(KneserNey(whole, 7, V).loss(val), 2) == 0.94 > KneserNey(whole, 8, V).loss(val)
only_neighbours = KneserNey(train, 8, V)
only_neighbours.orders.pop()  # leaves the 7-grams, with the numbers of their left neighbours
assert round(only_neighbours.loss(val), 3) == 1.576

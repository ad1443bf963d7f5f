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
import random
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
# never occurs in the training text?

# %%
orders = [count_ngrams(train_text, n) for n in range(9)]  # orders[n] counts the n-grams
print("n  possible contexts  in the training text  only once  validation text unseen")
unseen = {}
for n in range(1, 10):
    contexts = orders[n - 1]
    once = sum(count == 1 for count in contexts.values()) / len(contexts)
    asked = [val_text[i : i + n - 1] for i in range(len(val_text) - n + 1)]
    unseen[n] = sum(context not in contexts for context in asked) / len(asked)
    print(f"{n} {V ** (n - 1):18,} {len(contexts):21,} {once:10.0%} {unseen[n]:23.1%}")

# %% alt="Bars: the share of unseen contexts grows from 1% for n = 4 to 50% for n = 9"
figure, axes = plt.subplots(figsize=(6, 2.8))
bars = axes.bar(unseen.keys(), unseen.values(), color=ACCENT, width=0.6)
axes.bar_label(bars, [f"{share:.0%}" for share in unseen.values()], padding=2)
axes.set(xlabel="n", ylabel="share of the validation text", xticks=range(1, 10), ylim=(0, 0.55))
axes.set_title("Longer contexts: more and more of them were never seen")
axes.grid(False, axis="x")
show("unseen")

# %% [markdown]
# A table for all 4.9 trillion contexts of 7 characters (n = 8) would not fit into memory, but a
# dictionary holds only those that occur. The real problem is that 35% of the validation text has a
# context without any data.
#
# ## Add-one smoothing fails
#
# The bigram adds 1 to each count. For longer n-grams, this takes two dictionaries: the count of
# each n-gram, and the total count of each context.

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
    """Return the losses for n = 1 to 7, and print them."""
    losses = [validation_loss(probability, n) for n in range(1, 8)]
    print(*[f"n={n}: {loss:.3f}" for n, loss in enumerate(losses, start=1)], sep="  ")
    return losses


losses = {"add one": measure(add_one)}

# %% [markdown]
# The loss falls until n = 4 and then rises, to 3.03 for n = 7. Most long contexts occur only once,
# so only one character ever followed. After adding 1 to the counts of all 65 characters, it has a
# probability of only 2 / 66 = 3%; the other 64 characters get 97%.
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
# same half. A context that occurred 10,000 times deserves more trust than one that occurred once.
#
# ## Discounting: how much is a count worth?
#
# Take the 7-grams that occur once in the first half of the training text. How often do they occur
# in the second half, on average? The same for those that occur twice, and so on:

# %%
middle = len(train_text) // 2
first, second = count_ngrams(train_text[:middle], 7), count_ngrams(train_text[middle:], 7)
worth = {}
for count in range(1, 6):
    ngrams = [ngram for ngram in first if first[ngram] == count]
    worth[count] = sum(second[ngram] for ngram in ngrams) / len(ngrams)
    print(f"{count} in the first half, {worth[count]:.2f} in the second half")

# %% [markdown]
# A count of 1 is too high by 0.65, a count of 5 by 1.44. So *discounting* subtracts about 1 from
# each count: a large count hardly changes, a count of 1 loses most of its value. The sum that a
# context loses is *reserved*: the prediction of the shorter context distributes it.
#
# $$p(\text{next} \mid \text{context}) = \frac{\text{count} - \text{discount}}{\text{total}} +
# \frac{\text{reserved}}{\text{total}} \cdot p(\text{next} \mid \text{shorter context})$$
#
# A frequent context with few different next characters reserves little, so it is trusted more. Chen
# and Goodman (1999, *An empirical study of smoothing techniques for language modeling*, eq. 17) use
# three discounts, for the counts 1, 2, and 3 or more. If $n_c$ n-grams have the count $c$:
#
# $$\text{discount}_c = c - (c + 1) \, \frac{n_1}{n_1 + 2 n_2} \, \frac{n_{c+1}}{n_c}$$


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
losses["discounting"] = measure(discounting.probability)

# %% [markdown]
# This is better than half and half up to n = 4, but worse for longer n-grams. Something is still
# wrong: the counts of the shorter contexts.
#
# ## Kneser-Ney: count left neighbours
#
# The name `VINCENTIO` occurs 193 times in the training text, each time after `DUKE`. So the context
# `DUKE ` predicts it well; in any other context, it is a bad guess, although it is frequent. A
# shorter context matters most where the longer one has little or no data. So Kneser and Ney (1995)
# ask: after how many *different* characters does an n-gram occur? An example:

# %%
left_neighbours = Counter(ngram[1:] for ngram in orders[4])
for ngram in ("ugh", "ugg"):
    before = sorted(longer[0] for longer in orders[4] if longer[1:] == ngram)
    print(f"{ngram!r}: count {counts[ngram]}, left neighbours {left_neighbours[ngram]}: {before}")

# %% [markdown]
# `ugh` is frequent, but only in pieces like `ough` and `augh`, which longer contexts know. After
# any other letter, as in `struggle`, `ugg` is the better guess.
#
# In code, each *different* 4-gram is one left neighbour of the 3-gram at its end. One line counts
# them. Only the longest n-grams keep their normal counts. With these counts, the same class does
# *modified Kneser-Ney smoothing*.


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
axes.annotate("Kneser-Ney: 1.517 at n = 7", (7, losses["Kneser-Ney"][6]), (7, 1.25), color=ACCENT,
              ha="center", arrowprops={"arrowstyle": "->", "color": ACCENT})  # fmt: skip
axes.set(xlabel="n", ylabel="validation loss (nats per character)", ylim=(1.1, 3.5))
axes.set_title("All models count the same text: the smoothing decides")
show("smoothing")

# %% [markdown]
# Why does n = 8 not help (1.519)? The table above has the reason: 68% of the contexts of 7
# characters occur only once. They hardly add to what shorter contexts know.
#
# ## It generates text
#
# `random.choices` samples a character according to the probabilities.

# %%
random.seed(0)
sample = "\n"
for _ in range(400):
    p = [kneser_ney.probability(sample[-6:] + character) for character in alphabet]
    sample += random.choices(alphabet, p)[0]
print(sample)

# %% [markdown]
# This looks like Shakespeare, since it consists of copies. The next cell splits the sample into the
# longest pieces that occur in the training text.


# %%
def split_into_copies(sample):
    pieces = [""]
    for character in sample:
        if pieces[-1] + character in train_text:
            pieces[-1] += character
        else:
            pieces.append(character)
    return pieces


copies, real = split_into_copies(sample), split_into_copies(val_text[:400])
print("|".join(copies)[:200], "…\n\nlongest copy:", repr(max(copies, key=len)))
print(f"{len(copies)} copies; {len(real)} in 400 characters of the validation text")

# %% [markdown]
# The longest copy has 22 characters, most of them in a name. But the true Shakespeare of the
# validation text consists of such copies, too. The sample is nonsense for another reason: the model
# chooses each character from the last six alone.
#
# ## Counting against GPTs
#
# The [presets](../docs/presets.md) of this package are GPTs of several sizes. Their results on the
# same texts lie in `benchmarks/results`.

# %% alt="The loss of a GPT, baby, falls below the line of the 7-grams, 1.517, at step 1,000"
presets = {}
for name, device in (("tiny", "cpu"), ("best", "cuda")):
    runs = json.loads((RESULTS / f"preset_{name}_{device}.json").read_text("utf-8"))["runs"]
    presets[name] = sum(run["best"]["val_loss"] for run in runs) / len(runs)
run = json.loads((RESULTS / "versus_nanogpt_h100.json").read_text("utf-8"))["runs"]["nanogpt baby"]
baby = {point["step"]: point["val_loss"] for point in run[0]["evaluations"]}

figure, axes = plt.subplots(figsize=(7, 3.6))
axes.plot(baby.keys(), baby.values(), "o-", color=INK, markersize=4)
axes.text(430, 1.9, "GPT baby, 10.8M parameters")
axes.axhline(kneser_ney_loss, color=ACCENT, linewidth=2.5)
axes.text(2040, 1.535, "7-grams, Kneser-Ney: 1.517", color=ACCENT, ha="right")
for name, loss in presets.items():
    axes.axhline(loss, color=MUTED, linestyle="--")
    height = loss + (0.018 if name == "tiny" else -0.045)
    axes.text(2040, height, f"GPT {name} after its training: {loss:.3f}", ha="right")
axes.set(
    xlabel="training step of baby", ylabel="validation loss", xlim=(200, 2050), ylim=(1.3, 2.1)
)
axes.set_title("A GPT of 10.8M parameters needs 1,000 steps to be as good as counting")
show("gpts")

# %% [markdown]
# `tiny`, a GPT with 0.8 million parameters, trains for two minutes and stays above the 7-grams,
# which the package counts in half a second. `baby` is level with them after 1,000 steps. At the end
# it is at 1.448, and `best` at 1.378. So counting beats a small GPT, and a larger GPT with enough
# training beats counting.
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
# 2. Count only the first half of the training text. What happens to the loss of the 7-grams, and to
#    the number of counts?
# 3. Which letters are hard to predict? Compare the loss of the 7-grams on the first letter of a
#    word with the loss on the later letters. Explain the difference.

# %% tags=["solution"]
if SOLUTIONS:

    def add_little(ngram):
        return (counts[ngram] + 0.01) / (totals[ngram[:-1]] + 0.01 * V)

    little = measure(add_little)
    assert round(little[4], 3) == min(round(loss, 3) for loss in little) == 1.770
    print("1. n = 5: 1.770, still far above Kneser-Ney")

    half = make_kneser_ney(train_text[:middle], 7)
    half_loss = validation_loss(half.probability, 7)
    print(f"2. {half_loss:.3f}, with {len(half.counts):,} counts: less text, and from other plays")
    assert (round(half_loss, 3), len(half.counts)) == (1.769, 554_706)

    groups = {"first": [], "later": []}
    for i in range(7, len(val_text)):
        if val_text[i].isalpha():
            group = groups["later" if val_text[i - 1].isalpha() else "first"]
            group.append(-math.log(kneser_ney.probability(val_text[i - 6 : i + 1])))
    means = {name: round(sum(group) / len(group), 2) for name, group in groups.items()}
    print(f"3. {means}: six characters complete a word, but they seldom show which word comes next")
    assert means == {"first": 2.95, "later": 1.22}

# %% tags=["test"]
assert [round(unseen[n], 2) for n in range(4, 10)] == [0.01, 0.04, 0.10, 0.21, 0.35, 0.50]
assert [round(min(v), 3) for v in losses.values()] == [1.953, 1.585, 1.661, 1.517]
assert [v.index(min(v)) + 1 for v in losses.values()] == [4, 6, 5, 7]
assert [round(losses[name][6], 2) for name in losses] == [3.03, 1.59, 1.71, 1.52]
assert [round(losses["discounting"][6], 3), round(losses["Kneser-Ney"][7], 3)] == [1.706, 1.519]
pairs = zip(losses["discounting"], losses["half and half"], strict=True)
assert [a < b for a, b in pairs] == [True] * 4 + [False] * 3
assert [round(count - worth[count], 2) for count in (1, 5)] == [0.65, 1.44]
occurring = Counter(orders[7].values())
assert round(occurring[1] / occurring.total(), 2) == 0.68
assert train_text.count("VINCENTIO") == train_text.count("DUKE VINCENTIO") == 193
assert "struggle" in train_text
assert max(map(len, copies)) == 22
assert [round(loss, 3) for loss in presets.values()] == [1.727, 1.378]
assert (round(baby[1000], 2), round(baby[2000], 4)) == (1.51, 1.4485)
run = json.loads((RESULTS / "preset_tiny_cpu.json").read_text("utf-8"))["runs"][0]
assert 809_856 == run["parameters"] < len(kneser_ney.counts) == 872_748
rungs = json.loads((RESULTS / "ladder.json").read_text("utf-8"))["rungs"]
assert run["seconds"] > 100
assert any(rung["name"] == "kneser-ney" and rung["seconds"] < 0.5 for rung in rungs)
whole = torch.cat([train_tokens, val_tokens]).numpy()
assert round(KneserNey(whole, 7, V).loss(val), 2) == 0.94 > KneserNey(whole, 8, V).loss(val)
only_neighbours = KneserNey(train, 8, V)
only_neighbours.orders.pop()  # leaves the 7-grams, with the numbers of their left neighbours
assert round(only_neighbours.loss(val), 3) == 1.576
assert abs(sum(kneser_ney.probability("the ki" + c) for c in alphabet) - 1) < 1e-9

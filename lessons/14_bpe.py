# %% [markdown]
# # 14. Byte-pair encoding
#
# In the lessons so far, a token was a character. GPT-2 has 50,257 different tokens, and many of
# them are whole words. So a text has fewer tokens, and a block with the same number of tokens
# covers more text. Where does such a vocabulary come from? This lesson builds the method of GPT-2,
# *byte-pair encoding*, or BPE (Gage 1994 for data compression; Sennrich et al. 2016,
# arXiv:1508.07909, for language; Radford et al. 2019 for the bytes of all languages).
#
# **Before this lesson:** [lesson 2](02_bigram.md): token, vocabulary, loss in nats;
# [lesson 3](03_counting.md): `Counter`, and the Kneser-Ney model, which compares tokenizers here.
#
# **You will see:** a tokenizer of less than 50 lines that learns the same tokens as the library
# `tokenizers`; why 256 bytes cover every text; and a loss of 2.84 that is as good as one of 1.52.
#
# ## Bytes cover every text
#
# The alphabet of Tiny Shakespeare has 65 characters, so `ü` and `🙂` have no token. Unicode, the
# list of the characters of all languages, has more than 100,000. Most of them never occur in our
# text, so a model could not learn their tokens. But computers store every text as *bytes*, numbers
# from 0 to 255. The usual way to write characters as bytes is UTF-8: one byte for an English
# character, two to four bytes for others.

# %%
import json
import math
import re
from collections import Counter
from itertools import pairwise

import matplotlib.pyplot as plt
from lesson import RESULTS, SOLUTIONS, V, text, train_tokens, val_tokens
from pictures import ACCENT, FILL, SOFT, box, diagram, show, write

from nanogpt.text import bpe
from nanogpt.text.kneser_ney import KneserNey

train_text, val_text = text[: len(train_tokens)], text[len(train_tokens) :]
for character in "e", "ü", "€", "🙂":
    print(character, list(character.encode()))

# %% [markdown]
# Python's `encode()` returns the bytes of a text. A vocabulary of the 256 possible bytes covers
# every text. But its tokens are short, and BPE joins them into longer ones. GPT-2 has 256 bytes,
# 50,000 joined tokens, and one token for the end of a text: 50,257 tokens.
#
# ## Merge the most frequent pair
#
# Training repeats one step: find the most frequent pair of neighbouring tokens, and *merge* it into
# a new token. The new token gets the next free number: 256, 257, and so on. `pairwise` returns each
# token with the token after it.

# %%
small = "the hat, the cat, the mat"
tokens = tuple(small.encode())
pairs = Counter(pairwise(tokens))
for pair, count in pairs.most_common(5):
    print(pair, repr(bytes(pair).decode()), count)

# %% [markdown]
# Four pairs occur three times. A *tie* needs a rule, so that the training always gives the same
# result. Ours: take the pair with the smallest first number; if these are equal, too, the smallest
# second number. Python's `min` compares pairs in this way. Here it takes `(97, 116)`.


# %%
def most_frequent(pairs):
    largest = max(pairs.values())
    return min(pair for pair, count in pairs.items() if count == largest)


def merge(tokens, pair, new):
    """Return the tokens, with the token `new` in place of each occurrence of the pair."""
    merged, i = [], 0
    while i < len(tokens):
        if tokens[i : i + 2] == pair:
            merged.append(new)
            i += 2
        else:
            merged.append(tokens[i])
            i += 1
    return tuple(merged)


vocabulary = [bytes([byte]) for byte in range(256)]  # the bytes of each token
history = [[vocabulary[token].decode() for token in tokens]]
for new in range(256, 263):
    pairs = Counter(pairwise(tokens))
    pair = most_frequent(pairs)
    left, right = pair
    tokens = merge(tokens, pair, new)
    vocabulary.append(vocabulary[left] + vocabulary[right])
    history.append([vocabulary[token].decode() for token in tokens])
    parts = f"{vocabulary[left].decode()!r} + {vocabulary[right].decode()!r}"
    print(f"{new}: {parts:14} occurs {pairs[pair]} times; {len(tokens):2} tokens remain")

# %% alt="The same text as 25 bytes and after 1, 4 and 7 merges: 22, 13 and 7 tokens"
axes = diagram(76, 30)
for row, merges in enumerate((0, 1, 4, 7)):
    left, y = 19, 26 - 7 * row
    for token in history[merges]:
        width = 2.2 * len(token)
        color = SOFT if len(token) > 1 else FILL
        box(axes, left + width / 2, y, token.replace(" ", "␣"), width, 4.4, color)
        left += width
    write(axes, 1, y, f"{merges} merge{'s' * (merges != 1)}", align="left")
    write(axes, 10, y, f"{len(history[merges])} tokens", align="left", bold=True)
show("merges")

# %% [markdown]
# After four merges, `the␣` is one token, although nobody told the program what a word is.
#
# ## Split the text first
#
# The last merges are bad: `at,␣the␣` joins the end of a word, a comma, a whole word and two spaces.
# In a longer text, BPE would also learn tokens like `dog.`, `dog!` and `dog?` (an example of
# Radford et al.). They fill the vocabulary, and a model has to learn for each of them separately
# what a dog is. So GPT-2 first splits the text into parts, and merges only inside a part. This is
# called *pre-tokenisation*. A *regular expression* describes the parts. In it, `|` means "or", ` ?`
# an optional space, and `+` "once or more often". The last line leaves the last of several spaces
# to the word after it. (GPT-2's own pattern differs only in rare characters.)

# %%
PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)"  # an ending, such as 's
    r"| ?[^\W\d_]+"  # a word: letters, with the space before them if there is one
    r"| ?\d+"  # a number: digits, also with the space before them
    r"| ?(?:[^\s\w]|_)+"  # other symbols, also with the space before them
    r"|\s+(?!\S)|\s+"  # spaces and line breaks
)
print(re.findall(PATTERN, "The dog's 12 cats: a dog, the dog! The dog."))

# %% [markdown]
# ## Train on Tiny Shakespeare
#
# The training combines these steps. A word that occurs 100 times has the same tokens each time. So
# the program keeps each different part once, with its count.


# %%
def train_bpe(text, vocab_size):
    """Return the merges, a dictionary from a pair to its new token, and the vocabulary."""
    counts = Counter(re.findall(PATTERN, text))  # how often each part occurs
    parts = {part: tuple(part.encode()) for part in counts}
    vocabulary = [bytes([byte]) for byte in range(256)]
    merges = {}
    for new in range(256, vocab_size):
        pairs = Counter()
        for part, tokens in parts.items():
            for pair in pairwise(tokens):
                pairs[pair] += counts[part]
        pair = most_frequent(pairs)
        left, right = pair
        merges[pair] = new
        vocabulary.append(vocabulary[left] + vocabulary[right])
        parts = {part: merge(tokens, pair, new) for part, tokens in parts.items()}
    return merges, vocabulary


merges, vocabulary = train_bpe(train_text, 512)
print("first tokens:", [token.decode() for token in vocabulary[256:276]])
longest = sorted(vocabulary[256:], key=len)[-8:]
print("longest tokens:", [token.decode() for token in longest])

# %% [markdown]
# The package trains with the library [`tokenizers`](https://github.com/huggingface/tokenizers)
# ([`bpe.py`](../nanogpt/text/bpe.py)), because the library is much faster. Does it find the same?

# %%
library = bpe.train_bpe([train_text], 512)
theirs = [library.token_bytes(token) for token in range(256, 512)]
assert set(vocabulary[256:]) == set(theirs)
different = [i for i in range(256) if vocabulary[256 + i] != theirs[i]]
print(f"the same 256 tokens; {len(different)} of them at another place")

# %% [markdown]
# The places differ only where pairs were tied. Then the library takes the smallest numbers, too.
# But it gives the 256 bytes other numbers, so it takes another of the tied pairs first.
#
# ## Encode and decode
#
# To encode a new text, do the same merges in the order of the training: a later merge may need the
# tokens of an earlier one. To decode, join the bytes of all tokens. The tokenizer of the library
# has methods with the same names.


# %%
def encode(text, merges):
    tokens = []
    for part in re.findall(PATTERN, text):
        part_tokens = tuple(part.encode())
        for pair, new in merges.items():  # a dictionary keeps the order of its entries
            part_tokens = merge(part_tokens, pair, new)
        tokens += part_tokens
    return tokens


def decode(tokens, vocabulary):
    return b"".join(vocabulary[token] for token in tokens).decode(errors="replace")


line = "Romeo, wherefore art thou a 🙂?"
tokens = encode(line, merges)
assert decode(tokens, vocabulary) == line
print(tokens)
print([decode([token], vocabulary) for token in tokens])
ours = [vocabulary[token] for token in encode(val_text[:5000], merges)]
assert ours == [library.token_bytes(token) for token in library.encode(val_text[:5000])]

# %% [markdown]
# The emoji has four tokens, one for each byte. A single byte of it is not a character, so `decode`
# shows `�`. The last line checks that the library encodes 5,000 new characters in the same way.
#
# ## Surprises
#
# A model sees only the numbers of the tokens. Texts that look alike can have different tokens. Here
# is a tokenizer of the library with 4,096 tokens, trained on the same text. (It numbers the bytes
# in another order: a space is 220.)

# %%
large = bpe.train_bpe([train_text], 4096)
for line in ("the king", "in the", "The king", "the  king", "KING", "king's", "thinking", "1623"):
    tokens = large.encode(line)
    print(f"{line!r:12}", "|".join(large.decode([token]) for token in tokens), tokens)

# %% [markdown]
# `the` and `␣the` are different tokens, and so are `The` and `the`. `KING` has no token in common
# with `␣king`, and `thinking` hides a king. A second space is a separate token. Numbers are rare in
# Shakespeare, so each digit is a token. The model has to learn from data which tokens are related.
# It never sees the letters inside a token, so spelling and rhymes are difficult for it.
#
# ## How large should the vocabulary be?
#
# A larger vocabulary makes a text shorter. We encode both texts with six vocabularies:

# %%
sizes = [256, 512, 1024, 2048, 4096, 8192]
encoded = {256: (train_text.encode(), val_text.encode())}
for size in sizes[1:]:
    tokenizer = bpe.train_bpe([train_text], size)
    encoded[size] = tokenizer.encode_array(train_text), tokenizer.encode_array(val_text)
of_train = [len(train_text) / len(train) for train, _ in encoded.values()]
of_val = [len(val_text) / len(val) for _, val in encoded.values()]
print("vocabulary size:                      ", *[f"{size:4}" for size in sizes])
print("characters per token, training text:  ", *[f"{length:.2f}" for length in of_train])
print("characters per token, validation text:", *[f"{length:.2f}" for length in of_val])

# %% [markdown]
# The first 256 merges almost halve the number of tokens. The 4,096 merges from 4,096 to 8,192
# tokens save only 8 to 9%, because the most frequent pairs came first. (The merges fit the training
# text better than the validation text.) Rare tokens cost twice: each needs a row in the embedding,
# and there are few examples to learn it from. Some bytes never occur: the text uses only 65 of 256.
#
# ## Losses of different tokenizers: bits per byte
#
# A long token is harder to predict than a character. So a loss in nats per token depends on the
# tokenizer, and such losses of different tokenizers cannot be compared. But the total losses of the
# *whole text* can be compared, because the text is the same. A bit is ln 2 nats. The loss of the
# whole text in bits, divided by the number of its bytes, is called *bits per byte*:
#
# $$\text{bits per byte} = \frac{\text{nats per token}}{\ln 2} \cdot
# \frac{\text{number of tokens}}{\text{number of bytes}}$$
#
# The next cell compares two tokenizers: `char`, one token per character, and `bpe:512`, our BPE
# with 512 tokens. For each, it measures two Kneser-Ney models (lesson 3): the bigram, and the
# n-grams with the lowest validation loss. The results of a GPT like `tiny`, with less training, are
# in [`vocabularies.json`](../benchmarks/results/vocabularies.json). Its Transformer blocks are the
# same with all tokenizers, and so is the number of operations of its training.


# %%
def tiny_bits(tokenizer):
    # the mean of the runs in which the Transformer blocks ("body") are the same
    same = [run for run in runs if (run["tokenizer"], run["same"]) == (tokenizer, "body")]
    return sum(run["bits_per_byte"] for run in same) / len(same)


val_bytes = len(val_text.encode())
ids = {"char": (train_tokens.numpy(), val_tokens.numpy()), "bpe:512": encoded[512]}
runs = json.loads((RESULTS / "vocabularies.json").read_text("utf-8"))["runs"]
nats, bits = {}, {}
print("columns: bigram, best n-grams, GPT tiny")
for name, (train, val) in ids.items():
    factor = len(val) / val_bytes / math.log(2)  # from nats per token to bits per byte
    vocab_size = V if name == "char" else 512
    ngrams = [KneserNey(train, n, vocab_size).loss(val) for n in range(2, 8)]
    nats[name] = [ngrams[0], min(ngrams), tiny_bits(name) / factor]  # of tiny: back to nats
    bits[name] = [loss * factor for loss in nats[name]]
    print(f"{name:8} nats per token", *[f"{loss:.2f}" for loss in nats[name]], end="")
    print(",  bits per byte", *[f"{loss:.2f}" for loss in bits[name]])
for name in ("bpe:2048", "bpe:8192"):
    print(f"{name}, GPT tiny: {tiny_bits(name):.2f} bits per byte")

# %% alt="Nats per token: characters are lower; bits per byte: bpe:512 is lower or level"
figure, both = plt.subplots(1, 2, figsize=(7, 3.2), sharey=True)
titles = ("nats per token: misleading", "bits per byte: fair")
for axes, losses, title in zip(both, (nats, bits), titles, strict=True):
    for row in range(3):
        axes.barh(row - 0.2, losses["char"][row], 0.36, color=SOFT)
        axes.barh(row + 0.2, losses["bpe:512"][row], 0.36, color=ACCENT)
        for shift, name in ((-0.2, "char"), (0.2, "bpe:512")):
            label = f"{losses[name][row]:.2f}  {name}"
            axes.text(losses[name][row] + 0.08, row + shift, label, va="center", size=8)
    axes.set(title=title, xlim=(0, 5.5), yticks=range(3))
    axes.set_yticklabels(["bigram", "best n-grams", "GPT tiny"])
    axes.grid(False)
both[0].invert_yaxis()
show("bits")

# %% [markdown]
# In nats per token, characters seem to win each time. In bits per byte, the bigram with BPE tokens
# is much better, because one token of context holds more text than one character. `tiny` is better,
# too. Its block of 64 tokens covers 120 characters, and in the same number of operations it reads
# 1.8 times as much text. (The larger embedding is not the reason: a narrower model with fewer
# parameters than `char` gains as much.) The best n-grams are level: 2.84 nats per token are as good
# as 1.52. 2,048 tokens help `tiny` a little more: 2.30 bits per byte. 8,192 are no better. For
# this text, a few thousand tokens are enough. In GPT-2's much larger text, many more are frequent.
#
# ## What to remember
#
# - UTF-8 turns every text into bytes, so 256 tokens cover every text.
# - Training merges the most frequent pair, again and again. Encoding repeats the same merges.
# - Pre-tokenisation splits the text into parts first, and no token spans two parts.
# - `the`, `␣the` and `The` are three tokens. The model has to learn how they are related.
# - Compare models with different tokenizers in bits per byte, never in nats per token.
#
# ## Three common mistakes
#
# 1. You end a prompt with a space. *Symptom:* a strange continuation. The last token of `I want␣`
#    is a lone space. In the training text, `want to` ends with `␣to`, and no token that starts with
#    `t` follows a lone space: the model does not expect `to`. *Remedy:* remove the space.
# 2. You decode each token alone. *Symptom:* `�` in place of some characters, such as `🙂`.
#    *Remedy:* join the bytes of all tokens, then decode.
# 3. You encode with another tokenizer than the one of the model. *Symptom:* no error message, but a
#    loss near that of random guesses, ln 512 = 6.24 nats, or above it. *Remedy:* store the
#    tokenizer together with the model.
#
# ## Exercises
#
# 1. How many tokens has `Zürich` with the 512 tokens? Which of its characters needs two, and why?
# 2. Encode the 100 longest words of the validation text differently: from left to right, always
#    take the longest token with which the rest of the word begins. How many words get other tokens
#    than with the merges?
# 3. Train 256 merges without pre-tokenisation on the first 20,000 characters. Which new tokens
#    contain both letters and punctuation?
# 4. The tokens of a model have 2.26 bytes on average; its loss is 3.2 nats per token. Is it better
#    than `tiny` with characters?

# %% tags=["solution"]
if SOLUTIONS:
    tokens = encode("Zürich", merges)
    print("1.", len(tokens), [vocabulary[token] for token in tokens], "ü has two bytes in UTF-8")
    assert vocabulary[tokens[1]] + vocabulary[tokens[2]] == "ü".encode()
    known, changed = set(vocabulary), []
    # sorted by length; words of the same length by the alphabet
    for word in sorted(sorted(set(re.findall(r" [a-z]+", val_text))), key=len)[-100:]:
        rest, longest_first = word.encode(), []
        while rest:
            end = max(i for i in range(1, len(rest) + 1) if rest[:i] in known)
            longest_first.append(rest[:end])
            rest = rest[end:]
        if longest_first != [vocabulary[token] for token in encode(word, merges)]:
            changed.append(word)
    print(f"2. {len(changed)} of 100, such as {changed[0]!r}: the order of the merges matters")
    assert len(changed) == 49
    pattern, PATTERN = PATTERN, r"(?s).+"  # train_bpe uses PATTERN: now one part, the whole text
    new_tokens = [token.decode() for token in train_bpe(train_text[:20_000], 512)[1][256:]]
    PATTERN = pattern
    mixed = [t for t in new_tokens if re.search(r"[A-Za-z]", t) and re.search(r"[^\w\s]", t)]
    print(f"3. {len(mixed)} tokens, such as {mixed[:8]}")
    print(f"4. {3.2 / math.log(2) / 2.26:.2f} bits per byte: better than {bits['char'][2]:.2f}")
    assert "First Citizen:\n" in mixed
    assert 3.2 / math.log(2) / 2.26 < bits["char"][2]

# %% tags=["test"]
assert sum(chr(i).isprintable() for i in range(0x110000)) > 100_000
assert list(Counter(pairwise(small)).values()).count(3) == 4
assert all(vocabulary[256 + i] in (theirs[i - 1], theirs[i + 1]) for i in different)
assert [len(row) for row in history] == [25, 22, 19, 16, 13, 11, 9, 7]
assert history[4].count("the ") == 3 == history[7].count("at, the ") + 1
assert [round(length, 1) for length in (of_train[1], of_train[5], of_val[5])] == [1.9, 3.5, 3.2]
assert [round(1 - of[4] / of[5], 2) for of in (of_train, of_val)] == [0.08, 0.09]
assert all(new < old for old, new in zip(of_train[1:], of_val[1:], strict=True))
assert [round(loss, 2) for loss in nats["char"]] == [2.48, 1.52, 1.73]
assert [round(loss, 2) for loss in nats["bpe:512"]] == [3.63, 2.84, 3.03]
assert [round(a - b, 1) for a, b in zip(*bits.values(), strict=True)] == [0.8, 0, 0.2]
assert (len(set(text.encode())), large.encode(" ")) == (65, [220])
assert round(tiny_bits("bpe:2048"), 2) == round(tiny_bits("bpe:8192"), 2) == 2.30
assert round(64 * of_val[1], -1) == 120
steps = {run["tokenizer"]: run["steps"] for run in runs if run["same"] == "body"}
assert round(steps["bpe:512"] / steps["char"] * of_train[1], 1) == 1.8
narrow = [run for run in runs if (run["tokenizer"], run["same"]) == ("bpe:512", "size")]
assert max(run["parameters"] for run in narrow) < runs[0]["parameters"]  # runs[0] has characters
assert max(run["bits_per_byte"] for run in narrow) < tiny_bits("bpe:512")
(space,) = library.encode(" ")
after_space = {library.token_bytes(token)[:1] for token in train[1:][train[:-1] == space]}
assert after_space & {b"e", b"t"} == {b"e"}
other = bpe.train_bpe([train_text[:20_000]], 512).encode_array(val_text)
assert KneserNey(train, 3, 512).loss(other) < math.log(512) < KneserNey(train, 2, 512).loss(other)

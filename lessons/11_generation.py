# %% [markdown]
# # 11. Generation: sampling and the key/value cache
#
# A trained GPT gives each possible next token a probability. How do we choose a token, so that the
# words of the text are correct and varied? This lesson compares the usual ways to choose. Then it
# builds the key/value cache, which avoids almost all repeated work.
#
# **Before this lesson:** [lesson 2](02_bigram.md) (sampling from probabilities, perplexity),
# [lesson 4](04_attention.md) (keys, values, the causal mask) and [lesson 9](09_gpt.md) (the GPT).
#
# **You will see:** our greedy text runs into a loop and never leaves it; at temperature 0.5, 85% of
# the sampled words occur in the training text, at 1.3 only 39%; the cache reduces the work for a
# text of 64 tokens from 2,080 processed tokens to 64.

# %%
import math
import re
import time

import matplotlib.pyplot as plt
import torch
from lesson import SOLUTIONS, T, V, alphabet, decode, encode, train, train_tokens, val_tokens
from pictures import ACCENT, MUTED, cells, diagram, show, write

from nanogpt.generate import Sampling, generate
from nanogpt.models.gpt import GPT, GPTConfig, causal_attention

# %% [markdown]
# We train one model with the settings of lessons 2 to 9 (1,000 steps): the package's GPT
# (`nanogpt/models/gpt.py`) with 4 Transformer blocks, 4 heads and 64 channels.

# %%
torch.manual_seed(0)
model = GPT(GPTConfig(n_layer=4, n_head=4, n_embd=64, block_size=T, vocab_size=V))
val_loss = train(model)
model.eval().requires_grad_(False)  # eval(): no dropout (here it is 0); we need no gradients
print(f"validation loss {val_loss:.2f}, perplexity {math.exp(val_loss):.1f}")

# %% [markdown]
# ## Greedy decoding
#
# Generation repeats three steps: compute the logits, choose a token, append it. The given text is
# the *prompt*; the generated text is the *completion*. *Greedy decoding* always chooses the most
# likely token: `argmax` returns the index of the largest logit.


# %%
def choose(logits, temperature):
    """Return the next token (1,), chosen by its logits (V,). Temperature 0 is greedy."""
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)  # keepdim: (1,) instead of ()
    p = (logits / temperature).softmax(dim=-1)  # (V,)
    return torch.multinomial(p, 1)  # samples one index: index i with probability p[i]


def complete(prompt, count, temperature):
    tokens = encode(prompt)
    for _ in range(count):
        context = tokens[-T:]  # the model sees at most T tokens
        logits = model(context[None])  # (1, T, V); [None] adds the dimension B = 1
        logits = logits[0, -1]  # (V,): the logits at the last position
        tokens = torch.cat([tokens, choose(logits, temperature)])  # one token longer
    return decode(tokens)


greedy = complete("ROMEO:\n", 600, temperature=0)
print(greedy[:300])
last = len(greedy) - T  # the last 64 characters begin here
before = greedy.rfind(greedy[last:], 0, -1)  # rfind(): where the same characters begin before
print(f"\nThe last {T} characters also occur {last - before} characters earlier.")

# %% [markdown]
# The text repeats itself, and it will do so forever. The next token depends only on the last 64
# tokens. These 64 have occurred before, so greedy decoding now continues as it did then. Large
# models loop, too: the text with the highest probability is not the best text (Holtzman et al.
# 2019, [arXiv:1904.09751](https://arxiv.org/abs/1904.09751)).
#
# ## Sampling, seeds and temperature
#
# *Sampling* chooses each token with its probability. Its random numbers depend only on the *seed*:
# the same seed, model, prompt and temperature give the same text. The *temperature* $\tau$ divides
# the logits $z$ first:
#
# $$p_i = \frac{e^{z_i / \tau}}{\sum_j e^{z_j / \tau}}$$
#
# Below 1, it makes likely tokens more likely. Above 1, it makes the probabilities more equal. Near
# 0, only the most likely token remains.

# %%
for seed, tau in ((1, 1), (2, 1), (1, 1), (1, 0.5), (1, 1.3)):
    torch.manual_seed(seed)
    text = complete("ROMEO:\n", 60, tau)
    print(f"seed {seed}, temperature {tau}: {text[7:]!r}")

# %% [markdown]
# Lines 1 and 3 are equal, because their seed and temperature are. All texts of seed 1 begin alike:
# they use the same random numbers. Here is one distribution at three temperatures: the next
# character after `What s`.

# %% alt="Bars of eight probabilities: steep at temperature 0.5, flatter at 1, flattest at 1.3"
logits = model(encode("ROMEO:\nWhat s")[None])[0, -1]  # (V,)
likely = logits.topk(8).indices  # (8,): the indices of the 8 largest logits
names = [alphabet[i].replace(" ", "␣").replace("\n", "↵") for i in likely]
figure, panels = plt.subplots(1, 3, sharey=True, figsize=(7, 2.8))
for axes, tau in zip(panels, (0.5, 1, 1.3), strict=True):
    p = (logits / tau).softmax(dim=-1)  # (V,)
    axes.grid(axis="x", visible=False)
    axes.bar(range(8), p[likely], color=[ACCENT] + 7 * [MUTED])
    axes.set_xticks(range(8), names)
    axes.set_title(f"temperature {tau}")
    axes.text(0, p.max() + 0.01, f"{p.max():.2f}", color=ACCENT, ha="center")
    axes.text(7.5, 0.345, f"57 others: {1 - p[likely].sum():.2f}", ha="right")
panels[0].set(ylabel="probability", ylim=(0, 0.42))
panels[1].set_xlabel("the eight most likely next characters")
show("temperature")

# %% [markdown]
# ## Top-k, top-p and min-p
#
# In the picture, 57 characters have a small probability each, but one in ten together (at
# temperature 1), and one wrong character spoils a word. Three filters set the probabilities of
# unlikely tokens to 0:
#
# - *top-k* (Fan et al. 2018, [arXiv:1805.04833](https://arxiv.org/abs/1805.04833)) keeps the k most
#   likely tokens;
# - *top-p*, or *nucleus sampling* (Holtzman et al. 2019), goes from the most likely token
#   down, and stops as soon as the kept tokens have at least the probability `top_p` together;
# - *min-p* (Nguyen et al. 2024, [arXiv:2407.01082](https://arxiv.org/abs/2407.01082)) keeps tokens
#   with at least `min_p` times the highest probability.
#
# `p.where(condition, 0)` keeps the elements for which the condition holds, and sets the others to
# 0. The division makes the sum 1 again.


# %%
def keep_top_k(p, k):
    p = p.where(p >= p.topk(k).values[-1], 0)  # values[-1] is the k-th largest probability
    return p / p.sum()


def keep_top_p(p, top_p):
    sorted_p, order = p.sort(descending=True)  # (V,) each; sorted_p is p[order]
    sum_before = sorted_p.cumsum(dim=0) - sorted_p  # (V,): the sum of all larger probabilities
    removed = order[sum_before >= top_p]  # the indices of the tokens to remove
    p = p.index_fill(0, removed, 0)  # sets the elements at these indices to 0
    return p / p.sum()


def keep_min_p(p, min_p):
    p = p.where(p >= min_p * p.max(), 0)
    return p / p.sum()


# %% [markdown]
# Take the probabilities 0.5, 0.3, 0.1, 0.06, 0.04. Top-k with k = 2 keeps two. Top-p 0.85 keeps
# three, because the first two have only 0.8. Min-p 0.1 keeps four: its limit is 0.1 · 0.5 = 0.05.
# Now the probabilities of the model:

# %%
for prompt in ("What s", "What q"):
    p = model(encode(f"ROMEO:\n{prompt}")[None])[0, -1].softmax(dim=-1)  # (V,)
    filtered = keep_top_k(p, 5), keep_top_p(p, 0.9), keep_min_p(p, 0.1)
    kept = [(result > 0).sum().item() for result in filtered]
    print(f"after {prompt!r}: top-k keeps {kept[0]}, top-p {kept[1]}, min-p {kept[2]} characters")

# %% [markdown]
# After `q`, almost only `u` is possible. Top-k still keeps 5 characters, but top-p and min-p keep
# one: the number that they keep depends on the distribution.
#
# ## What the settings do to a text
#
# We continue 40 passages of the validation text. `generate` of the package yields one token of each
# text at a time, and its log-probability. The class `Sampling` contains the settings. We measure:
#
# - *known*: the share of words that occur in the training text, among the first 2,000 generated
#   words (without the first and last word of each text: they may be cut);
# - *distinct*: the number of different words among them, divided by 2,000;
# - *perplexity*: $\exp\left(-\frac{1}{n}\sum \ln p\right)$ over the $n$ generated characters, with
#   the model's probabilities at temperature 1, whatever setting we sample with.


# %%
def describe(name, texts, perplexity):
    words = [word for text in texts for word in re.findall(pattern, text.lower())[1:-1]][:2000]
    known = sum(word in known_words for word in words) / len(words)
    distinct = len(set(words)) / len(words)
    print(f"{name:15} {known:5.0%} {distinct:8.0%} {perplexity:10.1f}")
    return known, distinct, perplexity


pattern = r"[a-z']+"  # a word: letters and apostrophes
known_words = set(re.findall(pattern, decode(train_tokens).lower()))
prompts = [val_tokens[start : start + 32].tolist() for start in range(0, 80000, 2000)]  # 40
settings = {str(tau): Sampling(temperature=tau) for tau in (0, 0.5, 0.8, 1, 1.3)}
settings["1, top-p 0.9"] = Sampling(top_p=0.9)
settings["1.3, min-p 0.1"] = Sampling(temperature=1.3, min_p=0.1)
table = {}
print("temperature     known distinct perplexity")
for name, sampling in settings.items():
    steps = list(generate(model, prompts, 400, sampling, logprobs=True))  # 400 steps
    tokens = torch.tensor([step.tokens for step in steps])  # (400, 40): a column for each text
    loss = -torch.tensor([step.logprobs for step in steps]).mean().item()
    table[name] = describe(name, [decode(column) for column in tokens.T], math.exp(loss))
shakespeare = describe("validation text", [decode(val_tokens)], math.exp(val_loss))

# %% tags=["test"]
from lesson import FAST  # noqa: E402

assert kept[0] == 5
small = torch.tensor([0.5, 0.3, 0.1, 0.06, 0.04])
counts = [keep_top_k(small, 2), keep_top_p(small, 0.85), keep_min_p(small, 0.1)]
assert [(result > 0).sum() for result in counts] == [2, 3, 4]
if not FAST:
    assert 0 <= before < last
    assert abs(1 - logits.softmax(dim=-1)[likely].sum() - 0.10) < 0.04
    assert kept[1] == kept[2] == 1
    for low, high in (("0.5", "0.8"), ("0.8", "1"), ("1", "1.3")):
        assert table[low][0] > table[high][0] + 0.05
        assert table[low][1] < table[high][1] - 0.05
        assert table[low][2] < table[high][2]
    assert all(row[0] < shakespeare[0] - 0.05 for row in table.values())
    assert abs(table["0"][2] / table["1"][2] - 0.5) < 0.15
    assert abs(table["0.5"][0] - 0.85) < 0.06
    assert abs(table["1.3"][0] - 0.39) < 0.06
    assert shakespeare[1] < table["0.8"][1] - 0.05
    for mine, cooler in zip(table["1, top-p 0.9"][:2], table["0.8"][:2], strict=True):
        assert abs(mine - cooler) < 0.06
    assert table["1.3, min-p 0.1"][0] > table["1.3"][0] + 0.12
    assert abs(table["1"][2] - shakespeare[2]) < 0.6

# %% [markdown]
# From 0.5 to 1.3, the words become more varied, but fewer are known. Shakespeare's words are less
# varied than those at 0.8, yet almost all are known: many of the varied words are invented. Top-p
# 0.9 makes about the same compromise as temperature 0.8. Min-p makes a high temperature usable. To
# know as many words as Shakespeare, we need a better model, not another setting.
#
# The greedy texts have half the perplexity of the texts at temperature 1, and yet they are worse:
# a low perplexity of a model's own text says little. At temperature 1, the perplexity is close to
# that of the validation text. So the model is about as uncertain as it should be: it is
# *calibrated*. An overfitted model would be too sure of its own text.
#
# ## The loop repeats work
#
# `complete` runs the whole context through the model for each new token. We count the tokens:
# `register_forward_pre_hook` makes PyTorch call a function before each forward pass.

# %%
processed = []  # the number of tokens in each forward pass


def record_length(module, inputs):
    processed.append(inputs[0].shape[1])  # inputs[0] has the shape (B, T)


hook = model.register_forward_pre_hook(record_length)
start = time.perf_counter()  # a clock, in seconds
complete("R", 64, temperature=1)
seconds = time.perf_counter() - start
print(f"{processed[:4]} … {processed[-1]}: {sum(processed):,} tokens")

# %% [markdown]
# The sum $1 + 2 + \dots + T = T (T + 1) / 2$ grows with the square of the length. But the results
# for old tokens do not change: because of the causal mask, no position sees a later one.
#
# ## The key/value cache
#
# A new token needs two things from the old tokens: their keys and their values. It does not need
# their queries: a query gives the result at its own position, and we need only the newest result.
# The other layers work on each position alone. The *key/value cache* stores keys and values. Here
# is one attention head with a cache, for 5 tokens and $D = 2$:

# %%
torch.manual_seed(0)
q, k, v = torch.randn(3, 5, 2)  # queries, keys and values of 5 tokens: (5, 2) each
expected, _ = causal_attention(q, k, v)  # (5, 2): all tokens at once, with a mask
keys, values = torch.empty(0, 2), torch.empty(0, 2)  # the cache is empty
for t in range(5):
    keys = torch.cat([keys, k[t : t + 1]])  # (t + 1, 2): append the key of token t
    values = torch.cat([values, v[t : t + 1]])  # (t + 1, 2): append its value
    weights = (keys @ q[t] / math.sqrt(2)).softmax(dim=0)  # (t + 1,); divided by the root of D
    torch.testing.assert_close(weights @ values, expected[t])  # (2,)
    print(f"token {t}: keys {tuple(keys.shape)}, weights", [f"{w:.2f}" for w in weights])

# %% [markdown]
# The result is the same without a mask, because the cache contains no later tokens. The first pass
# processes the whole prompt and fills the cache: the *prefill*. Each later pass processes one
# token, and adds its key and value to the cache of each head. (In papers, this is *decoding*. It
# has nothing to do with our function `decode`.)

# %% alt="The cache: a prefill computes 3 keys and values; each later pass computes only 1 of each"
axes = diagram(71, 27)
left = 10
for row, y in (("tokens", 21), ("keys", 16.5), ("values", 12.5), ("queries", 8.5)):
    write(axes, 8.5, y, row, align="right")
for name, text, new in (("prefill", "ROM", 3), ("one token", "ROME", 1), ("one token", "ROMEO", 1)):
    old, middle = len(text) - new, left + 2 * len(text)
    filled = [[i >= old for i in range(len(text))]]
    write(axes, middle, 25, f"{name}: {text[old:]}", bold=True)
    cells(axes, left, 22.5, [list(text)], filled=filled)
    cells(axes, left, 18, [[f"k{i}" for i in range(len(text))]], filled=filled)
    cells(axes, left, 14, [[f"v{i}" for i in range(len(text))]], filled=filled)
    queries = [f"q{i}" for i in range(old, len(text))]  # only those of the new tokens
    cells(axes, left + 4 * old, 10, [queries], filled=[new * [True]])
    write(axes, middle, 5, f"next token: {'ROMEO:'[len(text)]}", color=ACCENT, bold=True)
    left += 4 * len(text) + 6
write(axes, 35.5, 1.8, "filled: computed in this pass; white: from an earlier pass")
show("cache")

# %% [markdown]
# The function `generate` of the package uses such a cache:

# %%
processed.clear()
start = time.perf_counter()
for _ in generate(model, [encode("R").tolist()], 64):  # uses the cache; yields token after token
    pass
seconds_cached = time.perf_counter() - start
print(f"{processed[:4]} … {processed[-1]}: {sum(processed)} tokens")
print(f"{seconds:.2f} seconds without the cache, {seconds_cached:.2f} seconds with it")

# %% [markdown]
# The model processes 64 tokens instead of 2,080: 32.5 times fewer. But the time changes far less
# here: our model is so small that calling its functions takes most of the time, for one token as
# for 64. A larger model gains more, although each pass must still read all its weights and all
# cached keys and values from memory. The price of the cache is memory: a key and a value of $C$
# numbers for each token, Transformer block and text (exercise 3).
#
# ## When the context window is full
#
# The model has no position embedding for token 65, so an old token must go. But if the oldest one
# goes, each other token moves to another position and gets another position embedding, so all
# keys and values change. The cache is then useless, and a prefill must fill it again. If this
# happened for every token, the cache would save nothing. So nanogpt drops 17 tokens at once, about
# a quarter, and keeps the newest 48 (`drop_oldest`):

# %%
processed.clear()
for _ in generate(model, [encode("ROMEO:\n").tolist()], 120):
    pass
prefills = {step: length for step, length in enumerate(processed) if length > 1}
print(f"pass and length of each prefill: {prefills}")
hook.remove()

# %% tags=["test"]
assert sum(range(1, T + 1)) / 64 == 2080 / 64 == 32.5
assert prefills == {0: 7, 58: 48, 75: 48, 92: 48, 109: 48}
assert sum(processed[58:75]) == 64
assert FAST or 1 / 8 < seconds / seconds_cached < 8

# %% [markdown]
# After 7 + 57 tokens, the context is full. From pass 58 on, every 17th pass is a prefill of 48
# tokens. So 17 generated tokens cost $48 + 16 = 64$ processed tokens, about 4 for each instead of
# 64. In exchange, the model sees only 56 tokens on average (48 to 64).
#
# ## What to remember
#
# - Greedy decoding easily runs into loops. Sampling needs a seed to be repeatable.
# - Temperature makes probabilities more or less equal; filters remove unlikely tokens.
# - A low perplexity of a generated text does not make it a good text.
# - As long as no token is dropped, the keys and values of old tokens do not change, so a cache
#   stores them. Each new token then needs a pass of one token only.
#
# ## Three common mistakes
#
# 1. **You divide probabilities, not logits, by the temperature, and then apply softmax.**
#    *Symptom*: random characters, because all probabilities are almost equal.
#    *Remedy*: `(logits / temperature).softmax(dim=-1)`.
# 2. **You pass the whole text to the model.** *Symptom*: generation works at first and then stops
#    with an error, because token 65 has no position embedding. *Remedy*: pass `tokens[-T:]` (for a
#    batch (B, T), `tokens[:, -T:]`).
# 3. **You forget `model.eval()` for a model with dropout.** *Symptom*: the same prompt gives
#    different logits each time. *Remedy*: call it before generation (`generate` does so itself).

# %% tags=["test"]
p = model(encode("ROMEO:\nWhat s")[None])[0, -1].softmax(dim=-1)  # (V,)
assert (p / 0.8).softmax(dim=-1).max() < 0.06

# %% [markdown]
# ## Exercises
#
# 1. Apply temperature 1.5 before top-p 0.9 (as nanogpt does), then after it. Which order keeps more
#    characters, and why?
# 2. If the context has 65 tokens, keep the newest 64 − n. How many tokens does the model process
#    for each generated token, for n = 0, 16 and 48? nanogpt has n = 16.
# 3. GPT-3 (Brown et al. 2020) has 96 Transformer blocks, 12,288 channels and a context of 2,048
#    tokens. How many gigabytes is its cache for one text, with 2 bytes for each number?

# %% tags=["solution"]
if SOLUTIONS:
    logits = model(encode("ROMEO:\nWhat s")[None])[0, -1]  # (V,)
    before = keep_top_p((logits / 1.5).softmax(dim=-1), 0.9)  # p is more equal: 0.9 needs more
    after = (keep_top_p(logits.softmax(dim=-1), 0.9).log() / 1.5).softmax(dim=-1)  # ln 0 = -∞
    print(f"1. before: {(before > 0).sum()} characters, after: {(after > 0).sum()}")
    assert (before > 0).sum() >= (after > 0).sum()
    for n in (0, 16, 48):
        work = (T - n) + n * 1  # a prefill and n passes of one token generate n + 1 tokens
        print(f"2. n = {n}: {work / (n + 1):.1f} processed for each generated token")
    numbers = 2 * 96 * 12288 * 2048  # a key and a value for each token, block and channel
    print(f"3. {2 * numbers / 1e9:.1f} gigabytes")
    assert 9 < 2 * numbers / 1e9 < 10

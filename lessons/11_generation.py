# %% [markdown]
# # 11. Generation: sampling and the key/value cache
#
# A trained GPT gives each possible next token a probability. How do we choose a token, so that the
# text is good? And how do we generate fast? This lesson compares the usual ways to choose. Then it
# builds the key/value cache, which avoids almost all repeated work.
#
# **Before this lesson:** [lesson 2](02_bigram.md) (sampling from probabilities, perplexity),
# [lesson 4](04_attention.md) (keys, values, the causal mask) and [lesson 9](09_gpt.md) (the GPT).
#
# **You will see:** greedy decoding runs into a loop and never leaves it; five of six words that are
# sampled at temperature 0.5 occur in the training text, at 1.3 only two of five; the cache reduces
# the work for a text of 64 tokens from 2,080 processed tokens to 64.

# %%
import math
import re

import matplotlib.pyplot as plt
import torch
from lesson import SOLUTIONS, T, V, alphabet, decode, encode, train, train_tokens, val_tokens
from pictures import ACCENT, MUTED, cells, diagram, show, write

from nanogpt.generate import Sampling, decode_one, filter_logits, generate, prefill
from nanogpt.models.cache import Cache
from nanogpt.models.gpt import GPT, GPTConfig, causal_attention

# %% [markdown]
# We train one model with the budget of the scoreboard: the package's GPT (`nanogpt/models/gpt.py`)
# with 4 Transformer blocks, 4 heads and 64 channels. Its *perplexity* is exp(loss).

# %%
torch.manual_seed(0)
model = GPT(GPTConfig(n_layer=4, n_head=4, n_embd=64, block_size=T, vocab_size=V))
val_loss = train(model)
model.eval().requires_grad_(False)  # eval() switches dropout off; we need no gradients
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
        return logits.argmax(dim=-1, keepdim=True)
    p = (logits / temperature).softmax(dim=-1)  # (V,)
    return torch.multinomial(p, 1)  # samples one index: index i with probability p[i]


def complete(prompt, count, temperature):
    """Return the prompt and a completion of `count` characters."""
    tokens = encode(prompt)
    for _ in range(count):
        context = tokens[-T:]  # the model sees at most T tokens
        logits = model(context[None])[0, -1]  # (V,): the logits at the last position
        tokens = torch.cat([tokens, choose(logits, temperature)])  # one token longer
    return decode(tokens)


greedy = complete("ROMEO:\n", 600, temperature=0)
print(greedy[:300])
first, last = greedy.find(greedy[-T:]), len(greedy) - T  # find() returns the first occurrence
print(f"\nThe last {T} characters begin at {last}. The same characters begin at {first}.")

# %% [markdown]
# The text repeats itself, and it will do so forever. The next token depends only on the last 64
# tokens. These 64 have occurred before, so greedy decoding now continues as it did then. Large
# models loop, too (Holtzman et al. 2019, [arXiv:1904.09751](https://arxiv.org/abs/1904.09751)).
#
# ## Sampling, seeds and temperature
#
# *Sampling* chooses each token with its probability. Its random numbers depend only on the *seed*:
# the same seed gives the same text. The *temperature* $\tau$ divides the logits $z$ first:
#
# $$p_i = \frac{e^{z_i / \tau}}{\sum_j e^{z_j / \tau}}$$
#
# Below 1, it makes likely tokens more likely. Above 1, it makes the probabilities more equal. Near
# 0, only the most likely token remains.

# %%
for seed, tau in ((1, 1), (2, 1), (1, 1), (1, 0.5), (1, 1.5)):
    torch.manual_seed(seed)
    text = complete("ROMEO:\n", 60, tau)
    print(f"seed {seed}, temperature {tau:3}: {text[7:]!r}")

# %% [markdown]
# Here is one distribution at three temperatures: the next character after `What s`.

# %%
logits = model(encode("ROMEO:\nWhat s")[None])[0, -1]  # (V,)
likely = logits.topk(8).indices  # (8,): the indices of the 8 largest logits
names = [alphabet[i].replace(" ", "␣").replace("\n", "↵") for i in likely]

# %% alt="Bars of eight probabilities: steep at temperature 0.5, flatter at 1, flattest at 1.5"
figure, panels = plt.subplots(1, 3, sharey=True, figsize=(7, 2.8))
for axes, tau in zip(panels, (0.5, 1, 1.5), strict=True):
    p = (logits / tau).softmax(dim=-1)  # (V,)
    axes.bar(range(8), p[likely], color=[ACCENT] + 7 * [MUTED])
    axes.set_xticks(range(8), names)
    axes.set_title(f"temperature {tau}")
    axes.text(0, p.max() + 0.01, f"{p.max():.2f}", color=ACCENT, ha="center")
    axes.text(7.5, 0.345, f"57 others: {1 - p[likely].sum():.2f}", ha="right")
    axes.grid(axis="x", visible=False)
panels[0].set(ylabel="probability", ylim=(0, 0.42))
panels[1].set_xlabel("the eight most likely next characters")
show("temperature")

# %% [markdown]
# ## Top-k, top-p and min-p
#
# Most characters make no sense at a given place. Each is unlikely, but together they are not, and
# one wrong character spoils a word. Three filters set the probabilities of unlikely tokens to 0:
#
# - *top-k* keeps the k most likely tokens;
# - *top-p*, or *nucleus sampling* (Holtzman et al. 2019), keeps the smallest set of most likely
#   tokens with a total probability of at least `top_p`;
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
    p = p.index_fill(0, order[sum_before >= top_p], 0)  # sets the elements at these indices to 0
    return p / p.sum()


def keep_min_p(p, min_p):
    p = p.where(p >= min_p * p.max(), 0)
    return p / p.sum()


# %% [markdown]
# The package has the same filters (`filter_logits` in `nanogpt/generate.py`). It sets logits to
# $-\infty$ instead, which gives the same probabilities:

# %%
for prompt in ("What s", "What q"):
    logits = model(encode(f"ROMEO:\n{prompt}")[None])[0, -1]  # (V,)
    p = logits.softmax(dim=-1)  # (V,)
    filtered = [keep_top_k(p, 5), keep_top_p(p, 0.9), keep_min_p(p, 0.1)]
    settings = [Sampling(top_k=5), Sampling(top_p=0.9), Sampling(min_p=0.1)]
    for mine, sampling in zip(filtered, settings, strict=True):
        torch.testing.assert_close(mine, filter_logits(logits, sampling).softmax(dim=-1))
    kept = [(mine > 0).sum().item() for mine in filtered]
    print(f"after {prompt!r}: top-k keeps {kept[0]}, top-p {kept[1]}, min-p {kept[2]} characters")

# %% [markdown]
# After `q`, almost only `u` is possible. Top-k still keeps 5 characters, but top-p and min-p keep
# one: the number that they keep depends on the distribution.
#
# ## What the temperature does to a text
#
# We continue 40 passages of the validation text, and look at the first 2,000 generated words:
#
# - *known* is the share of words that occur in the training text;
# - *distinct* is the number of different words, divided by 2,000;
# - *perplexity* is $\exp\left(-\frac{1}{n}\sum \ln p\right)$ over the $n$ generated characters,
#   with the model's probabilities at temperature 1, whatever temperature we sample at.


# %%
def describe(name, text, perplexity):
    words = re.findall(r"[a-z']+", text.lower())[:2000]
    known = sum(word in known_words for word in words) / len(words)
    distinct = len(set(words)) / len(words)
    print(f"{name:16} {known:5.0%} {distinct:8.0%} {perplexity:10.1f}")
    return known, distinct, perplexity


# %%
known_words = set(re.findall(r"[a-z']+", decode(train_tokens).lower()))
prompts = [val_tokens[start : start + 32].tolist() for start in range(0, 80000, 2000)]  # 40
print(f"{'':16} known distinct perplexity")
table = {}
for tau in (0, 0.5, 0.8, 1, 1.3):
    steps = list(generate(model, prompts, 400, Sampling(temperature=tau), logprobs=True))
    tokens = torch.tensor([step.tokens for step in steps])  # (400, 40): a column for each text
    loss = -torch.tensor([step.logprobs for step in steps]).mean().item()
    text = "\n".join(decode(column) for column in tokens.T)
    table[tau] = describe(f"temperature {tau}", text, math.exp(loss))
shakespeare = describe("validation text", decode(val_tokens), math.exp(val_loss))

# %% tags=["test"]
from lesson import FAST  # noqa: E402

assert kept[0] == 5
if not FAST:
    assert abs(val_loss - 1.91) < 0.06
    assert first < last
    assert kept[1] == kept[2] == 1
    for low, high in ((0.5, 0.8), (0.8, 1), (1, 1.3)):
        assert table[low][0] > table[high][0] + 0.05
        assert table[low][1] < table[high][1] - 0.05
        assert table[low][2] < table[high][2]
    assert all(row[0] < shakespeare[0] - 0.05 for row in table.values())
    assert abs(table[0][2] / table[1][2] - 0.5) < 0.15
    assert abs(table[0.5][0] - 5 / 6) < 0.06
    assert abs(table[1.3][0] - 2 / 5) < 0.06
    assert table[0][1] < 0.06  # the greedy texts have few different words
    assert abs(math.log(table[1][2]) - val_loss) < 0.15

# %% [markdown]
# From 0.5 to 1.3, the words become more varied and less often known. (In the greedy row, a few
# words repeat, so one invented word counts many times.) The validation text has more known words
# than any row: sampling only chooses a compromise, and a better text needs a better model.
#
# Perplexity on a text that somebody else wrote measures the model. Perplexity on its own text
# mostly measures the sampling: the greedy texts have half the perplexity of the texts at
# temperature 1, and yet they are worse. At temperature 1, it is close to the perplexity of the
# validation text: the model is as uncertain about its own text as about Shakespeare's.
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
complete("R", 64, temperature=1)
print(f"{processed[:4]} … {processed[-1]}: {sum(processed):,} tokens")

# %% [markdown]
# The sum $1 + 2 + \dots + T = T (T + 1) / 2$ grows with the square of the length. But the results
# for old tokens do not change: because of the causal mask, no position sees a later one.

# %%
long = val_tokens[None, :50]  # (1, 50)
torch.testing.assert_close(model(long)[:, :20], model(long[:, :20]), rtol=1e-4, atol=1e-4)

# %% [markdown]
# ## The key/value cache
#
# A new token needs two things from the old tokens: their keys and their values. The *key/value
# cache* stores both. Here is one attention head with a cache, for 5 tokens and $D = 2$:

# %%
torch.manual_seed(0)
q, k, v = torch.randn(3, 5, 2)  # queries, keys and values of 5 tokens: (5, 2) each
expected, _ = causal_attention(q, k, v)  # (5, 2): all tokens at once, with a mask
keys, values = torch.empty(0, 2), torch.empty(0, 2)  # the cache is empty
for t in range(5):
    keys = torch.cat([keys, k[t : t + 1]])  # (t + 1, 2): append the key of token t
    values = torch.cat([values, v[t : t + 1]])  # (t + 1, 2): append its value
    weights = (keys @ q[t] / math.sqrt(2)).softmax(dim=0)  # (t + 1,): one query, all keys
    torch.testing.assert_close(weights @ values, expected[t])  # (2,)
    print(f"token {t}: keys {tuple(keys.shape)}, weights", [f"{w:.2f}" for w in weights])

# %% [markdown]
# The result is the same without a mask, because the cache contains no later tokens. The first pass
# processes the whole prompt and fills the cache: the *prefill*. Each later pass *decodes* one
# token: it adds one column to the cache of every Transformer block.

# %% alt="The cache: a prefill fills 3 columns of keys and values; each later pass adds 1 column"
axes = diagram(71, 25)
left = 10
for row, y in (("tokens", 19), ("keys", 14.5), ("values", 10.5), ("queries", 6.5)):
    write(axes, 8.5, y, row, align="right")
for name, text, new in (("prefill", "ROM", 3), ("decode", "ROME", 1), ("decode", "ROMEO", 1)):
    old, middle = len(text) - new, left + 2 * len(text)
    filled = [[i >= old for i in range(len(text))]]
    write(axes, middle, 23, f"{name} {text[old:]}", bold=True)
    cells(axes, left, 20.5, [list(text)], filled=filled)
    cells(axes, left, 16, [[f"k{i}" for i in range(len(text))]], filled=filled)
    cells(axes, left, 12, [[f"v{i}" for i in range(len(text))]], filled=filled)
    queries = [f"q{i}" for i in range(old, len(text))]  # only those of the new tokens
    cells(axes, left + 4 * old, 8, [queries], filled=[new * [True]])
    write(axes, middle, 2.5, f"new columns: {new}", color=ACCENT, bold=True)
    left += 4 * len(text) + 6
show("cache")

# %% [markdown]
# The package does this with `prefill` and `decode_one` (`nanogpt/generate.py`). We pass 20 tokens
# at once and then 10 tokens one by one. The logits are those of the whole text:

# %%
context = val_tokens[:30]  # (30,)
cache = Cache(1, T, context.device)  # for 1 text of at most T tokens
logits = prefill(model, [context[:20].tolist()], cache)  # (1, V)
for token in context[20:]:
    logits = decode_one(model, token[None], cache)  # (1, V)
torch.testing.assert_close(logits, model(context[None])[:, -1], rtol=1e-4, atol=1e-4)

processed.clear()
for _ in generate(model, [encode("R").tolist()], 64):  # uses the cache; yields token after token
    pass
print(f"{processed[:4]} … {processed[-1]}: {sum(processed)} tokens")

# %% [markdown]
# The model processes 64 tokens instead of 2,080: 32.5 times fewer. The time falls less, because a
# processor is less efficient with one token at a time. The price is memory: a key and a value of
# $C$ numbers for each token, Transformer block and text (exercise 4).
#
# ## When the context window is full
#
# The model has no position embedding for token 65, so an old token must go. But if the oldest one
# goes, each other token moves to another position, and all keys and values change. The cache is
# then useless, and a prefill must fill it again. If this happened for every token, the cache would
# save nothing. So nanogpt keeps only the newest 48 of 65 tokens (`drop_oldest`). It drops the
# oldest quarter of the context at once, so it seldom has to recompute:

# %%
processed.clear()
for _ in generate(model, [encode("ROMEO:\n").tolist()], 120):
    pass
prefills = {step: length for step, length in enumerate(processed) if length > 1}
print(f"pass and length of each prefill: {prefills}")

# %% tags=["test"]
assert sum(range(1, T + 1)) / 64 == 2080 / 64 == 32.5
assert prefills == {0: 7, 58: 48, 75: 48, 92: 48, 109: 48}
assert sum(processed[58:75]) == 64
hook.remove()

# %% [markdown]
# From pass 58 on, every 17th pass is a prefill of 48 tokens. So 17 generated tokens cost
# $48 + 16 = 64$ processed tokens, about 4 for each instead of 64. In exchange, the model sometimes
# sees only 48 tokens.
#
# ## What to remember
#
# - Greedy decoding runs into loops. Sampling needs a seed to be repeatable.
# - Temperature makes probabilities more or less equal. Top-k, top-p and min-p remove unlikely
#   tokens; top-p and min-p adapt their number to the distribution.
# - A low perplexity of a generated text does not make it a good text.
# - Keys and values of old tokens never change, so a cache stores them. Each new token then costs
#   a pass of one token, and the logits stay the same.
#
# ## Three common mistakes
#
# 1. **You divide probabilities, not logits, by the temperature, and then apply softmax.**
#    *Symptom*: random characters, because all probabilities are almost equal.
#    *Remedy*: `(logits / temperature).softmax(dim=-1)`.
# 2. **You pass the whole text to the model.** *Symptom*: generation works at first and then stops
#    with an error: 65 tokens are more than block_size 64. *Remedy*: pass `tokens[-T:]`.
# 3. **You forget `model.eval()` for a model with dropout.** *Symptom*: the text is worse, and the
#    same prompt gives different logits each time. *Remedy*: call `model.eval()` before generation.

# %% tags=["test"]
import contextlib  # noqa: E402

p = model(encode("ROMEO:\nWhat s")[None])[0, -1].softmax(dim=-1)  # (V,)
assert (p / 0.8).softmax(dim=-1).max() < 0.06
with contextlib.suppress(ValueError):
    raise AssertionError(model(val_tokens[None, : T + 1]))
trained = GPT(GPTConfig(n_layer=4, n_head=4, n_embd=64, block_size=T, vocab_size=V, dropout=0.2))
trained.load_state_dict(model.state_dict())
assert not torch.equal(trained(context[None]), trained(context[None]))

# %% [markdown]
# ## Exercises
#
# 1. What happens to the distribution at the temperatures 0.01 and 1,000? Use the *entropy*
#    $-\sum p \ln p$: it is 0 if one token has probability 1, and $\ln V$ if all are equal.
# 2. Apply temperature 1.5 before top-p 0.9, then after it. Which order keeps more characters?
# 3. If the context has 65 tokens, keep the newest 64 − n. How many tokens does the model process
#    for each generated token, for n = 0, 16 and 48? nanogpt has n = 16.
# 4. GPT-3 has 96 Transformer blocks, 12,288 channels and a context of 2,048 tokens. How many
#    gigabytes is its cache for one text, with 2 bytes for each number?

# %% tags=["solution"]
if SOLUTIONS:
    logits = model(encode("ROMEO:\nWhat s")[None])[0, -1]  # (V,)
    for tau in (0.01, 1000):
        p = (logits / tau).softmax(dim=-1)
        entropy = torch.special.entr(p).sum().item()  # entr(p) is -p ln p, and 0 for p = 0
        print(f"1. temperature {tau}: entropy {entropy:.2f}; ln V is {math.log(V):.2f}")
    assert abs(entropy - math.log(V)) < 0.01
    before = keep_top_p((logits / 1.5).softmax(dim=-1), 0.9)
    after = (keep_top_p(logits.softmax(dim=-1), 0.9).log() / 1.5).softmax(dim=-1)  # ln 0 = -∞
    print(f"2. before: {(before > 0).sum()} characters, after: {(after > 0).sum()}")
    assert (before > 0).sum() >= (after > 0).sum()
    for n in (0, 16, 48):
        work = (T - n) + n * 1  # a prefill and n passes of one token generate n + 1 tokens
        print(f"3. n = {n}: {work / (n + 1):.1f} processed for each generated token")
    numbers = 2 * 96 * 12288 * 2048  # a key and a value for each token, block and channel
    print(f"4. {2 * numbers / 1e9:.1f} gigabytes")
    assert 9 < 2 * numbers / 1e9 < 10

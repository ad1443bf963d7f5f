# %% [markdown]
# # 11. Generation: sampling and the key/value cache
#
# A trained GPT gives each possible next token a probability. How do we choose one, so that the
# words are correct and varied? This lesson compares the usual ways, and then builds the key/value
# cache, which avoids almost all repeated work.
#
# **Before this lesson:** [lesson 2](02_bigram.md) (sampling from probabilities, perplexity),
# [lesson 4](04_attention.md) (keys, values, the causal mask) and [lesson 9](09_gpt.md) (the GPT).
#
# **You will see:** our greedy text runs into a loop and never leaves it; at temperature 0.5, about
# 85% of the sampled words occur in the training text, at 1.3 about 40%; for a text of 128 tokens, a
# cache reduces the work from 8,256 processed tokens to 128.

# %%
import math
import re
import time

import lesson
import matplotlib.pyplot as plt
import torch
from lesson import SOLUTIONS, T, V, alphabet, decode, encode, train, train_tokens, val_tokens
from pictures import ACCENT, MUTED, cells, diagram, show, write

from nanogpt.generate import Sampling, generate
from nanogpt.models.gpt import GPT, GPTConfig, causal_attention

# %% [markdown]
# We train one model with the settings of lessons 4 to 9 (1,000 steps): the package's GPT with 4
# Transformer blocks, 4 heads and 64 channels.

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
        logits = model(context[None])  # (1, T, V); [None] adds an axis: B = 1
        logits = logits[0, -1]  # (V,): the logits at the last position
        tokens = torch.cat([tokens, choose(logits, temperature)])  # one token longer
    return decode(tokens)


greedy = complete("ROMEO:\n", 600, temperature=0)
print(greedy[:300])
last = len(greedy) - T  # the last 64 characters begin here
before = greedy[:-1].rfind(greedy[last:])  # rfind() searches backwards; [:-1]: not these 64
print(f"\nThe last {T} characters also occur {last - before} characters earlier.")

# %% [markdown]
# The text will repeat itself forever. The next token depends only on the last 64 tokens. These 64
# have occurred before, so greedy decoding now continues as it did then. Large models loop, too
# (Holtzman et al. 2019, [arXiv:1904.09751](https://arxiv.org/abs/1904.09751)). *Beam search* keeps
# several likely texts at once. It usually finds a more likely text than greedy decoding, but in
# open-ended text, it loops as well (the same paper).
#
# ## Sampling, seeds and temperature
#
# *Sampling* chooses each token with its probability. Its random numbers depend only on the *seed*:
# the same seed, model, prompt and temperature give the same text (on the same computer). The
# *temperature* $\tau$ divides the logits $z$ first:
#
# $$p_i = \frac{e^{z_i / \tau}}{\sum_j e^{z_j / \tau}}$$
#
# A temperature below 1 makes only the most likely tokens more likely. One above 1 makes the
# probabilities more equal. Near 0, only the most likely token remains.

# %%
for seed, tau in ((1, 1), (2, 1), (1, 1), (1, 0.5), (1, 1.3)):
    torch.manual_seed(seed)
    text = complete("ROMEO:\n", 60, tau)
    print(f"seed {seed}, temperature {tau}: {text[7:]!r}")

# %% [markdown]
# Lines 1 and 3 are equal, because their seed and temperature are. Here is one distribution at three
# temperatures: the next character after `What s`.

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
# One wrong character spoils a word. In the picture, 49 of the 57 other characters never follow `␣s`
# in the training text, but at temperature 1, they have about 1.5% of the probability together.
# Three filters set the probabilities of unlikely tokens to 0:
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
    p = p.where(p >= p.topk(k).values[-1], 0)  # values[-1] is the k-th largest
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
# Now the model:

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
# We continue 40 passages of the validation text, and compare with the true continuations.
# `generate` of the package yields one token of each text at a time, and its log-probability (ln p).
# The class `Sampling` contains the settings (temperature first, then filters). We measure:
#
# - *known*: the share of words that occur in the training text, among the first 2,000 words of the
#   continuations (without the first and last word of each: they may be cut);
# - *distinct*: the number of different words among them, divided by 2,000;
# - *perplexity*: $\exp\left(-\frac{1}{n}\sum \ln p\right)$ over $n$ characters, with the model's
#   probabilities at temperature 1, whatever setting we sample with.


# %%
def describe(name, texts, loss):
    words = [word for text in texts for word in re.findall(pattern, text.lower())[1:-1]][:2000]
    known = sum(word in known_words for word in words) / len(words)
    table[name] = known, len(set(words)) / len(words), math.exp(loss)
    print("{:15} {:5.0%} {:8.0%} {:10.1f}".format(name, *table[name]))


pattern = r"[a-z']+"  # a word: letters and apostrophes
known_words = set(re.findall(pattern, decode(train_tokens).lower()))
starts = range(0, 80000, 2000)  # 40
prompts = [val_tokens[start : start + 32].tolist() for start in starts]
settings = {str(tau): Sampling(temperature=tau) for tau in (0, 0.5, 0.8, 1, 1.3)}
settings["1, top-p 0.9"] = Sampling(top_p=0.9)
settings["1.3, min-p 0.1"] = Sampling(temperature=1.3, min_p=0.1)
table = {}
print("temperature     known distinct perplexity")
for name, sampling in settings.items():
    steps = list(generate(model, prompts, 400, sampling, logprobs=True))  # 400 steps
    tokens = torch.tensor([step.tokens for step in steps])  # (400, 40): a column for each text
    loss = -torch.tensor([step.logprobs for step in steps]).mean().item()
    describe(name, [decode(column) for column in tokens.T], loss)
texts = [decode(val_tokens[start + 32 : start + 432]) for start in starts]
blocks = val_tokens.unfold(0, T + 1, T)  # (N, T + 1): N blocks of the validation text
targets = blocks[:, -17:]  # (N, 17): contexts of 48 to 64 characters, as in generate(): see below
val_logits = model(blocks[:, :-1])[:, -17:]  # (N, 17, V)
describe("true text", texts, lesson.cross_entropy(val_logits, targets))

# %% tags=["test"]
small = torch.tensor([0.5, 0.3, 0.1, 0.06, 0.04])
counts = [keep_top_k(small, 2), keep_top_p(small, 0.85), keep_min_p(small, 0.1)]
assert [(result > 0).sum() for result in counts] == [2, 3, 4]
assert (logits.softmax(dim=-1) / 0.8).softmax(dim=-1).max() < 0.06
if not lesson.FAST:
    assert (before in range(last), kept) == (True, [5, 1, 1])
    never = [i for i in range(V) if i not in likely and f" s{alphabet[i]}" not in lesson.text]
    assert (len(never), 0.005 < logits.softmax(dim=-1)[never].sum() < 0.025) == (49, True)
    rows = {name: torch.tensor(row) for name, row in table.items()}  # known, distinct, perplexity
    shakespeare = rows.pop("true text")
    order = torch.stack([rows[x] for x in ("0.5", "0.8", "1.3, min-p 0.1", "1", "1.3")])
    assert (order.diff(dim=0) * torch.tensor([-1, 1, 1]) > 0).all()
    assert all(row[0] < shakespeare[0] - 0.05 for row in rows.values())
    assert abs(rows["0"][2] / rows["1"][2] - 0.5) < 0.15
    assert (rows["0.5"][0] - 0.85).abs() + (rows["1.3"][0] - 0.4).abs() < 0.1
    assert shakespeare[1] < rows["0.8"][1] - 0.05
    assert ((rows["1, top-p 0.9"] - rows["0.8"])[:2].abs() < 0.06).all()
    assert abs(rows["0.8"][0] - 0.67) < 0.06 > (rows["1"][2] - shakespeare[2]).abs() / 10

# %% [markdown]
# From 0.5 to 1.3, the words become more varied, but fewer are known. Shakespeare's words are less
# varied than those at 0.8, yet almost all are known; at 0.8, a third are not: many are invented.
# Top-p 0.9 makes about the same compromise as temperature 0.8, min-p at 1.3 one between 0.8 and 1:
# here, filters are no better than a lower temperature. No setting has words as varied as
# Shakespeare's and as often known: for that, we need a better model.
#
# The greedy texts have about half the perplexity of the texts at temperature 1, and yet they are
# worse: a low perplexity of a model's own text says little. At temperature 1, it shows how
# uncertain the model takes itself to be; the perplexity of the true text, how uncertain it really
# is. Both are almost the same. This is a sign, not a proof, that it is *calibrated*: of the
# characters to which it gives the probability 0.7, about 70% are correct (exercise 1). An
# overfitted model is too sure.
#
# ## The loop repeats work
#
# `complete` runs the whole context through the model for each new token. We count the tokens:
# `register_forward_pre_hook` makes PyTorch call a function before each forward pass.

# %%
processed = []  # the number of tokens in each forward pass


def record_length(module, inputs):
    processed.append(inputs[0].shape[1])  # inputs[0] has the shape (B, T)


model.register_forward_pre_hook(record_length)
complete("R", 64, temperature=1)
print(f"{processed[:4]} … {processed[-1]}: {sum(processed):,} tokens")

# %% [markdown]
# The sum $1 + 2 + \dots + T = T (T + 1) / 2$ grows with the square of the length. But the results
# for old tokens do not change: because of the causal mask, no position sees a later one.
#
# ## The key/value cache
#
# A new token needs two things from the old tokens: their keys and their values. It does not need
# their queries: a query gives the result at its own position, and we need only the newest result.
# The other layers work on each position alone. The *key/value cache* stores the keys and
# values of all heads in all Transformer blocks. Here is one head, for 5 tokens and $D = 2$:

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
# fills the cache: the *prefill*. It processes the whole prompt at once: all its tokens are known.
# Each later pass processes one token, and adds its key and value to the cache of each head. (Papers
# call only these passes *decoding*.) Here the model continues `ROM` with `EO:`.

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
    queries = [[f"q{i}" for i in range(old, len(text))]]  # only those of the new tokens
    cells(axes, left + 4 * old, 10, queries, filled=[new * [True]])
    write(axes, middle, 5, f"next token: {'ROMEO:'[len(text)]!r}", color=ACCENT, bold=True)
    left += 4 * len(text) + 6
write(axes, 35.5, 1.8, "filled: computed in this pass; not filled: from an earlier pass")
show("cache")

# %% [markdown]
# `generate` of the package uses such a cache. Our model is too small to show the time saved:
# calling its functions takes much of the time. So we take an untrained GPT as large as `baby` of
# [lesson 3](03_counting.md): the weights do not change the time. The text has 128 tokens.

# %%
large = GPT(GPTConfig(n_layer=6, n_head=6, n_embd=384, block_size=256, vocab_size=V))
large.requires_grad_(False).register_forward_pre_hook(record_length)
processed.clear()
start = time.perf_counter()  # a clock, in seconds
for length in range(1, 129):
    large(val_tokens[None, :length])  # (1, length, V)
seconds = time.perf_counter() - start
print(f"without the cache: {sum(processed):,} tokens, {seconds:.1f} seconds")
processed.clear()
start = time.perf_counter()
list(generate(large, [val_tokens[:1].tolist()], 128))  # 128 steps
seconds_cached = time.perf_counter() - start
print(f"with the cache: {sum(processed)} tokens, {seconds_cached:.1f} seconds")

# %% [markdown]
# The work falls by a factor of 64.5. The time falls less: each pass still reads all weights and all
# cached keys and values from memory. The price of the cache is memory: a key and a value of $C$
# numbers for each token, Transformer block and text (exercise 3).
#
# ## When the context window is full
#
# The model has no position embedding for token 65, so an old token must go. But if the oldest one
# goes, each other token moves to another position and gets another position embedding, so all
# keys and values change. The cache is then useless, and a prefill must fill it again. If this
# happened for every token, the cache would save nothing. So when token 65 comes, nanogpt drops the
# oldest 17 of the 65 tokens, about a quarter, and keeps the newest 48 (`drop_oldest`):

# %%
processed.clear()
list(generate(model, [encode("ROMEO:\n").tolist()], 120))
prefills = {step: length for step, length in enumerate(processed) if length > 1}
print(f"pass and length of each prefill: {prefills}")

# %% tags=["test"]
assert sum(range(1, 129)) / 128 == 8256 / 128 == 64.5
assert (prefills, sum(processed[58:75])) == ({0: 7, 58: 48, 75: 48, 92: 48, 109: 48}, 64)
assert lesson.FAST or seconds / seconds_cached > 1.5

# %% [markdown]
# After 7 + 57 tokens, the context is full. From pass 58 on, every 17th pass is a prefill of 48
# tokens. So 17 generated tokens cost $48 + 16 = 64$ processed tokens, about 4 for each instead of
# 64. The price: the model sees only 56 tokens on average (48 to 64).
#
# ## What to remember
#
# - Greedy decoding easily runs into loops. Sampling needs a seed to be repeatable.
# - Temperature makes probabilities more or less equal; filters remove unlikely tokens.
# - Until a token is dropped, the keys and values of old tokens do not change, so a cache stores
#   them. Each new token then needs a pass of one token.
#
# ## Three common mistakes
#
# 1. **You divide probabilities, not logits, by the temperature, and then apply softmax.**
#    *Symptom:* random characters, because all probabilities are almost equal.
#    *Remedy:* `(logits / temperature).softmax(dim=-1)`.
# 2. **You pass the whole text to the model.** *Symptom:* an error at token 65, because it has
#    no position embedding. *Remedy:* pass `tokens[-T:]`.
# 3. **You forget `model.eval()` for a model with dropout.** *Symptom:* the same prompt gives
#    different logits each time. *Remedy:* call it before generation (`generate` does so itself).
#
# ## Exercises
#
# 1. Is the model calibrated? Take the highest probability at each position of `val_logits`. Compare
#    its mean with the share of correct characters, for probabilities from 0 to 0.2, 0.2 to 0.4, …
# 2. If the context has 65 tokens, keep the newest 64 − n, so drop n + 1. How many tokens does the
#    model process for each generated token, for n = 0, 16 and 48?
# 3. GPT-3 (Brown et al. 2020) has 96 Transformer blocks, 12,288 channels and a context of 2,048
#    tokens. How many gigabytes is its cache for one text, with 2 bytes for each number?

# %% tags=["solution"]
if SOLUTIONS:
    p, choice = val_logits.softmax(dim=-1).max(dim=-1)  # (N, 17) each: max() and argmax()
    is_correct = (choice == targets).float()  # (N, 17): 1 or 0
    for low in (0, 0.2, 0.4, 0.6, 0.8):
        group = (p >= low) & (p < low + 0.2)  # (N, 17)
        mean, share = p[group].mean(), is_correct[group].mean()
        print(f"1. probability {mean:.2f}, correct {share:.0%}")
        assert lesson.FAST or abs(mean - share) < 0.05
    for n in (0, 16, 48):
        work = (T - n) + n * 1  # a prefill and n passes of one token generate n + 1 tokens
        print(f"2. n = {n}: {work / (n + 1):.1f} processed for each generated token")
    gigabytes = 2 * (2 * 96 * 12288 * 2048) / 1e9  # keys and values: each token, block, channel
    print(f"3. {gigabytes:.1f} gigabytes")
    assert round(gigabytes, 1) == 9.7

# %% [markdown]
# # 9. Writing
#
# A trained model says how likely each character is to come next. That is not a text yet. Somebody
# has to choose one of the characters, append it and ask again, and how that is done makes all the
# difference to the text. This lesson looks at one distribution through all the usual ways to
# choose, then makes writing fast with a *cache*, and measures what both are worth.
#
# First a model to write with: the GPT of lesson 7, two blocks, a context of 64.

# %%
import itertools
import math
import re
import time

import matplotlib.pyplot as plt
import torch
from lesson import FAST, V, alphabet, decode, encode, fit, train, val
from torch.utils.flop_counter import FlopCounterMode

from nanogpt.generate import Sampling, filter_logits, generate
from nanogpt.models.gpt import GPT, GPTConfig

T = 64
torch.manual_seed(0)
model = GPT(GPTConfig(n_layer=2, n_head=4, n_embd=64, block_size=T, vocab_size=V))
print(f"validation loss {fit(model, steps=2000, lr=4e-3, size=16, length=T):.3f}")
model = model.eval().requires_grad_(False)
# %% [markdown]
# ## One distribution
#
# We keep to one place: what follows `ROMEO:`, a new line and `What s`. The model gives 65 logits
# $z$, and $p = \text{softmax}(z)$. How much of a choice is there? The entropy
# $H = -\sum p_i \ln p_i$ from lesson 1 tells, and $e^H$ is easier to imagine: drawing from $p$ is
# as uncertain as drawing from $e^H$ characters that are all equally likely.

# %%
prompt = encode("ROMEO:\nWhat s")
logits = model(prompt[None])[0, -1]  # (V,)
p = logits.softmax(dim=0)  # (V,)


def entropy(p):
    return torch.special.entr(p).sum().abs().item()  # entr(x) is -x ln x, and 0 at 0


print(f"entropy {entropy(p):.2f} nats: as uncertain as {math.exp(entropy(p)):.1f} equal characters")

# %% [markdown]
# ## Ways to choose
#
# *Greedy*: always the likeliest. No chance is left, $H = 0$.
#
# *Temperature* divides the logits by a number $\tau$ before the softmax. It makes $p_i^{1/\tau}$ of
# $p_i$, scaled to sum to 1 again. Below 1 the likely becomes likelier, above 1 all become more
# alike. The name is from physics, where particles of a hot gas visit improbable states more often.
#
# *Top-k* (Fan et al. 2018, arXiv:1805.04833) draws from the $k$ likeliest only. Of 65 characters
# most are nonsense here. Each is unlikely, but there are many of them, and a text is long: with a
# chance of 2% at every character, something odd happens in every other line.
#
# *Top-p*, or *nucleus* sampling (Holtzman et al. 2019, arXiv:1904.09751), has another answer to the
# same question. After a `q` one character is sensible, after a blank thirty are, so no $k$ is right
# for both. It keeps the likeliest characters until together they have a given probability; how many
# that are depends on how sure the model is.


# %%
def scaled(p):
    return p / p.sum()


def greedy(z):
    return torch.zeros_like(z).scatter(0, z.argmax(dim=0, keepdim=True), 1.0)


def with_temperature(z, tau):
    return (z / tau).softmax(dim=0)


def top_k(p, k):
    return scaled(p.where(p >= p.topk(k).values[-1], 0.0))


def top_p(p, mass):
    ordered, order = p.sort(descending=True, stable=True)
    likelier = ordered.cumsum(dim=0) - ordered  # (V,): what those before each have already
    return scaled(torch.zeros_like(p).scatter(0, order, ordered.where(likelier < mass, 0.0)))


choices = {
    "greedy": (greedy(logits), Sampling(temperature=0)),
    "temperature 0.5": (with_temperature(logits, 0.5), Sampling(temperature=0.5)),
    "temperature 1": (with_temperature(logits, 1), Sampling()),
    "temperature 1.5": (with_temperature(logits, 1.5), Sampling(temperature=1.5)),
    "top-k 4": (top_k(p, 4), Sampling(top_k=4)),
    "top-p 0.9": (top_p(p, 0.9), Sampling(top_p=0.9)),
}

# %% [markdown]
# Filters can be combined, and then their order matters. nanogpt takes the temperature first, then
# top-k, then top-p over what top-k left. All of ours are the same as those in
# `nanogpt/generate.py`, alone and together. In the picture, temperature changes the shape and
# leaves everything possible, while top-k and top-p cut off the tail and leave the shape of the
# rest.

# %%
hot = with_temperature(logits, 1.5)
all_three = top_p(top_k(hot, 10), 0.8), Sampling(temperature=1.5, top_k=10, top_p=0.8)
for mine, sampling in [*choices.values(), all_three]:
    theirs = filter_logits(logits, sampling).softmax(dim=-1)
    torch.testing.assert_close(mine, theirs)

for name, (q, _) in choices.items():
    print(f"{name:16} {(q > 0).sum():3} possible, entropy {entropy(q):.2f}")

# %% alt="The chances of the twelve likeliest characters, in six panels: one for each way to choose"
figure, panels = plt.subplots(2, 3, sharex=True, sharey=True, figsize=(7.5, 4))
likeliest = p.topk(12).indices
labels = [{"\n": "↵", " ": "␣"}.get(alphabet[i], alphabet[i]) for i in likeliest]
for axes, (name, (q, _)) in zip(panels.flat, choices.items(), strict=True):
    axes.bar(range(12), q[likeliest], color="0.4")
    axes.set_xticks(range(12), labels)
    axes.set_title(f"{name}: H = {entropy(q):.2f}", fontsize=9)
    axes.grid(axis="x", visible=False)
figure.supxlabel("next character", fontsize=10)
figure.supylabel("chance", fontsize=10)
plt.show()

# %% [markdown]
# ## It writes
#
# The loop is short: ask, draw, append. The model can look at no more than 64 characters, so the
# loop shows it the last 64.


# %%
def write(choose, length):
    tokens = prompt  # (N,), one longer with each turn
    for _ in range(length):
        z = model(tokens[None, -T:])[0, -1]  # (V,)
        tokens = torch.cat([tokens, torch.multinomial(choose(z), 1)])
    return decode(tokens)


torch.manual_seed(0)
texts = {"greedy": write(greedy, 300)}
for tau in (0.5, 1, 1.5):
    texts[f"temperature {tau}"] = write(lambda z, tau=tau: with_temperature(z, tau), 300)
for name, written in texts.items():
    print(f"--- {name}\n{written}\n")

# %% [markdown]
# Greedy text goes round in circles. What is chosen depends on nothing but the characters in the
# context, so a context that comes a second time will be followed by the same text, for ever. And
# the likeliest continuation of a phrase that stands there twice is the phrase once more. People do
# not write so: their next word is often not the likeliest one, or it would not be worth reading
# (Holtzman et al. 2019 show this for much larger models).
#
# We count it: what part of all pieces of eight characters is new?


# %%
def new_pieces(written, length=8):
    pieces = [written[i : i + length] for i in range(len(written) - length + 1)]
    return len(set(pieces)) / len(pieces)


for name, written in texts.items():
    print(f"{name:16} {new_pieces(written):4.0%}")
assert FAST or new_pieces(texts["greedy"]) < 0.6 < 0.9 < new_pieces(texts["temperature 1"])

# %% [markdown]
# ## Nothing in the past changes
#
# The loop above is wasteful. For each new character it sends the whole context through the model,
# although all but one of the tokens went through it a moment ago. Would they give something else
# now?
#
# They could not. The mask of lesson 2 lets a position look at itself and at the past, never ahead.
# So whatever is computed at a position, in every layer, depends on the tokens up to there, and not
# on what is appended later. Norms and feed-forward layers see one position at a time anyway.

# %%
short, long = val[:20][None], val[:50][None]  # (1, 20) and (1, 50)
torch.testing.assert_close(model(long)[:, :20], model(short))

# %% [markdown]
# The new position needs only two things of the old ones: their keys, to decide where to look, and
# their values, to gather. Those we keep, for every layer. That is the whole cache. What goes
# through the model is one token, with a query that asks all keys there are.
#
# Here is the forward pass of a GPT by hand, with a cache: for each block a tensor of keys and
# values that grows. Where the cache is empty and all tokens come at once, it is the usual one. $T$
# tokens come, $S$ are there when they have come; the mask says that the first of the new may look
# at $S - T + 1$ of them, the next at one more.


# %%
def empty_cache(model, B=1):
    config = model.config
    shape = 2, B, config.n_head, 0, config.n_embd // config.n_head
    return [torch.zeros(shape) for _ in model.blocks]  # keys and values: (2, B, H, S, D), S = 0


def forward(model, tokens, cache):
    """Logits after each of tokens (B, T), which go on where the cache ends."""
    (B, T), (_, _, H, past, D) = tokens.shape, cache[0].shape
    S = past + T
    x = model.token_embedding(tokens) + model.position_embedding.weight[past:S]  # (B, T, C)
    future = torch.ones(T, S, dtype=torch.bool).triu(past + 1)
    for i, block in enumerate(model.blocks):
        qkv = block.attention.qkv(block.norm1(x)).view(B, T, 3, H, D)
        q, *new = qkv.permute(2, 0, 3, 1, 4)  # three of (B, H, T, D)
        cache[i] = torch.cat([cache[i], torch.stack(new)], dim=3)  # (2, B, H, S, D)
        k, v = cache[i]
        weights = (q @ k.mT / math.sqrt(D)).masked_fill(future, -math.inf).softmax(-1)
        y = (weights @ v).transpose(1, 2).flatten(2)  # (B, H, T, D) -> (B, T, C)
        x = x + block.attention.projection(y)
        x = x + block.feed_forward(block.norm2(x))
    return model.norm(x) @ model.token_embedding.weight.T  # (B, T, V)


# %% [markdown]
# All at once, a token at a time, or in pieces of any length: the logits are the same at every
# position, and they are those of the model.

# %%
tokens = val[: 3 * T].view(3, T)  # (B, T)
expected = model(tokens)
for pieces in ([T], [1] * T, [7, 1, 30, 1, T - 39]):
    cache = empty_cache(model, B=3)
    parts = [forward(model, piece, cache) for piece in tokens.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=1e-4, atol=1e-4)
    print(f"{len(pieces):2} pieces, up to {(torch.cat(parts, 1) - expected).abs().max():.0e} off")

# %% [markdown]
# ## What it saves
#
# A token meets every weight of the matrices once, which makes $12 C^2$ multiplications in each of
# $L$ blocks ($3C^2$ for queries, keys and values, $C^2$ for the projection, $8C^2$ for
# feed-forward), and $CV$ for the head. In attention each token that goes in has a product with each
# of $S$ keys and takes the mean of $S$ values: $2CS$ in each block. To write a text of the length
# $T$, $1 + 2 + \dots + T = T(T + 1) / 2$ tokens go through the model without a cache, and $T$ with
# one. We let torch count along; it counts a multiplication and its addition as two.


# %%
def operations(model, new, seen):
    """What it takes to send new tokens in, when seen are there in the end."""
    L, C = model.config.n_layer, model.config.n_embd
    return new * (L * (12 * C**2 + 2 * C * seen) + C * V)


with FlopCounterMode(display=False) as counter:
    forward(model, tokens[:1], empty_cache(model))
assert counter.get_total_flops() == 2 * operations(model, T, T)


def of_a_text(model):
    """Operations that a text of context length takes, without a cache and with it."""
    lengths = range(1, model.config.block_size + 1)
    without = sum(operations(model, t, t) for t in lengths)
    return without, sum(operations(model, 1, t) for t in lengths)


without, cached = of_a_text(model)
print(f"a text of {T}: {without:,} multiplications without a cache, {cached:,} with it")
print(f"{without / cached:.1f} times as many; tokens: {(T + 1) / 2} times as many")
assert 0.9 * (T + 1) / 2 < without / cached < 1.5 * (T + 1) / 2


# %% [markdown]
# Operations are not seconds. A processor with a single token to work on mostly waits for weights to
# arrive and functions to be called; 60 tokens at once take it nowhere near 60 times as long. To see
# more than these overheads, we time a larger model with a longer context. It is not trained, as
# that makes no difference to the clock.

# %%
torch.manual_seed(0)
large = GPT(GPTConfig(n_layer=4, n_head=4, n_embd=128, block_size=256, vocab_size=V)).eval()


@torch.no_grad()
def seconds_each(keep):
    """How long each character of a text of context length takes."""
    tokens, cache, clock = torch.zeros(1, 1, dtype=torch.long), empty_cache(large), []
    for _ in range(32 if FAST else large.config.block_size):
        began = time.perf_counter()
        cache = cache if keep else empty_cache(large)
        z = forward(large, tokens[:, -1:] if keep else tokens, cache)[0, -1]
        tokens = torch.cat([tokens, torch.multinomial(z.softmax(0), 1)[None]], dim=1)
        clock.append(time.perf_counter() - began)
    return clock


clocks = {}
for name, keep in (("without a cache", False), ("with a cache", True)):
    rounds = [seconds_each(keep) for _ in range(1 if FAST else 4)]
    clocks[name] = [min(times) for times in zip(*rounds, strict=True)]  # others compute here, too
without, cached = of_a_text(large)
print(f"{without / cached:.0f} times as many multiplications without a cache")
for name, clock in clocks.items():
    print(f"{name:15} {len(clock) / sum(clock):4.0f} characters a second")

# %% alt="Milliseconds per character over position: rising without a cache, flat and low with it"
for (name, clock), style in zip(clocks.items(), (":", "-"), strict=True):
    plt.plot(1e3 * torch.tensor(clock), color="black", linestyle=style, label=name)
plt.ylim(0, 1.3e3 * sorted(clocks["without a cache"])[-5])
plt.xlabel("characters written")
plt.ylabel("time of the next (milliseconds)")
plt.legend()
plt.show()

# %% [markdown]
# The price is memory: $2LSC$ numbers for every text that is being written. For the largest GPT-2
# with its 48 blocks, 1,600 channels and a context of 1,024 these are 157 million, a tenth of its
# weights again, for each text.
#
# ## When the context is full
#
# There is no position embedding for the 65th token. The oldest has to go, and then everything moves
# up by one: each token stands at another position, so each key and value is another, and the cache
# is worth nothing. It would be so even if positions were only relative: above the first block, keys
# and values hold what was gathered from the token that went.

# %%
one_on = empty_cache(model), empty_cache(model)
for cache, start in zip(one_on, (0, 1), strict=True):
    forward(model, val[None, start : start + T], cache)
same_characters = one_on[0][1][..., 1:, :], one_on[1][1][..., :-1, :]  # of the second block
difference = (same_characters[0] - same_characters[1]).norm() / same_characters[0].norm()
print(f"keys and values of the same characters, one place on: {difference:.0%} off")
assert difference > 0.01

# %% [markdown]
# So nanogpt forgets rarely and a lot: the oldest quarter of the context at once. The rest is read
# anew, in one go, and then there is room for another $T / 4$ characters. That is three tokens read
# again for each that is written, instead of $T$; what it costs is that the model looks back at
# between $\frac34 T$ and $T$ characters. Ours does the same and writes the same text as nanogpt's.


# %%
def write_cached(choose, length):
    context, cache, written = prompt.tolist(), empty_cache(model), []
    unread = context
    for _ in range(length):
        z = forward(model, torch.tensor([unread]), cache)[0, -1]
        written.append(torch.multinomial(choose(z), 1).item())
        context, unread = [*context, written[-1]], written[-1:]
        if len(context) > T:
            context = unread = context[-(T - T // 4) :]
            cache = empty_cache(model)
    return written


steps = generate(model, [prompt.tolist()], 4 * T, Sampling(temperature=0))
assert write_cached(greedy, 4 * T) == [step.tokens[0] for step in steps]

# %% [markdown]
# ## What it bought
#
# A cache changes the speed and nothing else. A way to choose makes no model better either, and the
# loss of a written text tells nothing good: greedy text surprises the model least of all. So we
# count something that one can see in the text: which part of the written words occurs anywhere in
# the training text? And to see the price, how many of 2,000 words in a row differ from each other?
# All from 40 texts, and beside them Shakespeare's own words from the unseen text.


# %%
def words(text):
    return re.findall(r"[a-z']+", text.lower())


vocabulary = set(words(decode(train)))
count = 100 if FAST else 2000


def judge(name, found):
    """Shares of the first words: those that are known; distinct ones; distinct and known."""
    assert len(found) >= count
    found = found[:count]
    known, distinct = sum(word in vocabulary for word in found) / count, len(set(found)) / count
    both = len(set(found) & vocabulary) / count
    print(f"{name:15} {known:6.1%} known {distinct:7.1%} distinct {both:7.1%} distinct and known")
    return known, distinct, both


tried = {f"temperature {tau}": Sampling(temperature=tau) for tau in (0.5, 0.8, 1, 1.3)}
tried |= {f"top-p {mass}": Sampling(top_p=mass) for mass in (0.6, 0.8, 0.95)}
shares = {}
for name, sampling in tried.items():
    steps = generate(model, [prompt.tolist()] * 40, 40 if FAST else 400, sampling)
    rows = [decode(row) for row in zip(*(step.tokens for step in steps), strict=True)]
    # The first word begins in the prompt, the last may be cut off.
    shares[name] = judge(name, [word for row in rows for word in words(row)[1:-1]])
shares["Shakespeare"] = judge("Shakespeare", words(decode(val)))

# %% alt="Known over distinct words: all settings on one falling line, Shakespeare above it"
for kind, style in (("temperature", "o-"), ("top-p", "s--"), ("Shakespeare", "*")):
    points = {name: share for name, share in shares.items() if kind in name}
    known, distinct, _ = zip(*points.values(), strict=True)
    plt.plot(distinct, known, style, color="black", label=kind)
    for name, x, y in zip(points, distinct, known, strict=True):
        if kind != "Shakespeare":
            plt.annotate(name.split()[1], (x, y), (6, 4), textcoords="offset points", fontsize=8)
plt.xlabel(f"share of distinct words, of {count:,}")
plt.ylabel("share of known words")
plt.legend()
plt.show()

# %% [markdown]
# | on one core, 4 blocks of 128 channels, context 256 | characters a second |
# | --- | --- |
# | without a cache | about 190 |
# | with a cache | about 1,400 |
#
# | of 2,000 words | known | distinct | distinct and known |
# | --- | --- | --- | --- |
# | temperature 0.5 | 91% | 20% | 12% |
# | temperature 0.8 | 75% | 40% | 15% |
# | temperature 1 | 62% | 53% | 16% |
# | temperature 1.3 | 46% | 67% | 14% |
# | top-p 0.6 | 92% | 17% | 10% |
# | top-p 0.8 | 83% | 30% | 14% |
# | top-p 0.95 | 69% | 46% | 16% |
# | Shakespeare | 97% | 32% | 29% |
#
# With the cache a text of context length is written six to nine times as fast, in our runs, where
# the count promised more than a hundred times. The difference is what a processor spends on a
# single token besides multiplying.
#
# Temperature trades safe for wild: at 0.5 nine words of ten occur in the training text, though the
# same few again and again; at 1.3 the text is varied because more than half of it is made up. The
# last column tells the two apart. Words that are both distinct and known are the most between 0.8
# and 1; all that more heat adds is invention.
#
# Top-p lies on the same line as temperature. On a model this small we measure no advantage of one
# over the other. Shakespeare is above the line, known and varied at once. A way to choose only
# moves along the line; to move the line takes a better model. That is what lesson 10 is about.

# %%
by_tau = [shares[f"temperature {tau}"] for tau in (0.5, 0.8, 1, 1.3)]
for safer, wilder in itertools.pairwise(by_tau):
    assert FAST or (safer[0] > wilder[0] + 0.03 and safer[1] < wilder[1] - 0.03)
assert FAST or by_tau[0][0] > 0.75 > 0.65 > by_tau[-1][0]
assert FAST or max(share[2] for share in by_tau) < 0.9 * shares["Shakespeare"][2]
assert shares["Shakespeare"][0] > 0.9

# %% [markdown]
# ## Exercises
#
# 1. What becomes of the distribution when the temperature goes to 0, and what when it goes to
#    infinity? Check both by the entropy.
# 2. *Min-p* (Nguyen et al. 2024, arXiv:2407.01082) keeps the characters that have at least a given
#    part of the likeliest one's chance. Write it, and compare with nanogpt's.
# 3. Temperature 1.5 before top-p 0.9 or after it: which keeps more characters, and why?
# 4. A full context forgets a part $f$ of its $T = 64$ characters and reads the rest anew. How many
#    tokens go through the model for each character that is written, for $f$ of one character, of
#    $\frac14$ and of $\frac34$? How many does the model look back at on average?
# 5. How surprised is the model by its own texts? Measure the mean of $-\ln p$ that it pays (at
#    temperature 1) for characters written greedily, at temperature 0.5, 1 and 1.5, and for those of
#    the unseen text. Which comes closest to Shakespeare, and must it be so?

# %% tags=["solution"]
cold, hot = (entropy(with_temperature(logits, tau)) for tau in (0.01, 1000))
print(f"1. {cold:.3f}: the likeliest alone; {hot:.3f}: all equal, ln {V} = {math.log(V):.3f}")
assert hot > math.log(V) - 0.01
assert FAST or cold < 0.01


def min_p(p, part):
    return scaled(p.where(p >= part * p.max(), 0.0))


expected = filter_logits(logits, Sampling(min_p=0.1)).softmax(dim=-1)
torch.testing.assert_close(min_p(p, 0.1), expected)
print(f"2. min-p 0.1 keeps {(min_p(p, 0.1) > 0).sum()}")

heat_first = top_p(with_temperature(logits, 1.5), 0.9)
heat_last = with_temperature(top_p(p, 0.9).log(), 1.5)  # ln 0 = -∞ stays 0
kept = [(q > 0).sum().item() for q in (heat_first, heat_last)]
print(f"3. before: {kept[0]}, after: {kept[1]}; heat makes the nucleus wider, if it comes first")
assert kept[0] >= kept[1]

written = 1000 * T
for forgotten in (1, T // 4, 3 * T // 4):
    context, through, seen = T, 0, 0  # a full one, all of it read
    for _ in range(written):
        context, through = context + 1, through + 1
        if context > T:
            context -= forgotten
            through += context - 1  # the new one is counted
        seen += context
    print(
        f"4. forgets {forgotten:2}: {through / written:5.2f} tokens each, sees {seen / written:.0f}"
    )
    assert abs(through / written - T / forgotten) < 0.01  # 1 / f


def surprise(rows):
    """What the model pays for all but the first T / 2 characters of rows (B, T)."""
    chances = model(rows).log_softmax(dim=-1)[:, T // 2 - 1 : -1]
    return -chances.gather(-1, rows[:, T // 2 :, None]).mean().item()


unseen = val[: 200 * T].view(200, T)
starts = [row.tolist() for row in unseen[:, : T // 2]]
paid = {"Shakespeare": surprise(unseen)}
for tau in (0, 0.5, 1, 1.5):
    steps = generate(model, starts, T // 2, Sampling(temperature=tau))
    news = torch.tensor([step.tokens for step in steps])  # (T / 2, B)
    paid[tau] = surprise(torch.cat([unseen[:, : T // 2], news.T], dim=1))
print("5.", ", ".join(f"{name}: {nats:.2f}" for name, nats in paid.items()))
assert FAST or paid[0] < paid[0.5] < paid[1] < paid[1.5]
assert FAST or abs(paid[1] - paid["Shakespeare"]) < 0.4
# Temperature 1 draws from what the model believes, so it pays its own entropy. That this is near
# to what it pays for Shakespeare says that it is about as sure as it may be. Nothing forces that.

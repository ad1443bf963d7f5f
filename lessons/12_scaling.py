# %% [markdown]
# # 10. Larger
#
# Nothing that we built has a size of its own. A model can be wider or deeper, read more text, be
# trained for longer. What does that buy? The question has made the field what it is: GPT-3 is the
# model of lesson 7, and what is new about it comes with its size. This lesson measures small
# models, then reads the measurements of `nanogpt study scaling`, with models up to 28 times as
# large and 1,500 times the operations, and asks how far they carry.

# %%
import json
import math

import matplotlib.pyplot as plt
import torch
from lesson import FAST, RESULTS, T, V, batch, cross_entropy, fit, train, validation
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nanogpt.models import GPT, GPTConfig

# %% [markdown]
# ## Three things to spend
#
# *Parameters*, $N$. Almost all of them are in the blocks. A block as wide as $C$ has four matrices
# of $C \times C$ for attention (queries, keys, values, projection) and two of $C \times 4C$ for the
# feed-forward layer: $12 C^2$. With $L$ blocks, $N \approx 12 L C^2$.
#
# *Text*, $D$: how many tokens there are to learn from.
#
# *Operations*, $F$. In a product with a matrix each of its numbers is used once for a token, in one
# multiplication and one addition. So a token takes $2N$ operations on the way forward. The way back
# makes two such products: one for the gradient of the input, one for that of the weights. Together
# $6N$, and a training that reads $R$ tokens takes
#
# $$F \approx 6 N R.$$
#
# Where nothing is read twice, $R$ is $D$. Does it take that many? PyTorch can count.

# %%
torch.manual_seed(0)
model = GPT(GPTConfig(n_layer=4, n_head=4, n_embd=128, block_size=T, vocab_size=V))
N = sum(p.numel() for p in model.parameters())
inputs, targets = batch(train, 8)  # (8, T) both
with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
    cross_entropy(model(inputs), targets).backward()
counted = counter.get_total_flops() / inputs.numel()
print(f"parameters: {N:,}, of which 12LC² are {12 * 4 * 128**2:,}")
print(f"operations per token: {counted:,.0f} counted, {6 * N:,} by 6N")
assert 0.98 < counted / (6 * N) < 1.05

# %% [markdown]
# What the formula leaves out are attention's own products of queries, keys and values, which grow
# with the context: $12 L T C$ a token, 4% here. What it has too much are the positions, biases and
# norms, which are parameters of no product.
#
# ## Larger models
#
# Five sizes of nanogpt's GPT, each about four times the one before it. All read the same 820
# thousand characters in the same order, which is less than the text has. A larger model wants a
# lower rate: a wider matrix adds up more products, and if each weight moves as far as before, the
# sum moves farther. One over the width is what Yang et al. 2022 (arXiv:2203.03466) derive for Adam.


# %%
def gpt(layers, heads, channels):
    return GPT(GPTConfig(layers, heads, channels, T, V))


losses, counts = [], []
print("blocks  width  parameters  validation loss")
for blocks, heads, width in ((1, 1, 16), (2, 2, 24), (2, 3, 48), (3, 4, 80), (5, 4, 128)):
    torch.manual_seed(1)
    model = gpt(blocks, heads, width)
    losses.append(fit(model, steps=800, lr=0.32 / width, warmup=100))
    counts.append(sum(p.numel() for p in model.parameters()))
    print(f"{blocks:6}  {width:5}  {counts[-1]:10,}  {losses[-1]:15.3f}")
assert FAST or losses == sorted(losses, reverse=True)

# %% [markdown]
# Each step to a model of about four times the size gains something, and each gains less than the
# one before. Is there a rule? Say that there is a loss $E$ that no model gets below, as text is not
# fully predictable, and that what lies above it is a power of the size:
#
# $$L(N) = E + \frac{A}{N^\alpha}.$$
#
# Every four times as many parameters would take away the same share of what is left above $E$. To
# find the three numbers, we do what we do with all numbers: descend. With few parameters there is a
# method that needs no learning rate, L-BFGS: from the gradients so far it guesses how the ground is
# curved, and searches along the way that leads down best.


# %%
def descend(law, start, L):
    """The numbers with which a law is nearest to losses L, by the squares of relative errors."""
    x = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([x], max_iter=2000, line_search_fn="strong_wolfe")

    def error():
        optimizer.zero_grad()
        loss = 1e4 * (law(x).log() - L.log()).square().mean()  # of errors in percent
        loss.backward()
        return loss

    optimizer.step(error)
    return x.detach(), error().item() ** 0.5


def of_size(x, N):
    """exp(x[0]) is what a million parameters leave above E = exp(x[2]), and x[1] is α."""
    return x[2].exp() + (x[0] - x[1] * (N / 1e6).log()).exp()


ours = torch.tensor(counts).double(), torch.tensor(losses).double()  # (5,) both
x, percent = descend(lambda x: of_size(x, ours[0]), [-1.0, 0.3, 0.0], ours[1])
print(f"E = {x[2].exp():.2f}, α = {x[1]:.2f}, errors of {percent:.1f}%")
assert FAST or percent < 2

# %% alt="Loss of five sizes on a line that bends down, over parameters on a logarithmic axis"
figure, axes = plt.subplots()
wide = torch.logspace(3, 6, 50, dtype=torch.float64)
axes.plot(wide, of_size(x, wide), color="0.6", label="E + A / N^α")
axes.plot(counts, losses, "o", color="black", label="measured")
axes.set(xscale="log", xlabel="parameters", ylabel="validation loss (nats per character)")
axes.legend()
plt.show()

# %% [markdown]
# Five points, three numbers: it would be strange if that did not fit. But do not believe the $E$:
# as we will see, models of the same kind get far below it. All of these would go on learning, the
# larger ones the more, so the right end of the line is too high. A rule needs more points, over a
# wider range, from models that are done.
#
# ## Less text
#
# First the other side. One model, the same number of steps, and a part of the text only. The fewer
# characters there are, the more often it reads each.

# %%
shown = []
print("characters  times read  loss on them  validation loss")
for part in (1, 4, 16, 64):
    piece = train[: len(train) // part]
    torch.manual_seed(1)
    model = gpt(3, 4, 80)
    loss = fit(model, steps=800, lr=0.004, warmup=100, text=piece)
    known = validation(model, part=0.1, text=piece)
    shown.append((len(piece), known, loss))
    print(f"{len(piece):10,}  {800 * 32 * T / len(piece):10.0f}  {known:12.3f}  {loss:15.3f}")
assert FAST or shown[0][2] < shown[1][2] < shown[2][2] < shown[3][2]
assert FAST or shown[3][1] < shown[0][1]

# %% [markdown]
# The loss on what it read falls, the loss on what it did not read rises. A model with some 250
# thousand parameters has begun to keep a few pages of text in them. It is not that it has learned
# less; it has learned something else, which is of no use for other text. More parameters would make
# that worse, and more text, or stopping earlier, better.
#
# ## The study
#
# `nanogpt study scaling` does it thoroughly: seven sizes of the modern model (lesson 11), from 10
# thousand parameters to 28 million, on five amounts of Shakespeare's plays, the largest of them
# four times Tiny Shakespeare. Each is trained until it gets no better, or for 41 million
# characters. The more parameters it has for a character, and the more often it reads each, the more
# dropout and decay hold it back; of up to three tries the best counts. One GPU (H100) did it in
# sixteen minutes; its results are in `benchmarks/results/scaling/`.

# %%
study = json.loads((RESULTS / "scaling" / "scaling.json").read_text())
cells = study["cells"]
N, D, L = (torch.tensor([cell[key] for cell in cells]).double() for key in ("N", "D", "loss"))
amounts, models = sorted({*D.tolist()}), sorted({*N.tolist()})
print("parameters", *(f"{d / 1e6:8.2f} M" for d in amounts))
for n in models:
    print(f"{n:10,.0f}", *(f"{loss:10.3f}" for loss in L[n == N].tolist()))

# %% alt="Loss over parameters: of five lines the one of least text is level first"
figure, axes = plt.subplots()
for d, marker, grey in zip(amounts, "osvD^", ("0.75", "0.6", "0.4", "0.2", "0"), strict=True):
    axes.plot(N[d == D], L[d == D], marker=marker, color=grey, label=f"{d / 1e6:.2f} M characters")
axes.set(xscale="log", xlabel="parameters", ylabel="validation loss (nats per character)")
axes.legend()
plt.show()

# %% [markdown]
# Read it from the left. A model of 10 thousand parameters does not care how much text there is: it
# cannot make use of it. With 0.28 million characters a model is about as good as it gets at some
# 500 thousand parameters, with 1.13 million at 7 million, as these were trained. With all the text,
# the largest model is still the best.
#
# So there are two ways to be held back: by size, and by text. Hoffmann et al. 2022
# (arXiv:2203.15556, "Chinchilla") add both up,
#
# $$L(N, D) = E + \frac{A}{N^\alpha} + \frac{B}{D^\beta},$$
#
# for models that read nothing twice. Ours read a small text up to 145 times. Let us also try a law
# in which the larger of the two hides the other. A sum of powers does that, with a root:
#
# $$L(N, D) = E + \left(\left(\frac{A}{N^\alpha}\right)^p +
# \left(\frac{B}{D^\beta}\right)^p\right)^{1/p}.$$
#
# With $p = 1$ it is the one above. With a large $p$ it is $E$ and the larger of the two.


# %%
def law(x, N, D, p):
    size = x[0] - x[1] * (N / 1e6).log()
    data = x[3] - x[4] * (D / 1e6).log()
    return x[2].exp() + (torch.logaddexp(p * size, p * data) / p).exp()


start = [-1.0, 0.3, 0.0, -1.0, 0.3]
added, percent_added = descend(lambda x: law(x, N, D, torch.ones(())), start, L)
free, percent_free = descend(lambda x: law(x, N, D, x[5].exp()), [*start, 1.0], L)
for name, x, percent in (("sum", added, percent_added), ("p free", free, percent_free)):
    p = x[5].exp() if len(x) > 5 else 1
    print(
        f"{name:6}  E = {x[2].exp():.2f}, α = {x[1]:.2f}, β = {x[4]:.2f}, "
        f"p = {p:.1f}, errors of {percent:.1f}%"
    )
for x, fitted in ((added, study["sum"]), (free, study["free"])):
    assert abs(x[2].exp() - fitted["law"]["E"]) < 0.1  # the study's own fit, by another method
assert percent_free < 1.2 < 3 < percent_added

# %% [markdown]
# The sum is off by 3.6%, which is much where all losses lie between 1.2 and 1.9. With $p$ free it
# is off by less than 1%, and $p$ is large. So here the two do not add up. What is scarcer decides,
# and of the other it is enough to have enough. It makes sense: a model that is too small for a text
# cannot tell whether there is more of it. Kaplan et al. 2020 (arXiv:2001.08361), who also trained
# on texts until models got no better, have a law between the two (their equation 1.5); with an $E$
# it is off by 1.7%. (`docs/studies.md` has the study's own fit, which takes errors as they are, not
# their squares. Its $p$ is much the same; the numbers of the sum, which does not fit, are others.)
#
# The two terms are equal where $A / N^\alpha = B / D^\beta$. With less text than that a model is
# starved of it; with more, it is too small.

# %%
a, alpha, _, b, beta, _ = free.tolist()
for n in models:
    lacks = a - alpha * math.log(n / 1e6)  # ln(A / N^α), to which ln(B / D^β) shall be equal
    enough = 1e6 * math.exp((b - lacks) / beta)
    wants = "text" if enough > amounts[-1] else "parameters"
    print(f"{n:10,.0f} parameters: enough text is {enough / 1e6:6.2f} M characters, wants {wants}")

# %% [markdown]
# With all that we have of Shakespeare's text, 4.5 million characters, text is the scarcer of the
# two from about 14 million parameters on, and gains from size shrink. With Tiny Shakespeare's
# million it is from half a million on. The 10 million of `baby` have to be kept from learning by
# heart, with dropout and decay. That is why these matter so much in this project, and so little for
# the large models of industry, which see most of their text once. How well it is done matters, too:
# on 1.13 million characters 7 million parameters have 1.34 in the table, and had 1.39 with half the
# rate and so half the decay in each step, all else equal. A study that holds its models back less
# well finds a larger $p$: our first had 8.
#
# ## The best for a budget
#
# Operations are what costs money. For some budget of them one can train a small model for long or a
# large one for a short time. The study has the loss on the way, too: the lowest line that any run
# reached with so many operations is the *frontier*.

# %% alt="Loss over operations: a curve for each size, which take over from each other one by one"
figure, axes = plt.subplots()
for i, (n, curve) in enumerate(study["curves"]):
    grey = str(0.7 * (1 - i / (len(models) - 1)))
    axes.plot(*zip(*curve, strict=True), color=grey, label=f"{n:,.0f}")
axes.set(xscale="log", xlabel="operations", ylabel="validation loss (nats per character)")
axes.set_ylim(1.1, 2.2)
axes.legend(title="parameters", fontsize=7)
plt.show()

# %% [markdown]
# Every size has its time. A small one is ahead at first, as it takes more steps with the same
# operations. Long before it has learned all that it can, a larger one gets ahead. So the more one
# has to spend, the larger the model should be; and a model that is trained until it is done has
# used up what would have made a larger one better. (It is cheaper to use, though.)
#
# How much larger? If $N$ should grow like $F^a$, Kaplan et al. found $a$ = 0.73, Hoffmann et al.
# about 0.5: as much more text as parameters, some 20 tokens for each. The study finds 0.86
# through the four places where a size gets ahead of the next smaller one. That is a lesson in
# caution more than a result. Its models all read the same text again and again, at rates that are
# not chosen for each budget, and for at most 2,500 steps: the same steps for all would make it 1.
# The difference between Kaplan et al. and Hoffmann et al. came from less: how the head was
# counted, how long rates rose, how they were chosen (Porian et al. 2024, arXiv:2406.19146).
#
# ## From here to GPT-3
#
# The shape of GPT-3 is published (Brown et al. 2020, arXiv:2005.14165): 96 blocks of 96 heads,
# 12,288 wide, a context of 2,048 tokens from a vocabulary of 50,257, and 300 billion tokens to
# learn from.

# %%
N3, D3 = 12 * 96 * 12288**2 + (50257 + 2048) * 12288, 300e9
largest = max((cell for cell in cells if amounts[-1] == cell["D"]), key=lambda cell: cell["N"])
print(f"parameters  {N3:.3g}, {N3 / largest['N']:,.0f} times our largest")
print(f"tokens      {D3:.3g}, of about 4 characters: {4 * D3 / largest['D']:,.0f} times our text")
print(f"operations  {6 * N3 * D3:.3g}, {6 * N3 * D3 / largest['compute']:.2g} times ours")
assert 174e9 < N3 < 176e9

# %% [markdown]
# That is the model of this course, 6 thousand times larger. In each block it has what lesson 7 has,
# except that every second layer looks at parts of the past only. Nobody wrote into it how to
# translate, or how to add. It learned to predict the next token, and to predict the next token of
# *any* text one has to know much. What surprised most was *in-context learning*: with a few
# examples of a task in its prompt, and no change to any weight, it goes on with the task. The
# larger the model, the more it makes of such examples. No law of the loss says what a model will be
# able to do, only how well it will predict.
#
# Today's models follow Hoffmann et al. and go beyond: more text for each parameter than is the best
# for a budget, as a smaller model is cheaper to use. And they have most of lesson 11 in them.
#
# ## From GPT-3 to ChatGPT
#
# What we train continues a text. Give it a question, and it may well continue with another
# question, as a list of questions would. GPT-3 does the same. To make an assistant of it, three
# steps come after all that was shown here (Ouyang et al. 2022, arXiv:2203.02155):
#
# 1. *Instruction fine-tuning.* People write answers to some ten thousand prompts. The model is
#    trained on them, with the loss and the loop of lesson 8.
# 2. *A reward model.* People say which of several answers is better. A second model, with one
#    number for an output, learns to say it for them.
# 3. *RLHF*, reinforcement learning from human feedback. The model writes, the reward model judges,
#    and the weights move to where answers get better rewards, without going far from where they
#    were.
#
# Their aim is called *alignment*: that a model does what people mean. It took a small part of
# the operations, and people preferred answers of a model with 1.3 billion parameters after it to
# those of GPT-3 with 175 billion before.
#
# nanogpt leaves all three out. They need data of another kind, made by people, and models that are
# large enough to have something to say. What they start from is what you have now seen whole.
#
# ## How far this carries
#
# Not far, in numbers. One author, one alphabet, contexts of 256 characters, one seed for each run,
# three orders of magnitude in $N$ and little more than one in $D$, and two models in three would
# have gained from more steps. $E$ above is no property of English: another law gives another $E$.
# What carries is the method, and three things that were found at every scale so far: loss falls
# smoothly, like a power; parameters are of use only with text for them; and the best size grows
# with the budget.

# %% [markdown]
# ## Exercises
#
# 1. How long would one H100 need for GPT-3, at 40% of its 989 · 10¹² operations a second?
# 2. You have $F = 6ND$ operations and text without end, so nothing is read twice. Show for the sum
#    that the best $N$ grows like $F^{\beta / (\alpha + \beta)}$, and check it with numbers.
# 3. By the law with $p$ free: what would the largest model reach with ten times the text? And what
#    would ten times the parameters bring without more text?

# %% tags=["solution"]
years = 6 * N3 * D3 / (0.4 * 989e12) / (365 * 24 * 3600)
print(f"1. {years:.0f} years")
assert 20 < years < 30

# At the best N, moving a share of the budget from text to parameters changes nothing:
# α A / N^α = β B / D^β, with D = F / 6N. So N^(α + β) is a constant times F^β.
alpha, beta, best = added[1].item(), added[4].item(), []
tried = torch.logspace(2, 14, 100_001, dtype=torch.float64)
for F in (1e15, 1e18):
    best.append(tried[law(added, tried, F / 6 / tried, torch.ones(())).argmin()].item())
slope = math.log(best[1] / best[0]) / math.log(1e3)
print(f"2. {slope:.3f} found, {beta / (alpha + beta):.3f} said")
assert abs(slope - beta / (alpha + beta)) < 0.01

n, d = torch.tensor(models[-1]), torch.tensor(amounts[-1])
now, text, parameters = (
    law(free, *amount, free[5].exp()).item() for amount in ((n, d), (n, 10 * d), (10 * n, d))
)
print(f"3. {now:.3f} now, {text:.3f} with more text, {parameters:.3f} with more parameters")
assert now - text > 2 * (now - parameters)

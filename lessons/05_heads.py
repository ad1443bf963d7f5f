# %% [markdown]
# # 5. Several heads, and what they attend to
#
# The head of lesson 4 computes one mean of values for each position. If it looks at two characters
# at once, it gets a mixture of both. *Multi-head attention* (Vaswani et al. 2017, arXiv:1706.03762,
# section 3.2.2) runs several heads side by side, each with its own queries, keys and values. This
# lesson builds it and looks at what the heads learn.
#
# **Before this lesson:** [lesson 4](04_attention.md) (queries, keys, values, weights, the mask) and
# [lesson 1](01_tensors.md) (`view`, shapes).
#
# **You will see:** how 64 channels become 4 heads and 64 channels again, with as many parameters as
# for one head; a task that two heads learn and one head does not; and a trained head that gives two
# thirds of its weight to the previous character.

# %%
import lesson
import matplotlib.pyplot as plt
import torch
from lesson import SOLUTIONS, V, encode, evaluate, show_scoreboard, train, val_tokens
from pictures import FILL, MUTED, SOFT, arrow, box, cells, diagram, show, write
from torch import nn
from torch.nn import functional as F

from nanogpt.models.gpt import CausalSelfAttention, GPTConfig, causal_attention

torch.set_printoptions(precision=2, sci_mode=False)
C, H = 64, 4  # channels, heads

# %% [markdown]
# ## Split the channels into heads
#
# H heads share the C channels: each head works with D = C / H of them. We start with numbers that
# are easy to follow: T = 3 positions, C = 4 channels, H = 2 heads of D = 2 channels.

# %%
q = torch.arange(12).view(3, 4)  # (T, C) = (3, 4)
heads = q.view(3, 2, 2).transpose(0, 1)  # (T, H, D) -> (H, T, D) = (2, 3, 2)
print(q)
print(heads)

# %% [markdown]
# `view` cuts each row into two pieces. `transpose(0, 1)` swaps the first two axes, so that the head
# comes first. Head 1 has the left half of each row, head 2 the right half. (The text counts heads
# from 1, the code from 0.) Attention uses the last two axes, (T, D), and repeats the same for all
# axes before them. So it treats heads like separate texts.
#
# To merge the heads, go the same way back. `reshape` is a `view` that copies the numbers if it
# must.

# %%
merged = heads.transpose(0, 1).reshape(3, 4)  # (H, T, D) -> (T, H, D) -> (T, C)
print((merged == q).all())

# %% [markdown]
# ## Queries, keys and values in one product
#
# One linear layer computes q, k and v of all heads: it turns C channels into 3C. We cut them into
# three axes: 3 (q, k or v), H and D. So the result has the shape (B, T, 3, H, D). Attention needs
# q, k and v first, and H before T: (3, B, H, T, D). `permute` puts axes in any order. Here, it
# takes old axis 2 first, then 0, 3, 1, 4.
#
# A small example shows where each number goes. The hundreds are 1 for q, 2 for k and 3 for v; the
# tens are the head, and the ones the position. Here T = 2, H = 2 and D = 1.

# %%
qkv = torch.tensor([[[111, 121, 211, 221, 311, 321], [112, 122, 212, 222, 312, 322]]])  # (B, T, 3C)
q, k, v = qkv.view(1, 2, 3, 2, 1).permute(2, 0, 3, 1, 4)  # (B, T, 3, H, D) -> (3, B, H, T, D)
print("q:", q.squeeze(), "k:", k.squeeze(), sep="\n")  # squeeze: without axes of length 1

# %% [markdown]
# Each row is a head, each column a position: `121` is the query of head 2 at position 1.
#
# ## The whole layer


# %%
class SelfAttention(nn.Module):
    def __init__(self, C, H):
        super().__init__()
        self.n_head = H
        self.qkv = nn.Linear(C, 3 * C)
        self.projection = nn.Linear(C, C)

    def heads(self, x):  # (B, T, C) -> (3, B, H, T, D)
        B, T, C = x.shape
        return self.qkv(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)

    def forward(self, x):  # (B, T, C)
        q, k, v = self.heads(x)  # (B, H, T, D) each
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, H, T, D)
        y = y.transpose(1, 2).reshape(x.shape)  # (B, T, H, D) -> (B, T, C): heads side by side
        return self.projection(y)  # (B, T, C)


# %% alt="Data flow of four heads: x, qkv, split into four heads, attention, merge, projection"
axes = diagram(70, 46)
parts, first = [["1", "2", "3", "4"]], [[True, False, False, False]]
box(axes, 30, 43.5, "x", 16, 3)
arrow(axes, (30, 41.6), (30, 37.4), "qkv: Linear(C, 3C)")
arrow(axes, (21.5, 42.5), (11, 37.4))
arrow(axes, (38.5, 42.5), (49, 37.4))
for x, title, end in ((10, "q", 6), (30, "k", 8), (50, "v", 10)):
    cells(axes, x - 8, 34, parts, filled=first, title=title)
    arrow(axes, (x - 6, 30.6), (end, 24.4))
for head in range(4):
    box(axes, 8 + 15 * head, 21, f"head {head + 1}\nattention", 13, 6, SOFT if head == 0 else FILL)
    arrow(axes, (8 + 15 * head, 17.6), (24 + 4 * head, 12.6))
cells(axes, 22, 12, parts, filled=first)
write(axes, 20, 10.5, "y")
arrow(axes, (30, 8.6), (30, 4.4), "projection: Linear(C, C)")
box(axes, 30, 2.5, "result", 16, 3)
write(axes, 33, 27.5, "heads 2, 3 and 4 take their parts in the same way", 8, MUTED, "left")
for y, shape in {43.5: "T, C", 32.5: "H, T, D", 10.5: "T, C", 2.5: "T, C"}.items():
    write(axes, 69, y, f"(B, {shape})", 8, MUTED, "right")
show("split-and-merge")

# %% [markdown]
# Our layer has the weights of the package's `CausalSelfAttention`, under the same names. So we can
# copy them and compare:

# %%
torch.manual_seed(0)
mine = SelfAttention(C, H)
reference = CausalSelfAttention(GPTConfig(n_head=H, n_embd=C))
reference.load_state_dict(mine.state_dict())  # copies all weights, by their names
x = torch.randn(2, 10, C)  # (B, T, C)
torch.testing.assert_close(mine(x), reference(x))

# %% [markdown]
# In [gpt.py](../gpt.py), `SelfAttention` computes the same in two steps. `chunk` cuts the 3C
# channels into q, k and v; `view` and `transpose` then cut each of them into heads.
#
# ## The projection
#
# The heads stand side by side in `y`: with D = 16, head 1 has channels 0 to 15. The last layer, the
# *projection*, lets each head write to all C channels. Its matrix has D columns for each head,
# which `split` cuts out. Its result is the sum of what the heads contribute:

# %%
q, k, v = mine.heads(x)  # (B, H, T, D) each
y = causal_attention(q, k, v)[0]  # (B, H, T, D)
columns = mine.projection.weight.split(C // H, dim=1)  # H matrices of shape (C, D)
contributions = [y[:, head] @ columns[head].T for head in range(H)]  # H times (B, T, C)
torch.testing.assert_close(sum(contributions) + mine.projection.bias, mine(x))

# %% [markdown]
# ## What do more heads cost?
#
# The layers `qkv` and `projection` have the same size for any H. The scores of one head are T · T
# dot products of D numbers, so all H heads need H · T · T · D = T · T · C multiplications. Only the
# number of weights, H · T · T, grows with H:

# %%
print("H    T  parameters  multiplications  weights")
for n_head, length in ((1, 64), (4, 64), (4, 128)):
    parameters = sum(p.numel() for p in SelfAttention(C, n_head).parameters())
    multiplications = n_head * length * length * (C // n_head)  # for the scores
    print(f"{n_head}  {length:3}  {parameters:10,}  {multiplications:15,}  {n_head * length**2:7,}")

# %% [markdown]
# If T doubles, the multiplications and the weights become four times as many.
#
# ## Two lookups at once
#
# Here is a task that needs two lookups. The input has 8 random digits. At the last position, the
# model must name the third and the sixth digit. It needs to know positions, so each position gets a
# learned vector, which is added to the vector of the digit ([lesson 6](06_positions.md) explains
# this).


# %%
class CopyTwo(nn.Module):
    def __init__(self, H):
        super().__init__()
        self.token_embedding = nn.Embedding(10, C)
        self.position_embedding = nn.Embedding(8, C)
        self.attention = SelfAttention(C, H)
        self.output = nn.Linear(C, 2 * 10)  # 10 logits for each of the two answers

    def forward(self, digits):  # (B, 8)
        x = self.token_embedding(digits) + self.position_embedding.weight  # (B, 8, C)
        y = self.attention(x)[:, -1]  # (B, C): at the last position
        return self.output(y).view(-1, 2, 10)  # (B, 2, 10)


# %% [markdown]
# We train a model with one head and a model with two heads, and count their correct answers:

# %%
correct = {}
for n_head in (1, 2):
    torch.manual_seed(1)
    model = CopyTwo(n_head)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(500):
        digits = torch.randint(10, (64, 8))  # (B, 8)
        loss = F.cross_entropy(model(digits).flatten(0, 1), digits[:, [2, 5]].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    digits = torch.randint(10, (2000, 8))  # new digits, to test
    is_correct = model(digits).argmax(dim=-1) == digits[:, [2, 5]]  # (2000, 2)
    correct[n_head] = is_correct.float().mean(dim=0).tolist()
    print(f"H = {n_head}: correct answers {correct[n_head][0]:.0%} and {correct[n_head][1]:.0%}")

# %% tags=["test"]
assert max(correct[1]) > 0.98
assert min(correct[1]) < 0.3
assert min(correct[2]) > 0.99

# %% [markdown]
# Two heads name both digits. One head names one of them and guesses the other: about one of ten
# guesses is right. If it looks at both digits, it gets the mean of two values. For example, with
# half of the weight on each, 3 and 7 give the same mean as 7 and 3. Two heads put their results in
# different channels.
#
# ## Four heads on Shakespeare
#
# Now the model of lesson 4 with four heads instead of one, with the projection and with biases.


# %%
class FourHeads(nn.Module):
    def __init__(self, H=4):
        super().__init__()
        self.token_embedding = nn.Embedding(V, C)
        self.attention = SelfAttention(C, H)
        self.output = nn.Linear(C, V)

    def embed(self, tokens):
        return self.token_embedding(tokens)  # (B, T) -> (B, T, C)

    def forward(self, tokens):  # (B, T)
        return self.output(self.attention(self.embed(tokens)))  # (B, T, V)


torch.manual_seed(1)
four_heads = train(FourHeads())
print(f"validation loss {four_heads:.3f}")

# %% tags=["test"]
assert lesson.FAST or abs(four_heads - 2.437) < 0.02

# %% [markdown]
# The loss falls from 2.48 to 2.44. The gain is small, because heads without positions cannot look
# for "the previous character": to them, the past has no order. So we add a vector for each position
# again, and compare one head with four. We use blocks of T = 16 characters, which are easier to
# look at, and train for longer. So do not compare these losses with the scoreboard.


# %%
class HeadsWithPositions(FourHeads):
    def __init__(self, H=4):
        super().__init__(H)
        self.position_embedding = nn.Embedding(16, C)

    def embed(self, tokens):
        positions = self.position_embedding.weight[: tokens.shape[1]]  # (T, C)
        return self.token_embedding(tokens) + positions  # (B, T, C)


settings = {"steps": 2000, "learning_rate": 1e-2, "block_size": 16}
losses = {}
for n_head in (1, 4):
    torch.manual_seed(1)
    model = HeadsWithPositions(n_head)
    losses[n_head] = train(model, **settings)
    print(f"H = {n_head}: validation loss {losses[n_head]:.2f}")

# %% [markdown]
# With positions, four heads reach 2.16, and one head only 2.35. Both models have the same number of
# parameters.
#
# ## What do the heads attend to?
#
# We compute the weights of the four heads for all of the validation text, in blocks of 16
# characters. The first statistic is the weight that each head gives to its own position: the mean
# of the diagonal.

# %%
blocks = val_tokens.unfold(0, 16, 16)  # (number of blocks, T)
with torch.no_grad():  # no gradients are needed to look
    q, k, v = model.attention.heads(model.embed(blocks))  # (blocks, H, T, D) each
    weights = causal_attention(q, k, v)[1].mean(dim=0)  # (H, T, T): mean over all blocks
own = weights.diagonal(dim1=1, dim2=2).mean(dim=1)  # (H, T, T) -> (H, T) -> (H,)
print("own position:", own)

# %% [markdown]
# The weight on the previous position stands one below the diagonal:

# %%
previous = weights.diagonal(offset=-1, dim1=1, dim2=2).mean(dim=1)  # (H,)
print("previous position:", previous)

# %% [markdown]
# The heads have divided the work. One gives 0.95 of its weight to its own position. One is a
# *previous-character head*: 0.66. The other two share almost all of their weight between these two
# positions. Nobody told the heads to do this: it lowers the loss. Here are the weights for one
# line:

# %% tags=["test"]
assert lesson.FAST or abs(losses[1] - 2.35) < 0.04
assert lesson.FAST or abs(losses[4] - 2.16) < 0.04
assert lesson.FAST or (own.max() > 0.9 and 0.55 < previous.max() < 0.85)
assert lesson.FAST or (own + previous).min() > 0.8

# %% alt="Weights of four heads: one has a dark diagonal, one a dark line just below the diagonal"
line = "My noble father,"
with torch.no_grad():
    q, k, v = model.attention.heads(model.embed(encode(line)[None]))  # [None] adds a batch of 1
    maps = causal_attention(q, k, v)[1][0]  # (H, T, T)
figure, panels = plt.subplots(2, 2, figsize=(7, 7.2))
labels, positions = line.replace(" ", "␣"), torch.arange(16)
for head, panel in enumerate(panels.flat):
    panel.pcolormesh(maps[head], vmin=0, vmax=1, edgecolor=FILL, linewidth=0.5)
    panel.set_xticks(positions + 0.5, labels, fontsize=9)
    panel.set_yticks(positions + 0.5, labels, fontsize=9)
    panel.tick_params(length=0)
    panel.invert_yaxis()
    panel.grid(False)
    role, note = "own or previous character", ""
    if head == own.argmax():
        role, note = "own character", "dark: on the diagonal"
    if head == previous.argmax():
        role, note = "previous character", "dark: left of the diagonal"
    panel.set_title(f"head {head + 1}: {role}")
    panel.text(15.5, 2.5, note, ha="right", color="black")
figure.supxlabel("looks at", fontsize=10)
figure.supylabel("position", fontsize=10)
show("attention-maps")

# %% tags=["test"]
page = (lesson.HERE / "inspect.html").read_text("utf-8")
data = lesson.json.loads(page.split('id="data">')[1].split("</script>")[0])
for head, back in ((1, 1), (0, 2)):  # layer 1: head 2 looks one back, head 1 two back
    rows = data["attention"][0][head]
    assert sum(row[-1 - back] > 0.4 for row in rows[2:]) > 0.7 * len(rows[2:])

# %% [markdown]
# Each row is a position, and its weights sum to 1. Darker means more weight.
#
# Be careful with such pictures. They show where a head looks, not what it takes from there, and not
# whether the rest of the model uses it (Jain & Wallace 2019, arXiv:1902.10186). To learn whether a
# head matters, remove it and measure the loss (exercise 2; see Michel et al. 2019,
# arXiv:1905.10650).
#
# **Look at more heads:** download the file [inspect.html](inspect.html) and open it in a browser.
# It shows every head of a trained GPT with 4 layers (Transformer blocks), and what the model
# predicts at each position. In layer 1, head 2 looks at the previous character, and head 1 at the
# one before that. What do the other heads look at? `nanogpt inspect` makes such a page of your own
# model.
#
# ## Scoreboard

# %%
show_scoreboard(5, {"4 attention heads": four_heads})

# %% [markdown]
# Four heads alone bring little. They pay off when there is something to look for: positions
# ([lesson 6](06_positions.md)) and the results of earlier layers ([lesson 7](07_depth.md)).
#
# ## Three common mistakes
#
# 1. *Merging without the transpose*, `y.reshape(B, T, C)` for y of shape (B, H, T, D): the shape is
#    right, but each position gets numbers of other positions, later ones too. Test causality as in
#    lesson 4.
# 2. *`view` after `transpose`*: an error says that the view size is not compatible. The numbers are
#    not in this order in memory. Use `reshape` or `flatten`, which copy them.
# 3. *Dividing the scores by* $\sqrt C$ *instead of* $\sqrt D$: no error, but with 4 heads all
#    scores are half as large, and the weights more equal. Take D from the shape of q.
#
# ## Exercises
#
# 1. In `FourHeads`, `output` directly follows `projection`. Show that one linear layer can do the
#    work of both. Why does a GPT still have both?
# 2. Remove each head of `HeadsWithPositions`: set its columns of `projection.weight` to 0, and
#    measure the loss. Which head does the model need most?
# 3. What do you expect of 64 heads of one channel each? Train `HeadsWithPositions(64)`.

# %% tags=["solution"]
if SOLUTIONS:  # run with: python lessons/05_heads.py --solutions
    projection, output = model.attention.projection, model.output
    both = nn.Linear(C, V)
    both.weight.data = output.weight @ projection.weight  # (V, C) @ (C, C)
    both.bias.data = output.weight @ projection.bias + output.bias  # (V,)
    y = torch.randn(5, C)
    torch.testing.assert_close(both(y), output(projection(y)), atol=1e-4, rtol=1e-4)
    print("1. equal; in a GPT, other layers stand between the two (lesson 7)")

    original = projection.weight.data.clone()
    for head in range(H):
        projection.weight.data[:, 16 * head : 16 * head + 16] = 0  # D = 16 columns
        print(f"2. without head {head + 1}: loss {evaluate(model, 16):.2f}")
        projection.weight.data = original.clone()

    torch.manual_seed(1)
    loss = train(HeadsWithPositions(64), **settings)
    print(f"3. loss {loss:.2f}: one channel is enough to find near positions")

# %% [markdown]
# # 5. Several heads, and what they attend to
#
# The head of lesson 4 computes one mean of values for each position. If it looks at two characters
# at once, it gets a mixture of both. This lesson runs several heads side by side, each with its own
# queries, keys and values, and looks at what they learn.
#
# **Before this lesson:** [lesson 4](04_attention.md) (queries, keys, values, weights, the mask) and
# [lesson 1](01_tensors.md) (`view`, shapes).
#
# **You will see:** how 64 channels become 4 heads and 64 channels again, at the same cost; a task
# that two heads solve and one head cannot; and a trained head that gives 80% of its weight to the
# previous character.

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
# `view` cuts each row into two pieces. `transpose(0, 1)` swaps the first two dimensions, so that
# the head comes first. The first head has the left half of each row, the second head the right
# half. Attention uses the last two dimensions, (T, D), and repeats the same for all dimensions
# before them. So it treats heads like separate texts.
#
# To merge the heads, go the same way back. `reshape` is a `view` that copies the numbers if it
# must.

# %%
merged = heads.transpose(0, 1).reshape(3, 4)  # (H, T, D) -> (T, H, D) -> (T, C)
print((merged == q).all())

# %% [markdown]
# ## Queries, keys and values in one product
#
# One linear layer computes q, k and v of all heads: it turns C channels into 3C. The result has
# five dimensions: B, T, kind (q, k or v), H, D. Attention needs kind first, and H before T.
# `permute` puts dimensions in any order: `permute(2, 0, 3, 1, 4)` takes old dimension 2 first, then
# 0, 3, 1, 4.
#
# A small example shows where each number goes. Its hundreds are the kind (1 is q, 2 is k, 3 is v),
# its tens the head, and its ones the position. Here T = 2, H = 2 and D = 1.

# %%
qkv = torch.tensor([[[111, 121, 211, 221, 311, 321], [112, 122, 212, 222, 312, 322]]])  # (B, T, 3C)
q, k, v = qkv.view(1, 2, 3, 2, 1).permute(2, 0, 3, 1, 4)  # (B, T, 3, H, D) -> (3, B, H, T, D)
print("q:", q.squeeze(), "k:", k.squeeze(), sep="\n")  # squeeze: without dimensions of size 1

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
        y = y.transpose(1, 2).flatten(2)  # (B, T, H, D) -> (B, T, C): the heads side by side
        return self.projection(y)  # (B, T, C)


# %% alt="Data flow of four heads: x, qkv, split into four heads, attention, merge, projection"
axes = diagram(70, 50)
parts, first = [["1", "2", "3", "4"]], [[True, False, False, False]]
box(axes, 33, 47, "x", 16, 3)
arrow(axes, (33, 45), (33, 41), "qkv: Linear(C, 3C)")
for x, title in ((13, "q"), (33, "k"), (53, "v")):
    cells(axes, x - 8, 37, parts, filled=first, title=title)
    arrow(axes, (x - 6, 33.6), (9, 27.4) if x == 13 else (10 + x / 20, 27.4))
for head in range(4):
    box(axes, 9 + 16 * head, 24, f"head {head + 1}\nattention", 13, 6, SOFT if head == 0 else FILL)
    arrow(axes, (9 + 16 * head, 20.6), (27 + 4 * head, 15.4))
cells(axes, 25, 15, parts, filled=first)
arrow(axes, (33, 11.6), (33, 8), "projection: Linear(C, C)")
box(axes, 33, 6, "result", 16, 3)
shapes = {47: "(B, T, C)", 35.5: "(B, H, T, D) each", 13.5: "(B, T, C)", 6: "(B, T, C)"}
for y, shape in shapes.items():
    write(axes, 69, y, shape, 8, MUTED, "right")
write(axes, 23, 13.5, "y", align="right")
show("split-and-merge")

# %% [markdown]
# The last layer, the *projection*, mixes the results of the heads. The weights have the same names
# as in the package, so we can copy them into `CausalSelfAttention` and compare:

# %%
torch.manual_seed(0)
mine = SelfAttention(C, H)
reference = CausalSelfAttention(GPTConfig(n_head=H, n_embd=C))
reference.load_state_dict(mine.state_dict())  # copies all weights, by their names
x = torch.randn(2, 10, C)  # (B, T, C)
torch.testing.assert_close(mine(x), reference(x))

# %% [markdown]
# In [gpt.py](../gpt.py), `SelfAttention` computes the same with `chunk`, which cuts a tensor into
# equal pieces: first into q, k and v, then into heads.
#
# ## The cost does not depend on H
#
# The layers `qkv` and `projection` have the same size for any H. The scores of one head take T · T
# · D multiplications, so all H heads take T · T · C.

# %%
for n_head in (1, 2, 4, 8):
    layer = SelfAttention(C, n_head)
    parameters = sum(p.numel() for p in layer.parameters())
    multiplications = n_head * 64 * 64 * (C // n_head)  # for the scores at T = 64
    print(f"H = {n_head}: {parameters:,} parameters, {multiplications:,} multiplications")

# %% [markdown]
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
    print(f"{n_head} head: correct answers {correct[n_head][0]:.0%} and {correct[n_head][1]:.0%}")

# %% tags=["test"]
assert max(correct[1]) > 0.98
assert min(correct[1]) < 0.3
assert min(correct[2]) > 0.99

# %% [markdown]
# Two heads name both digits. One head names one of them, and guesses the other: one of ten guesses
# is right. If it looked at both digits, it would get the mean of two values, and a mean does not
# tell which value came from where. The two heads put their results in different channels.
#
# ## Four heads on Shakespeare
#
# Now the model of lesson 4 with four heads instead of one.


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
loss = train(FourHeads())
print(f"validation loss {loss:.3f}")

# %% [markdown]
# The loss falls from 2.48 to 2.44. The gain is small, because heads without positions cannot look
# for "the previous character": to them, the past has no order. So we add a vector for each position
# again, and compare one head with four. Blocks of T = 16 characters train faster and are easier to
# look at.


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
# With positions, four heads are better than one by 0.17, with the same number of parameters.
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
own = weights.diagonal(dim1=1, dim2=2).mean(dim=1)  # (H,)
print("own position:", own)

# %% [markdown]
# The weight on the previous position stands one below the diagonal:

# %%
previous = weights.diagonal(offset=-1, dim1=1, dim2=2).mean(dim=1)  # (H,)
print("previous position:", previous)

# %% [markdown]
# And the mean distance between a position and the positions it looks at, in characters:

# %%
positions = torch.arange(16)
distance = (positions[:, None] - positions).clamp(min=0)  # (T, T): 0 on the diagonal, 1 below it
print("distance:", (weights * distance).sum(dim=2).mean(dim=1))

# %% [markdown]
# The heads have divided the work. One looks almost only at its own position. One is a
# *previous-character head*. The other two mix nearby positions. Nobody told them to: this division
# lowers the loss. Here are the weights for one line:

# %% alt="Weights of four heads: one has a dark diagonal, one a dark line just below the diagonal"
line = "My noble father,"
with torch.no_grad():
    q, k, v = model.attention.heads(model.embed(encode(line)[None]))  # [None] adds a batch of 1
    maps = causal_attention(q, k, v)[1][0]  # (H, T, T)
figure, panels = plt.subplots(2, 2, figsize=(7, 7.2))
labels = line.replace(" ", "␣")
for head, panel in enumerate(panels.flat):
    panel.pcolormesh(maps[head], vmin=0, vmax=1, edgecolor=FILL, linewidth=0.5)
    panel.set_xticks(positions + 0.5, labels, fontsize=9)
    panel.set_yticks(positions + 0.5, labels, fontsize=9)
    panel.tick_params(length=0)
    panel.invert_yaxis()
    panel.grid(False)
    role = "mixes nearby characters"
    role = "its own character" if head == own.argmax() else role
    role = "the previous character" if head == previous.argmax() else role
    panel.set_title(f"head {head + 1}: {role}")
figure.supxlabel("looks at", fontsize=10)
figure.supylabel("position", fontsize=10)
show("attention-maps")

# %% [markdown]
# Each row is a position and sums to 1; darker means more weight.
#
# Be careful with such pictures. They show where a head looks, not what it takes from there, and not
# whether the rest of the model uses it (Jain & Wallace 2019, arXiv:1902.10186). To learn whether a
# head matters, remove it and measure the loss (exercise 2).
#
# **Try attention before you install anything:** download the file [inspect.html](inspect.html) and
# open it in a browser. It shows every head of a trained GPT with 4 Transformer blocks, and what the
# model predicts at each position. Find a head that looks at the previous character. You can make
# such a page of your own model with `nanogpt inspect`.
#
# ## Scoreboard

# %%
show_scoreboard(5, {"4 attention heads": loss})

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
#    scores are half as large, and the first weights are almost equal. Take D from the shape of q.
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
    print(f"3. 64 heads: loss {train(HeadsWithPositions(64), **settings):.2f}")

# %% [markdown]
# # 5. Several heads, and what they attend to
#
# The head of lesson 4 computes one mean of values for each position. If it looks at two characters
# at once, it gets a mixture of both. *Multi-head attention* (Vaswani et al. 2017,
# [arXiv:1706.03762](https://arxiv.org/abs/1706.03762)) runs several heads side by side, each with
# its own queries, keys and values. This lesson builds it and looks at what the heads learn.
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
from lesson import SOLUTIONS, V, encode, evaluate, train
from pictures import FILL, MUTED, SOFT, arrow, box, cells, diagram, show, write
from torch import nn
from torch.nn import functional as F

from nanogpt.models.gpt import CausalSelfAttention, GPTConfig, causal_attention

torch.set_printoptions(precision=2, sci_mode=False)
C, H = 64, 4  # channels, heads

# %% [markdown]
# ## Split the queries into heads
#
# Each head reads all C channels of x, but its queries, keys and values have only D = C / H numbers.
# The queries of all H heads stand side by side in a tensor of C channels. We split such a tensor,
# with numbers that are easy to follow: T = 3 positions, C = 4 channels, H = 2 heads with D = 2.

# %%
q = torch.arange(12).view(3, 4)  # (T, C) = (3, 4)
heads = q.view(3, 2, 2).transpose(0, 1)  # (T, H, D) -> (H, T, D) = (2, 3, 2)
print(q, heads, sep="\n")

# %% [markdown]
# `view` cuts each row into two pieces. `transpose(0, 1)` swaps the first two axes, so that the head
# comes first. Head 1 has the left half of each row, head 2 the right half. (The text counts heads
# from 1, the code from 0.) Attention uses the last two axes, (T, D), and repeats the same for all
# axes before them. So it treats heads like separate texts.
#
# To merge the heads, go the same way back. `reshape` is a `view` that copies if it must.

# %%
merged = heads.transpose(0, 1).reshape(3, 4)  # (H, T, D) -> (T, H, D) -> (T, C)
print(torch.equal(merged, q))

# %% [markdown]
# ## Queries, keys and values in one product
#
# One linear layer computes q, k and v of all heads: it turns C channels into 3C. We cut them into
# three axes: 3 (q, k or v), H and D. So the result has the shape (B, T, 3, H, D). The axis of
# length 3 must come first, so that `q, k, v = …` can unpack it, and H before T: (3, B, H, T, D).
# `permute` puts axes in any order. Here, it takes old axis 2 first, then 0, 3, 1, 4.
#
# A small example shows where each number goes. The hundreds are 1 for q, 2 for k and 3 for v. The
# tens are the head (1 or 2), and the ones the position (0 or 1). Here T = 2, H = 2 and D = 1.

# %%
qkv = torch.tensor([[[110, 120, 210, 220, 310, 320], [111, 121, 211, 221, 311, 321]]])  # (B, T, 3C)
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
axes = diagram(70, 52)
parts, first = [["1", "2", "3", "4"]], [[True, False, False, False]]
box(axes, 30, 50, "x", 16, 3)
arrow(axes, (30, 48.4), (30, 45.1))
box(axes, 30, 43.5, "qkv: Linear(C, 3C)", 24, 3)
for x, title, end in ((10, "q", 6), (30, "k", 8), (50, "v", 10)):
    arrow(axes, (0.5 * x + 15, 41.9), (x, 37.4))
    cells(axes, x - 8, 34, parts, filled=first, title=title)
    arrow(axes, (x - 6, 30.6), (end, 24.4))
for head in range(4):
    box(axes, 8 + 15 * head, 21, f"head {head + 1}\nattention", 13, 6, SOFT if head == 0 else FILL)
    arrow(axes, (8 + 15 * head, 17.6), (24 + 4 * head, 12.6))
cells(axes, 22, 12, parts, filled=first)
write(axes, 20, 10.5, "y")
arrow(axes, (30, 8.6), (30, 4.4), "projection: Linear(C, C)")
box(axes, 30, 2.5, "result", 16, 3)
for y, shape in {50: "T, C", 43.5: "T, 3C", 32.5: "H, T, D", 10.5: "T, C", 2.5: "T, C"}.items():
    write(axes, 69, y, f"(B, {shape})", 8, MUTED, "right")
show("split-and-merge")

# %% [markdown]
# Blue: the path of head 1. It gets part 1 of q, of k and of v (D channels each), and its result is
# part 1 of y. The other heads do the same with their parts.
#
# The package's `CausalSelfAttention` has the same parameters, so we copy their values and compare:

# %%
torch.manual_seed(0)
mine = SelfAttention(C, H)
reference = CausalSelfAttention(GPTConfig(n_head=H, n_embd=C))
reference.load_state_dict(mine.state_dict())  # copies all parameters, by name
x = torch.randn(2, 10, C)  # (B, T, C)
torch.testing.assert_close(mine(x), reference(x))

# %% [markdown]
# ## The projection
#
# After the merge, head 1 has channels 0 to 15 (D = 16), head 2 the next 16, and so on. The last
# layer, the *projection*, lets each head write to all C channels. Its matrix has D columns for each
# head, which `split` cuts out. Its result is the sum of what the heads contribute, plus the bias:

# %%
q, k, v = mine.heads(x)  # (B, H, T, D) each
y = causal_attention(q, k, v)[0]  # (B, H, T, D): not merged
columns = mine.projection.weight.split(C // H, dim=1)  # pieces of D columns: H times (C, D)
contributions = [y[:, head] @ columns[head].T for head in range(H)]  # H times (B, T, C)
torch.testing.assert_close(sum(contributions) + mine.projection.bias, mine(x))

# %% [markdown]
# ## What do more heads cost?
#
# The layers `qkv` and `projection` have the same size for any H. The scores of one head are T · T
# dot products of D numbers, so all H heads need H · T · T · D = T · T · C multiplications. Only the
# number of attention weights, H · T · T, grows with H. `numel()` is the number of entries:

# %%
print("H    T  parameters  multiplications for scores  attention weights")
for n_head, length in ((1, 64), (4, 64), (4, 128)):
    parameters = sum(p.numel() for p in SelfAttention(C, n_head).parameters())
    products = n_head * length * length * (C // n_head)
    print(f"{n_head}  {length:3}  {parameters:10,}  {products:26,}  {n_head * length**2:17,}")

# %% [markdown]
# If T doubles, these multiplications and the attention weights become four times as many. Those of
# `qkv`, 3 · T · C · C, and `projection`, T · C · C, only double. At T = 64, they are still more.
#
# ## Two lookups at once
#
# Here is a task that needs two lookups. The input has 8 random digits. At the last position, the
# model must name the third and the sixth digit. It needs to know positions, so it adds a learned
# vector for each position to the vector of the digit ([lesson 6](06_positions.md) explains this).


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
        targets = digits[:, [2, 5]]  # (B, 2): columns 2 and 5, the third and the sixth digit
        loss = F.cross_entropy(model(digits).flatten(0, 1), targets.flatten())  # (2B, 10), (2B,)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    digits = torch.randint(10, (2000, 8))  # new digits, to test
    answers = model(digits).argmax(dim=-1)  # (2000, 2): the index of the largest logit
    is_correct = answers == digits[:, [2, 5]]  # (2000, 2)
    correct[n_head] = is_correct.float().mean(dim=0).tolist()
    print(f"H = {n_head}: correct answers {correct[n_head][0]:.0%} and {correct[n_head][1]:.0%}")

# %% [markdown]
# Two heads name both digits. One head names one of them and guesses the other: about one of ten
# guesses is right. If it looks at both digits, it gets one mean of two values. With equal weights,
# 3 and 7 give the same mean as 7 and 3. With unequal weights, a digit adds the same logits from
# either place, times its weight, because all that follows is linear. They favour it in both answers
# (3 and 3 must give 3), so the digit with the larger weight wins. Two heads put their results in
# different channels.
#
# ## Four heads on Shakespeare
#
# Now the model of lesson 4 with our layer: it can have four heads, and it has a projection and
# biases, which the head of lesson 4 does not have. So we train it with one head, too.


# %%
class HeadsOnly(nn.Module):
    def __init__(self, H=4):
        super().__init__()
        self.token_embedding = nn.Embedding(V, C)
        self.attention = SelfAttention(C, H)
        self.output = nn.Linear(C, V)

    def embed(self, tokens):
        return self.token_embedding(tokens)  # (B, T) -> (B, T, C)

    def forward(self, tokens):  # (B, T)
        return self.output(self.attention(self.embed(tokens)))  # (B, T, V)


alone = {}
for n_head in (1, 4):
    torch.manual_seed(1)
    alone[n_head] = train(HeadsOnly(n_head))  # 1,000 steps of 32 blocks
    print(f"H = {n_head}: validation loss {alone[n_head]:.2f}")

# %% [markdown]
# One head has 2.50, four heads have 2.44. The gain is small, because heads without positions cannot
# look for "the previous character": to them, the past has no order. So we add a vector for each
# position again, and compare one head with four. We use blocks of T = 16 characters, which are
# easier to look at. Do not compare these losses with the scoreboard: the training differs, too.


# %%
class HeadsWithPositions(HeadsOnly):
    def __init__(self, H=4):
        super().__init__(H)
        self.position_embedding = nn.Embedding(16, C)

    def embed(self, tokens):
        positions = self.position_embedding.weight[: tokens.shape[1]]  # (T, C)
        return self.token_embedding(tokens) + positions  # (B, T, C)


settings = {"steps": 2000, "learning_rate": 1e-2, "block_size": 16}
losses = {}
for kind in (HeadsOnly, HeadsWithPositions):
    for n_head in (1, 4):
        torch.manual_seed(1)
        model = kind(n_head)
        losses[kind, n_head] = train(model, **settings)
        print(f"{kind.__name__}, H = {n_head}: validation loss {losses[kind, n_head]:.2f}")

# %% [markdown]
# With positions, four heads reach 2.16, and one head with as many parameters only 2.35. In the same
# training without positions, the gain is only 0.10.
#
# ## What do the heads attend to?
#
# We compute the attention weights of the four heads, and their means over all blocks of the
# validation text. The weights that positions give to themselves stand on the diagonal. The weights
# on the previous position stand just below the diagonal.

# %%
blocks = lesson.val_tokens.unfold(0, 16, 16)  # (N, T): unfold cuts 16 tokens every 16 tokens


@torch.no_grad()  # no gradients are needed to look
def compute_weights(model, blocks):
    q, k, v = model.attention.heads(model.embed(blocks))  # (B, H, T, D) each
    return causal_attention(q, k, v)[1].mean(dim=0)  # (B, H, T, T) -> (H, T, T): mean of all blocks


weights = compute_weights(model, blocks)
own = weights.diagonal(dim1=1, dim2=2).mean(dim=1)  # (H, T, T) -> (H, T) -> (H,)
previous = weights.diagonal(offset=-1, dim1=1, dim2=2).mean(dim=1)  # (H,)
print("own position:", own, "previous position:", previous, sep="\n")
print(f"own position, equal weights: {(1 / torch.arange(1, 17)).mean():.2f}")

# %% [markdown]
# The heads have divided the work. Head 2 gives almost all of its weight to the own position; with
# equal weights it would be 0.21. Head 4 is a *previous-character head* (in the literature:
# *previous-token head*) with two thirds. Heads 1 and 3 divide almost all of their weight between
# these two positions. Nobody told the heads to do this: it lowers the loss. The weights for a line:

# %% tags=["test"]
assert 4 * C * C > 128 * C > 1 >= min(*correct[2], max(correct[1])) > 0.98 > 0.3 > min(correct[1])
assert lesson.FAST or max(abs(alone[1] - 2.504), abs(alone[4] - 2.437)) < 0.02
errors = torch.tensor(list(losses.values())) - torch.tensor([2.44, 2.34, 2.35, 2.16])
assert lesson.FAST or errors.abs().max() < 0.04
assert lesson.FAST or min(own[1], *(own + previous)[[0, 2]]) > 0.9 > 0.72 > previous[3] > 0.6
assert lesson.FAST or weights.diagonal(dim1=1, dim2=2)[[0, 2], 1:].std(dim=1).max() < 0.06

# %% alt="Weights of four heads: one has a dark diagonal, one a dark line just below the diagonal"
line = "My noble father,"
maps = compute_weights(model, encode(line)[None])  # [None] adds a batch of 1; (H, T, T)
figure, panels = plt.subplots(2, 2, figsize=(7, 7.2))
labels, positions = line.replace(" ", "␣"), torch.arange(16)
for head, panel in enumerate(panels.flat):
    panel.pcolormesh(maps[head], vmin=0, vmax=1, edgecolor=FILL, linewidth=0.5)
    panel.set_xticks(positions + 0.5, labels, fontsize=9)
    panel.set_yticks(positions + 0.5, labels, fontsize=9)
    panel.tick_params(length=0)
    panel.invert_yaxis()
    panel.grid(False)
    panel.set_title(f"head {head + 1}: own {own[head]:.2f}, previous {previous[head]:.2f}")
figure.supxlabel("looks at", fontsize=10)
figure.supylabel("position", fontsize=10)
show("attention-maps")

# %% tags=["test"]
assert lesson.FAST or maps[0, [9, 11], 5].min() > 0.1  # f and t of head 1 look at b
page = (lesson.HERE / "inspect.html").read_text("utf-8")
layer_1 = lesson.json.loads(page.split('id="data">')[1].split("</script>")[0])["attention"][0]
for rows, back in ((layer_1[3], 1), (layer_1[0], 2)):  # head 4 looks one back, head 1 two back
    assert sum(row[-1 - back] > 0.4 for row in rows[2:]) > 0.7 * len(rows[2:])

# %% [markdown]
# Each row is a position, and its weights sum to 1. Darker means more weight. The numbers are the
# means from above. Most rows of heads 1 and 3 choose one of two characters; the choice depends on
# the text. Some rows look further back: `f` and `t` in head 1.
#
# Such pictures show where a head looks. They do not show what it takes from there, nor whether the
# model uses it (Jain & Wallace 2019, [arXiv:1902.10186](https://arxiv.org/abs/1902.10186)). To know
# whether a head matters, remove it and measure the loss (exercise 2; Michel et al. 2019,
# [arXiv:1905.10650](https://arxiv.org/abs/1905.10650)).
#
# **Look at more heads:** download the file [inspect.html](inspect.html) and open it in a browser.
# It shows every head of a trained GPT with 4 layers of attention, and what the model predicts at
# each position. In layer 1, head 4 looks at the previous character, and head 1 mostly at the two
# before that. What do the other heads look at? `nanogpt inspect` shows your own model.
#
# ## Scoreboard

# %%
lesson.show_scoreboard(5, {"4 attention heads": alone[4]})

# %% [markdown]
# Four heads alone bring little. They pay off when there is something to look for: positions
# ([lesson 6](06_positions.md)) and the results of earlier layers ([lesson 7](07_depth.md)).
#
# ## Three common mistakes
#
# 1. *Merging without the transpose*, `y.reshape(B, T, C)` for y of shape (B, H, T, D): the shape is
#    right, but each position gets numbers of other positions, later ones too. Test causality.
# 2. *`view` after `transpose`*: an error says that the view size is not compatible. The numbers are
#    not in this order in memory. Use `reshape` or `flatten`, which copy them.
# 3. *Dividing the scores by* $\sqrt C$ *instead of* $\sqrt D$: no error, but with 4 heads all
#    scores are half as large, and the weights more equal. Take D from the shape of q.
#
# ## Exercises
#
# 1. In `HeadsOnly`, `output` directly follows `projection`. Show that one linear layer can do the
#    work of both. Why does a GPT still have both?
# 2. Remove each head of `HeadsWithPositions`: set its columns of `projection.weight` to 0, and
#    measure the loss. Which head does the model need most?
# 3. What do you expect of 64 heads of one channel each? Train `HeadsWithPositions(64)`, then 16
#    heads. Which is best? What is the largest weight of a head on the previous position?

# %% tags=["solution"]
if SOLUTIONS:  # run with: python lessons/05_heads.py --solutions
    projection, output = model.attention.projection, model.output
    both, y = nn.Linear(C, V), torch.randn(5, C)
    with torch.no_grad():  # the product of two matrices is one matrix
        both.weight.copy_(output.weight @ projection.weight)  # (V, C) @ (C, C)
        both.bias.copy_(output.weight @ projection.bias + output.bias)  # (V,)
    torch.testing.assert_close(both(y), output(projection(y)), atol=1e-4, rtol=1e-4)
    print("1. equal; in a GPT, other layers stand between the two (lesson 7)")
    print(f"2. with all heads: loss {evaluate(model, 16):.2f}")
    original, without = projection.weight.detach().clone(), []  # clone: a copy
    for head in range(H):
        with torch.no_grad():
            projection.weight[:, 16 * head : 16 * head + 16] = 0  # D = 16 columns
            without.append(evaluate(model, 16))
            projection.weight.copy_(original)
    print("   without head 1, 2, 3, 4:", torch.tensor(without))
    print("   Most needed: head 2, the only one that almost always looks at the own character.")
    assert lesson.FAST or without.index(max(without)) == 1
    for n_head in (64, 16):
        torch.manual_seed(1)
        many = HeadsWithPositions(n_head)
        losses[n_head] = train(many, **settings)
        previous = compute_weights(many, blocks[:1000]).diagonal(-1, dim1=1, dim2=2).mean(dim=1)
        print(f"3. {n_head} heads: loss {losses[n_head]:.2f}, largest weight {previous.max():.2f}")
    print("   A head of one channel looks less precisely, but many together work; 16 are best.")
    assert lesson.FAST or min(losses, key=losses.get) == 16

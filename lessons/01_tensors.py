# %% [markdown]
# # 1. Tensors, gradients, and a training loop
#
# A neural network is a function with many numbers inside, its *parameters*. Training changes them
# step by step until the function gives the results that we want. How does a program store these
# numbers, and how does it know in which direction to change each of them?
#
# **Before this lesson:** you know Python, and that the derivative of $x^2$ is $2x$. Lesson 0 is
# [gpt.py](../gpt.py), a complete GPT: look at it now, and read it again after lesson 9.
#
# **You will see:** a division that is wrong without any error message; one slope, −5.333, computed
# in three ways; a training that finds the line $2x + 1$; and three learning rates: too small, good,
# and so large that the loss grows.
#
# ## Tensors
#
# A *tensor* is an array of numbers with any number of axes. Its *shape* is the length of each axis,
# its *dtype* (data type) the kind of its numbers. `torch.tensor` makes a tensor from a list.

# %%
import torch
from lesson import SOLUTIONS
from matplotlib import pyplot as plt
from pictures import ACCENT, INK, MUTED, arrow, box, cells, diagram, show, write
from torch import nn

table = torch.tensor([[1, 2, 3], [4, 5, 6]])  # (2, 3): two rows of three numbers
print(table, table.shape, table.dtype)
print(torch.tensor([0.5, 1.0]).dtype)

# %% [markdown]
# The characters of a text will be integers (int64), parameters will be fractions (float32). An
# index in brackets selects a part. As in lists, `0` is the first, and `:-1` is all but the last.

# %%
print(table[0])  # (3,): the first row
print(table[1, 2])  # (): row 1, column 2; a tensor without axes
print(table[:, :-1])  # (2, 2): all rows, all columns but the last
print(table[torch.tensor([1, 0, 1])])  # (3, 3): row 1, row 0, row 1
print(table[torch.tensor([0, 1]), torch.tensor([2, 0])])  # (2,): entries [0, 2] and [1, 0]

# %% [markdown]
# The fourth line looks up rows by their numbers. A model looks up the vectors of characters like
# this. (A *vector* is a tensor with one axis.)
#
# ## Broadcasting
#
# Operators such as `+` work on each number. If two shapes differ, PyTorch compares them from the
# right. It stretches an axis of length 1, or a missing axis: the values are used again and again.
# Other differences are errors. `None` as an index adds an axis of length 1:

# %%
column = torch.tensor([[10], [20]])  # (2, 1)
row = torch.tensor([1, 2, 3])  # (3,)
print(column + row)  # (2, 1) + (3,) -> (2, 3)
print(row[None].shape, row[:, None].shape)  # (1, 3) and (3, 1): the second is a column
print(row[:, None] >= row)  # (3, 1) >= (3,) -> (3, 3): compares each number with each

# %% alt="The column 10, 20 is repeated three times, the row 1, 2, 3 twice, then they are added"
axes = diagram(66, 15)
original_column, original_row = [[True, False, False]] * 2, [[True] * 3, [False] * 3]
cells(axes, 3, 11, [["10"] * 3, ["20"] * 3], 5, 3.5, original_column, "column (2, 1)")
write(axes, 22, 7.5, "+", 14)
cells(axes, 26, 11, [["1", "2", "3"]] * 2, 5, 3.5, original_row, "row (3,)")
write(axes, 45, 7.5, "=", 14)
cells(axes, 49, 11, [["11", "12", "13"], ["21", "22", "23"]], 5, 3.5, title="sum (2, 3)")
write(axes, 22, 2, "white cells are repetitions", 9, MUTED)
show("broadcasting")

# %% [markdown]
# ## Sums, and why `keepdim` matters
#
# `sum(dim=1)` adds along axis 1: it returns the sum of each row, and axis 1 disappears.
# `keepdim=True` keeps that axis, with length 1. We need it to turn counts into probabilities: each
# row is divided by its sum.

# %%
counts = torch.tensor([[1, 3], [4, 4]])  # (2, 2)
right = counts / counts.sum(dim=1, keepdim=True)  # (2, 2) / (2, 1): divides rows
wrong = counts / counts.sum(dim=1)  # (2, 2) / (2,): divides columns
print(right, "rows sum to", right.sum(dim=1))
print(wrong, "rows sum to", wrong.sum(dim=1))

# %% [markdown]
# Without `keepdim`, the sums 4 and 8 form a row, and this row is stretched downwards. The table is
# square, so the shapes fit and PyTorch gives no error. Check that rows of probabilities sum to 1.
#
# ## The matrix product `@`
#
# The *dot product* of two vectors multiplies them number by number and adds the results. The matrix
# product contains the dot product of each row of the left table with each column of the right one.

# %%
weight = torch.tensor([[1, 3], [0, 1], [2, 0]])  # (3, 2)
print(table @ weight)  # (2, 3) @ (3, 2) -> (2, 2)
print("row 1 times column 0:", 4 * 1 + 5 * 0 + 6 * 2)

# %% alt="Row 4, 5, 6 of a matrix times column 1, 0, 2 of another gives entry 16 of the product"
axes = diagram(66, 18)
row_1, column_0 = [[False] * 3, [True] * 3], [[True, False]] * 3
entry = [[False, False], [True, False]]
cells(axes, 3, 12.5, [["1", "2", "3"], ["4", "5", "6"]], 5, 3.5, row_1, "table (2, 3)")
write(axes, 22, 9, "@", 14)
cells(axes, 26, 14.2, [["1", "3"], ["0", "1"], ["2", "0"]], 5, 3.5, column_0, "weight (3, 2)")
write(axes, 40, 9, "=", 14)
cells(axes, 48, 12.5, [["7", "5"], ["16", "17"]], 5, 3.5, entry, "product (2, 2)")
write(axes, 53, 3, "16 = 4 · 1 + 5 · 0 + 6 · 2", 9, ACCENT)
show("product")

# %% [markdown]
# With more axes, `@` multiplies over the last two. In a model, `x` holds B texts of T positions,
# with a vector of C numbers at each position. One matrix is applied to all of these vectors:

# %%
B, T, C = 2, 3, 4
x = torch.arange(B * T * C).view(B, T, C)  # (2, 3, 4): the numbers 0 to 23
matrix = 10 * torch.eye(C, dtype=torch.int64)  # (4, 4): 10 on the diagonal, 0 elsewhere
y = x @ matrix  # (B, T, C) @ (C, C) -> (B, T, C)
print(x)
print(y[1, 2], "=", x[1, 2], "@ matrix")

# %% [markdown]
# ## New shapes: `view`, `transpose`, `permute`
#
# `view` keeps the order of the numbers and changes where rows end. `transpose` swaps two axes.
# `permute(2, 0, 1)` puts the axes into the order 2, 0, 1.

# %%
print("view", x.view(6, 4), sep="\n")  # (2, 3, 4) -> (6, 4)
print("transpose", x.transpose(1, 2), sep="\n")  # -> (2, 4, 3): x[b, t, c] is now at [b, c, t]
print("permute", x.permute(2, 0, 1), sep="\n")  # -> (4, 2, 3): x[b, t, c] is now at [c, b, t]

# %% [markdown]
# Lesson 5 splits the C numbers (*channels*) of each position into H parts (*heads*) of D = C / H
# channels. In this example, the tens name the position and the units name the channel:

# %%
B, H, D = 1, 2, 2
x = 10 * torch.arange(T)[:, None] + torch.arange(C)  # (T, 1) + (C,) -> (T, C)
print(x)
heads = x.view(B, T, H, D).transpose(1, 2)  # (T, C) -> (B, T, H, D) -> (B, H, T, D)
print("right", heads, sep="\n")
print("wrong", x.view(B, H, T, D), sep="\n")  # the same shape

# %% [markdown]
# Right: head 0 has the channels 0 and 1 of all positions, head 1 has 2 and 3. Wrong: `view` alone
# gives the same shape, but head 0 has all channels of position 0.
#
# `transpose` does not move numbers in memory. Its result is not *contiguous*: if you read it row by
# row, you jump back and forth in memory. Then `view` can fail; `reshape` copies if it must.

# %%
try:
    heads.view(B, H * T * D)
except RuntimeError as error:
    print(str(error)[:67], "…")
print(heads.reshape(B, H * T * D))  # (B, H, T, D) -> (B, H · T · D)

# %% [markdown]
# ## Softmax
#
# A model computes scores, which can be any numbers. *Softmax* turns them into probabilities:
# $\text{softmax}(z)_i = e^{z_i} / \sum_j e^{z_j}$. The power makes each score positive; the
# division makes the sum 1. `exp` computes the power.

# %%
scores = torch.tensor([2.0, 1.0, 0.0])
powers = scores.exp()  # (3,)
print(powers / powers.sum(), scores.softmax(dim=0))

# %% [markdown]
# If a score is larger by 1, its probability is $e = 2.718$ times larger: 0.665 is 2.718 · 0.245.
#
# ## One gradient, computed in three ways
#
# Our first model is a line $ax + b$ with the parameters $a$ and $b$. For each input $x$ it predicts
# a target. The *loss* measures how wrong the model is: here, the mean of the squared errors.

# %%
inputs = torch.tensor([0.0, 1.0, 2.0])
targets = torch.tensor([1.0, 3.0, 5.0])  # points of the line 2x + 1


def line_loss(a, b):
    error = a * inputs + b - targets  # (3,)
    return (error**2).mean()  # ()


print("loss at a = 1, b = 0:", line_loss(1.0, 0.0))
print("slope for a:", (line_loss(1.01, 0.0) - line_loss(0.99, 0.0)) / 0.02)
print("slope for b:", (line_loss(1.0, 0.01) - line_loss(1.0, -0.01)) / 0.02)

# %% [markdown]
# The *slope* for a parameter (its derivative) says how fast the loss changes if this parameter
# grows. All slopes together are the *gradient*. The first way, above, changes a parameter a little
# and computes the loss twice. For a million parameters, this is too slow.
#
# The second way is the *chain rule*: multiply the slopes of all operations between a parameter and
# the loss. The slope of the loss for each error is $2 \cdot \text{error} / 3$. The slope of each
# error is $x$ for $a$ and 1 for $b$. Multiply these, and add over the three points:

# %%
error = 1.0 * inputs + 0.0 - targets  # (3,): -1, -2, -3
slope_of_error = 2 * error / 3  # (3,)
print("by hand:", (slope_of_error * inputs).sum(), (slope_of_error * 1).sum())

# %% [markdown]
# The third way is *autograd*: PyTorch applies the chain rule for us. With `requires_grad=True`, it
# records each operation. `backward` then goes through the record from the loss back to the
# parameters, as in the picture, and stores their slopes in `grad`.

# %%
a = torch.tensor(1.0, requires_grad=True)
b = torch.tensor(0.0, requires_grad=True)
loss = line_loss(a, b)
loss.backward()
print("by autograd:", a.grad, b.grad)

# %% alt="Values go from a and b to the loss 4.667; slopes go back, to −5.333 for a and −4 for b"
axes = diagram(78, 20)
names = ["a = 1\nb = 0", "prediction\nax + b", "error\nprediction − target", "loss\nmean square"]
values = ["", "0, 1, 2", "−1, −2, −3", "4.667"]
slopes = ["a: −5.333\nb: −4", "−0.67, −1.33, −2", "−0.67, −1.33, −2", "1"]
for i in range(4):
    box(axes, 10 + 19.5 * i, 10, names[i], 15, 5.5)
    write(axes, 10 + 19.5 * i, 14.3, values[i])
    write(axes, 10 + 19.5 * i, 5.2, slopes[i], 9, ACCENT)
for edge in (17.5, 37, 56.5):
    arrow(axes, (edge, 11.2), (edge + 4.5, 11.2))
    arrow(axes, (edge + 4.5, 8.8), (edge, 8.8), color=ACCENT, style="--")
write(axes, 2.5, 18, "forward: values, from the parameters to the loss", 9, INK, "left", True)
write(axes, 2.5, 1.6, "backward: slopes, from the loss to the parameters", 9, ACCENT, "left", True)
show("backward")

# %% tags=["test"]
assert (right.sum(dim=1).tolist(), wrong.sum(dim=1).tolist()) == ([1, 1], [0.625, 1.5])
assert (table @ weight).tolist() == [[7, 5], [16, 17]]
assert heads[0].tolist() == [[[0, 1], [10, 11], [20, 21]], [[2, 3], [12, 13], [22, 23]]]
assert x.view(B, H, T, D)[0, 0].tolist() == [[0, 1], [2, 3], [10, 11]]
assert abs(loss.item() - 14 / 3) < 1e-5
assert abs(a.grad + 16 / 3) + abs(b.grad + 4) + abs(a.grad - slope_of_error @ inputs) < 1e-5
assert abs((line_loss(1.01, 0.0) - line_loss(0.99, 0.0)) / 0.02 + 16 / 3) < 1e-3
assert scores.softmax(dim=0).mul(1000).round().tolist() == [665, 245, 90]

# %% [markdown]
# ## The training loop
#
# If the slope of a parameter is negative, the loss falls when the parameter grows. So each *step*
# subtracts from every parameter its slope times the *learning rate*. This is *gradient descent*.

# %%
for step in range(51):
    a.grad = b.grad = None  # zero_grad: delete the slopes of the previous step
    loss = line_loss(a, b)
    loss.backward()  # backward: compute the slopes
    if step % 10 == 0:
        print(f"step {step:2}: loss {loss:.5f}, a = {a:.3f}, b = {b:.3f}")
    with torch.no_grad():  # do not record the change itself
        a -= 0.2 * a.grad  # step, with the learning rate 0.2
        b -= 0.2 * b.grad

# %% [markdown]
# The training finds $a = 2$ and $b = 1$. Why delete the old slopes? Because `backward` *adds* to
# `grad`. Two calls give twice the slope:

# %%
a = torch.tensor(1.0, requires_grad=True)
for _ in range(2):
    line_loss(a, 0.0).backward()
    print(a.grad)

# %% [markdown]
# ## Modules and optimizers
#
# The models of this course are classes derived from `nn.Module`. An `nn.Parameter` is a tensor with
# `requires_grad=True` that belongs to the module. `model(inputs)` calls `forward`.


# %%
class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(1.0))
        self.b = nn.Parameter(torch.tensor(0.0))

    def forward(self, inputs):
        return self.a * inputs + self.b  # (3,)


# %% [markdown]
# An *optimizer* changes the parameters; `torch.optim.SGD` does gradient descent as above. Every
# training of this course has this loop:


# %%
def train_line(learning_rate, steps):
    model, losses = Line(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    for _ in range(steps):
        loss = ((model(inputs) - targets) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())  # item() returns a Python number
    return losses


print("last loss by hand:", loss.item(), "with the optimizer:", train_line(0.2, 51)[-1])

# %% alt="Loss over 12 steps: slow fall with learning rate 0.01, fast with 0.2, growth with 0.43"
plt.figure(figsize=(7, 3))
names = {0.01: "0.01: too small", 0.2: "0.2: good", 0.43: "0.43: too large, the loss grows"}
for (learning_rate, name), style in zip(names.items(), ("--", "-", ":"), strict=True):
    losses = train_line(learning_rate, 13)
    color = ACCENT if learning_rate == 0.2 else INK
    plt.plot(losses, style, color=color)
    plt.text(12.2, losses[-1], name, color=color, va="center", fontsize=9)
plt.gca().set(xlim=(0, 18), xticks=range(0, 13, 2), xlabel="step", ylabel="loss")
show("learning-rates")

# %% [markdown]
# With 0.43, each step jumps over the best values and ends farther away on the other side. The best
# learning rate must be found by trying. From lesson 2 on, it changes during the training, and
# `torch.optim.Adam` takes the place of SGD. Adam divides each change by the usual size of this
# parameter's slopes, so small slopes also count. [Lesson 10](10_training.md) explains both.
#
# ## Two layers for all lessons
#
# `nn.Linear(3, 2)` turns 3 numbers into 2: $xW^T + b$. Its parameters are the `weight` $W$ of shape
# (2, 3) and the `bias` $b$ of shape (2,). They start as random numbers. `nn.Embedding(5, 2)` is a
# table of parameters with 5 rows of 2 numbers. It looks up one row for each *token*, an integer
# that stands for a character. (`grad_fn` in the output shows that autograd records.)

# %%
torch.manual_seed(0)  # the same random numbers in every run
linear = nn.Linear(3, 2)
x = torch.tensor([[1.0, 2.0, 3.0]])  # (1, 3)
print(linear(x))  # (1, 3) -> (1, 2)
print(x @ linear.weight.T + linear.bias)  # .T swaps the axes: (1, 3) @ (3, 2) + (2,) -> (1, 2)

embedding = nn.Embedding(5, 2)
tokens = torch.tensor([[4, 0, 4]])  # (B, T) = (1, 3)
print(embedding(tokens))  # (B, T) -> (B, T, C): (1, 3) -> (1, 3, 2)
torch.testing.assert_close(embedding(tokens), embedding.weight[tokens])  # no error: they are equal

# %% [markdown]
# ## What to remember
#
# - Write the shape beside each line: wrong broadcasting and a wrong `view` often give no error.
# - The gradient holds the slope of the loss for each parameter; autograd computes it.
# - Every training repeats `zero_grad`, `backward`, `step`.
#
# ## Three common mistakes
#
# 1. `x.view(2, 4, 3)` to swap axes of a (2, 3, 4) tensor. *Symptom:* no error, but the numbers are
#    in wrong places. *Remedy:* use `transpose`, and test with `torch.arange`.
# 2. A forgotten `zero_grad`. *Symptom:* the loss falls, rises again, and never settles. *Remedy:*
#    call `optimizer.zero_grad()` before each `backward`.
# 3. A plain tensor in a module instead of an `nn.Parameter`. *Symptom:* the optimizer never changes
#    it. *Remedy:* print the names in `model.named_parameters()`; one is missing.
#
# ## Exercises
#
# 1. Which shapes do (4, 1) + (3,), (2, 3, 4) @ (4, 5), and (2, 3, 4) with `permute(1, 2, 0)` give?
# 2. Add 100 to each of the three scores. How does their softmax change, and why?
# 3. Compute by hand the gradient of $(ab - 6)^2$ at $a = 2$, $b = 1$. Check it with autograd.
# 4. Find, to two decimals, the largest learning rate with which the loss of the line still falls.

# %% tags=["test"]
assert abs(a.grad + 32 / 3) < 1e-5
assert max(loss.item(), train_line(0.2, 51)[-1]) < 1e-6
slow, good, large = (train_line(rate, 13) for rate in (0.01, 0.2, 0.43))
assert good[-1] < 0.01 < 1 < slow[-1] < slow[0] < large[-1]
x = torch.arange(24).view(2, 3, 4)
assert not x.view(2, 4, 3).equal(x.transpose(1, 2))
model, losses = Line(), []
optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
for _ in range(100):
    losses.append(((model(inputs) - targets) ** 2).mean())
    losses[-1].backward()
    optimizer.step()
assert min(losses) < 0.1 * losses[0] < losses[0] < max(losses[50:])
model.c = torch.tensor(1.0, requires_grad=True)
assert [name for name, _ in model.named_parameters()] == ["a", "b"]

# %% tags=["solution"]
if SOLUTIONS:
    x = torch.zeros(2, 3, 4)
    shapes = (torch.zeros(4, 1) + torch.zeros(3)).shape, (x @ torch.zeros(4, 5)).shape
    print("1.", *shapes, x.permute(1, 2, 0).shape)
    print("2.", (scores + 100).softmax(dim=0), "as before: powers and sum are e^100 times larger")
    a = torch.tensor(2.0, requires_grad=True)
    b = torch.tensor(1.0, requires_grad=True)
    ((a * b - 6) ** 2).backward()
    print("3. by hand: 2(ab - 6)b = -8, 2(ab - 6)a = -16; autograd:", a.grad, b.grad)
    assert (a.grad, b.grad) == (-8, -16)
    for rate in (0.40, 0.41, 0.42):
        losses = train_line(rate, 400)
        print(f"4. learning rate {rate}: loss {losses[0]:.2f} -> {losses[-1]:.2g}")
        assert (losses[-1] < losses[0]) == (rate < 0.415)

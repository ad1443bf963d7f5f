# %% [markdown]
# # 1. Tensors, gradients, and a training loop
#
# A neural network is a function with many numbers inside, its *parameters*. Training changes them
# step by step until the function gives the results that we want. How does a program store these
# numbers, and how does it know in which direction to change each of them?
#
# **Before this lesson:** you know Python, and that the derivative of $x^2$ is $2x$. Lesson 0 is
# [gpt.py](../gpt.py), a GPT: a network that generates text. Look at it; lessons 1 to 11 explain it.
#
# **You will see:** a division that is wrong without any error message; one slope, −5.333, computed
# in three ways; a training that finds the line $2x + 1$; and a learning rate that is too large.
#
# ## Tensors
#
# A *tensor* is an array of numbers with any number of axes: a list has one, a table has two. Its
# *shape* is the length of each axis, its *dtype* (data type) is the kind of its numbers. `torch` is
# the library PyTorch; `lesson` and `pictures` are files of this course, beside this one. You can
# skip the code that draws a picture.

# %%
import torch
from lesson import SOLUTIONS  # True with: python lessons/01_tensors.py --solutions
from matplotlib import pyplot as plt
from pictures import ACCENT, INK, MUTED, arrow, box, cells, diagram, show, write
from torch import nn

table = torch.tensor([[1, 2, 3], [4, 5, 6]])  # (2, 3): a tensor made from a list of two rows
print(table, table.shape, table.dtype)
print(torch.tensor([0.5, 1.0]).dtype)

# %% [markdown]
# Axis 0 has length 2 (rows), axis 1 has length 3 (columns). Integers (int64) will stand for the
# characters of a text; parameters are floating-point numbers (float32), such as 0.5. An index in
# brackets selects a part. As in lists, `0` is the first, and `:-1` is all but the last.

# %%
print(table[0])  # (3,): the first row
print(table[1, 2])  # (): row 1, column 2; a tensor without axes is one number
print(table[:, :-1])  # (2, 2): all rows, all columns but the last
print(table[torch.tensor([1, 0, 1])])  # (3, 3): row 1, row 0, row 1
print(table[torch.tensor([0, 1]), torch.tensor([2, 0])])  # (2,): entries [0, 2] and [1, 0]

# %% [markdown]
# A *vector* is a tensor with one axis, such as a row. The fourth line looks up three rows; a model
# looks up a vector for each character in the same way. The fifth line reads its two index tensors
# in pairs: row 0 with column 2, then row 1 with column 0.
#
# ## Broadcasting
#
# Operators such as `+` work element by element. If two shapes differ, PyTorch aligns them at the
# last axis. Where one tensor has length 1 or no such axis, its numbers are repeated to the length
# of the other. Any other difference is an error. `None` in an index adds an axis of length 1 there:

# %%
column = torch.tensor([10, 20])[:, None]  # (2,) -> (2, 1): a column
row = torch.tensor([1, 2, 3])  # (3,)
print(column + row)  # (2, 1) + (3,) -> (2, 3)

# %% alt="The column 10, 20 is repeated three times, the row 1, 2, 3 twice, then they are added"
axes = diagram(66, 15)
cells(axes, 3, 11, [["10"] * 3, ["20"] * 3], 5, 3.5, [[1, 0, 0]] * 2, "column (2, 1)")
write(axes, 22, 7.5, "+", 14)
cells(axes, 26, 11, ["123"] * 2, 5, 3.5, [[1] * 3, [0] * 3], "row (3,)")
write(axes, 45, 7.5, "=", 14)
cells(axes, 49, 11, [["11", "12", "13"], ["21", "22", "23"]], 5, 3.5, title="sum (2, 3)")
write(axes, 22, 2, "filled cells are stored; the others beside the + repeat them", 9, MUTED)
show("broadcasting")

# %% [markdown]
# ## Sums, and why `keepdim` matters
#
# `sum(dim=1)` adds along axis 1: it returns the sum of each row, and axis 1 disappears.
# `keepdim=True` keeps that axis, with length 1. Say each row counts how often two events happened.
# Division by the sum of the row turns these counts into probabilities:

# %%
counts = torch.tensor([[1, 3], [4, 4]])  # (2, 2)
right = counts / counts.sum(dim=1, keepdim=True)  # (2, 2) / (2, 1): divides rows
wrong = counts / counts.sum(dim=1)  # (2, 2) / (2,): divides columns
print(right, "rows sum to", right.sum(dim=1))
print(wrong, "rows sum to", wrong.sum(dim=1))

# %% [markdown]
# Without `keepdim`, the sums 4 and 8 form a row, and this row is repeated: column 0 is divided by
# 4, column 1 by 8. The table is square (as in lesson 2), so the shapes fit, and PyTorch gives no
# error. Check that rows sum to 1.
#
# ## The matrix product `@`
#
# A *matrix* is a tensor with two axes. The *dot product* of two vectors multiplies them element by
# element and adds the results. Entry [i, j] of the matrix product is the dot product of row i of
# the left matrix and column j of the right one. So both must have the same length, here 3:

# %%
weight = torch.tensor([[1, 3], [0, 1], [2, 0]])  # (3, 2)
print(table @ weight)  # (2, 3) @ (3, 2) -> (2, 2)

# %% alt="Row 4, 5, 6 of a matrix times column 1, 0, 2 of another gives entry 16 of the product"
axes = diagram(66, 18)
row_1, column_0, entry = [[0] * 3, [1] * 3], [[1, 0]] * 3, [[0, 0], [1, 0]]  # 1: a filled cell
cells(axes, 3, 12.5, ["123", "456"], 5, 3.5, row_1, "table (2, 3)")
write(axes, 22, 9, "@", 14)
cells(axes, 26, 14.2, ["13", "01", "20"], 5, 3.5, column_0, "weight (3, 2)")
write(axes, 40, 9, "=", 14)
cells(axes, 48, 12.5, [["7", "5"], ["16", "17"]], 5, 3.5, entry, "product (2, 2)")
write(axes, 53, 3, "16 = 4 · 1 + 5 · 0 + 6 · 2", 9, ACCENT)
show("product")

# %% [markdown]
# In a model, `x` has three axes: B blocks of text (*batch*), T positions in each (*time*), and a
# vector of C numbers at each position (*channels*). In `x @ matrix`, each of the B · T vectors is
# multiplied by the same matrix. The last axis may get a new length, here 2:

# %%
B, T, C = 2, 3, 4
x = torch.arange(24).view(B, T, C)  # arange returns the numbers 0 to 23; view gives them a shape
matrix = torch.tensor([[1, 0], [1, 0], [0, 1], [0, 1]])  # (4, 2): two sums of two channels
y = x @ matrix  # (B, T, C) @ (C, 2) -> (B, T, 2)
print(x)
print(y[1, 2], "=", x[1, 2], "@ matrix")

# %% [markdown]
# ## New shapes: `view`, `transpose`, `permute`
#
# `view` keeps the order of the numbers and changes where rows end. `transpose` swaps two axes.
# Lesson 5 cuts each row into *heads* with both. In this example, 21 stands in row 2, column 1:

# %%
x = 10 * torch.arange(3)[:, None] + torch.arange(4)  # (3, 1) + (4,) -> (3, 4)
halves = x.view(3, 2, 2)  # (3, 4) -> (3, 2, 2): cuts each row into two halves
heads = halves.transpose(0, 1)  # (3, 2, 2) -> (2, 3, 2): heads[i, j] is halves[j, i]
print(x, "heads", heads, sep="\n")
print("wrong", x.view(2, 3, 2), sep="\n")  # (3, 4) -> (2, 3, 2)
print(heads.equal(halves.permute(1, 0, 2)))  # the old axes in their new order: 1, 0, 2

# %% [markdown]
# `heads[0]` has the left halves of all rows, `heads[1]` the right halves. `view` alone gives the
# same shape, but mixes both halves. `permute` reorders all axes; here, it swaps the same two. All
# three leave the numbers in their places in memory. So `heads` is not *contiguous*: its rows
# `[0, 1]` and `[10, 11]` are neighbours, but in memory, 2 and 3 lie between them. `view` cannot
# join such rows. `reshape` copies the numbers if `view` is not possible. (The *stride* of an axis
# is the distance in memory from one index to the next.)

# %%
try:
    heads.view(12)
except RuntimeError as error:
    print(error)
print(heads.reshape(12))  # (2, 3, 2) -> (12,)

# %% [markdown]
# ## Softmax
#
# A model computes scores $z$; they may be any numbers. *Softmax* turns them into probabilities,
# which are positive and sum to 1: $\text{softmax}(z)_i = e^{z_i} / \sum_j e^{z_j}$.

# %%
scores = torch.tensor([2.0, 1.0, 0.0])
powers = scores.exp()  # (3,): e to the power of each score
print(powers / powers.sum(), scores.softmax(dim=0))  # dim=0: sums to 1 along axis 0

# %% [markdown]
# If one score is 1 above another, its probability is $e$ times the other's: 0.665 ≈ 2.718 · 0.245.
#
# ## One gradient, computed in three ways
#
# Our first model is a line with the parameters $a$ and $b$. For an input $x$, its *prediction* is
# $ax + b$. The *error* is the prediction minus the *target*, the correct number. The *loss*
# measures how wrong the model is: here, it is the mean of the squared errors.
#
# The *slope* of the loss for a parameter says how fast the loss changes if only this parameter
# grows (the partial derivative $\partial\,\text{loss} / \partial a$). The first way is a *central
# difference*: compute the loss with the parameter 0.01 higher and 0.01 lower, and divide the
# difference of the two losses by 0.02.

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
# All slopes together are the *gradient*. This way needs two losses for each parameter, so it is
# slow. It is exact for squares, but for most functions only approximate.
#
# The second way is the *chain rule*: multiply the slopes of the operations one after the other. The
# loss is the mean of three squares, so its slope for an error is $2 \cdot \text{error} / 3$. The
# slope of the error $ax + b - \text{target}$ is $x$ for $a$ and 1 for $b$. Each parameter changes
# all three errors, so the three products are added:

# %%
error = 1.0 * inputs + 0.0 - targets  # (3,): -1, -2, -3
slope_of_error = 2 * error / 3  # (3,)
print("by hand:", (slope_of_error * inputs).sum(), (slope_of_error * 1).sum())

# %% [markdown]
# The third way is *autograd*: PyTorch applies the chain rule for us. If a tensor has
# `requires_grad=True`, PyTorch records all operations with it (the *computation graph*). `backward`
# goes through this record from the loss back to the parameters, and stores their slopes in `grad`.
# This is *backpropagation* (Rumelhart, Hinton and Williams 1986). One pass gives all slopes.

# %%
a = torch.tensor(1.0, requires_grad=True)
b = torch.tensor(0.0, requires_grad=True)
loss = line_loss(a, b)
loss.backward()
print("by autograd:", a.grad, b.grad)

# %% alt="Values go from a and b to the loss 4.667; slopes go back, to −5.333 for a and −4 for b"
axes = diagram(78, 20)
names = ["parameters", "prediction\nax + b", "error\nprediction − target", "loss\nmean of error²"]
values = ["a = 1, b = 0", "0, 1, 2", "−1, −2, −3", "4.667"]
slopes = ["a: −5.333, b: −4", "−0.67, −1.33, −2", "−0.67, −1.33, −2", "1"]
for i in range(4):
    box(axes, 9.5 + 19.5 * i, 11, names[i], 14, 5.5)
    write(axes, 9.5 + 19.5 * i, 15.3, values[i])
    write(axes, 9.5 + 19.5 * i, 5.2, slopes[i], 9, ACCENT)
for edge, factor in ((16.5, "a: × x, b: × 1"), (36, "× 1"), (55.5, "× ⅔ · error")):
    arrow(axes, (edge, 12.2), (edge + 5.5, 12.2))
    arrow(axes, (edge + 5.5, 9.8), (edge, 9.8), color=ACCENT, style="--")
    write(axes, edge + 2.75, 7.4, factor, 8, MUTED)
write(axes, 2.5, 18.7, "forward: values, from the parameters to the loss", 9, INK, "left", True)
write(axes, 2.5, 1.6, "backward: slopes, from the loss to the parameters", 9, ACCENT, "left", True)
show("backward")

# %% [markdown]
# The way back starts with 1, the slope of the loss for the loss itself. Each arrow multiplies by a
# slope. For $a$ and $b$, add the products.
#
# ## The training loop
#
# If a slope is negative, the loss falls when the parameter grows a little; if it is positive, when
# the parameter shrinks a little. So each *step* subtracts from every parameter its slope times the
# *learning rate*. This is *gradient descent*. We start again from $a = 1$ and $b = 0$:

# %%
for step in range(51):
    a.grad = b.grad = None  # deletes the slopes of the previous step
    loss = line_loss(a, b)
    loss.backward()  # computes the slopes
    if step % 10 == 0:
        print(f"step {step:2}: loss {loss:.5f}, a = {a:.3f}, b = {b:.3f}")
    with torch.no_grad():  # autograd must not record the change of a parameter
        a -= 0.2 * a.grad  # the learning rate is 0.2
        b -= 0.2 * b.grad

# %% [markdown]
# The training finds $a = 2$ and $b = 1$, and the loss falls to almost 0. Why delete the old slopes?
# Because `backward` *adds* to `grad`. Two calls give twice the slope:

# %%
a = torch.tensor(1.0, requires_grad=True)
for _ in range(2):
    line_loss(a, 0.0).backward()
    print(a.grad)

# %% [markdown]
# ## Modules and optimizers
#
# Larger models are classes derived from `nn.Module` (`nn`: neural networks). An `nn.Parameter` is a
# tensor with `requires_grad=True`. The module registers each of them under its name. `parameters()`
# and `named_parameters()` return them. `model(inputs)` calls `forward`.


# %%
class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(1.0))
        self.b = nn.Parameter(torch.tensor(0.0))

    def forward(self, inputs):
        return self.a * inputs + self.b  # (3,)


print([name for name, _ in Line().named_parameters()])

# %% [markdown]
# An *optimizer* changes all parameters. `torch.optim.SGD` changes them as above; `lr` is the
# learning rate. (SGD is *stochastic* gradient descent: usually, each step uses a random part of the
# data; here, it uses all.) Every training of this course has this loop:


# %%
def train_line(learning_rate, steps):
    model, losses = Line(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    for _ in range(steps):
        loss = ((model(inputs) - targets) ** 2).mean()
        optimizer.zero_grad()  # deletes the slopes of the previous step
        loss.backward()
        optimizer.step()  # changes the parameters
        losses.append(loss.item())  # item() returns a Python number
    return losses


print("last loss of our loop:", loss.item(), "with SGD:", train_line(0.2, 51)[-1])

# %% alt="Loss over 12 steps: slow fall with learning rate 0.01, fast with 0.2, growth with 0.43"
plt.figure(figsize=(7, 3))
for rate, note, style in ((0.01, "too small", "--"), (0.2, "good", "-"), (0.43, "too large", ":")):
    losses, color = train_line(rate, 13), ACCENT if rate == 0.2 else INK
    plt.plot(losses, style, color=color)
    write(plt.gca(), 12.2, losses[-1], f"learning rate {rate}: {note}", 9, color, "left")
plt.gca().set(xlim=(0, 12), xlabel="step", ylabel="loss")
show("learning-rates")

# %% [markdown]
# With 0.43, the first step moves $a$ from 1 to 1 + 0.43 · 5.333 = 3.29, far beyond 2, the best
# value. The next steps jump back and forth over 2, and each increases the loss.
#
# From lesson 2 on, `torch.optim.Adam` replaces SGD (Kingma and Ba 2014, arXiv:1412.6980). For each
# parameter, Adam divides the mean of its recent slopes by their usual size, so parameters with
# small slopes also move. [Lesson 10](10_training.md) explains Adam.
#
# ## Two layers for all lessons
#
# A *layer* is a module that is a part of a model. The layer `nn.Linear(3, 2)` turns a vector of 3
# numbers into a vector of 2 numbers: $xW^T + b$. Its parameters are the `weight` $W$ of shape
# (2, 3), a row for each output number, and the `bias` $b$ of shape (2,). $W^T$ is $W$ with its two
# axes swapped. `nn.Embedding(5, 2)` is a table of parameters with 5 rows of 2 numbers. It looks up
# one row for each *token*, an integer that stands for a character. Both start with random numbers.

# %%
torch.manual_seed(0)  # the same random numbers in every run
linear = nn.Linear(3, 2)
x = torch.tensor([[1.0, 2.0, 3.0]])  # (1, 3)
print(linear(x))  # (1, 3) -> (1, 2); grad_fn belongs to autograd's record
print(x @ linear.weight.T + linear.bias)  # (1, 3) @ (3, 2) + (2,) -> (1, 2)

embedding = nn.Embedding(5, 2)
tokens = torch.tensor([[4, 0, 4]])  # (B, T) = (1, 3)
print(embedding(tokens))  # (B, T) -> (B, T, C): (1, 3) -> (1, 3, 2)

# %% [markdown]
# ## What to remember
#
# - Write the shape beside each line: wrong broadcasting and a wrong `view` often give no error.
# - The gradient holds the slope of the loss for each parameter; backpropagation computes it.
# - Every training repeats: compute the loss, `zero_grad`, `backward`, `step`.
#
# ## Three common mistakes
#
# 1. `x.view(2, 4, 3)` to swap axes of a (2, 3, 4) tensor. *Symptom:* no error, but the numbers are
#    in wrong places. *Remedy:* use `transpose`, and test with `torch.arange`.
# 2. A forgotten `zero_grad`, so that slopes add up. *Symptom:* the loss falls, rises again, and
#    never settles. *Remedy:* call `optimizer.zero_grad()` before each `backward`.
# 3. A plain tensor in a module instead of an `nn.Parameter`. *Symptom:* the optimizer never changes
#    it. *Remedy:* print the names of the parameters, as above; one is missing.
#
# ## Exercises
#
# 1. Which shapes do (4, 1) + (3,), (2, 3, 4) @ (4, 5), and (2, 3, 4) with `permute(1, 2, 0)` give?
# 2. Add 100 to each of the three scores. What do `softmax` and `exp` return now, and why?
# 3. Compute by hand the gradient of $(ab - 6)^2$ at $a = 2$, $b = 1$. Check it with autograd.
# 4. With which of the learning rates 0.40, 0.41, 0.42, … do 400 steps still lower the loss?

# %% tags=["test"]
assert ((table @ weight).tolist(), y.view(2, 2, 3).equal(y.mT)) == ([[7, 5], [16, 17]], False)
assert scores.softmax(dim=0).mul(1000).round().tolist() == [665, 245, 90]
assert abs((line_loss(1.01, 0.0) - line_loss(0.99, 0.0)) / 0.02 + 16 / 3) < 1e-3
assert abs(line_loss(1.0, 0.0) - 14 / 3) + abs(slope_of_error.sum() + 4) < 1e-5
assert abs(slope_of_error @ inputs + 16 / 3) + abs(a.grad + 32 / 3) < 1e-5
assert max(loss.item(), train_line(0.2, 51)[-1]) < 1e-6
slow, good, large = (train_line(rate, 13) for rate in (0.01, 0.2, 0.43))
assert good[-1] < 0.01 < 1 < slow[-1] < slow[0] < large[-1]
assert abs(1 + 0.43 * 16 / 3 - 3.29) < 0.005
model, losses = Line(), []
optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
for _ in range(100):
    losses.append(((model(inputs) - targets) ** 2).mean())
    losses[-1].backward()
    optimizer.step()
assert min(losses) < 0.1 * losses[0] < losses[0] < max(losses[50:])
model.c = torch.tensor(1.0, requires_grad=True)
assert ([name for name, _ in model.named_parameters()], large) == (["a", "b"], sorted(large))

# %% tags=["solution"]
if SOLUTIONS:
    x = torch.zeros(2, 3, 4)
    shapes = (torch.zeros(4, 1) + torch.zeros(3)).shape, (x @ torch.zeros(4, 5)).shape
    print("1.", *shapes, x.permute(1, 2, 0).shape)
    print("2.", (scores + 100).softmax(dim=0), "Powers and sum are e^100 times larger.")
    print("  ", (scores + 100).exp(), "inf: too large. softmax first subtracts the largest score.")
    a, b = (torch.tensor(number, requires_grad=True) for number in (2.0, 1.0))
    ((a * b - 6) ** 2).backward()
    print("3. by hand: 2(ab - 6)b = -8, 2(ab - 6)a = -16; autograd:", a.grad, b.grad)
    for rate in (0.40, 0.41, 0.42):
        losses = train_line(rate, 401)  # the last loss is measured after 400 steps
        print(f"4. learning rate {rate}: loss {losses[0]:.2f} -> {losses[-1]:.2g}")
        assert (losses[-1] < losses[0]) == (rate < 0.415)

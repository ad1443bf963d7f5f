# %% [markdown]
# # 15. Encoder, decoder, cross-attention
#
# The Transformer of 2017 was made for translation. It had two halves: an encoder, which reads the
# source, and a decoder, which generates the output. A GPT is a decoder without an encoder, and so
# without the *cross-attention* between the two. This lesson builds such an *encoder-decoder*, and
# compares it with a GPT, a *decoder-only* model.
#
# **Before this lesson:** [lesson 4](04_attention.md) (queries, keys, values, the mask),
# [lesson 8](08_norm.md) (layer norm) and [lesson 10](10_training.md) (the training loop).
#
# **You will see:** an encoder-decoder and a GPT that learn to reverse words of 8 letters. At step
# 40, no test word is correct; at step 80, all are. Each decoder position gives, on average, more
# than 90% of its cross-attention to one letter: the letter that it has to predict.

# %%
import math

import matplotlib.pyplot as plt
import torch
from lesson import SOLUTIONS, shorten
from pictures import ACCENT, FILL, SOFT, arrow, box, diagram, show, write
from torch import nn
from torch.nn import functional as F

STEPS = shorten(200)  # fewer in a quick test

# %% [markdown]
# ## Two kinds of model
#
# Vaswani et al. 2017 ([arXiv:1706.03762](https://arxiv.org/abs/1706.03762)) translated, for
# example, English into German. The English sentence, the *source*, is complete before the model
# generates a German word. So each position of the *encoder* may look at the whole source. The
# *decoder* generates the German sentence token by token, as a GPT does. But each Transformer block
# of the decoder has one more layer, the cross-attention, which reads the result of the encoder.
#
# In the picture, the models reverse the source `a b c`. The token `|` marks the start of the
# output. The letter c is already generated, and the models predict the next letter, b.

# %% alt="Left: encoder with an arrow to the cross-attention of the decoder. Right: a GPT"
axes = diagram(72, 40)
for x, title in ((10, "encoder"), (38, "decoder"), (62, "GPT: only a decoder")):
    write(axes, x, 38, title, 10, bold=True)
parts = [(10, 12, "self-attention, no mask"), (10, 20, "feed-forward"), (38, 28, "feed-forward")]
parts += [(38, 12, "causal self-attention"), (38, 20, "cross-attention")]
parts += [(62, 12, "causal self-attention"), (62, 20, "feed-forward")]
for x, y, text in parts:
    box(axes, x, y, text, 18, 4.4, SOFT if text == "cross-attention" else FILL)
    arrow(axes, (x, y - 5.8), (x, y - 2.2), "queries" if text == "cross-attention" else "")
arrow(axes, (19, 20), (29, 20), color=ACCENT, style="--")
write(axes, 24, 21.5, "keys, values", 8, ACCENT)
for x, y in ((38, 28), (62, 20)):
    arrow(axes, (x, y + 2.2), (x, y + 5.3))
    write(axes, x, y + 6.5, "next letter: b")
for x, text in ((10, "source: a b c"), (38, "output so far: | c"), (62, "a b c | c")):
    write(axes, x, 4.5, text)
show("models")

# %% [markdown]
# The picture shows one Transformer block of each, without embeddings, residual connections, norms
# and output layer. In the paper, each half has 6 blocks; all 6 of the decoder read the result of
# the *last* one of the encoder. A GPT does the job with one sequence: source, `|`, output.
#
# ## Cross-attention
#
# In self-attention, queries, keys and values come from the same tensor. In cross-attention, the
# queries come from the decoder, and the keys and values from the encoder. The two lengths may
# differ. Here 3 positions of the decoder read 5 positions of the encoder:

# %%
torch.manual_seed(0)
C = 4
x, encoded = torch.randn(3, C), torch.randn(5, C)  # decoder (3, C), encoder (5, C)
query, key, value = nn.Linear(C, C), nn.Linear(C, C), nn.Linear(C, C)
scores = query(x) @ key(encoded).T / math.sqrt(C)  # (3, C) @ (C, 5) -> (3, 5)
weights = scores.softmax(dim=-1)  # (3, 5): a row for each decoder position
result = weights @ value(encoded)  # (3, 5) @ (5, C) -> (3, C)
print(weights.detach())

# %% [markdown]
# As in lesson 4, each row sums to 1. (The layers are not trained, so the weights mean nothing yet.)
# The module below is self-attention if `source` is `x`, and cross-attention if `source` is the
# result of the encoder. It has one head, and stores its attention weights for a later picture.


# %%
class Attention(nn.Module):
    def __init__(self, C):
        super().__init__()
        self.query, self.key, self.value = nn.Linear(C, C), nn.Linear(C, C), nn.Linear(C, C)
        self.projection = nn.Linear(C, C)

    def forward(self, x, source, is_causal=False):
        q, k, v = self.query(x), self.key(source), self.value(source)  # (B, length, C) each
        scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])  # (B, length of x, of source)
        if is_causal:
            is_later = torch.ones_like(scores, dtype=torch.bool).triu(diagonal=1)  # same shape
            scores = scores.masked_fill(is_later, -math.inf)
        weights = scores.softmax(dim=-1)  # (B, length of x, length of source)
        self.weights = weights.detach()
        return self.projection(weights @ v)  # (B, length of x, C)


# %% [markdown]
# ## Three attentions, one mask
#
# | attention | queries from | keys and values from | mask | shape of the scores |
# | --- | --- | --- | --- | --- |
# | encoder, self-attention | encoder | encoder | none | source × source |
# | decoder, self-attention | decoder | decoder | causal | output × output |
# | decoder, cross-attention | decoder | encoder | none | output × source |
#
# Only the self-attention of the decoder is causal: the decoder must not see its targets. The source
# contains no targets, so the other two need no mask. In a GPT, the mask applies to the source, too:
# its letters do not see the letters after them. The output positions still see the whole source.
#
# ## The task: reverse a word
#
# A word has 8 random letters from a to j. There are $10^8$ words, and the training shows only
# 12,800, so memorising does not help. The input of the decoder starts with the token `|`. In
# training, the rest of this input is the *correct* output, shifted by one. This is *teacher
# forcing*: as in every GPT so far, all positions learn in parallel what follows correct letters.

# %%
alphabet, START, LENGTH = "abcdefghij|", 10, 8
V = len(alphabet)


def get_words(batch_size):
    source = torch.randint(10, (batch_size, LENGTH))  # (B, 8)
    targets = source.flip(1)  # (B, 8): the letters in reverse order
    start = torch.full((batch_size, 1), START)  # (B, 1): START everywhere
    return source, torch.cat([start, targets[:, :-1]], dim=1), targets  # (B, 8) each


torch.manual_seed(0)
for name, tokens in zip(("source", "inputs", "targets"), get_words(1), strict=True):
    print(f"{name:8}", " ".join(alphabet[token] for token in tokens[0]))


# %% [markdown]
# ## The two models
#
# One class serves for all Transformer blocks: of encoder, decoder and GPT. `Model` has the parts
# that both models need; encoder and decoder share the embeddings. As in lesson 8, the norms stand
# before the layers (in the paper, after them), and one more norm ends the encoder and the decoder.


# %%
class Block(nn.Module):
    def __init__(self, C, is_causal, has_cross_attention=False):
        super().__init__()
        self.is_causal = is_causal
        self.norm1, self.attention = nn.LayerNorm(C), Attention(C)
        if has_cross_attention:
            self.norm_cross, self.cross_attention = nn.LayerNorm(C), Attention(C)
        self.norm2 = nn.LayerNorm(C)
        self.feed_forward = nn.Sequential(nn.Linear(C, 4 * C), nn.GELU(), nn.Linear(4 * C, C))

    def forward(self, x, encoded=None):
        y = self.norm1(x)  # (B, T, C)
        x = x + self.attention(y, y, self.is_causal)  # self-attention: `source` is y, too
        if encoded is not None:  # cross-attention: `source` is the result of the encoder
            x = x + self.cross_attention(self.norm_cross(x), encoded)  # (B, T, C)
        return x + self.feed_forward(self.norm2(x))  # (B, T, C)


class Model(nn.Module):
    def __init__(self, C):
        super().__init__()
        self.token_embedding = nn.Embedding(V, C)
        self.position_embedding = nn.Embedding(2 * LENGTH, C)
        self.norm, self.output = nn.LayerNorm(C), nn.Linear(C, V)

    def embed(self, tokens):  # (B, T) -> (B, T, C)
        return self.token_embedding(tokens) + self.position_embedding.weight[: tokens.shape[1]]


class EncoderDecoder(Model):
    def __init__(self, C=32):
        super().__init__(C)
        self.encoder, self.encoder_norm = Block(C, is_causal=False), nn.LayerNorm(C)
        self.decoder = Block(C, is_causal=True, has_cross_attention=True)

    def forward(self, source, inputs):
        encoded = self.encoder_norm(self.encoder(self.embed(source)))  # (B, 8, C)
        x = self.decoder(self.embed(inputs), encoded)  # (B, T, C)
        return self.output(self.norm(x))  # (B, T, V)


class DecoderOnly(Model):
    def __init__(self, C=34):
        super().__init__(C)
        self.blocks = nn.Sequential(Block(C, is_causal=True), Block(C, is_causal=True))

    def forward(self, source, inputs):
        x = self.embed(torch.cat([source, inputs], dim=1))  # (B, 8 + T, C): one sequence
        return self.output(self.norm(self.blocks(x)))[:, LENGTH:]  # (B, T, V): after the source


# %% [markdown]
# The decoder-only model also computes logits at the source, but nobody can predict random letters.
# So, unlike in lesson 9, only the logits of the output count in the loss; `[:, LENGTH:]` keeps
# these. With 32 and 34 channels, both models have about 30,000 parameters and two Transformer
# blocks. We test on 500 words. The model chooses the token with the largest logit; a word is
# correct if all 8 letters are. In this test, too, the model reads the correct letters so far.


# %%
@torch.no_grad()
def is_correct(model, source, inputs, targets):
    return (model(source, inputs).argmax(dim=-1) == targets).all(dim=1)  # (B,)


def fit(model):
    """Train the model; return the percentage of correct test words after every 10 steps."""
    torch.manual_seed(0)
    test_words, accuracy = get_words(500), []
    optimizer = torch.optim.Adam(model.parameters())
    for step in range(STEPS):
        source, inputs, targets = get_words(64)
        loss = F.cross_entropy(model(source, inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = 3e-3 * min((step + 1) / 50, 1 - step / STEPS)
        optimizer.step()
        if step % 10 == 9:
            accuracy.append(100 * is_correct(model, *test_words).float().mean().item())
    return accuracy


torch.manual_seed(1)
models = {"encoder-decoder": EncoderDecoder(), "decoder-only": DecoderOnly()}
curves = {name: fit(model) for name, model in models.items()}
print("correct words (%) at step", *(f"{step:5}" for step in range(10, 101, 10)))
for name, curve in curves.items():
    print(f"{name:25}", *(f"{share:5.1f}" for share in curve[:10]))

# %% [markdown]
# Both models solve the task: up to step 40, no word is correct, and from step 80 on, all are. (One
# training of each cannot show which model learns faster.) In use, nobody gives the model the
# correct letters: it reads the letters that it has generated itself. (The function below runs the
# encoder for every letter. Once is enough, because the source does not change.)


# %%
@torch.no_grad()
def generate(model, source):
    inputs = torch.full((len(source), 1), START)  # (B, 1)
    for _ in range(LENGTH):
        token = model(source, inputs)[:, -1].argmax(dim=-1, keepdim=True)  # (B, 1)
        inputs = torch.cat([inputs, token], dim=1)  # (B, T + 1)
    return inputs[:, 1:]  # (B, 8): without the start token


source, inputs, targets = get_words(500)
for name, model in models.items():
    output = generate(model, source)  # (B, 8)
    word, reverse = ("".join(alphabet[token] for token in row) for row in (source[0], output[0]))
    count = (output == targets).all(dim=1).sum()
    print(f"{name:15}  {word} -> {reverse}, {count} of 500 words correct")

# %% [markdown]
# The number of correct words is the same as with teacher forcing: as long as all letters are
# correct, the model reads the same inputs. After a wrong letter, it reads an input that it never
# saw in training. This difference between training and use is called *exposure bias*.
#
# ## What the cross-attention learned

# %% alt="Two maps: in both, the dark cells form the anti-diagonal; position t reads letter 9 - t"
for model in models.values():
    model(source, inputs)  # stores the attention weights
cross = models["encoder-decoder"].decoder.cross_attention.weights.mean(dim=0)  # (8, 8)
gpt = models["decoder-only"].blocks[0].attention.weights.mean(dim=0)[LENGTH:]  # (8, 16)
_, panels = plt.subplots(1, 2, figsize=(7, 3), width_ratios=(1, 2))
for axes, weights in zip(panels, (cross, gpt), strict=True):
    names = "12345678|1234567"[: weights.shape[1]]
    axes.imshow(weights, vmin=0, vmax=1)
    axes.grid(visible=False)
    axes.set_xticks(range(len(names)), list(names))
    axes.set_yticks(range(8), range(1, 9))
    for row in range(8):
        weight = weights[row, 7 - row].item()
        color = "white" if weight > 0.5 else "black"
        write(axes, 7 - row, row, f"{100 * weight:.0f}", 8, color)
panels[0].set(title="cross-attention", xlabel="position in the source", ylabel="output position t")
panels[1].set(title="decoder-only", xlabel="source, then | and output so far")
write(panels[1], 15.2, 0.8, "numbers: weight of letter 9 − t (%)", 8, "black", "right")
show("map")

# %% [markdown]
# A cell is darker if its attention weight, a mean over 500 words, is larger. Position $t$ needs
# letter $9 - t$ of the source. In each of the 500 words, this letter gets more than 70% of the
# cross-attention. The rule uses the positions, not the letters: if we reverse the position
# embeddings of the source, position $t$ reads letter $t$.
#
# In the decoder-only model, the source is a part of the sequence, so the causal self-attention
# learned the rule. The picture shows the first Transformer block: letter $9 - t$ gets more than
# 90%, the output so far almost nothing. In the second, letter $9 - t$ gets more than half.
#
# ## Which model for which task
#
# - **Encoder-decoder**: a complete source, then an output, as in translation and summaries. An
#   example is T5 (Raffel et al. 2019, [arXiv:1910.10683](https://arxiv.org/abs/1910.10683)).
# - **Encoder-only**: a vector or a label for a complete text. BERT (Devlin et al. 2018,
#   [arXiv:1810.04805](https://arxiv.org/abs/1810.04805)) hides some tokens and predicts them from
#   both sides (exercise 2). After *fine-tuning* (more training, for one task), its vectors serve
#   for search (similar texts get similar vectors) or classification.
# - **Decoder-only**: text to be continued: a story, a program, a conversation. Liu et al. 2018
#   ([arXiv:1801.10198](https://arxiv.org/abs/1801.10198)) dropped the encoder and wrote source and
#   output as one sequence; the first GPT (Radford et al. 2018) followed.
#
# No kind is best for everything. The encoder-decoder won the comparison of Raffel et al., with
# fine-tuning. For the same compute, it had twice the parameters: a token passes through only one
# half. Decoder-only models won that of Wang et al. 2022, without fine-tuning
# ([arXiv:2204.05832](https://arxiv.org/abs/2204.05832)). One sequence is simpler: every token can
# be a target. In a conversation, an answer becomes part of the next prompt; its keys and values
# stay in the cache (lesson 11). An encoder must read all again: new tokens change older vectors.

# %% tags=["test"]
if STEPS >= 200:
    assert all(curve[3] < 1 and curve[7] > 99 and curve[-1] == 100 for curve in curves.values())
    assert STEPS * 64 == 12_800
    last = models["decoder-only"].blocks[1].attention.weights.mean(dim=0)[LENGTH:]
    for weights, least in ((cross, 0.9), (gpt, 0.9), (last, 0.5)):
        assert weights[:, :LENGTH].flip(1).diagonal().min() > least
    assert gpt[:, LENGTH:].sum(dim=1).max() < 0.05
    net = models["encoder-decoder"]
    assert net.decoder.cross_attention.weights.flip(2).diagonal(dim1=1, dim2=2).min() > 0.7
    encoded = net.encoder(net.token_embedding(source) + net.position_embedding.weight[:8].flip(0))
    net.decoder(net.embed(inputs), net.encoder_norm(encoded))  # source positions reversed
    assert net.decoder.cross_attention.weights.mean(dim=0).diagonal().min() > 0.9
assert all(29_500 < sum(w.numel() for w in m.parameters()) < 31_500 for m in models.values())
for model in models.values():  # with teacher forcing and without
    free = (generate(model, source) == targets).all(dim=1)
    assert is_correct(model, source, inputs, targets).equal(free)
layer, x, encoded = Attention(8), torch.randn(1, 3, 8), torch.randn(1, 5, 8)
assert layer(encoded, x).shape == (1, 5, 8)  # mistake 2
assert not torch.allclose(layer(x, encoded), layer(x, F.pad(encoded, (0, 0, 0, 2))))  # mistake 3

# %% [markdown]
# ## What to remember
#
# - Cross-attention: queries from the decoder, keys and values from the encoder.
# - Only the self-attention of the decoder has a causal mask.
# - Teacher forcing: in training, the decoder reads the correct output, shifted by one.
#
# ## Three common mistakes
#
# 1. **The decoder input is not shifted.** The model then only copies its input. *Symptom:* the
#    training loss is almost 0, but the generated words are wrong. *Remedy:* begin with `|`.
# 2. **Source and decoder swapped in the cross-attention.** Keys and values now come from the
#    decoder, without a mask, and show the targets. *Symptom:* in training, both lengths are 8, and
#    the loss falls; generation stops with an error. *Remedy:* test with two lengths.
# 3. **No mask for padding**, the empty tokens after short sources in a batch. *Symptom:* the result
#    changes with their number. *Remedy:* set the scores of their keys to $-\infty$.
#
# ## Exercises
#
# 1. Copy the weights of an `Attention(8)` into `nn.MultiheadAttention(8, 1, batch_first=True)` and
#    compare the results for 3 and 5 positions. Its `in_proj_weight` holds query, key and value.
# 2. A palindrome such as `abcddcba` reads the same from both ends. Replace one of its first 4
#    letters by `|`, as BERT does. Train `DecoderOnly` to find it, without and with the causal mask:
#    use its `embed`, `blocks`, `norm` and `output`, and the logits at the hidden position.
# 3. Give the encoder a causal mask. Does the model still learn to reverse? Explain the result.

# %% tags=["solution"]
if SOLUTIONS:
    mine, theirs = Attention(8), nn.MultiheadAttention(8, num_heads=1, batch_first=True)
    x, source = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    layers = mine.query, mine.key, mine.value
    theirs.in_proj_weight.data = torch.cat([layer.weight for layer in layers])  # (24, 8)
    theirs.in_proj_bias.data = torch.cat([layer.bias for layer in layers])  # (24,)
    theirs.out_proj.load_state_dict(mine.projection.state_dict())
    torch.testing.assert_close(mine(x, source), theirs(x, source, source)[0])
    print("1. the results are equal")
    for is_causal in (False, True):
        model = DecoderOnly()
        model.blocks[0].is_causal = model.blocks[1].is_causal = is_causal
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(STEPS):
            half, hidden = torch.randint(10, (256, 4)), torch.randint(4, (256,))
            at_gap = torch.arange(256), hidden
            words = torch.cat([half, half.flip(1)], dim=1)  # (B, 8)
            answers = words[at_gap]  # (B,)
            words[at_gap] = START  # stands for the hidden letter
            x = model.norm(model.blocks(model.embed(words)))  # (B, 8, C)
            logits = model.output(x[at_gap])  # (B, V)
            optimizer.zero_grad()
            F.cross_entropy(logits, answers).backward()
            optimizer.step()
        share = (logits.argmax(dim=-1) == answers).float().mean()
        print(f"2. causal: {is_causal}, {share:.0%} found")
        assert STEPS < 200 or (share < 0.25 if is_causal else share > 0.95)
    print("   The copy of the letter is on the right: with the mask, a model can only guess.")
    model = EncoderDecoder()
    model.encoder.is_causal = True
    share = fit(model)[-1]
    print(f"3. {share:.0f}% correct: an encoder vector needs only its own letter and position")
    assert STEPS < 200 or share > 99

"""A GPT in one file: it trains on a text and generates similar text.

    python gpt.py              trains on input.txt, and downloads it if missing (Tiny Shakespeare)
    python gpt.py mytext.txt   trains on your own text: UTF-8, with at least half a megabyte

A language model reads the beginning of a text and gives each possible next character a probability.
Training changes the weights of the model so that the actual next character gets a higher
probability. To generate text, sample a character from the probabilities, append it, and repeat.

Data and weights are tensors: arrays of numbers. Comments give their shapes, with these letters:

    B  batch       blocks of text processed together           batch_size
    T  time        positions (characters) in a block of text   at most block_size
    C  channels    numbers in the vector of one position       n_embd
    H  heads       attention heads in one Transformer block    n_head
    D  head size   channels of one head                        C / H
    V  vocabulary  different characters in the text            len(alphabet)
"""

import math
import sys
import urllib.request
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

# Settings: change one setting at a time, and compare the last validation losses of the runs.
n_layer, n_head, n_embd = 4, 4, 128  # Transformer blocks, heads in each block, channels
block_size, batch_size = 64, 12  # the model sees at most block_size characters: its context window
steps, warmup, learning_rate = 1300, 100, 5e-3  # the learning rate rises for `warmup` steps
seed = 1337  # the same seed gives the same weights, batches and text
device = "cuda" if torch.cuda.is_available() else "cpu"
URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"


# 1. Data: from a text to batches of tokens.
def read_text(args):
    """Return the text of the file named in `args`, or of input.txt (downloaded if missing)."""
    path = Path(args[0] if args else "input.txt")
    if not args and not path.exists():
        try:
            path.write_bytes(urllib.request.urlopen(URL, timeout=30).read())
        except OSError as error:
            advice = "create it offline with: nanogpt data tinyshakespeare --save input.txt"
            sys.exit(f"input.txt is missing and its download failed ({error}): {advice}")
    return path.read_text(encoding="utf-8")


def encode(text, alphabet):
    """Turn a text into tokens: the token of a character is its index in the alphabet."""
    return torch.tensor([alphabet.index(character) for character in text])  # (length,)


def decode(tokens, alphabet):
    """Turn tokens back into text."""
    return "".join(alphabet[token] for token in tokens)


def get_batch(tokens, batch_size, block_size):
    """Return random blocks of the text, and for each token its target, which is the next token."""
    starts = torch.randint(len(tokens) - block_size, (batch_size, 1))  # (B, 1)
    blocks = tokens[starts + torch.arange(block_size + 1)]  # (B, T + 1)
    return blocks[:, :-1], blocks[:, 1:]  # (B, T) each: inputs, and targets shifted by one


# 2. The bigram: a simple model that counts pairs of characters. The GPT must reach a lower loss.
def bigram_loss(train_tokens, val_tokens, V):
    """Return the validation loss of a model that counts how often each pair of characters occurs.

    The loss is the mean of -ln p, where p is the model's probability of the correct next character.
    """
    pairs = train_tokens[:-1] * V + train_tokens[1:]  # (length - 1,): a number for each pair
    counts = torch.bincount(pairs, minlength=V * V).view(V, V)  # (V, V): [a, b] counts b after a
    p = (counts + 1) / (counts + 1).sum(dim=1, keepdim=True)  # (V, V): adding 1 avoids p = 0
    return -p[val_tokens[:-1], val_tokens[1:]].log().mean().item()


# 3. The model.
class SelfAttention(nn.Module):
    """Each position collects information from itself and earlier positions, in H heads at once."""

    def __init__(self, C, H):
        super().__init__()
        self.n_head = H
        self.qkv = nn.Linear(C, 3 * C)  # weights that turn C numbers into 3 * C numbers
        self.projection = nn.Linear(C, C)

    def forward(self, x):
        B, T, C = x.shape
        H, D = self.n_head, C // self.n_head
        # Query: what a position looks for. Key: what a position offers. Value: what it passes on.
        q, k, v = self.qkv(x).chunk(3, dim=-1)  # (B, T, C) each
        q, k, v = (part.view(B, T, H, D).transpose(1, 2) for part in (q, k, v))  # (B, H, T, D) each
        # The dot product of a query and a key is large if they match; @ computes all dot products.
        # Without the division by √D, the scores would grow with D.
        scores = q @ k.transpose(-2, -1) / math.sqrt(D)  # (B, H, T, T)
        # The mask hides later positions: they show the targets. Softmax makes each row sum to 1.
        is_later = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(diagonal=1)  # (T, T)
        weights = scores.masked_fill(is_later, -math.inf).softmax(dim=-1)  # (B, H, T, T)
        y = weights @ v  # (B, H, T, D): for each position, the weighted mean of the values
        y = y.transpose(1, 2).reshape(B, T, C)  # (B, T, C): the results of all heads side by side
        return self.projection(y)  # (B, T, C)


class Block(nn.Module):
    """A Transformer block: attention, then a feed-forward network applied to each position."""

    def __init__(self, C, H):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(C), nn.LayerNorm(C)
        self.attention = SelfAttention(C, H)
        # GELU moves negative numbers close to 0. Without it, the two layers would equal one layer.
        self.feed_forward = nn.Sequential(nn.Linear(C, 4 * C), nn.GELU("tanh"), nn.Linear(4 * C, C))

    def forward(self, x):
        # Both layers add their results to x. These residual connections make deep models trainable.
        # Before each layer, layer norm gives each vector a mean of 0 and a variance of 1.
        x = x + self.attention(self.norm1(x))  # (B, T, C)
        return x + self.feed_forward(self.norm2(x))  # (B, T, C)


class GPT(nn.Module):
    """The whole model: for each position, it returns a score for each possible next token."""

    def __init__(self, vocab_size, block_size, n_layer, n_head, n_embd):
        super().__init__()
        self.block_size = block_size
        self.token_embedding = nn.Embedding(vocab_size, n_embd)  # a vector for each character
        self.position_embedding = nn.Embedding(block_size, n_embd)  # a vector for each position
        self.blocks = nn.Sequential(*[Block(n_embd, n_head) for _ in range(n_layer)])
        self.norm = nn.LayerNorm(n_embd)
        # Small random weights, as in GPT-2: all characters start with about the same probability.
        # The 2 * n_layer layers that add to x have smaller weights, so that x does not grow.
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                is_residual = name.endswith(("projection.weight", "feed_forward.2.weight"))
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * n_layer) if is_residual else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(weight)

    def forward(self, tokens):
        # Attention alone ignores the order of the tokens, so x contains a vector of the position.
        positions = torch.arange(tokens.shape[1], device=tokens.device)  # (T,)
        x = self.token_embedding(tokens) + self.position_embedding(positions)  # (B, T, C)
        x = self.blocks(x)  # (B, T, C)
        # The scores (logits) compare x with the vector of each possible next token.
        return self.norm(x) @ self.token_embedding.weight.T  # (B, T, V)


# 4. Training, evaluation and generation.
def train(model, tokens):
    """Train the model: each step changes all weights a little to lower the loss (mean of -ln p)."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(steps):
        inputs, targets = get_batch(tokens, batch_size, block_size)
        logits = model(inputs)  # (B, T, V)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())  # p is softmax(logits)
        optimizer.zero_grad()  # deletes the gradients of the previous step
        loss.backward()  # computes how the loss changes with each weight: the gradient
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # limits the gradient's length to 1
        # The learning rate sets the size of the changes. It first rises, then falls towards 0.
        optimizer.param_groups[0]["lr"] = learning_rate * min((step + 1) / warmup, 1 - step / steps)
        optimizer.step()  # AdamW changes each weight in the direction that lowers the loss
        if step % 100 == 0:
            print(f"step {step:4}: training loss {loss.item():.2f}", flush=True)


@torch.no_grad()
def evaluate(model, tokens):
    """Return the mean loss of a text after its first token, in blocks that do not overlap."""
    T, count = model.block_size, len(tokens) - 1
    padding = (0, -count % T)  # fills the last block; cross_entropy ignores targets of -100
    inputs = F.pad(tokens[:-1], padding).view(-1, T)  # (number of blocks, T)
    targets = F.pad(tokens[1:], padding, value=-100).view(-1, T)  # (number of blocks, T)
    total = 0.0
    for x, y in zip(inputs.split(32), targets.split(32), strict=True):  # (32, T) each
        total += F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum").item()
    return total / count


@torch.no_grad()
def generate(model, tokens, count, temperature=0.8):
    """Append `count` tokens to `tokens` (B, T). Low temperatures make likely tokens more likely."""
    for _ in range(count):
        logits = model(tokens[:, -model.block_size :])[:, -1]  # (B, V): at the last position
        if temperature == 0:
            token = logits.argmax(dim=-1, keepdim=True)  # (B, 1): the most likely token
        else:
            token = torch.multinomial((logits / temperature).softmax(dim=-1), 1)  # (B, 1)
        tokens = torch.cat([tokens, token], dim=1)  # (B, T + 1)
    return tokens


def main(args):
    torch.manual_seed(seed)
    text = read_text(args)
    alphabet = "".join(sorted(set(text)))
    V = len(alphabet)
    print(f"{len(text):,} characters, {V} different ones: {alphabet!r}")
    tokens = encode(text, alphabet).to(device)
    cut = int(0.9 * len(tokens))
    assert cut > block_size, f"the text is too short: {len(text)} characters"
    train_tokens, val_tokens = tokens[:cut], tokens[cut:]  # training never uses the last 10%
    inputs, targets = get_batch(train_tokens, batch_size, block_size)
    for t in range(min(8, block_size)):
        context, target = decode(inputs[0, : t + 1], alphabet), alphabet[targets[0, t]]
        print(f"  when the input is {context!r}, the target is {target!r}")
    print(f"all characters equally likely: loss ln {V} = {math.log(V):.2f}")
    print(f"bigram: validation loss {bigram_loss(train_tokens, val_tokens, V):.2f}")
    model = GPT(V, block_size, n_layer, n_head, n_embd).to(device)
    print(f"GPT before training: validation loss {evaluate(model, val_tokens):.2f}")
    train(model, train_tokens)
    print(f"GPT after {steps} steps: validation loss {evaluate(model, val_tokens):.2f}")
    print(decode(generate(model, tokens[None, :1], 500)[0], alphabet))


if __name__ == "__main__":
    main(sys.argv[1:])

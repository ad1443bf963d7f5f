"""The same Transformer with what was learned since GPT-2: complete in this file.

Beside gpt.py, its blocks have no biases and no gains, and no positions are added to the stream.
What is new says where it comes from; docs/log.md has what was measured. It is meant to be trained
by Muon (optim.py), but does not need to be.

Dimensions, named once: B batch, T time (positions), C channels (n_embd), H heads, D = C / H the
size of a head, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cache import Cache


@dataclass(frozen=True)
class ModernConfig:
    """The shape of a modern GPT."""

    n_layer: int = 6
    """Transformer blocks, one after the other."""
    n_head: int = 6
    """Attention heads in each block; twice their number must divide n_embd."""
    n_embd: int = 384
    """Channels: the width of the stream that runs through the blocks."""
    block_size: int = 256
    """Context: how many tokens the model can look back at."""
    vocab_size: int = 65
    """Different tokens; a training run takes this from its tokenizer."""
    dropout: float = 0.0
    """Chance that a value is zeroed while training, against overfitting."""

    def __post_init__(self) -> None:
        """Raise ValueError, naming the field, where no such model is possible."""
        for field in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size"):
            if (value := getattr(self, field)) < 1:
                raise ValueError(f"{field} is {value}: it must be at least 1")
        if self.n_embd % (pairs := 2 * self.n_head):  # a rotation turns a pair of channels
            raise ValueError(
                f"n_embd is {self.n_embd}, which twice n_head {self.n_head} does not divide: "
                f"try n_embd {math.ceil(self.n_embd / pairs) * pairs}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}: it must be at least 0 and less than 1")


def norm(x: Tensor) -> Tensor:
    """RMSNorm: every vector of the last dimension at length √n (Zhang & Sennrich 2019, eq. 4).

    Like layer norm without the mean, and without gains: the matrices that follow can have those.
    """
    return F.rms_norm(x, x.shape[-1:])


def rotations(positions: Tensor, D: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (…, T, 1, D/2) that turn position t by t times each pair's frequency.

    Of positions (T,), or of each row's own (B, T).
    """
    # A base of 1,000 instead of 10,000, as the contexts here are short: the slowest pair of a head
    # of 32 turns once in 4,000 positions.
    pairs = torch.linspace(0, 1, D // 2 + 1, device=positions.device)[:-1]  # (D/2,)
    angles = positions[..., None, None] * 1000.0**-pairs  # (…, T, 1, D/2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of channels (d, d + D/2) of x (B, T, H, D) by its angle.

    Rotary position embedding (Su et al. 2021, arXiv:2104.09864, eq. 34): the product of a turned
    query and a turned key depends on the distance between them, and on no absolute position.
    """
    a, b = x.chunk(2, dim=-1)
    return torch.cat([torch.addcmul(a * cos, b, -sin), torch.addcmul(b * cos, a, sin)], dim=-1)


class Attention(nn.Module):
    """Every position gathers from itself and the past, H times in parallel."""

    def __init__(self, config: ModernConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.qk = nn.Linear(config.n_embd, 2 * config.n_embd, bias=False)
        self.v = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.projection = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def heads(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of every head: x (B, T, C) to three of (B, H, T, D)."""
        B, T, C, H = *x.shape, self.n_head
        qk = self.qk(x).view(B, T, 2 * H, C // H)
        v = self.v(x).view(B, T, H, C // H)
        # Queries and keys of one length, so that no score can grow without bound: QK-norm (Henry
        # et al. 2020, arXiv:2010.04245; Dehghani et al. 2023, arXiv:2302.05442).
        q, k = rotate(norm(qk), cos, sin).to(v.dtype).chunk(2, dim=2)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: Cache | None = None) -> Tensor:
        q, k, v = self.heads(x, cos, sin)
        mask, dropout = None, self.dropout.p if self.training else 0.0
        if cache is not None:
            k_and_v = cache.append(self, torch.stack((k, v)))  # (2, B, H, S, D): earlier, too
            if (mask := cache.mask) is not None:
                k, v = k_and_v
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None
        )
        y = y.transpose(1, 2).flatten(2)  # (B, H, T, D) -> (B, T, C): the heads side by side
        out: Tensor = self.dropout(self.projection(y))
        return out


class SquaredReLU(torch.autograd.Function):
    """ReLU(x)² (So et al. 2021, "Primer", arXiv:2109.08668), and its gradient 2 ReLU(x).

    As relu() and square(), the way back would read and write memory more than twice as much.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = F.relu(x)
        ctx.save_for_backward(y)
        return y * y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        y: Tensor = ctx.saved_tensors[0]
        return 2 * y * gradient


class FeedForward(nn.Module):
    """Every position thinks for itself: out to 4C channels and back."""

    def __init__(self, config: ModernConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.down = nn.Linear(4 * config.n_embd, config.n_embd, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        hidden = SquaredReLU.apply(self.up(x))  # type: ignore[no-untyped-call]
        out: Tensor = self.dropout(self.down(hidden))
        return out


class Block(nn.Module):
    """Communication, then computation, each added to the stream that runs past them."""

    def __init__(self, config: ModernConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: Cache | None = None) -> Tensor:
        x = x + self.attention(norm(x), cos, sin, cache)
        x = x + self.feed_forward(norm(x))
        return x


class LookBack(nn.Module):
    """Every position starts with some of the two before it, each channel with as much as it learns.

    A causal depthwise convolution, as Primer has it after its projections; here once, on the
    embeddings. Which two or three characters came last is known before the first block.
    """

    def __init__(self, config: ModernConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, config.n_embd))

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        near, far = self.weight.to(x.dtype)  # (C,) each
        if cache is None:
            past = F.pad(x, (0, 0, 2, 0))[:, :-1]  # (B, T + 1, C): nothing comes before the text
            before, before_that = past[:, 1:], past[:, :-1]
        else:
            past = cache.append(self, x, before=2)  # (B, 2 + S, C)
            places = cache.positions[:, :, None].expand_as(x)
            before, before_that = past.gather(1, places + 1), past.gather(1, places)
        return torch.addcmul(torch.addcmul(x, near, before), far, before_that)


class Modern(nn.Module):
    """Tokens in, for each position the logits of the token that follows out."""

    def __init__(self, config: ModernConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.look_back = LookBack(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        # A head of its own, where GPT-2 reads the embedding backwards: it can begin at zero.
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.apply(self._initialise)

    def _initialise(self, module: nn.Module) -> None:
        """Whatever ends a path begins at zero, so that every path begins as if it were not there.

        Blocks then start as the identity (Zhang et al. 2019, "Fixup", arXiv:1901.09321), and the
        first guess gives every token the same chance.
        """
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.5 / math.sqrt(module.in_features))
        if isinstance(module, Block):  # apply() visits children first
            nn.init.zeros_(module.attention.projection.weight)
            nn.init.zeros_(module.feed_forward.down.weight)
        if isinstance(module, Modern):
            nn.init.zeros_(module.head.weight)

    lookup_tables = ("token_embedding.weight",)
    """Parameters of which a token reads one row and which no matrix product uses."""

    def matrices(self) -> dict[str, int]:
        """The weight matrices of the blocks, each with how many matrices it stacks as rows."""
        stacked = {"attention.qk.weight": 2}
        return {
            f"blocks.{i}.{name}": stacked.get(name, 1)
            for i, block in enumerate(self.blocks)
            for name, p in block.named_parameters()
            if p.dim() == 2
        }

    def embed(self, tokens: Tensor, cache: Cache | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The stream at its start (B, T, C), and the rotations of its positions (…, T, 1, D/2)."""
        T, D = tokens.shape[1], self.config.n_embd // self.config.n_head
        if self.config.block_size < T:
            raise ValueError(f"{T} tokens are more than block_size {self.config.block_size}")
        table, kind = self.token_embedding.weight, tokens.device.type
        if torch.is_autocast_enabled(kind):  # a stream of half the bytes, not the products alone
            table = table.to(torch.get_autocast_dtype(kind))
        positions = torch.arange(T, device=tokens.device)
        if cache is not None:
            positions = cache.set_positions(T, table.dtype)  # (B, T)
        x = norm(self.look_back(F.embedding(tokens, table), cache))
        cos, sin = rotations(positions, D)
        return x, cos.to(x.dtype), sin.to(x.dtype)

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """tokens (B, T), T at most block_size, to logits (B, T, V).

        With a cache, they go on where the tokens in it end, and the logits are those of each row's
        last token (B, 1, V).
        """
        x, cos, sin = self.embed(tokens, cache)
        for block in self.blocks:
            x = block(x, cos, sin, cache)
        if cache is not None:
            x = cache.select_last(x)
        return self.unembed(x)

    def unembed(self, x: Tensor) -> Tensor:
        """The stream at its end (B, T, C) as logits (B, T, V)."""
        logits: Tensor = self.head(norm(x)).float()
        # Between -15 and 15, nearly linear in the middle (Gemma 2, 2024, arXiv:2408.00118): no
        # confidence is so great that one surprise costs hundreds of nats.
        return 15 * torch.tanh(logits / 15)

    @torch.no_grad()
    def attention_weights(self, tokens: Tensor) -> Tensor:
        """Where every head of every block looks: tokens (B, T) to (n_layer, B, H, T, T)."""
        x, cos, sin = self.embed(tokens)
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        seen = []
        for block in self.blocks:
            assert isinstance(block, Block)
            q, k, _ = block.attention.heads(norm(x), cos, sin)
            scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, H, T, T)
            seen.append(scores.masked_fill(future, -math.inf).softmax(dim=-1))
            x = block(x, cos, sin)
        return torch.stack(seen)

"""GPT, as GPT-2 has it: a decoder-only Transformer, complete in this file.

Vaswani et al. 2017, "Attention Is All You Need" (https://arxiv.org/abs/1706.03762), without the
encoder; layer norm moved in front of each sub-layer, GELU and the initialisation as in Radford et
al. 2019, "Language Models are Unsupervised Multitask Learners".

Dimensions, named once: B batch, T time (positions), C channels (n_embd), H heads, D = C / H the
size of a head, V vocabulary.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cache import Cache


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT."""

    n_layer: int = 6
    """Transformer blocks, one after the other."""
    n_head: int = 6
    """Attention heads in each block; must divide n_embd."""
    n_embd: int = 384
    """Channels: the width of the stream that runs through the blocks."""
    block_size: int = 256
    """Context: how many tokens the model can look back at."""
    vocab_size: int = 65
    """Different tokens; a training run takes this from its tokenizer."""
    dropout: float = 0.0
    """Chance that a value is zeroed while training, against overfitting."""
    bias: bool = True
    """Biases in linear layers and norms, as GPT-2 has them; without, a little faster."""

    def __post_init__(self) -> None:
        """Raise ValueError, naming the field, where no such model is possible."""
        for field in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size"):
            if (value := getattr(self, field)) < 1:
                raise ValueError(f"{field} is {value}: it must be at least 1")
        if self.n_embd % self.n_head:
            raise ValueError(
                f"n_embd is {self.n_embd}, which n_head {self.n_head} does not divide: "
                f"try n_embd {math.ceil(self.n_embd / self.n_head) * self.n_head}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}: it must be at least 0 and less than 1")


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Attention written out, to read and to look at: softmax(q kᵀ / √D + mask) v.

    Vaswani et al. 2017, equation 1. Takes q, k, v of shape (..., T, D); gives the values
    (..., T, D) and the weights (..., T, T), in which row t says where position t looks.
    """
    T, D = q.shape[-2:]
    scores = q @ k.transpose(-2, -1) / math.sqrt(D)  # (..., T, T)
    future = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(diagonal=1)
    weights = scores.masked_fill(future, -math.inf).softmax(dim=-1)  # the past sums to 1
    return weights @ v, weights


class CausalSelfAttention(nn.Module):
    """Every position gathers from itself and the past, H times in parallel."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        C, bias = config.n_embd, config.bias
        self.qkv = nn.Linear(C, 3 * C, bias)  # all heads in one product
        self.projection = nn.Linear(C, C, bias)
        self.dropout = nn.Dropout(config.dropout)

    def heads(self, x: Tensor) -> Tensor:
        """Queries, keys and values of every head: x (B, T, C) to (3, B, H, T, D)."""
        B, T, C = x.shape
        qkv: Tensor = self.qkv(x).view(B, T, 3, self.n_head, C // self.n_head)
        return qkv.permute(2, 0, 3, 1, 4)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        q, k, v = qkv = self.heads(x)
        mask, dropout = None, self.dropout.p if self.training else 0.0
        if cache is not None:
            k_and_v = cache.keep(self, qkv[1:])  # (2, B, H, S, D): of the tokens before, too
            if (mask := cache.mask) is not None:
                k, v = k_and_v
        # The same as causal_attention above, in one fused kernel that never stores the weights.
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None
        )
        y = y.transpose(1, 2).flatten(2)  # (B, H, T, D) -> (B, T, C): the heads side by side
        out: Tensor = self.dropout(self.projection(y))
        return out


class FeedForward(nn.Sequential):
    """Every position thinks for itself: out to 4C channels and back."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(
            nn.Linear(config.n_embd, 4 * config.n_embd, config.bias),
            nn.GELU(approximate="tanh"),  # the approximation that GPT-2 was trained with
            nn.Linear(4 * config.n_embd, config.n_embd, config.bias),
            nn.Dropout(config.dropout),
        )


class Block(nn.Module):
    """Communication, then computation, each added to the stream that runs past them."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attention = CausalSelfAttention(config)
        self.norm2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        x = x + self.attention(self.norm1(x), cache)
        x = x + self.feed_forward(self.norm2(x))
        return x


class GPT(nn.Module):
    """Tokens in, for each position the logits of the token that follows out."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.position_embedding = nn.Embedding(config.block_size, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.apply(self._initialise)

    def _initialise(self, module: nn.Module) -> None:
        """Weights from N(0, 0.02²), biases zero, as GPT-2 has it.

        What a block adds to the stream is scaled by 1/√(2·n_layer), so that the stream's variance
        after all 2·n_layer additions does not depend on the depth (Radford et al. 2019, 2.3).
        """
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, Block):  # apply() visits children first: they are initialised by now
            for last in (module.attention.projection, module.feed_forward[2]):
                assert isinstance(last, nn.Linear)
                nn.init.normal_(last.weight, std=0.02 / math.sqrt(2 * self.config.n_layer))

    lookup_tables = ("position_embedding.weight",)
    """Parameters of which a token reads one row and which no matrix product uses."""

    def matrices(self) -> dict[str, int]:
        """The weight matrices of the blocks, each with how many matrices it stacks as rows."""
        stacked = {"attention.qkv.weight": 3}
        return {
            f"blocks.{i}.{name}": stacked.get(name, 1)
            for i, block in enumerate(self.blocks)
            for name, p in block.named_parameters()
            if p.dim() == 2
        }

    def embed(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """What each token is plus where it stands: (B, T) to (B, T, C)."""
        T = tokens.shape[1]
        if self.config.block_size < T:
            raise ValueError(f"{T} tokens are more than block_size {self.config.block_size}")
        positions = torch.arange(T, device=tokens.device)
        if cache is not None:
            positions = cache.place(T, self.token_embedding.weight.dtype)  # (B, T)
        x: Tensor = self.token_embedding(tokens) + self.position_embedding(positions)
        kind = x.device.type
        if torch.is_autocast_enabled(kind):  # a stream of half the bytes, not the products alone
            x = x.to(torch.get_autocast_dtype(kind))
        out: Tensor = self.dropout(x)
        return out

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """tokens (B, T), T at most block_size, to logits (B, T, V).

        With a cache, they go on where the tokens in it end, and the logits are those of each row's
        last token (B, 1, V).
        """
        x = self.embed(tokens, cache)  # (B, T, C)
        for block in self.blocks:
            x = block(x, cache)
        if cache is not None:
            x = cache.last(x)
        return self.unembed(x)

    def unembed(self, x: Tensor) -> Tensor:
        """The stream at its end (B, T, C) as logits (B, T, V)."""
        # The head is the token embedding again (Press & Wolf 2017, arXiv:1608.05859).
        return F.linear(self.norm(x), self.token_embedding.weight)

    @torch.no_grad()
    def attention_weights(self, tokens: Tensor) -> Tensor:
        """Where every head of every block looks: tokens (B, T) to (n_layer, B, H, T, T)."""
        x, seen = self.embed(tokens), []
        for block in self.blocks:
            assert isinstance(block, Block)
            q, k, v = block.attention.heads(block.norm1(x))
            seen.append(causal_attention(q, k, v)[1])
            x = block(x)
        return torch.stack(seen)

"""GPT with the architecture of GPT-2: a decoder-only Transformer, complete in this file.

This is the decoder of Vaswani et al. 2017, "Attention Is All You Need" (arXiv:1706.03762). As in
Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", there is no encoder, the
activation is GELU, and a layer norm comes before each sub-layer.

Dimensions: B batch, T positions, C channels (n_embd), H heads, D = C / H channels of a head,
S slots of the cache, V vocabulary.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cache import Cache


@dataclass(frozen=True)
class GPTConfig:
    """The configuration of a GPT."""

    n_layer: int = 6
    """Number of Transformer blocks."""
    n_head: int = 6
    """Attention heads in each block; must divide n_embd."""
    n_embd: int = 384
    """Channels: the width of the residual stream."""
    block_size: int = 256
    """Context window: the largest number of tokens that the model sees."""
    vocab_size: int = 65
    """Number of different tokens; a training run takes it from its tokenizer."""
    dropout: float = 0.0
    """Probability that a value is set to zero during training, which reduces overfitting."""
    bias: bool = True
    """Use biases in linear layers and norms, as in GPT-2. A model without them is faster."""

    def __post_init__(self) -> None:
        """Raise ValueError if a field has an invalid value; the message names the field."""
        for field in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size"):
            if not 1 <= (value := getattr(self, field)) < 2**31:
                raise ValueError(f"{field} is {value}: it must be at least 1 and less than 2**31")
        if self.n_embd % self.n_head:
            problem = f"n_embd is {self.n_embd}: it must be a multiple of n_head {self.n_head}"
            nearest = math.ceil(self.n_embd / self.n_head) * self.n_head
            raise ValueError(f"{problem}; try n_embd {nearest}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}: it must be at least 0 and less than 1")


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Compute attention: softmax(q kᵀ / √D + mask) v (Vaswani et al. 2017, equation 1).

    q, k and v have the shape (..., T, D). Returns the output (..., T, D) and the attention weights
    (..., T, T): row t holds the weights of position t over positions 0 to t.
    """
    T, D = q.shape[-2:]
    scores = q @ k.transpose(-2, -1) / math.sqrt(D)  # (..., T, T)
    future = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(diagonal=1)
    weights = scores.masked_fill(future, -math.inf).softmax(dim=-1)  # rows sum to 1
    return weights @ v, weights


class CausalSelfAttention(nn.Module):
    """Each position attends to itself and all earlier positions, with H heads in parallel."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        C, bias = config.n_embd, config.bias
        self.qkv = nn.Linear(C, 3 * C, bias)  # queries, keys, values of all heads
        self.projection = nn.Linear(C, C, bias)
        self.dropout = nn.Dropout(config.dropout)

    def heads(self, x: Tensor) -> Tensor:
        """Map x (B, T, C) to the queries, keys and values (3, B, H, T, D) of all heads."""
        B, T, C = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.n_head, C // self.n_head)
        return qkv.permute(2, 0, 3, 1, 4)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        q, k, v = qkv = self.heads(x)  # (B, H, T, D) each
        mask = None
        if cache is not None:
            k, v, mask = cache.extend(self, qkv[1:])  # k, v: (B, H, S, D); prefill: (B, H, T, D)
        dropout = self.dropout.p if self.training else 0.0
        # One fused kernel computes causal_attention() without storing the attention weights.
        y = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=mask is None)
        y = y.transpose(1, 2).flatten(2)  # (B, H, T, D) -> (B, T, C): concatenate heads
        return self.dropout(self.projection(y))


class FeedForward(nn.Sequential):
    """Two linear layers with a GELU in between, applied to each position separately."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(
            nn.Linear(config.n_embd, 4 * config.n_embd, config.bias),
            nn.GELU(approximate="tanh"),  # the approximation that GPT-2 uses
            nn.Linear(4 * config.n_embd, config.n_embd, config.bias),
            nn.Dropout(config.dropout),
        )


class Block(nn.Module):
    """Attention, then feed-forward; each adds its output to the residual stream."""

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
    """The whole model. It maps tokens to the logits of the next token at each position."""

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
        """Set biases to 0; draw all weights from N(0, 0.02²). (GPT-2: N(0, 0.01²) for positions.)

        In every block, the weights of the last linear layers of attention and of feed-forward are
        scaled by 1/√(2·n_layer), so the residual stream does not grow with depth (GPT-2, sec. 2.3).
        """
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, Block):  # apply() visits a block after its layers: redraw weights
            for last in (module.attention.projection, module.feed_forward[2]):
                assert isinstance(last, nn.Linear)
                nn.init.normal_(last.weight, std=0.02 / math.sqrt(2 * self.config.n_layer))

    lookup_tables = ("position_embedding.weight",)  # only looked up, not used in matrix products

    def matrices(self) -> dict[str, int]:
        """Return, by name, how many matrices are stacked in each 2-D weight of the blocks."""
        named = self.blocks.named_parameters(prefix="blocks")
        names = [name for name, p in named if p.dim() == 2]
        return {name: 3 if name.endswith("attention.qkv.weight") else 1 for name in names}

    def embed(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """Map tokens (B, T) to the sum of their token and position embeddings (B, T, C)."""
        T = tokens.shape[1]
        if self.config.block_size < T:
            raise ValueError(f"{T} tokens are more than block_size {self.config.block_size}")
        positions = torch.arange(T, device=tokens.device)
        if cache is not None:
            positions = cache.set_positions(T, self.token_embedding.weight.dtype)  # (B, T)
        x: Tensor = self.token_embedding(tokens) + self.position_embedding(positions)
        kind = x.device.type
        if torch.is_autocast_enabled(kind):  # half precision for the residual stream
            x = x.to(torch.get_autocast_dtype(kind))
        return self.dropout(x)

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """Map tokens (B, T), with T at most block_size, to logits (B, T, V).

        With a cache, the tokens continue the cached tokens, and the result has only the logits
        after each row's last token: (B, 1, V).
        """
        x = self.embed(tokens, cache)  # (B, T, C)
        for block in self.blocks:
            x = block(x, cache)
        if cache is not None:
            x = cache.select_last(x)
        return self.unembed(x)

    def unembed(self, x: Tensor) -> Tensor:
        """Map the final residual stream (B, T, C) to logits (B, T, V)."""
        # The output layer shares the token embedding's weights (Press & Wolf, arXiv:1608.05859).
        return F.linear(self.norm(x), self.token_embedding.weight)

    @torch.no_grad()
    def attention_weights(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, T) to the attention weights (n_layer, B, H, T, T) of all heads."""
        x, weights = self.embed(tokens), []
        for block in self.blocks:
            assert isinstance(block, Block)
            q, k, v = block.attention.heads(block.norm1(x))
            weights.append(causal_attention(q, k, v)[1])
            x = block(x)
        return torch.stack(weights)

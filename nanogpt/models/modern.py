"""A GPT with improvements that are newer than GPT-2.

Unlike the model in gpt.py, this model has no biases, no gains in its norms, and no learned position
embedding. A docstring or comment cites the source of each new part; docs/log/presets.md has
measurements of several parts. The model is designed for Muon, but Adam can also train it.

Dimensions: B batch, T positions, C channels (n_embd), H heads, D = C / H channels of a head,
V vocabulary, S slots of the cache.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cache import Cache
from .gpt import causal_attention

SOFT_CAP = 15
"""Logits stay between -15 and 15 (Gemma 2, 2024, arXiv:2408.00118), so that the loss of a single
token never reaches hundreds of nats."""


@dataclass(frozen=True)
class ModernConfig:
    """The configuration of a modern GPT."""

    n_layer: int = 6
    """Number of Transformer blocks."""
    n_head: int = 6
    """Attention heads in each block; twice this number must divide n_embd."""
    n_embd: int = 384
    """Channels: the width of the residual stream."""
    block_size: int = 256
    """Context window: the largest number of tokens that the model sees."""
    vocab_size: int = 65
    """Number of different tokens; a training run takes it from its tokenizer."""
    dropout: float = 0.0
    """Probability that a value is set to zero during training, which reduces overfitting."""
    activation: Literal["relu2", "swiglu"] = "relu2"
    """Nonlinear function of the feed-forward layers; both kinds of layers have about 8 n_embd²
    parameters."""
    look_back: bool = True
    """Let each position see the embeddings of the two previous positions before the first block."""
    skips: bool = False
    """Add the outputs of the first half of the blocks to the inputs of the second half."""

    @property
    def n_hidden(self) -> int:
        """The number of values between the two linear layers of a feed-forward layer."""
        # SwiGLU has a third matrix, so it gets about two thirds of the channels.
        return 16 * math.ceil(self.n_embd / 6) if self.activation == "swiglu" else 4 * self.n_embd

    def __post_init__(self) -> None:
        """Raise ValueError if a field has an invalid value; the message names the field."""
        for field in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size"):
            if not 1 <= (value := getattr(self, field)) < 2**31:
                raise ValueError(f"{field} is {value}: it must be at least 1 and less than 2**31")
        divisor = 2 * self.n_head  # rotate() needs an even number of channels in each head
        if self.n_embd % divisor:
            nearest = math.ceil(self.n_embd / divisor) * divisor
            problem = f"n_embd is {self.n_embd}: it must be a multiple of twice n_head, {divisor}"
            raise ValueError(f"{problem}; try n_embd {nearest}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}: it must be at least 0 and less than 1")


def norm(x: Tensor, eps: float | None = None) -> Tensor:
    """Scale each vector (..., n) to length √n (RMSNorm without gains; Zhang & Sennrich 2019).

    Divides by √(mean(x²) + eps). The default eps is tiny: it only avoids a division by zero.
    """
    return F.rms_norm(x, x.shape[-1:], eps=eps)


def rotations(positions: Tensor, D: int, base: float = 1000.0) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines (..., T, 1, D/2) of the rotary angles of positions (..., T).

    Each pair of channels has a frequency; at position t, the angle of the pair is t times this
    frequency.
    """
    # The default base is 1,000 instead of the usual 10,000, because contexts are short here: with
    # D = 32, the slowest pair makes one turn in about 4,000 positions.
    pairs = torch.linspace(0, 1, D // 2 + 1, device=positions.device)[:-1]  # (D/2,)
    angles = positions[..., None, None] * base**-pairs  # (..., T, 1, D/2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair of channels (d, d + D/2) of x (B, T, H, D) by its angle.

    Rotary position embedding (Su et al. 2021, arXiv:2104.09864, eq. 34): the dot product of a
    rotated query and a rotated key depends on the distance between their positions, not on the
    positions themselves.
    """
    a, b = x.chunk(2, dim=-1)
    return torch.cat([torch.addcmul(a * cos, b, -sin), torch.addcmul(b * cos, a, sin)], dim=-1)


class Attention(nn.Module):
    """Each position attends to itself and all earlier positions, with H heads in parallel."""

    def __init__(self, config: ModernConfig) -> None:
        super().__init__()
        self.n_head, C = config.n_head, config.n_embd
        self.qk = nn.Linear(C, 2 * C, bias=False)
        self.v = nn.Linear(C, C, bias=False)
        self.projection = nn.Linear(C, C, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def heads(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map x (B, T, C) to the queries, keys and values of all heads, (B, H, T, D) each."""
        B, T, C, H = *x.shape, self.n_head
        qk = self.qk(x).view(B, T, 2 * H, C // H)
        v = self.v(x).view(B, T, H, C // H)
        # QK-norm: scores are bounded, because all queries and keys have the same length (Henry et
        # al. 2020, arXiv:2010.04245; Dehghani et al. 2023, arXiv:2302.05442).
        q, k = rotate(norm(qk), cos, sin).to(v.dtype).chunk(2, dim=2)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: Cache | None = None) -> Tensor:
        q, k, v = self.heads(x, cos, sin)  # (B, H, T, D) each
        mask = None
        if cache is not None:
            # k and v become (B, H, S, D); in a prefill, they stay (B, H, T, D).
            k, v, mask = cache.extend(self, torch.stack((k, v)))
        dropout = self.dropout.p if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=mask is None)
        y = y.transpose(1, 2).flatten(2)  # (B, H, T, D) -> (B, T, C): concatenate heads
        return self.dropout(self.projection(y))


class SquaredReLU(torch.autograd.Function):
    """ReLU(x)² (So et al. 2021, "Primer", arXiv:2109.08668), with its gradient 2 ReLU(x).

    This is faster than relu().square(), whose backward pass accesses twice as much memory.
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
    """Two linear layers with a nonlinear function in between, applied to each position separately.

    The function is ReLU(x)², or SwiGLU (Shazeer 2020, arXiv:2002.05202): the first linear layer
    has two halves a and b, and silu(a) · b goes to the second layer.
    """

    def __init__(self, config: ModernConfig) -> None:
        super().__init__()
        self.is_gated = config.activation == "swiglu"
        self.up = nn.Linear(config.n_embd, (1 + self.is_gated) * config.n_hidden, bias=False)
        self.down = nn.Linear(config.n_hidden, config.n_embd, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        if self.is_gated:
            a, b = x.chunk(2, dim=-1)
            hidden = F.silu(a) * b
        else:
            hidden = SquaredReLU.apply(x)  # type: ignore[no-untyped-call]
        return self.dropout(self.down(hidden))


class Block(nn.Module):
    """Attention, then feed-forward; each adds its output to the residual stream."""

    def __init__(self, config: ModernConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: Cache | None = None) -> Tensor:
        x = x + self.attention(norm(x), cos, sin, cache)
        x = x + self.feed_forward(norm(x))
        return x


class LookBack(nn.Module):
    """Adds the weighted vectors of the two previous positions to the vector of each position.

    Each channel has two learned weights, one for each previous position. This is a causal depthwise
    convolution, as in Primer, but applied only once, to the embeddings. So at each position, the
    first block already gets information about the token and the two tokens before it.
    """

    def __init__(self, config: ModernConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, config.n_embd))

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        near, far = self.weight.to(x.dtype)  # (C,) each: weights for one and two positions back
        if cache is None:
            past = F.pad(x, (0, 0, 2, 0))[:, :-1]  # (B, T + 1, C), zeros before the text
            before, before_that = past[:, 1:], past[:, :-1]
        else:
            past = cache.append(self, x, offset=2)  # (B, 2 + S, C)
            slots = cache.positions[:, :, None].expand_as(x)
            before, before_that = past.gather(1, slots + 1), past.gather(1, slots)
        return torch.addcmul(torch.addcmul(x, near, before), far, before_that)


class Modern(nn.Module):
    """The whole model. It maps tokens to the logits of the next token at each position."""

    def __init__(self, config: ModernConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.look_back = LookBack(config) if config.look_back else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        has_skips = config.skips and config.n_layer > 1
        self.skips = nn.Parameter(torch.ones(config.n_layer // 2)) if has_skips else None
        # In gpt.py, the output layer shares the weights of the embedding. Here, the output layer
        # has its own weights, which start at 0.
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.apply(self._initialise)

    def _initialise(self, module: nn.Module) -> None:
        """Draw random weights, but set the weights of some linear layers to 0.

        These are the output layer and, in every block, the last linear layers of attention and of
        feed-forward. So each block starts as the identity (Zhang et al. 2019, "Fixup",
        arXiv:1901.09321), and all tokens start with the same probability.
        """
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.5 / math.sqrt(module.in_features))
        if isinstance(module, Block):  # apply() visits a block after the layers in it
            nn.init.zeros_(module.attention.projection.weight)
            nn.init.zeros_(module.feed_forward.down.weight)
        if isinstance(module, Modern):
            nn.init.zeros_(module.head.weight)

    lookup_tables = ("token_embedding.weight",)
    """Names of the tables in which the model only looks up rows, without a matrix product."""

    def matrices(self) -> dict[str, int]:
        """Return, by name, how many matrices are stacked in each 2-D weight of the blocks."""
        names = [name for name, _ in self.named_parameters() if name.startswith("blocks.")]
        is_gated = self.config.activation == "swiglu"
        pairs = ("attention.qk.weight", *(["feed_forward.up.weight"] if is_gated else []))
        return {name: 2 if name.endswith(pairs) else 1 for name in names}

    def embed(self, tokens: Tensor, cache: Cache | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the embedded tokens (B, T, C), and rotary cosines and sines (..., T, 1, D/2)."""
        T, D = tokens.shape[1], self.config.n_embd // self.config.n_head
        if self.config.block_size < T:
            raise ValueError(f"{T} tokens are more than block_size {self.config.block_size}")
        table, kind = self.token_embedding.weight, tokens.device.type
        if torch.is_autocast_enabled(kind):  # half precision for the residual stream
            table = table.to(torch.get_autocast_dtype(kind))
        positions = torch.arange(T, device=tokens.device)
        if cache is not None:
            positions = cache.set_positions(T, table.dtype)  # (B, T)
        x = F.embedding(tokens, table)
        if self.look_back is not None:
            x = self.look_back(x, cache)
        x = norm(x)
        cos, sin = rotations(positions, D)
        return x, cos.to(x.dtype), sin.to(x.dtype)

    def add_skip(self, x: Tensor, stream: list[Tensor]) -> Tensor:
        """Return the input of the next block: x, and a weighted output of an earlier block.

        As in a U-Net (Ronneberger et al. 2015, arXiv:1505.04597), the last block gets the output of
        the first block, the second-last block that of the second, and so on. The first half of the
        blocks gets x only. This function appends x to `stream`, which is empty for the first block.
        """
        if self.skips is None:
            return x
        stream.append(x)
        partner = len(self.blocks) - len(stream)
        if partner >= len(stream) - 1:
            return x
        return torch.addcmul(x, self.skips[partner].to(x.dtype), stream[partner + 1])

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """Map tokens (B, T), with T at most block_size, to logits (B, T, V).

        With a cache, the tokens continue the cached tokens, and the result has only the logits
        after each row's last token: (B, 1, V).
        """
        x, cos, sin = self.embed(tokens, cache)  # x (B, T, C)
        stream: list[Tensor] = []
        for block in self.blocks:
            x = block(self.add_skip(x, stream), cos, sin, cache)
        if cache is not None:
            x = cache.select_last(x)
        return self.unembed(x)

    def unembed(self, x: Tensor) -> Tensor:
        """Map the final residual stream (B, T, C) to logits (B, T, V), in float32."""
        logits: Tensor = self.head(norm(x)).float()
        return SOFT_CAP * torch.tanh(logits / SOFT_CAP)

    @torch.no_grad()
    def attention_weights(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, T) to the attention weights (n_layer, B, H, T, T) of all heads."""
        (x, cos, sin), weights, stream = self.embed(tokens), [], list[Tensor]()
        for block in self.blocks:
            assert isinstance(block, Block)
            x = self.add_skip(x, stream)
            q, k, v = block.attention.heads(norm(x), cos, sin)
            weights.append(causal_attention(q, k, v)[1])
            x = block(x, cos, sin)
        return torch.stack(weights)

"""A modern model of nanogpt as a class for transformers. An export contains a copy of this file."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from ..models.modern import Modern, ModernConfig

FIELDS = ModernConfig.__dataclass_fields__


class NanoGPTConfig(PretrainedConfig):
    """The fields of ModernConfig, which modern.py explains."""

    model_type = "nanogpt"
    attribute_map = {  # noqa: RUF012  transformers reads this attribute of the class
        "hidden_size": "n_embd",
        "max_position_embeddings": "block_size",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }

    def __init__(self, **kwargs: Any) -> None:
        for name, field in FIELDS.items():
            setattr(self, name, kwargs.pop(name, field.default))
        super().__init__(**kwargs)


class NanoGPTForCausalLM(PreTrainedModel, GenerationMixin):
    """Predicts the next token; generate() computes each step anew, without a cache."""

    config_class = NanoGPTConfig
    base_model_prefix = "model"

    def __init__(self, config: NanoGPTConfig) -> None:
        super().__init__(config)
        self.model = Modern(ModernConfig(**{name: getattr(config, name) for name in FIELDS}))
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Do nothing: Modern has initialised its weights."""

    def get_input_embeddings(self) -> torch.nn.Module:
        embedding: torch.nn.Module = self.model.token_embedding
        return embedding

    def get_output_embeddings(self) -> torch.nn.Module:
        head: torch.nn.Module = self.model.head
        return head

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> dict[str, Any]:
        """Pass at most block_size tokens to the model: the last ones."""
        last = slice(-self.config.block_size, None)
        mask = None if attention_mask is None else attention_mask[:, last]
        return {"input_ids": input_ids[:, last], "attention_mask": mask}

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **_: Any,
    ) -> CausalLMOutput:
        """Return the logits (B, T, V) and, with labels (B, T), the mean loss of the next tokens.

        Raises NotImplementedError if attention_mask hides a token.
        """
        if attention_mask is not None and not attention_mask.all():
            raise NotImplementedError("use texts of the same length: no token can be hidden")
        logits = self.model(input_ids)
        loss = None
        if labels is not None:  # each label is compared with the logits of the position before it
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)

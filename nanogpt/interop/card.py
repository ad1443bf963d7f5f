"""The model card: the README.md of an export, with the data that the Hugging Face Hub reads."""

import json
import re
from contextlib import suppress
from pathlib import PurePath

from ..errors import UserError
from ..runs.checkpoint import Checkpoint
from ..runs.run import Description
from ..text.corpora import CORPORA
from ..text.download import is_url
from ..text.tokenizers import ByteTokenizer, CharTokenizer, Tokenizer
from ..version import VERSION

CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags:
- nanogpt
---

# {title}

A {kind} model, {origin}.

| | |
| --- | --- |
{rows}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

{comment}model = AutoModelForCausalLM.from_pretrained({path}{trust})
tokenizer = AutoTokenizer.from_pretrained({path}{trust})
prompt = tokenizer({prompt}, return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt)[0]))
```

{licence}
"""


def make_card(
    title: str, path: str, checkpoint: Checkpoint, description: Description, has_own_code: bool
) -> str:
    """Return the text of a model card; `path` is the path or name that opens the model."""
    model, tokenizer, best = checkpoint.model, checkpoint.tokenizer, checkpoint.best
    rows = {
        "parameters": f"{description.parameters:,}",
        "context": f"{model.config.block_size:,} tokens",
        "tokens": _describe_tokenizer(tokenizer),
    }
    if description.text_sha256:  # an imported run has no text
        rows["training steps"] = f"{checkpoint.step:,}"
    if best:
        loss = f"{best.val_loss:.4f} nats per token"
        bits = best.bits_per_byte
        rows["validation loss"] = loss if bits is None else f"{loss}, {bits:.4f} bits per byte"
    data, origin = description.config.data, f"imported by nanogpt {VERSION} from another model"
    if description.text_sha256:
        rows["SHA-256 of the text"] = description.text_sha256
        origin = f"trained with nanogpt {VERSION} on `{_name_text(data)}`"
    if start := description.config.start_from:
        origin += f", starting from the run `{start.name}`"
    if data in CORPORA and not start:
        licence = "The text is in the public domain."
    else:
        licence = "nanogpt does not know the licence of the texts."
    return CARD.format(
        title=title,
        kind=type(model).__name__,
        origin=origin,
        rows="\n".join(f"| {name} | {value} |" for name, value in rows.items()),
        comment="# The code of the model is in this folder: read it first.\n" * has_own_code,
        path=json.dumps(path),
        trust=", trust_remote_code=True" * has_own_code,
        prompt=json.dumps(_find_prompt(tokenizer)),
        licence=licence,
    )


def _name_text(data: str) -> str:
    """Return the name of a text, without passwords and without directories of this computer."""
    if is_url(data):
        return re.sub("//[^/]*@", "//", re.split("[?#]", data)[0])
    is_public = data in CORPORA or data.startswith("hf:")
    return data if is_public else PurePath(data).name or "a text"


def _describe_tokenizer(tokenizer: Tokenizer) -> str:
    size = f"{tokenizer.vocab_size:,}"
    if isinstance(tokenizer, CharTokenizer):
        return f"{size} characters"
    return "256 bytes" if isinstance(tokenizer, ByteTokenizer) else f"{size} (byte-pair encoding)"


def _find_prompt(tokenizer: Tokenizer) -> str:
    """Return a prompt that the tokenizer knows."""
    for prompt in ("ROMEO:", "The", "\n"):
        with suppress(UserError):
            if tokenizer.decode(tokenizer.encode(prompt)) == prompt:
                return prompt
    return tokenizer.decode([0])

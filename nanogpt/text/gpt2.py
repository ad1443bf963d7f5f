"""GPT-2's tokenizer, which is downloaded once (Radford et al. 2019, section 2.2)."""

import json

from .bpe import HubTokenizer, make_bpe
from .download import download_file

ADDRESS = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main"
"""OpenAI's address of the two files."""
MERGES, VOCABULARY = "vocab.bpe", "encoder.json"
SHA256 = {
    MERGES: "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    VOCABULARY: "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
END_OF_TEXT = "<|endoftext|>"
"""A special token, which stood between the documents that GPT-2 learned from."""
ALTERNATIVE = "use another tokenizer, such as bpe:8192"


def load_gpt2_tokenizer() -> HubTokenizer:
    """Return GPT-2's tokenizer, with 50,257 tokens. Raises UserError if the download fails."""
    merges, vocabulary = (
        download_file(f"{ADDRESS}/{name}", SHA256[name], f"gpt2-{name}", ALTERNATIVE)
        for name in (MERGES, VOCABULARY)
    )
    lines = merges.read_text("utf-8").splitlines()[1:]  # line 1 is the version
    first, second = zip(*(line.split(" ") for line in lines), strict=True)
    vocab = json.loads(vocabulary.read_bytes())
    return make_bpe(vocab, zip(first, second, strict=True), [END_OF_TEXT])

"""Texts in many languages, and a helper that decodes token ids one at a time."""

from hypothesis import strategies as st

from nanogpt.text.tokenizers import Tokenizer

LANGUAGES = [
    "To be, or not to be: that's the question.\n\n  We'll see 1,234 things.",
    "生存还是毁灭,这是一个问题。\r\n",
    "होना या न होना, यही सवाल है।",
    "أكون أو لا أكون، ذلك هو السؤال",
    "\ufeff👩‍👩‍👧 and 🏴‍☠️ \x00\t e\u0301 no newline at the end",
]
# Texts made of these words repeat words and spaces, so byte-pair encoding finds pairs to merge.
words = st.lists(
    st.sampled_from(
        ["the", " the", " then", "'s", "\n", " ", "  ", "\t", "\r\n", "é", "问题", "1", "22"]
    )
    | st.text(max_size=4)
)
texts = words.map("".join)


def stream_decode(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Decode ids with a stream, one id at a time."""
    stream = tokenizer.decode_stream()
    return "".join([stream.push(i) for i in ids]) + stream.end()

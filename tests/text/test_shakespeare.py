"""The corpora built from the plays, and the corrections that Tiny Shakespeare needs."""

import hashlib

from nanogpt.text import shakespeare
from nanogpt.text.corpora import CORPORA


def test_every_corpus_is_built_from_the_plays() -> None:
    installed = shakespeare.read_installed_plays()
    assert len(installed) == 38
    for name, corpus in CORPORA.items():
        text = corpus.build(installed)
        assert hashlib.sha256(text.encode()).hexdigest() == corpus.sha256, name


def test_every_correction_is_needed() -> None:
    installed = shakespeare.read_installed_plays()
    for name, corrections in shakespeare.load_errata().items():
        source = shakespeare.normalize_markdown(installed[name])
        for old, new in corrections:
            assert old in source, old
            source = source.replace(old, new)


def test_extract_speeches_of_a_small_play() -> None:
    """Tiny Shakespeare lacks stage directions and some lines; extract_speeches() drops them too."""
    markdown = r"""
# ACT I

_Enter Ghost_

**HAMLET**
Where wilt thou lead me? \[Aside\] Speak;
dropped with the direction
I'll go no further.

**GHOST & OTHERS**
Mark me.

**HAMLET**
_[Aside]_
Dropped up to the next name.

_Exeunt_
"""
    assert shakespeare.extract_speeches(shakespeare.normalize_markdown(markdown)) == (
        "HAMLET:\nWhere wilt thou lead me?  \nI'll go no further.\n\nGHOST:\nMark me.\n\nHAMLET:\n"
    )

"""The plays: what is made of them, and that each correction is needed for it."""

import hashlib

from nanogpt.text import shakespeare as plays
from nanogpt.text.corpora import CORPORA


def test_every_corpus_is_made_of_the_plays() -> None:
    installed = plays.installed_plays()
    assert len(installed) == 38
    for name, corpus in CORPORA.items():
        text = corpus.rebuild(installed)
        assert hashlib.sha256(text.encode()).hexdigest() == corpus.sha256, name


def test_every_correction_is_needed() -> None:
    installed = plays.installed_plays()
    for name, corrections in plays.errata().items():
        source = plays.source_of(installed[name])
        for found, put in corrections:
            assert found in source, found
            source = source.replace(found, put)


def test_a_play_by_hand() -> None:
    """A name with what is spoken below it; directions are lost, and what the old program lost."""
    markdown = r"""
# ACT I

_Enter Ghost_

**HAMLET**
Where wilt thou lead me? \[Aside\] Speak;
lost with the direction
I'll go no further.

**GHOST & OTHERS**
Mark me.

**HAMLET**
_[Aside]_
Lost to the next name.

_Exeunt_
"""
    assert plays.speeches(plays.source_of(markdown)) == (
        "HAMLET:\nWhere wilt thou lead me?  \nI'll go no further.\n\nGHOST:\nMark me.\n\nHAMLET:\n"
    )

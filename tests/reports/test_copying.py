"""The matches of a text in a source equal those of a search that tries every substring."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from nanogpt.reports.copying import Source, remove_inner, sort_suffixes

TEXTS = st.text(alphabet="ab\nä😀", max_size=40)


@given(TEXTS)
def test_suffixes_are_sorted(text: str) -> None:
    expected = sorted(range(len(text)), key=lambda start: text[start:])
    assert sort_suffixes(text).tolist() == expected


@given(TEXTS, TEXTS)
def test_the_longest_matches_are_found(text: str, source: str) -> None:
    searched = Source(source)
    lengths = []
    for start in range(len(text)):
        length = 0
        while start + length < len(text) and text[start : start + length + 1] in source:
            length += 1
        lengths.append(length)
        match = searched.longest_match(text, start)
        assert (match.start, match.length) == (start, length)
        assert source[match.source :].startswith(text[start : start + length])
    assert [match.length for match in searched.find_matches(text)] == lengths


@given(TEXTS, TEXTS)
def test_shorter_matches_inside_longer_ones_are_left_out(text: str, source: str) -> None:
    matches = remove_inner(Source(source).find_matches(text))
    covered = [(match.start, match.start + match.length) for match in matches]
    assert all(one[0] < other[0] and one[1] < other[1] for one, other in pairwise(covered))
    places = {place for start, end in covered for place in range(start, end)}
    assert places == {place for place, letter in enumerate(text) if letter in source}

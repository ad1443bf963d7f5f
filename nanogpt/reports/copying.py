"""Finds the longest matches of a text in another text, to show what a model copied."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Match:
    """A part of a text that also occurs in another text, the source."""

    start: int
    """Index of its first character in the text."""
    length: int
    source: int
    """Index of its first character in the source."""


class Source:
    """A text that is searched for matches.

    A suffix array (Manber & Myers 1993) lists the starts of all suffixes in alphabetical order, so
    a binary search finds the suffix that has the longest common prefix with a given text. The array
    needs 8 bytes of memory for each character.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._order = sort_suffixes(text)

    def longest_match(self, text: str, start: int) -> Match:
        """Return the longest part of `text` that begins at `start` and occurs in the source."""
        low, high = 0, len(self._order)
        while low < high:  # find the first suffix that does not sort before text[start:]
            middle = (low + high) // 2
            place = int(self._order[middle])
            common = count_common(self.text, place, text, start)
            ends = place + common, start + common
            # At the end of a text, the slice is "", which sorts before every character.
            if self.text[ends[0] : ends[0] + 1] < text[ends[1] : ends[1] + 1]:
                low = middle + 1
            else:
                high = middle
        best = Match(start, 0, 0)
        for neighbour in (low - 1, low):
            if 0 <= neighbour < len(self._order):
                place = int(self._order[neighbour])
                common = count_common(self.text, place, text, start)
                if common > best.length:
                    best = Match(start, common, place)
        return best

    def find_matches(self, text: str) -> list[Match]:
        """Return the longest match at each position of a text."""
        return [self.longest_match(text, start) for start in range(len(text))]


def remove_inner(matches: Iterable[Match]) -> list[Match]:
    """Return the matches that are not inside an earlier one; `matches` must be sorted by start."""
    kept: list[Match] = []
    end = 0
    for match in matches:
        if match.start + match.length > end:
            kept.append(match)
            end = match.start + match.length
    return kept


def count_common(one: str, i: int, other: str, j: int) -> int:
    """Return the length of the longest common prefix of one[i:] and other[j:]."""
    longest = min(len(one) - i, len(other) - j)
    length = 0
    while length < longest and one[i + length] == other[j + length]:
        length += 1
    return length


def sort_suffixes(text: str) -> NDArray[np.int64]:
    """Return the starts of all suffixes in alphabetical order. The method is prefix doubling."""
    N = len(text)
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32).astype(np.int64)
    rank = np.unique(points, return_inverse=True)[1].astype(np.int64) + 1
    k = 1
    order = np.argsort(rank, kind="stable")
    while N:
        second = np.zeros(N, dtype=np.int64)
        second[: N - k] = rank[k:] if k < N else 0
        code = rank * (N + 1) + second
        order = np.argsort(code, kind="stable")
        changes = np.empty(N, dtype=np.int64)
        changes[0] = 1
        changes[1:] = code[order[1:]] != code[order[:-1]]
        rank[order] = changes.cumsum()
        if rank[order[-1]] == N or k >= N:
            break
        k *= 2
    return order

"""Words of a text with their places, and a vocabulary of the most frequent ones."""

import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

PADDING, UNKNOWN = 0, 1
# Words with apostrophes inside (don't), clitics written apart ('s), runs of dots, any other single mark.
_TOKEN = re.compile(r"\w+(?:['’]\w+)*|['’](?:s|t|re|ve|ll|d|m)\b|\.{2,}|[^\w\s]", re.IGNORECASE)
# Markup that is a line break; the same number of characters keeps all offsets.
_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)


class Words(NamedTuple):
    """The words of a text, in order."""

    words: list[str]
    """Lower-cased."""
    starts: list[int]
    """Where each begins in the text, in characters."""


def plain(text: str) -> str:
    """The text with HTML line breaks as line breaks; every other character keeps its place.

    Examples:
        >>> plain("one<br />two")
        'one\\n     two'
    """
    return _BREAK.sub(lambda match: "\n".ljust(len(match[0])), text)


def split_words(text: str) -> Words:
    """Cuts a text into words and punctuation marks.

    Examples:
        >>> split_words("It's GOOD...").words
        ["it's", 'good', '...']
    """
    # Interned: a word that occurs a million times is kept once.
    found = [(sys.intern(match[0].lower()), match.start()) for match in _TOKEN.finditer(text)]
    return Words([word for word, _ in found], [start for _, start in found])


class Vocabulary:
    """Words with numbers from 2 on; 0 is padding and 1 any other word.

    Args:
        words: the known words; the first gets number 2.

    Examples:
        >>> vocabulary = Vocabulary.of([["a", "b", "a"]], size=3)
        >>> vocabulary.words, vocabulary.encode(["a", "b"]).tolist()
        (('a',), [2, 1])
    """

    def __init__(self, words: Sequence[str]):
        self.words = tuple(words)
        self._ids = {word: number for number, word in enumerate(self.words, UNKNOWN + 1)}

    @classmethod
    def of(cls, texts: Iterable[Sequence[str]], size: int) -> "Vocabulary":
        """The most frequent words of the texts; among equally frequent ones the alphabet decides.

        Args:
            texts: the words of every text.
            size: how many numbers there may be, padding and unknown included.

        Returns:
            A vocabulary of at most `size` numbers.
        """
        counts = Counter(word for words in texts for word in words)
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        return cls(ranked[: size - 2])

    def __len__(self) -> int:
        return len(self.words) + 2

    def encode(self, words: Sequence[str]) -> np.ndarray:
        """The numbers of words, int32."""
        return np.fromiter((self._ids.get(word, UNKNOWN) for word in words), np.int32, len(words))

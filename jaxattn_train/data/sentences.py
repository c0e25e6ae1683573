"""Paragraphs and sentences of a text: where they begin, and how many words each has."""

import itertools
import re
from bisect import bisect_left
from collections.abc import Sequence

SHORT = 8
"""Words of a sentence, on average, below which a text has too many of them; see `join_short`."""
_PARAGRAPH = re.compile(r"\n[ \t\r\f\v]*\n\s*")
# A run of end marks, then quotes or brackets that close, then white space or the end of the text.
_END = re.compile(r"""([.!?…]+)(["'”’»)\]]*)(?=\s|$)""")
# Two sentences without a space between: "great.The".
_GLUED = re.compile(r"(?<=[a-z]{2})[.!?](?=[A-Z][a-z])")
_OPENING = "\"'“‘«([¿¡"
_QUOTES = frozenset("\"'”’»")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Never the end of a sentence: a name follows.
_TITLES = _words("mr mrs ms mx dr prof rev hon st mt gen col capt lt sgt cpl maj adm gov sen rep pres vs cf")
# Not the end if a digit follows.
_NUMBERED = _words("no nos vol fig figs p pp ch ed")
# The end only if the next word begins with a capital.
_ABBREVIATIONS = _words("etc inc ltd co corp jr sr esq approx dept est min max vol ca al")
# After "U.S." or "a.m." only these begin a sentence; other capitals are names.
_STARTERS = _words(
    "a an and as at but for he his i if in it its my no on she so that the their there they this to we what "
    "when who you"
)
_WORD_BEFORE = re.compile(r"[\w.’'-]*$")


def paragraphs(text: str) -> list[tuple[int, int]]:
    """Start and end of each paragraph: they are set apart by blank lines.

    Examples:
        >>> paragraphs("One.\\n\\nTwo.")
        [(0, 4), (6, 10)]
    """
    spans, start = [], 0
    for gap in _PARAGRAPH.finditer(text):
        spans.append((start, gap.start()))
        start = gap.end()
    spans.append((start, len(text)))
    return [(a, b) for a, b in spans if text[a:b].strip()]


def sentence_starts(text: str) -> list[int]:
    """Where the sentences of one paragraph begin.

    "." ends a sentence but after titles, initials, abbreviations in front of a small letter, and the number of a
    list item; "…" and "..." only in front of a capital; "!" and "?" always, unless they end a quotation that
    goes on with a small letter (as in "Go!" he said).

    Args:
        text: a paragraph.

    Returns:
        Places in characters, the first 0.

    Examples:
        >>> text = 'Dr. No is fun. "Really?" he asked... Yes!'
        >>> [text[start:][:6] for start in sentence_starts(text)]
        ['Dr. No', '"Reall', 'Yes!']
    """
    ends: list[tuple[int, re.Match[str] | None]] = [(m.end(), m) for m in _END.finditer(text)]
    ends += [(m.end(), None) for m in _GLUED.finditer(text)]
    starts = [0]
    for end, match in sorted(ends, key=lambda pair: pair[0]):
        after = len(text) - len(text[end:].lstrip())
        if after < len(text) and (match is None or _ends_sentence(text, match, starts[-1], after)):
            starts.append(after)
    return starts


def sentence_lengths(text: str, word_starts: Sequence[int]) -> list[list[int]]:
    """The number of words of every sentence of every paragraph; what has no words is left out.

    Args:
        text: as its words were found in.
        word_starts: where the words begin, ascending; those of a cut text are fewer.

    Returns:
        Paragraphs of sentences; the numbers add up to the number of words.

    Examples:
        >>> sentence_lengths("Go on. Stop.\\n\\nNo.", [0, 3, 7, 14])
        [[2, 1], [1]]
    """
    found = []
    for start, end in paragraphs(text):
        places = [start + place for place in sentence_starts(text[start:end])] + [end]
        edges = [bisect_left(word_starts, place) for place in places]
        lengths = [b - a for a, b in itertools.pairwise(edges) if b > a]
        if lengths:
            found.append(lengths)
    return found


def join_short(lengths: list[list[int]]) -> list[list[int]]:
    """Joins neighbouring sentences of a text with many tiny ones, such as a list of names, until each has 8 words.

    Such texts are rare, but all trees that share a shape are padded to the largest.

    Args:
        lengths: from `sentence_lengths`.

    Returns:
        The same if there are at most 8 sentences or one for every 8 words; else joined ones, and paragraphs below
        8 words with their neighbours.

    Examples:
        >>> join_short([[1] * 9]), join_short([[2, 7], [20, 1, 1, 8, 1, 1, 9, 2], [3]])
        ([[9]], [[9], [20, 10, 16]])
    """
    words, count = sum(map(sum, lengths)), sum(map(len, lengths))
    if count <= max(SHORT, words // SHORT):
        return lengths
    found: list[list[int]] = []
    for paragraph in map(_joined, lengths):
        if found and sum(found[-1]) < SHORT:
            paragraph[0] += found.pop()[0]
        found.append(paragraph)
    if len(found) > 1 and sum(found[-1]) < SHORT:
        found[-2][-1] += found.pop()[0]
    return found


def _joined(lengths: Sequence[int]) -> list[int]:
    found: list[int] = []
    for length in lengths:
        if found and found[-1] < SHORT:
            length += found.pop()
        found.append(length)
    if len(found) > 1 and found[-1] < SHORT:
        found[-2:] = [sum(found[-2:])]
    return found


def _ends_sentence(text: str, match: re.Match[str], start: int, after: int) -> bool:
    marks, closing = match.groups()
    following = text[after:].lstrip(_OPENING)[:20]
    small = following[:1].islower()
    if "!" in marks or "?" in marks:
        return not (small and _QUOTES & set(closing))
    if len(marks) > 1 or marks == "…":
        return not small
    if closing:
        return not (small and _QUOTES & set(closing))
    before = text[start : match.start()]
    found = _WORD_BEFORE.search(before)
    word = (found[0] if found else "").strip(".'’")
    first = before.strip(_OPENING) == word
    if word.lower() in _TITLES or (first and word.isdigit()):
        return False
    if word.lower() in _NUMBERED and following[:1].isdigit():
        return False
    if "." in word or (len(word) == 1 and word.isupper() and word != "I"):
        return re.split(r"\W", following)[0].lower() in _STARTERS and not small and len(word) > 1
    return not (small and word.lower() in _ABBREVIATIONS)

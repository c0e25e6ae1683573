import itertools

import numpy as np
import pytest

from jaxattn_train.data.sentences import join_short, paragraphs, sentence_lengths, sentence_starts
from jaxattn_train.data.words import PADDING, UNKNOWN, Vocabulary, plain, split_words


def test_words_keep_their_places_in_the_text():
    text = "It's GOOD; 'really' don't... 5.0!"
    words, starts = split_words(text)
    assert words == ["it's", "good", ";", "'", "really", "'", "don't", "...", "5", ".", "0", "!"]
    assert all(
        text[start : start + len(word)].lower() == word for word, start in zip(words, starts, strict=True)
    )


def test_line_breaks_of_markup_move_nothing():
    text = "One.<br /><br />Two<BR>three"
    assert len(plain(text)) == len(text)
    assert plain(text).index("Two") == text.index("Two")
    assert [plain(text)[a:b] for a, b in paragraphs(plain(text))] == ["One.", plain("Two<BR>three")]


def test_the_vocabulary_holds_the_most_frequent_words():
    vocabulary = Vocabulary.of([["b", "a", "c"], ["c", "b"], ["d"]], size=5)
    assert vocabulary.words == ("b", "c", "a")  # a before d: the alphabet decides
    assert len(vocabulary) == 5
    assert vocabulary.encode(["b", "d", "a"]).tolist() == [2, UNKNOWN, 4]
    assert PADDING not in vocabulary.encode(["b", "d", "a"])


@pytest.mark.parametrize(
    "sentences",
    [
        ["Dr. No is fun. ", "See No. 1 and p. 5 of vol. 2. ", "No. ", "It is not."],
        ['"Really?" he asked. ', '"Yes!" ', "She left."],
        ["What?! ", "No way... maybe. ", "Well... ", "Fine… ", "Done"],
        ["He lives in the U.S. with J. R. Smith. ", "At 3 a.m. ", "It rained."],
        ["Cats, dogs etc. are pets. ", "Pets etc. ", "Are fine."],
        ["1. First things first. ", "It got a 7. ", "i liked it. ", "me too"],
        ["It was great.", "The end (really.) ", "See imdb.com now."],
        ["a movie . ", "not good ! ", "( bad ) ."],
        ["nothing ends here"],
    ],
)
def test_sentences_begin_where_a_reader_says(sentences):
    text = "".join(sentences)
    starts = [*sentence_starts(text), len(text)]
    assert [text[a:b] for a, b in itertools.pairwise(starts)] == sentences


def test_sentence_lengths_count_every_word_once():
    text = plain("Go on, do. Stop!<br /><br /> -- \n\n  No...<br />Yes")
    words, starts = split_words(text)
    assert sentence_lengths(text, starts) == [[5, 2], [2], [2, 1]]
    for kept in range(1, len(words)):
        nested = sentence_lengths(text, starts[:kept])
        assert sum(map(sum, nested)) == kept
        assert all(length > 0 for paragraph in nested for length in paragraph)


def test_many_tiny_sentences_are_joined_to_eight_words():
    rng = np.random.default_rng(0)
    for _ in range(50):
        lengths = [
            [int(n) for n in rng.integers(1, 6, rng.integers(1, 9))] for _ in range(rng.integers(3, 9))
        ]
        found = join_short(lengths)
        words = sum(map(sum, lengths))
        assert sum(map(sum, found)) == words
        assert sum(map(len, found)) <= max(8, words // 8)
        if found != lengths:
            assert min(n for paragraph in found for n in paragraph) >= 8
    for usual in ([[1] * 8], [[8, 9, 8], [10, 20, 12]], [[3]]):
        assert join_short(usual) == usual

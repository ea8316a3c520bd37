"""BM25 finds names by the words they are made of, in documents that come and go."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.lexical import LexicalIndex, split_words

TEXTS = st.lists(st.text("abcXYZ _1", max_size=20), max_size=8)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("parse_http_header", ["parse", "http", "header"]),
        ("HTTPServer", ["http", "server"]),
        ("readIntoBuffer", ["read", "into", "buffer"]),
        ("utf8 sha256sum v2", ["utf8", "sha256", "sum", "v2"]),
        ("MAX_SIZE = 10", ["max", "size", "10"]),
        ("größe_der_datei", ["größe", "der", "datei"]),
        ("?! _ ()", []),
    ],
)
def test_identifiers_are_split_where_their_parts_meet(text: str, words: list[str]) -> None:
    assert split_words(text) == words


@given(st.text())
def test_any_text_can_be_split(text: str) -> None:
    assert all(word and word == word.lower() for word in split_words(text))


def bm25(texts: list[str], query: str) -> list[float]:
    """The formula as it is written."""
    documents = [Counter(split_words(text)) for text in texts]
    mean = sum(document.total() for document in documents) / max(len(documents), 1)

    def score(document: Counter[str]) -> float:
        total = 0.0
        for word in split_words(query):
            holding = sum(word in each for each in documents)
            if document[word]:
                rarity = math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
                length = 1.5 * (1 - 0.75 + 0.75 * document.total() / mean)
                total += rarity * document[word] / (document[word] + length)
        return total

    return [score(document) for document in documents]


@given(before=TEXTS, gone=st.sets(st.integers(0, 7)), after=TEXTS, query=st.text("abcXYZ _1", max_size=12))
def test_scores_are_those_of_bm25_over_what_is_left(
    before: list[str], gone: set[int], after: list[str], query: str
) -> None:
    index = LexicalIndex(before)
    for number in gone & set(range(len(before))):
        index.remove(number, before[number])
    added = [index.add(text) for text in after]
    kept = [number for number in range(len(before)) if number not in gone]

    scores = index.scores(query)

    assert len(scores) == len(before) + len(after)
    left = [before[number] for number in kept] + after
    np.testing.assert_allclose(scores[kept + added], bm25(left, query), rtol=1e-4)
    assert not scores[sorted(gone & set(range(len(before))))].any()


def test_the_best_come_first_and_what_shares_no_word_not_at_all() -> None:
    index = LexicalIndex(
        ["def area(r)", "def parse_header(line)", "def parse(header): header", "def parse_header(line)"]
    )
    assert index.search("parse the header", 10) == [2, 1, 3]
    assert index.search("parse the header", 1) == [2]
    assert index.search("nothing", 10) == []


@pytest.mark.parametrize("texts", [[], ["", "?"]])
def test_an_index_without_words_finds_nothing(texts: list[str]) -> None:
    index = LexicalIndex(texts)
    assert index.scores("parse").tolist() == [0.0] * len(texts)
    assert index.search("parse", 5) == []


def test_an_index_that_changes_for_ever_does_not_grow() -> None:
    index = LexicalIndex()
    for number in range(200):
        index.add(f"parse the file unique{number}")
        if number:
            index.remove(number - 1, f"parse the file unique{number - 1}")

    assert sum(len(posting.documents) for posting in index._postings.values()) < 12
    assert index.search("unique199", 10) == [199]

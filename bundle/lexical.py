"""BM25 over the words that identifiers are made of: what finds a name that the query spells."""

import math
import re
from array import array
from collections import Counter
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

# HTTPServer -> http, server; parse_utf8 -> parse, utf8; and letters of any script.
_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[^\W\dA-Z_]+\d*|[A-Z]+\d*|\d+")
K1, B = 1.5, 0.75


def split_words(text: str) -> list[str]:
    """The words of a text, lower case, with identifiers split where their parts meet."""
    return [word.lower() for word in _WORD.findall(text)]


def rarity(documents: int, holding: int) -> float:
    """What a word weighs that `holding` of so many documents hold: the inverse document frequency of BM25."""
    return math.log1p((documents - holding + 0.5) / (holding + 0.5))


class _Posting:
    """The documents that hold one word: their numbers, how often each holds it, and how many are not removed."""

    __slots__ = ("alive", "counts", "documents")

    def __init__(self) -> None:
        self.documents, self.counts, self.alive = array("q"), array("f"), 0


class LexicalIndex:
    """BM25 (Lucene's variant; k1 = 1.5, b = 0.75) over documents that come and go.

    Documents are numbered from 0 in the order in which they came; a number is never given twice. The scores are those
    that an index of the documents left would give them.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        """An index of texts; there may be none."""
        self._postings: dict[str, _Posting] = {}
        self._lengths = array("f")
        self._alive = self._words = self._entries = self._removed_entries = 0
        for text in texts:
            self.add(text)

    def add(self, text: str) -> int:
        """Take a document in; returns its number."""
        number = len(self._lengths)
        words = split_words(text)
        counts = Counter(words)
        for word, count in counts.items():
            posting = self._postings.get(word)
            if posting is None:
                posting = self._postings[word] = _Posting()
            posting.documents.append(number)
            posting.counts.append(count)
            posting.alive += 1
        self._lengths.append(len(words))
        self._alive += 1
        self._words += len(words)
        self._entries += len(counts)
        return number

    def remove(self, number: int, text: str) -> None:
        """Take out a document that is there; `text` is the one it was added with."""
        words = split_words(text)
        distinct = set(words)
        for word in distinct:
            posting = self._postings[word]
            posting.alive -= 1
            if not posting.alive:
                self._entries -= len(posting.documents)
                self._removed_entries -= len(posting.documents) - 1
                del self._postings[word]
        self._removed_entries += sum(word in self._postings for word in distinct)
        self._lengths[number] = 0
        self._alive -= 1
        self._words -= len(words)
        if self._removed_entries * 2 > self._entries:
            self._sweep()

    def scores(self, query: str) -> NDArray[np.float32]:
        """The score of every document [N] by its number, 0 for one that shares no word with the query or is removed."""
        # Summed in float64: documents whose words weigh the same must come out equal, whichever is added first.
        scores = np.zeros(len(self._lengths))
        postings = [posting for word in split_words(query) if (posting := self._postings.get(word)) is not None]
        if not postings:
            return scores.astype(np.float32)
        lengths = np.frombuffer(self._lengths, np.float32)
        weights = K1 * (1 - B + B * lengths.astype(np.float64) / (self._words / self._alive))
        for posting in postings:
            documents = np.frombuffer(posting.documents, np.int64)
            counts = np.frombuffer(posting.counts, np.float32)
            scores[documents] += rarity(self._alive, posting.alive) * counts / (counts + weights[documents])
        return np.where(lengths > 0, scores, 0).astype(np.float32)

    def search(self, query: str, k: int) -> list[int]:
        """The k best documents that share a word with the query, the best first; of equals the first added."""
        return best(self.scores(query), k)

    def _sweep(self) -> None:
        """Forget what is known of removed documents: an index that changes for years must not grow."""
        lengths = np.frombuffer(self._lengths, np.float32)
        for posting in self._postings.values():
            documents = np.frombuffer(posting.documents, np.int64)
            there = lengths[documents] > 0
            counts = np.frombuffer(posting.counts, np.float32)[there]
            posting.documents, posting.counts = array("q", documents[there].tobytes()), array("f", counts.tobytes())
        self._entries -= self._removed_entries
        self._removed_entries = 0


def best(scores: NDArray[np.float32], k: int) -> list[int]:
    """The numbers of the k highest scores above 0, the highest first; of equals the lowest number."""
    found = np.flatnonzero(scores > 0)
    if len(found) > k:  # sorting what can not be among them would take longer than all the rest
        least = np.partition(scores[found], len(found) - k)[len(found) - k]
        found = found[scores[found] >= least]
    return found[np.argsort(-scores[found], kind="stable")[:k]].tolist()

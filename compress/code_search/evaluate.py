"""What was kept and what was lost: every way to search beside the teacher, on held-out projects."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from bundle.encoder import Encoder
from bundle.fusion import HybridRanking
from bundle.lexical import LexicalIndex
from bundle.precision import EmbeddingFormat, Precision
from bundle.search import FP32, SearchExport
from compress.code_search.bundling import Facts, draft_bundle
from compress.code_search.data import Pair, read_pairs
from compress.code_search.recipe import SearchRecipe
from compress.code_search.scores import SearchScores, hybrid_ranks, own_ranks, rankings, score_ranks
from compress.gate import Judged, judged
from compress.label_cache import write_array

RAW, TEACHER, BASELINE, DISTILLED = "teacher as it came", "teacher", "student, pairs only", "student, distilled"
SHIPPED, LEXICAL, HYBRID = "student, int8", "BM25", "hybrid: int8 and BM25"
_WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
_CONSTANTS = (1.0, 3.0, 5.0, 10.0, 20.0, 60.0)


class SearchCandidate(msgspec.Struct, frozen=True):
    """An encoder to measure: a folder of the `onnx` stage, and which of its graphs."""

    name: str
    folder: Path
    export: SearchExport = FP32


class SearchRow(msgspec.Struct, frozen=True):
    """One line of the score table. What it costs is None for BM25, which has no model."""

    model: str
    scores: SearchScores
    by_width: dict[int, float]  # MRR@10 at each of the student's Matryoshka widths
    parameters: int | None
    bytes_on_disk: int | None
    bytes_per_embedding: int | None  # as an index keeps it
    texts_per_second: float | None  # functions of the test split, one thread


class SearchEvaluation(Judged, frozen=True):
    """Everything report.json says."""

    name: str
    units: dict[str, int]
    rows: list[SearchRow]
    hybrid: HybridRanking
    embeddings: EmbeddingFormat  # in which the bundle has them kept


class Embedded(NamedTuple):
    """What an encoder made of the pairs of a split, and how many functions a second one thread embeds."""

    queries: NDArray[np.float32]  # [Q, D], of length 1
    documents: NDArray[np.float32]  # likewise; document i is query i's own
    texts_per_second: float

    def similarities(self, width: int, embeddings: EmbeddingFormat) -> NDArray[np.float32]:
        """Of every function [Q, Q] for every query, with the first `width` columns, the functions' as they are kept."""
        queries, documents = (_shortened(part, width) for part in (self.queries, self.documents))
        return queries @ embeddings.kept(documents).T


Formats = Callable[[int], EmbeddingFormat]
"""How embeddings of a width are kept."""


def evaluate_search(
    recipe: SearchRecipe, data: Path, candidates: Sequence[SearchCandidate], out: Path, console: Console
) -> SearchEvaluation:
    """Ask every candidate all queries of the test split, each against the functions of all.

    The last one is shipped, and is measured with its embeddings kept in every precision. On the validation split are
    chosen the range of embeddings in 8 bits, and how what is served and BM25 are fused. Embeddings are
    kept in `out` by model, so that a killed evaluation goes on with the next model.
    """
    pairs = read_pairs(data / "test.jsonl")[: recipe.evaluate.queries]
    validation = read_pairs(data / "validation.jsonl")[: recipe.evaluate.validation_queries]
    shipped, served = candidates[-1], recipe.index.precision
    embedded = {each.name: _embedded(recipe, each, pairs, out, "test", console) for each in candidates}
    chosen_on = _embedded(recipe, shipped, validation, out, "validation", console)
    rows = [_row(recipe, each, each.name, embedded[each.name], lambda _: EmbeddingFormat()) for each in candidates]
    for precision in ("int8", "binary"):
        formats = partial(_fitted, precision, chosen_on)
        rows.append(_row(recipe, shipped, _in_precision(precision), embedded[shipped.name], formats))
    of_served = next(row for row in rows if row.model == _in_precision(served))
    width = Facts.read(shipped.folder).dimensions[0]
    kept = _fitted(served, chosen_on, width)
    hybrid = _best_hybrid(recipe, chosen_on.similarities(width, kept), validation)
    dense, lexical = embedded[shipped.name].similarities(width, kept), _lexical(pairs)
    fused = hybrid_ranks(rankings(dense), rankings(lexical, least=0.0), hybrid)
    rows += [
        SearchRow(LEXICAL, score_ranks(own_ranks(lexical), recipe.seed), {}, None, None, None, None),
        msgspec.structs.replace(of_served, model=HYBRID, scores=score_ranks(fused, recipe.seed), by_width={}),
    ]
    evaluation = SearchEvaluation(
        name=recipe.name,
        units={
            "queries": len(pairs),
            "validation_queries": len(validation),
            "projects": len({pair.project for pair in pairs}),
        },
        rows=rows,
        hybrid=hybrid,
        embeddings=kept,
        retention=_retention(next(row for row in rows if row.model == TEACHER), of_served),
        gate={},
        gate_passed=True,
        failures=[],
    )
    return judged(evaluation, recipe.evaluate.gate)


def _row(recipe: SearchRecipe, each: SearchCandidate, name: str, found: Embedded, formats: Formats) -> SearchRow:
    facts = Facts.read(each.folder)
    width, *shorter = facts.dimensions

    def scores(columns: int) -> SearchScores:
        return score_ranks(own_ranks(found.similarities(columns, formats(columns))), recipe.seed)

    return SearchRow(
        model=name,
        scores=scores(width),
        by_width={columns: scores(columns).mrr.value for columns in shorter},
        parameters=facts.parameters,
        bytes_on_disk=draft_bundle(recipe, each.folder).model_file(each.export).stat().st_size,
        bytes_per_embedding=formats(width).bytes_per_embedding(width),
        texts_per_second=found.texts_per_second,
    )


def _in_precision(precision: Precision) -> str:
    """What the row of the shipped student is called whose embeddings are kept so."""
    return SHIPPED if precision == "float16" else f"{SHIPPED}; {precision} embeddings"


def _fitted(precision: Precision, chosen_on: Embedded, width: int) -> EmbeddingFormat:
    return EmbeddingFormat.fitted(precision, _shortened(chosen_on.documents, width))


def _shortened(embeddings: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """The first columns [N, width], divided by their length."""
    return embeddings[:, :width] / np.linalg.norm(embeddings[:, :width], axis=1, keepdims=True)


def _retention(teacher: SearchRow, served: SearchRow) -> dict[str, float]:
    """What is served against the teacher it learnt from: what it keeps, and what share of the cost it has."""

    def share(name: str) -> float:
        most = getattr(teacher.scores, name).value
        return getattr(served.scores, name).value / most if most else 0.0

    assert teacher.texts_per_second and served.texts_per_second, "encoders were timed"
    assert teacher.bytes_on_disk and served.bytes_on_disk, "encoders have weights"
    return {
        "mrr_retention": share("mrr"),
        "recall_at_10_retention": share("recall_at_10"),
        "encode_time": teacher.texts_per_second / served.texts_per_second,
        "bytes": served.bytes_on_disk / teacher.bytes_on_disk,
    }


def _embedded(
    recipe: SearchRecipe, each: SearchCandidate, pairs: list[Pair], out: Path, split: str, console: Console
) -> Embedded:
    kept = out / f"{split}-{each.name.replace(', ', '-').replace(' ', '-')}.npy"
    speed_file = kept.with_suffix(".json")
    if not speed_file.is_file():
        with console.status(f"embeddings of {each.name}, {split} split"):
            bundle = draft_bundle(recipe, each.folder)
            encoder, alone = Encoder(bundle, each.export), Encoder(bundle, each.export, threads=1)
            texts = [pair.query for pair in pairs], [pair.document for pair in pairs]
            write_array(kept, np.stack([encoder.encode(part) for part in texts]))
            speed = texts_per_second(alone, texts[1][: recipe.evaluate.timed_texts])
        staged = speed_file.with_suffix(".tmp")
        staged.write_bytes(msgspec.json.encode(speed))
        staged.replace(speed_file)
    queries, documents = np.load(kept)
    return Embedded(queries, documents, msgspec.json.decode(speed_file.read_bytes(), type=float))


def texts_per_second(encoder: Encoder, texts: Sequence[str]) -> float:
    """How many texts an encoder embeds in a second of its process's computing time.

    Not of the clock's, which also counts what else the machine does.
    """
    encoder.encode(texts[:1])  # the first call also allocates
    begun = time.process_time()
    encoder.encode(texts)
    return len(texts) / (time.process_time() - begun)


def _lexical(pairs: list[Pair]) -> NDArray[np.float32]:
    index = LexicalIndex([pair.document for pair in pairs])
    return np.stack([index.scores(pair.query) for pair in pairs])


def _best_hybrid(recipe: SearchRecipe, dense: NDArray[np.float32], validation: list[Pair]) -> HybridRanking:
    """The one of a few with the largest MRR@10 on the validation split."""
    ranked, lexical = rankings(dense), rankings(_lexical(validation), least=0.0)
    hybrids = [HybridRanking(*each) for each in product(_WEIGHTS, _CONSTANTS)]
    return max(hybrids, key=lambda hybrid: score_ranks(hybrid_ranks(ranked, lexical, hybrid), recipe.seed).mrr.value)

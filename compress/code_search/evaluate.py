"""What was kept and what was lost: every way to search beside the teacher, on held-out projects."""

import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from bundle.encoder import Encoder
from bundle.lexical import LexicalIndex
from bundle.search import FP32, SearchBundle, SearchExport
from compress.code_search.bundling import Facts, draft_bundle
from compress.code_search.data import Pair, read_pairs
from compress.code_search.recipe import SearchGate, SearchRecipe
from compress.code_search.scores import SearchScores, hybrid_ranks, own_ranks, rankings, score_ranks
from compress.label_cache import write_array

RAW, TEACHER, BASELINE, DISTILLED = "teacher as it came", "teacher", "student, pairs only", "student, distilled"
SHIPPED, LEXICAL, HYBRID = "student, int8", "BM25", "hybrid: int8 and BM25"
_WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)


class SearchCandidate(msgspec.Struct, frozen=True):
    """An encoder to measure: a folder of the `onnx` stage, and which of its graphs."""

    name: str
    folder: Path
    export: SearchExport = FP32


class SearchRow(msgspec.Struct, frozen=True):
    """One line of the score table. Speed and size are None for BM25, which has no model."""

    model: str
    scores: SearchScores
    by_width: dict[int, float]  # MRR@10 at each of the student's Matryoshka widths
    parameters: int | None
    bytes_on_disk: int | None
    texts_per_second: float | None  # functions of the test split, one thread


class SearchEvaluation(msgspec.Struct, frozen=True):
    """Everything report.json says."""

    name: str
    units: dict[str, int]
    rows: list[SearchRow]
    lexical_weight: float
    retention: dict[str, float]
    gate: dict[str, float]
    gate_passed: bool
    failures: list[str]


def evaluate_search(
    recipe: SearchRecipe, data: Path, candidates: Sequence[SearchCandidate], out: Path, console: Console
) -> SearchEvaluation:
    """Ask every candidate all queries of the test split, each against the functions of all.

    The last one is shipped; the weight of BM25 in the hybrid with it is chosen on the validation split. Embeddings
    are kept in `out` by model, so that a killed evaluation goes on with the next model.
    """
    pairs = read_pairs(data / "test.jsonl")[: recipe.evaluate.queries]
    validation = read_pairs(data / "validation.jsonl")[: recipe.evaluate.validation_queries]
    shipped = candidates[-1]
    rows = []
    dense: NDArray[np.float32] = np.empty(0, np.float32)
    for each in candidates:
        with console.status(f"embeddings of {each.name}"):
            queries, documents, speed = _embedded(recipe, each, pairs, out)
        dense = queries @ documents.T
        bundle = _bundle(recipe, each)
        facts = Facts.read(each.folder)
        rows.append(
            SearchRow(
                model=each.name,
                scores=score_ranks(own_ranks(dense), recipe.seed),
                by_width={width: _mrr_at(queries, documents, width, recipe.seed) for width in facts.dimensions[1:]},
                parameters=facts.parameters,
                bytes_on_disk=bundle.model_file(each.export).stat().st_size,
                texts_per_second=speed,
            )
        )
    weight = _best_weight(recipe, shipped, validation, out)
    lexical = _lexical(pairs)
    hybrid = hybrid_ranks(rankings(dense), rankings(lexical, least=0.0), weight)
    nothing = SearchRow(LEXICAL, score_ranks(own_ranks(lexical), recipe.seed), {}, None, None, None)
    rows += [
        nothing,
        msgspec.structs.replace(rows[-1], model=HYBRID, scores=score_ranks(hybrid, recipe.seed), by_width={}),
    ]
    retention = _retention(rows)
    failures = gate_failures(recipe.evaluate.gate, retention)
    return SearchEvaluation(
        name=recipe.name,
        units={
            "queries": len(pairs),
            "validation_queries": len(validation),
            "projects": len({pair.project for pair in pairs}),
        },
        rows=rows,
        lexical_weight=weight,
        retention=retention,
        gate=msgspec.to_builtins(recipe.evaluate.gate),
        gate_passed=not failures,
        failures=failures,
    )


def gate_failures(gate: SearchGate, retention: dict[str, float]) -> list[str]:
    """One sentence for each measure that is below the gate."""
    return [
        f"{name.replace('_', ' ')} is {retention[name]:.3f}, below the gate's {least:.3f}"
        for name, least in msgspec.to_builtins(gate).items()
        if retention[name] < least
    ]


def _retention(rows: Sequence[SearchRow]) -> dict[str, float]:
    """The shipped student against the teacher it learnt from: what it keeps, and what share of the cost it has."""
    by_name = {row.model: row for row in rows}
    teacher, shipped = by_name[TEACHER], by_name[SHIPPED]

    def share(name: str) -> float:
        most = getattr(teacher.scores, name).value
        return getattr(shipped.scores, name).value / most if most else 0.0

    assert teacher.texts_per_second and shipped.texts_per_second, "encoders were timed"
    assert teacher.bytes_on_disk and shipped.bytes_on_disk, "encoders have weights"
    return {
        "mrr_retention": share("mrr"),
        "recall_at_10_retention": share("recall_at_10"),
        "encode_time": teacher.texts_per_second / shipped.texts_per_second,
        "bytes": shipped.bytes_on_disk / teacher.bytes_on_disk,
    }


def _bundle(recipe: SearchRecipe, each: SearchCandidate) -> SearchBundle:
    return draft_bundle(recipe, each.folder)


def _embedded(
    recipe: SearchRecipe, each: SearchCandidate, pairs: list[Pair], out: Path, split: str = "test"
) -> tuple[NDArray[np.float32], NDArray[np.float32], float]:
    """Embeddings of queries and functions, [Q, D] each, and how many functions a second one thread embeds."""
    kept = out / f"{split}-{each.name.replace(', ', '-').replace(' ', '-')}.npy"
    speed_file = kept.with_suffix(".json")
    if not speed_file.is_file():
        encoder = Encoder(_bundle(recipe, each), each.export)
        texts = [pair.query for pair in pairs], [pair.document for pair in pairs]
        write_array(kept, np.stack([encoder.encode(part) for part in texts]))
        alone = Encoder(_bundle(recipe, each), each.export, threads=1)
        speed = texts_per_second(alone, [pair.document for pair in pairs[: recipe.evaluate.timed_texts]])
        staged = speed_file.with_suffix(".tmp")
        staged.write_bytes(msgspec.json.encode(speed))
        staged.replace(speed_file)
    queries, documents = np.load(kept)
    return queries, documents, msgspec.json.decode(speed_file.read_bytes(), type=float)


def texts_per_second(encoder: Encoder, texts: Sequence[str]) -> float:
    """How many texts an encoder embeds in a second of its process's computing time.

    Not of the clock's, which also counts what else the machine does.
    """
    encoder.encode(texts[:1])  # the first call also allocates
    begun = time.process_time()
    encoder.encode(texts)
    return len(texts) / (time.process_time() - begun)


def _mrr_at(queries: NDArray[np.float32], documents: NDArray[np.float32], width: int, seed: int) -> float:
    short = [part[:, :width] / np.linalg.norm(part[:, :width], axis=1, keepdims=True) for part in (queries, documents)]
    return score_ranks(own_ranks(short[0] @ short[1].T), seed).mrr.value


def _lexical(pairs: list[Pair]) -> NDArray[np.float32]:
    index = LexicalIndex([pair.document for pair in pairs])
    return np.stack([index.scores(pair.query) for pair in pairs])


def _best_weight(recipe: SearchRecipe, shipped: SearchCandidate, validation: list[Pair], out: Path) -> float:
    """The weight of BM25, of a few, with which the hybrid's MRR@10 on the validation split is largest."""
    queries, documents, _ = _embedded(recipe, shipped, validation, out, "validation")
    dense, lexical = rankings(queries @ documents.T), rankings(_lexical(validation), least=0.0)
    scores = [score_ranks(hybrid_ranks(dense, lexical, weight), recipe.seed).mrr.value for weight in _WEIGHTS]
    return _WEIGHTS[int(np.argmax(scores))]

"""KV rows: a request's keys and values stay its own wherever its row is moved and however the arrays change."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.manifest import Bundle
from serve.engine.base import EngineUnavailable, GenerationRequest
from serve.engine.delivery import Answering
from serve.engine.devices import open_session
from serve.engine.kv import ROW_STEP, KvCache
from serve.engine.rows import Row, Rows
from serve.engine.scheduling import MOST_PADDING, PREFILL_CHUNK, begun_together, next_chunk, next_row

CONTEXT = 1000
SLOTS = 5
MOVES = ("add", "start", "start", "grow", "grow", "complete", "complete", "release", "fit")


@pytest.fixture(scope="module")
def session(bundle: Bundle) -> object:
    return open_session(bundle.export_folder("onnx") / "model.onnx", "cpu", 1)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.sampled_from(MOVES), st.integers(0, 99)), max_size=60))
async def test_every_row_keeps_its_content_and_every_zone_its_rows(
    session: object, moves: list[tuple[str, int]]
) -> None:
    """A model of what must hold: what was last written for a request is what its row holds."""
    kv = KvCache(session, kv_heads=2, head_dim=16, slots=SLOTS, tokens=SLOTS * CONTEXT, context=CONTEXT)
    rows, written, zone = Rows(kv), {}, {}
    marks = iter(range(1, 10_000))
    for move, choice in moves:
        pick = rows.all[choice % len(rows.all)] if rows.all else None
        if move == "add" and len(rows.all) < SLOTS:
            row = Row(Answering(GenerationRequest([])), None, np.random.default_rng(0), [7], 1, CONTEXT)
            rows.add(row)
            written[row], zone[row] = [], "empty"
        elif move == "start" and pick in rows.empty:
            several = rows.empty[: 1 + choice % 3]
            first = rows.start(several)
            assert rows.all[first : first + len(several)] == several
            zone |= dict.fromkeys(several, "prefilling")
        elif move == "grow" and pick is not None and pick not in rows.empty and pick.length < CONTEXT:
            more = min(1 + 7 * choice, CONTEXT - pick.length)
            kv.fit([row.length for row in rows.all], max(pick.length + more, *(r.length for r in rows.all)), CONTEXT)
            mark = next(marks)
            for array in kv._arrays.values():
                array[rows.index(pick), :, pick.length : pick.length + more] = mark
            written[pick] += [mark] * more
            pick.length += more
        elif move == "complete" and pick in rows.prefilling:
            rows.complete(pick)
            zone[pick] = "decoding"
        elif move == "release" and pick is not None:
            rows.release(pick)
            rows.release(pick)  # twice is harmless
            del zone[pick]
        elif move == "fit" and rows.all:
            kv.fit([row.length for row in rows.all], max(row.length for row in rows.all) or 1, CONTEXT)
        assert {row: name for name in ("decoding", "prefilling", "empty") for row in getattr(rows, name)} == zone
        assert rows.decoding + rows.prefilling + rows.empty == rows.all
        for index, row in enumerate(rows.all):
            for array in kv._arrays.values():
                assert (array[index, :, : row.length] == np.array(written[row]).reshape(1, -1, 1)).all()


def test_arrays_are_as_long_as_needed_and_shrink_again(session: object) -> None:
    kv = KvCache(session, kv_heads=2, head_dim=16, slots=4, tokens=4096, context=4096)
    seen = [kv.capacity]
    for needed, reserved in ((10, 4096), (300, 4096), (600, 700), (2000, 4096), (600, 4096), (100, 4096), (100, 200)):
        kv.fit([5], needed, reserved)
        assert needed <= kv.capacity <= max(kv.row_size(reserved), ROW_STEP)
        assert next(iter(kv._arrays.values())).shape == (min(4, 4096 // kv.capacity), 2, kv.capacity, 16)
        seen.append(kv.capacity)
    assert seen == [256, 256, 512, 768, 2048, 2048, 512, 256]


def test_what_a_long_row_leaves_is_given_to_more_short_ones(session: object) -> None:
    kv = KvCache(session, kv_heads=2, head_dim=16, slots=4, tokens=1024, context=1000)
    kv.fit([0], 1000, 1000)
    shapes = {array.shape for array in kv._arrays.values()}
    kv.fit([7, 0, 0], 8, 256)
    assert shapes == {(1, 2, 1000, 16)}
    assert {array.shape for array in kv._arrays.values()} == {(4, 2, 256, 16)}


def test_rows_may_exist_together_if_all_fit_at_the_length_of_the_longest(session: object) -> None:
    kv = KvCache(session, kv_heads=2, head_dim=16, slots=4, tokens=2048, context=2000)
    assert kv.holds([256] * 4)
    assert not kv.holds([256] * 5), "more than the slots"
    assert kv.holds([100, 600])
    assert not kv.holds([100, 600, 600]), "three rows of 768"
    assert kv.holds([2000])
    with pytest.raises(EngineUnavailable, match="holds no row: set --kv-tokens to 256 or more"):
        KvCache(session, kv_heads=2, head_dim=16, slots=4, tokens=255, context=2000)


@settings(deadline=None)
@given(st.lists(st.integers(1, 600), min_size=1, max_size=12), st.integers(0, 600))
def test_rows_begun_together_are_alike_and_within_the_budget(lengths: list[int], budget: int) -> None:
    rows = [SimpleNamespace(length=0, pending=[7] * length, turn=turn) for turn, length in enumerate(lengths)]
    first = next_row(rows)
    assert first is rows[0]
    together = begun_together(first, rows, budget)
    chunks = [len(next_chunk(row)) for row in together]
    assert together[0] is first
    assert len({id(row) for row in together}) == len(together)
    for chunk, row in zip(chunks, together, strict=True):
        assert chunk == (min(PREFILL_CHUNK, len(row.pending) - 1) if len(row.pending) > 2 else 0)
    if len(together) > 1:
        computed = max(chunks) * len(chunks)
        assert computed <= budget
        assert sum(chunks) >= (1 - MOST_PADDING) * computed

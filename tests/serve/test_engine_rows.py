"""KV rows: a request's keys and values stay its own wherever its row is moved and however the arrays change."""

from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.manifest import Bundle
from serve.engine.base import EngineUnavailable, GenerationRequest
from serve.engine.delivery import Answering
from serve.engine.devices import open_on_cpu
from serve.engine.kv import PATIENCE, ROW_STEP, KvCache
from serve.engine.rows import Row, Rows
from serve.engine.scheduling import PREFILL_CHUNK, calls_of_a_step, most_padding, next_chunk

CONTEXT = 1000
SLOTS = 5
MOVES = ("add", "start", "start", "grow", "grow", "complete", "complete", "release", "sweep", "fit")


@pytest.fixture(scope="module")
def session(bundle: Bundle) -> object:
    return open_on_cpu(bundle.export_folder("onnx") / "model.onnx", threads=1, tiled=True)


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
            kv._array[:, rows.index(pick), :, pick.length : pick.length + more] = mark
            written[pick] += [mark] * more
            pick.length += more
        elif move == "complete" and pick in rows.prefilling:
            several = [row for row in rows.prefilling if row is pick or choice % 2]
            rows.sweep()
            rows.complete(several)
            zone |= dict.fromkeys(several, "decoding")
        elif move == "release" and pick in rows.running:
            beside = {row: rows.index(row) for row in rows.prefilling}
            rows.release(pick)
            rows.release(pick)  # twice is harmless
            if zone.pop(pick) != "prefilling":
                assert beside == {row: rows.index(row) for row in rows.prefilling}, "prompts are computed there"
        elif move == "sweep":
            rows.sweep()
            assert rows.all == rows.running
        elif move == "fit" and rows.all:
            kv.fit([row.length for row in rows.all], max(row.length for row in rows.all) or 1, CONTEXT)
        assert {row: name for name in ("decoding", "prefilling", "empty") for row in getattr(rows, name)} == zone
        assert rows.decoding + rows.prefilling + rows.empty == rows.running
        for row in rows.running:
            held = kv._array[:, rows.index(row), :, : row.length]
            assert (held == np.array(written[row]).reshape(1, 1, -1, 1)).all()


def fit_for_a_while(kv: KvCache, lengths: list[int], needed: int, reserved: int) -> None:
    for _ in range(PATIENCE + 1):
        kv.fit(lengths, needed, reserved)


def test_rows_are_as_long_as_needed_and_shrink_again(session: object) -> None:
    kv = KvCache(session, kv_heads=2, head_dim=16, slots=4, tokens=4096, context=4096)
    seen = [kv.capacity]
    for needed, reserved in ((10, 4096), (300, 4096), (600, 700), (2000, 4096), (600, 4096), (100, 4096), (100, 200)):
        fit_for_a_while(kv, [5], needed, reserved)
        assert needed <= kv.capacity <= max(kv.row_size(reserved), ROW_STEP)
        assert kv._array.shape[1:] == (min(4, 4096 // kv.capacity), 2, kv.capacity, 16)
        seen.append(kv.capacity)
    assert seen == [256, 256, 512, 768, 2048, 2048, 512, 256]


def test_rows_stay_as_long_as_they_are_while_long_ones_come_again(session: object) -> None:
    """A copy of all rows takes longer than a step."""
    kv = KvCache(session, kv_heads=2, head_dim=16, slots=4, tokens=4096, context=1024)
    assert kv.fit([5], 1000, 1000)
    for _ in range(3):
        assert not any(kv.fit([5], 100, 200) for _ in range(PATIENCE - 1))
        assert not kv.fit([5], 1000, 1000)


def test_what_rows_took_goes_back_to_the_machine(session: object) -> None:
    """An allocator would keep arrays of this size for itself once some of them had gone."""
    process, mib = psutil.Process(), 2**20
    kv = KvCache(session, kv_heads=4, head_dim=64, slots=32, tokens=32 * 1024, context=1024)
    before = process.memory_info().rss
    for needed, reserved in ((200, 256), (500, 512)) * 3:
        fit_for_a_while(kv, [200] * 32, needed, reserved)
        kv._array[:, :, :, :needed] = 1
    assert kv._array.nbytes == 64 * mib
    assert process.memory_info().rss - before < 80 * mib
    fit_for_a_while(kv, [0], 100, 256)
    assert process.memory_info().rss - before < 16 * mib


def test_what_a_long_row_leaves_is_given_to_more_short_ones(session: object) -> None:
    kv = KvCache(session, kv_heads=2, head_dim=16, slots=4, tokens=1024, context=1000)
    kv.fit([0], 1000, 1000)
    assert kv._array.shape[1:] == (1, 2, 1000, 16)
    kv.fit([7, 0, 0], 8, 256)
    assert kv._array.shape[1:] == (4, 2, 256, 16), "at once: the others have no row else"


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
@given(
    st.lists(st.tuples(st.integers(1, 600), st.sampled_from([0, 256]), st.sampled_from([0, 20])), max_size=12),
    st.integers(1, 600),
    st.sampled_from([most_padding(10**6), most_padding(10**9)]),
)
def test_a_step_takes_turns_within_its_budget_and_begins_like_rows_together(
    prompts: list[tuple[int, int, int]], budget: int, padding: float
) -> None:
    """Rows of so many pending tokens; of some a chunk is computed, and for some a prefix is to be copied."""
    rows = [
        SimpleNamespace(length=length, shared=shared, pending=[7] * (pending + (0 if length else shared)), turn=turn)
        for turn, (pending, length, shared) in enumerate(prompts)
    ]
    calls = calls_of_a_step(rows, budget, padding)
    chosen = [row for call in calls for row in call]
    assert len({row.turn for row in chosen}) == len(chosen), "one chunk a row"
    spent = 0
    for call in calls:
        assert spent < budget, "a call is added while some of the budget is left"
        assert call[0] is min((row for row in rows if row not in chosen[: chosen.index(call[0])]), key=lambda r: r.turn)
        chunks = [len(next_chunk(row)) for row in call]
        computed = max(chunks) * len(chunks)
        if len(call) > 1:
            assert not any(row.length or row.shared for row in call)
            assert min(chunks) > 0
            assert computed <= budget - spent
            assert sum(chunks) >= (1 - padding) * computed
        spent += computed
    assert spent >= budget or len(chosen) == len(rows)


@pytest.mark.parametrize(
    ("pending", "length", "shared", "chunk"),
    [
        pytest.param(100, 0, 0, 99, id="all but the last token"),
        pytest.param(900, 0, 0, PREFILL_CHUNK, id="no more than a chunk"),
        pytest.param(2, 0, 0, 0, id="one token alone begins no row"),
        pytest.param(2, 256, 0, 1, id="one token alone may go on with one"),
        pytest.param(1, 256, 0, 0, id="the last is decoded"),
        pytest.param(320, 0, 300, 19, id="what is behind a copied prefix"),
        pytest.param(301, 0, 300, 0, id="nothing is, but the last"),
        pytest.param(20, 300, 300, 19, id="a prefix is copied once"),
    ],
)
def test_chunks_follow_from_positions_alone(pending: int, length: int, shared: int, chunk: int) -> None:
    row = SimpleNamespace(length=length, shared=shared, pending=list(range(pending)), turn=0)
    copied = 0 if length else shared
    assert next_chunk(row) == row.pending[copied : copied + chunk]

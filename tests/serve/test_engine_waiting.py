"""The queue: interactive first, nobody starved, nothing beyond its bound."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.engine.base import EngineBusy, GenerationRequest, Priority
from serve.engine.delivery import Answering
from serve.engine.waiting import BATCH_HANDICAP_SECONDS, WaitingQueue


def submitted(at: float, priority: Priority = "interactive", deadline: float | None = None) -> Answering:
    """A request that came at a time of the test's choosing."""
    answering = Answering(GenerationRequest([1], priority=priority, deadline=deadline))
    answering.timeline.submitted = at
    return answering


arrivals = st.lists(
    st.tuples(st.floats(0, 100), st.sampled_from(["interactive", "batch"])), min_size=1, max_size=8
).map(sorted)


@settings(deadline=None)
@given(arrivals)
async def test_a_batch_request_goes_after_interactive_ones_but_waits_for_no_later_than_its_handicap(
    requests: list[tuple[float, Priority]],
) -> None:
    queue = WaitingQueue(len(requests))
    for at, priority in requests:
        queue.add(submitted(at, priority))
    taken = [queue.take() for _ in requests]
    assert queue.take() is None
    for place, earlier in enumerate(taken):
        for later in taken[place + 1 :]:
            lead = later.timeline.submitted - earlier.timeline.submitted
            if earlier.request.priority == later.request.priority:
                assert lead >= 0
            elif earlier.request.priority == "batch":
                assert lead > BATCH_HANDICAP_SECONDS or math.isclose(lead, BATCH_HANDICAP_SECONDS)
            else:
                assert lead >= -BATCH_HANDICAP_SECONDS or math.isclose(lead, -BATCH_HANDICAP_SECONDS)


async def test_one_more_than_the_limit_is_refused_and_those_who_left_do_not_count() -> None:
    queue = WaitingQueue(2)
    first = submitted(0.0, "batch")
    queue.add(first)
    queue.add(submitted(1.0))
    with pytest.raises(EngineBusy, match="2 requests wait already"):
        queue.add(submitted(2.0))
    first.left = True
    queue.add(submitted(2.0))
    assert (len(queue), queue.count("batch")) == (2, 0)


async def test_who_left_and_who_is_late_is_taken_out_and_the_others_keep_their_order() -> None:
    queue = WaitingQueue(5)
    waiting = [submitted(float(n), deadline=deadline) for n, deadline in enumerate((None, 9.0, 11.0, 10.0, None))]
    for answering in waiting:
        queue.add(answering)
    waiting[0].left = True
    assert queue.take_gone(10.0) == [waiting[0], waiting[1], waiting[3]]
    assert queue.take_gone(10.0) == []
    assert queue.first() is waiting[2]
    assert queue.take_all() == [waiting[2], waiting[4]]
    assert len(queue) == 0

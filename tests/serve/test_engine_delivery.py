"""Tokens on their way to a reader: the first at once, the others with pauses, the last with the end."""

import asyncio

import pytest

from serve.engine.base import EngineError, GenerationRequest, Token
from serve.engine.delivery import Answering, Item, Outbox

NEVER, AT_ONCE = 3600.0, 0.0
TOKENS = [Token(id, bytes([97 + id]), 0.0, forced=False) for id in range(4)]
REQUEST = GenerationRequest((1, 2, 3))


async def say(outbox: Outbox, answering: Answering, *items: Item) -> None:
    """One step in which all of this is said, and time for the reader to hear it."""
    outbox.add(answering, *items)
    outbox.flush()
    for _ in range(3):
        await asyncio.sleep(0)


async def read(answering: Answering, heard: list[list[Token]]) -> None:
    async for tokens in answering.pieces():
        heard.append(tokens)


@pytest.mark.parametrize(
    ("pause", "pieces"), [(NEVER, [TOKENS[:1], TOKENS[1:]]), (AT_ONCE, [[token] for token in TOKENS])]
)
async def test_a_reader_hears_the_first_token_at_once_and_the_others_after_pauses(
    pause: float, pieces: list[list[Token]]
) -> None:
    outbox, answering = Outbox(pause), Answering(REQUEST)
    heard: list[list[Token]] = []
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(read(answering, heard))
        await asyncio.sleep(0)
        await say(outbox, answering, TOKENS[0])
        assert heard == [TOKENS[:1]]
        await say(outbox, answering, TOKENS[1])
        await say(outbox, answering, TOKENS[2])
        assert heard == pieces[: len(heard)] and len(heard) == (1 if pause else 3)
        await say(outbox, answering, TOKENS[3], "stop")
    assert heard == pieces
    assert answering.finish_reason == "stop"


async def test_one_readers_pause_is_not_anothers() -> None:
    outbox, first, second = Outbox(NEVER), Answering(REQUEST), Answering(REQUEST)
    heard: list[list[Token]] = []
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(read(second, heard))
        await asyncio.sleep(0)
        await say(outbox, first, TOKENS[0])
        await say(outbox, second, TOKENS[1])
        assert heard == [[TOKENS[1]]]
        await say(outbox, second, "stop")


async def test_an_error_comes_at_once_and_after_what_was_held_back() -> None:
    outbox, answering = Outbox(NEVER), Answering(REQUEST)
    for token in TOKENS:
        await say(outbox, answering, token)
    await say(outbox, answering, EngineError("broken"))
    seen = []
    with pytest.raises(EngineError, match="broken"):
        async for token in answering:
            seen.append(token)
    assert seen == TOKENS


async def test_who_reads_the_whole_hears_nothing_before_the_end() -> None:
    outbox, answering = Outbox(AT_ONCE), Answering(REQUEST)
    whole = asyncio.create_task(answering.whole())
    await asyncio.sleep(0)
    for token in TOKENS:
        await say(outbox, answering, token)
    assert len(outbox.items) == 1
    await say(outbox, answering, "length")
    assert await whole == TOKENS
    assert outbox.items == {}


async def test_nothing_is_kept_for_a_reader_that_left() -> None:
    outbox, answering = Outbox(NEVER), Answering(REQUEST)
    await say(outbox, answering, TOKENS[0])
    await say(outbox, answering, TOKENS[1])
    assert len(outbox.items) == 1
    answering.left = True
    outbox.flush()
    assert outbox.items == {}

"""Quotes: of a line, any run of its words and other characters, as JSON writes them."""

import json
import re

from hypothesis import given
from hypothesis import strategies as st

from bundle.quoting import Quote

lines = st.text(st.characters(codec="utf-8"), max_size=12).filter(str.strip)
LEAD = b'"at":"'
LONGEST = 9


def runs_of(line: str) -> set[bytes]:
    parts = re.findall(r"\w+|.", line.strip(), re.DOTALL)
    return {
        json.dumps("".join(parts[start:end]), ensure_ascii=False)[1:-1].encode()
        for start in range(len(parts))
        for end in range(start + 1, len(parts) + 1)
    }


@st.composite
def lines_and_beginnings(draw: st.DrawFn) -> tuple[str, bytes]:
    """A line, and the beginning of what a finding might write behind its number, some of it wrong."""
    line = draw(lines)
    run = draw(st.sampled_from(sorted(runs_of(line))))
    behind = draw(st.sampled_from([b"", b"x", b'"', b'","fix":null}', b"\\", b'\\"', b' "']))
    whole = LEAD + run + behind
    return line, whole[: draw(st.integers(0, len(whole)))]


@given(lines_and_beginnings())
def test_a_quote_is_allowed_as_long_as_it_can_become_one_of_the_line(example: tuple[str, bytes]) -> None:
    line, written = example
    quotes = [LEAD + run + b'"' for run in runs_of(line)]
    expected = any(quote.startswith(written) or written.startswith(quote) for quote in quotes)
    assert Quote(line).allows(written) == expected


@given(lines_and_beginnings(), st.binary(max_size=LONGEST))
def test_what_may_come_next_is_what_would_be_allowed(example: tuple[str, bytes], other: bytes) -> None:
    line, written = example
    quote = Quote(line)
    quotes = [LEAD + run + b'"' for run in runs_of(line)]
    if not any(each.startswith(written) and each != written for each in quotes):
        return  # no open quote
    next_ones = set(quote.continuations(written, LONGEST))
    tokens = {other}  # and all that go on with a quote, and past its end
    for each in quotes:
        if each.startswith(written):
            rest = each[len(written) :] + other
            tokens |= {rest[:size] for size in range(1, LONGEST + 1)}
    for token in filter(None, tokens):
        listed = (token, False) in next_ones or any(
            anything_follows and token.startswith(data) for data, anything_follows in next_ones
        )
        assert listed == quote.allows(written + token), token

"""How sure a student was of each finding it wrote.

A finding's confidence is the probability of the decisions that made it: to open a finding (rather than
to close the list), which rule, and which line. It is the product of the probabilities of every token
that holds a byte of

    ,{"rule":"off-by-one","line":12,"at":"<=","fix":"<"}
    ^------------------------------^

from the separator (a first finding has none) to the comma that ends the line number: until that comma
the number could have gone on. How a tokenizer cuts this text does not matter: `{"rule":"off-by-one","line":`
may be one token or nine. Tokens the grammar forced count as certain, and what is written after the line
(`at`, `fix`, the summary) does not count, with one exception. The grammar lets a student quote only the line it
named. When the first words it would rather have quoted stand elsewhere, it contradicts itself: it had another
line in mind, or none. Then the confidence is 0, and the finding is dropped.

This raw confidence says how sure the student was, not how often it is right. Where a bundle carries a
calibration, what is compared and shown is the calibrated confidence: the share of findings of that raw
confidence that were right on validation projects.
"""

import bisect
import math
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

from bundle.answer import OPENING

Calibration = Sequence[tuple[float, float]]

_STRING = rb'"(?:[^"\\]|\\.)*"'
_FINDING = re.compile(
    rb'(?P<decision>,?\{"rule":'
    + _STRING
    + rb',"line":\d+,)"at":"(?P<first>\\?.)(?:[^"\\]|\\.)*","fix":(?:null|'
    + _STRING
    + rb")\}"
)
LEAST_MEANT = 0.1  # the probability of a quote's first token, below which a student meant to quote something else


def finding_confidences(tokens: Iterable[tuple[bytes, float]]) -> list[float]:
    """The confidence of every complete finding of an answer, in the order in which they are written.

    Args:
        tokens: the answer's tokens: the bytes each stands for, and its natural log-probability before any
            grammar mask (0.0 for a token that was forced).

    Returns:
        One probability (0..1) for each finding, 0 for one that contradicts itself. Text after the last complete
        finding is ignored.
    """
    ends: list[int] = [0]
    logprobs: list[float] = []
    text = b""
    for data, logprob in tokens:
        text += data
        ends.append(len(text))
        logprobs.append(logprob)
    confidences = []
    position = len(OPENING)
    while (finding := _FINDING.match(text, position)) is not None:
        meant = _probability(finding.span("first"), ends, logprobs) >= LEAST_MEANT
        confidences.append(_probability(finding.span("decision"), ends, logprobs) if meant else 0.0)
        position = finding.end()
    return confidences


def _probability(span: tuple[int, int], ends: list[int], logprobs: list[float]) -> float:
    """Of all tokens that hold a byte of a span; token n ends at `ends[n + 1]`."""
    tokens = zip(pairwise(ends), logprobs, strict=True)
    return math.exp(sum(logprob for (start, end), logprob in tokens if start < span[1] and end > span[0]))


def calibrated(confidence: float, calibration: Calibration) -> float:
    """A raw confidence as the share of such findings that were right: straight lines between the knots.

    Args:
        calibration: knots (raw, calibrated) as `check_calibration` accepts them; none leave it as it is.
    """
    if not calibration:
        return confidence
    place = bisect.bisect_right(calibration, confidence, key=lambda knot: knot[0])
    if place == len(calibration):
        return calibration[-1][1]
    if place == 0:
        return calibration[0][1]
    (raw, low), (next_raw, high) = calibration[place - 1 : place + 1]
    return low + (high - low) * (confidence - raw) / (next_raw - raw)


def check_calibration(calibration: Calibration) -> None:
    """Knots lead from raw 0 to raw 1 and rise in both numbers, so that the order of findings stays.

    Raises:
        ValueError: these knots do not.
    """
    if not calibration:
        return
    if calibration[0][0] != 0.0 or calibration[-1][0] != 1.0:
        raise ValueError("the calibration does not lead from raw confidence 0 to 1")
    if not (calibration[0][1] >= 0.0 and calibration[-1][1] <= 1.0):
        raise ValueError("the calibration leaves 0..1")
    for before, after in pairwise(calibration):
        if not (before[0] < after[0] and before[1] < after[1]):
            raise ValueError(f"the calibration does not rise from {list(before)} to {list(after)}")

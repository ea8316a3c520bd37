"""How sure a student was of each finding it wrote.

A finding's confidence is the probability of the decisions that made it: to open a finding (rather than
to close the list), which rule, and which line. It is the product of the probabilities of every token
that holds a byte of

    ,{"rule":"off-by-one","line":12,"at":"<=","fix":"<"}
    ^------------------------------^

from the separator (a first finding has none) to the comma that ends the line number: until that comma
the number could have gone on. How a tokenizer cuts this text does not matter: `{"rule":"off-by-one","line":`
may be one token or nine. Tokens the grammar forced count as certain, and what is written after the line
(`at`, `fix`, the summary) does not count.
"""

import math
import re
from collections.abc import Iterable

from bundle.answer import OPENING

_STRING = rb'"(?:[^"\\]|\\.)*"'
_FINDING = re.compile(
    rb'(?P<decision>,?\{"rule":' + _STRING + rb',"line":\d+,)"at":' + _STRING + rb',"fix":(?:null|' + _STRING + rb")\}"
)


def finding_confidences(tokens: Iterable[tuple[bytes, float]]) -> list[float]:
    """The confidence of every complete finding of an answer, in the order in which they are written.

    Args:
        tokens: the answer's tokens: the bytes each stands for, and its natural log-probability before any
            grammar mask (0.0 for a token that was forced).

    Returns:
        One probability (0..1) for each finding. Text after the last complete finding is ignored.
    """
    ends: list[int] = []
    logprobs: list[float] = []
    text = b""
    for data, logprob in tokens:
        text += data
        ends.append(len(text))
        logprobs.append(logprob)
    confidences = []
    position = len(OPENING)
    while (finding := _FINDING.match(text, position)) is not None:
        first, last = finding.span("decision")
        starts = [0, *ends[:-1]]
        deciding = (
            logprob for start, end, logprob in zip(starts, ends, logprobs, strict=True) if start < last and end > first
        )
        confidences.append(math.exp(sum(deciding)))
        position = finding.end()
    return confidences

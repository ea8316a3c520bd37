"""Planting: one edit drawn from those that planters propose for a unit, and the finding it makes true."""

import random

from bundle.answer import MAX_SPAN_CHARS, AnswerFinding
from compress.data.edits import Planter, Source, apply_edit
from compress.data.planted_hygiene import HYGIENE_FIXES


def plant(
    code: str, planters: dict[str, Planter], weights: dict[str, float], rng: random.Random
) -> tuple[str, AnswerFinding] | None:
    """Plant one defect in a unit's code.

    A rule is drawn by weight among those with a place in this code, then a place among the rule's places.

    Args:
        weights: how often a rule is drawn relative to the others; 1 where absent.

    Returns:
        The changed code and what a perfect answer says of it; None when the code offers no place, or
        does not parse by itself.
    """
    if not code.isascii():
        return None  # ast counts bytes; the few units with other text are left as they are
    try:
        source = Source(code)
    except SyntaxError:
        return None  # a class or module remainder whose only content was cut out of a block
    choices = [(rule, list(planter(source, rng))) for rule, planter in planters.items()]
    choices = [(rule, edits) for rule, edits in choices if edits]
    while choices:
        index = rng.choices(range(len(choices)), [weights.get(rule, 1.0) for rule, _ in choices])[0]
        rule, edits = choices[index]
        edit = edits.pop(rng.randrange(len(edits)))
        applied = apply_edit(source.lines, edit)
        if applied is not None:
            fix = HYGIENE_FIXES.get(rule, applied.original)
            if fix is None or len(fix) <= MAX_SPAN_CHARS:  # no answer may say more
                return applied.code, AnswerFinding(rule=rule, line=applied.line, at=applied.at, fix=fix)
        if not edits:
            choices.pop(index)
    return None

"""A small part of a corpus as training examples, to say in a second what all of it would give."""

import random
import tokenize
from typing import NamedTuple

from bundle.prompt import Prompt
from bundle.units import UnparsableCode, cut_units
from compress.data.build import split_in
from compress.data.corpus import SourceFile
from compress.data.examples import Example, draw_example, natural_example
from compress.data.tokens import tokenize_examples
from compress.recipe import Data

_FILES = 60


class Sample(NamedTuple):
    """What some files gave, and what all would give by their share."""

    drawn: int  # examples in the sample
    examples: float  # within the limit, of the whole training split
    mean_tokens: float  # of those within the limit
    mean_answer_tokens: float
    too_long: float  # share of the sample beyond the limit


def sample_examples(data: Data, sources: list[SourceFile], prompt: Prompt, eos_token_id: int) -> Sample:
    """Draw from up to 60 training files. Linter findings are left out, so answers come out a little shorter."""
    train = [source for source in sources if split_in(data, source.project) == "train"]
    rng = random.Random(data.split_seed)
    files = rng.sample(train, min(_FILES, len(train)))
    drawn: list[Example] = []
    for source in files:
        try:
            with tokenize.open(source.file) as file:
                units = cut_units(file.read())
        except (UnparsableCode, SyntaxError, UnicodeError, LookupError):
            continue
        natural = (natural_example(source.project, source.path, unit, []) for unit in units)
        drawn += [
            draw_example(each, data.planted_share, rng) for each in natural if len(each.unit.lines) <= data.max_lines
        ]
    rows = tokenize_examples(drawn, prompt, eos_token_id)
    kept = [row for row in rows if len(row.ids) <= data.max_tokens]
    if not kept:
        return Sample(len(rows), 0.0, 0.0, 0.0, 1.0 if rows else 0.0)
    units_in_all = len(drawn) * len(train) / len(files)
    if data.max_units is not None:
        units_in_all = min(units_in_all, data.max_units)
    return Sample(
        drawn=len(rows),
        examples=units_in_all * data.draws * len(kept) / len(rows),
        mean_tokens=sum(len(row.ids) for row in kept) / len(kept),
        mean_answer_tokens=sum(len(row.ids) - row.answer_start for row in kept) / len(kept),
        too_long=1 - len(kept) / len(rows),
    )

"""Which held-out units a model is asked about."""

import random
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice, zip_longest

from bundle.rules import Catalogue
from compress.data.examples import Example
from compress.recipe import Evaluate


def held_out_units(
    examples: Iterable[Example],
    evaluate: Evaluate,
    catalogue: Catalogue,
    seed: int,
    fits: Callable[[Example], bool],
) -> list[Example]:
    """Natural units, units with one planted defect, and a third as many with planted hygiene, in a fixed order.

    Planted units are taken one for each rule in turn, until there are enough or no more: a rule that nearly
    every unit offers a place for would else decide the scores. A rule with few places gives all it has.

    Args:
        fits: whether a unit's prompt leaves room for an answer; others are passed over.
    """
    rng = random.Random(seed)
    shuffled = list(examples)
    rng.shuffle(shuffled)
    natural = (example for example in shuffled if example.planted is None and fits(example))
    chosen = list(islice(natural, evaluate.natural_units))
    for origin, most in (("injected", evaluate.planted_units), ("hygiene", evaluate.planted_units // 3)):
        of_rule = [
            [example for example in shuffled if example.planted == rule.id]
            for rule in catalogue.rules
            if rule.origin == origin
        ]
        chosen += islice(_in_turn([filter(fits, owned) for owned in of_rule]), most)
    rng.shuffle(chosen)
    return chosen


def _in_turn(groups: list[Iterator[Example]]) -> Iterator[Example]:
    """The first of every group, then the second of every group that has one, and so on."""
    return (example for example in chain.from_iterable(zip_longest(*groups)) if example is not None)

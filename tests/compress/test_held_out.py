"""The held-out units a model is asked about, and what answers them without a model."""

import argparse
import inspect
import json
import random
import shutil
from collections import Counter

import pytest

from bundle.rules import load_catalogue
from bundle.units import cut_units
from compress.data.examples import Example, natural_example, planted_example
from compress.data.hygiene import hygiene_labels
from compress.evaluation.baselines import always_clean, ruff_alone
from compress.evaluation.held_out import held_out_units
from compress.evaluation.scores import score
from compress.recipe import Evaluate

CATALOGUE = load_catalogue()
INJECTED = [rule.id for rule in CATALOGUE.rules if rule.origin == "injected"]


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    """Units of three modules as written and with one defect of each kind."""
    made: list[Example] = []
    for module in (argparse, shutil, json.decoder):
        file = tmp_path_factory.mktemp("code") / "m.py"
        file.write_text(inspect.getsource(module))
        labels = hygiene_labels([file], CATALOGUE).get(file, [])
        for unit in cut_units(file.read_text()):
            natural = natural_example(module.__name__, "m.py", unit, labels)
            rng = random.Random(unit.name)
            planted = [planted_example(natural, origin, rng) for origin in ("injected", "hygiene")]
            made += [natural, *(each for each in planted if each is not None)]
    return made


def chosen(examples: list[Example], natural: int, planted: int, seed: int = 7, fits=lambda example: True):
    return held_out_units(examples, Evaluate(natural_units=natural, planted_units=planted), CATALOGUE, seed, fits)


def test_each_injected_rule_gives_equally_many_units_as_long_as_it_has_any(examples: list[Example]) -> None:
    there = Counter(example.planted for example in examples)
    taken = Counter(example.planted for example in chosen(examples, natural=20, planted=42))
    assert taken[None] == 20
    injected = {rule: taken[rule] for rule in INJECTED}
    assert sum(injected.values()) == 42
    most = max(injected.values())
    for rule, count in injected.items():
        assert count >= most - 1 or count == there[rule], rule
    assert there["variable-misuse"] > 3 * most, "the corpus itself is lopsided"


def test_a_third_as_many_have_planted_hygiene(examples: list[Example]) -> None:
    taken = Counter(example.planted for example in chosen(examples, natural=0, planted=30))
    assert sum(taken[rule.id] for rule in CATALOGUE.rules if rule.origin == "hygiene") == 10
    assert max(taken[rule.id] for rule in CATALOGUE.rules if rule.origin == "hygiene") <= 3


def test_when_there_are_too_few_all_are_taken(examples: list[Example]) -> None:
    assert Counter(map(id, chosen(examples, 10**6, 10**6))) == Counter(map(id, examples))


def test_a_seed_fixes_units_and_order_whatever_does_not_fit(examples: list[Example]) -> None:
    assert chosen(examples, 10, 10) == chosen(examples, 10, 10)
    assert chosen(examples, 10, 10) != chosen(examples, 10, 10, seed=8)
    short = chosen(examples, 10, 10, fits=lambda example: len(example.unit.lines) <= 12)
    assert len(short) == len(chosen(examples, 10, 10)) and max(len(each.unit.lines) for each in short) <= 12


def test_always_clean_finds_nothing_and_says_nothing_false(examples: list[Example]) -> None:
    scores = score(examples, always_clean(examples), CATALOGUE)
    assert (scores.injected.found, scores.hygiene.found) == (0, 0)
    assert (scores.false_per_100_clean.value, scores.validity.value) == (0.0, 1.0)


def test_ruff_alone_finds_hygiene_as_written_and_nothing_injected(examples: list[Example]) -> None:
    scores = score(examples, ruff_alone(examples, CATALOGUE), CATALOGUE)
    assert scores.injected.found == scores.injected.false == 0
    assert scores.hygiene_natural.f1 == 1.0
    assert scores.hygiene_planted.recall == 1.0
    assert scores.fix_exact.value == 0.0

"""The measuring commands measure what they say: changes that can be made, rows that are alike, peaks that are seen."""

from pathlib import Path

import pytest
import torch

from bench.ablations import CHANGES, overrides
from bench.peak import forget_peak, peak
from bench.rows import RandomRows, plain_tokenizer
from compress.recipe_file import load_recipe

NANO = Path(__file__).parents[2] / "recipes" / "nano.yaml"


@pytest.mark.parametrize("change", CHANGES)
def test_every_ablation_is_a_recipe_that_differs_in_that_alone(change: str) -> None:
    plain, changed = (
        load_recipe(NANO, overrides(NANO, name, seed=8, everywhere=[])) for name in ("as the recipe is", change)
    )
    assert changed.seed == plain.seed == 8
    assert (changed.data, changed.train, changed.evaluate) == (plain.data, plain.train, plain.evaluate)
    assert ((changed.distill, changed.student) == (plain.distill, plain.student)) == (
        change in ("as the recipe is", f"T = {plain.distill.temperature:g}")
    )


def test_random_rows_are_the_same_each_time_and_have_no_padding() -> None:
    first, again = (RandomRows(count=5, length=32, answer=6, vocabulary=100) for _ in range(2))
    assert first.rows == again.rows and len(first) == 5
    assert {(len(row.ids), len(row.ids) - row.answer_start) for row in first.rows} == {(32, 6)}
    assert len(plain_tokenizer(100)) == 100


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU its memory is measured, not this process's")
def test_a_peak_is_seen_after_what_made_it_is_gone() -> None:
    before = forget_peak()
    large = bytearray(64 << 20)
    large[::4096] = b"x" * len(large[::4096])
    del large
    assert 60 << 20 <= peak() - before <= 96 << 20
    assert peak() - forget_peak() >= 32 << 20

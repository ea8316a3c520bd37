"""The `distill` section of a recipe: what goes together, and what is refused with what to do instead."""

from pathlib import Path

import pytest

from compress.errors import RecipeError
from compress.recipe import AttentionLoss, Distill, HiddenLoss, Ramp
from compress.recipe_file import load_recipe

HEAD = "name: small\ndata: {corpus: [stdlib]}\nteacher: {model: some/teacher}\nstudent: {model: some/student}\n"


def distill(folder: Path, text: str) -> Distill:
    file = folder / "recipe.yaml"
    file.write_text(f"{HEAD}distill: {text}\n")
    return load_recipe(file).distill


def test_the_defaults_are_cached_forward_kl_at_three(tmp_path: Path) -> None:
    found = distill(tmp_path, "{}")
    assert (found.temperature, found.alpha, found.objective) == (3.0, 0.3, "forward_kl")
    assert (found.teacher, found.labels, found.hidden, found.attention) == ("cached", "top_k", None, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{alpha_schedule: [0.5, 0.3, 0.1]}", Distill(alpha_schedule=[0.5, 0.3, 0.1])),
        (
            "{alpha_schedule: {type: cosine, start: 0.5, end: 0.1}}",
            Distill(alpha_schedule=Ramp(start=0.5, end=0.1, type="cosine")),
        ),
        ("{temperature_schedule: [4, 2, 1]}", Distill(temperature_schedule=[4.0, 2.0, 1.0])),
        ("{labels: sampled, samples: 32}", Distill(labels="sampled", samples=32)),
        (
            "{teacher: online, hidden: {kind: cosine, layer_map: [6, 12, 18]}}",
            Distill(teacher="online", hidden=HiddenLoss(kind="cosine", layer_map=(6, 12, 18))),
        ),
        (
            "{teacher: online, attention: {weight: 0.1, layer_map: {6: 8}}}",
            Distill(teacher="online", attention=AttentionLoss(weight=0.1, layer_map={6: 8})),
        ),
    ],
)
def test_what_a_recipe_says_is_what_is_meant(tmp_path: Path, text: str, expected: Distill) -> None:
    assert distill(tmp_path, text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{hidden: {}}", "no hidden states and no attention: set `distill.teacher: online`"),
        ("{attention: {weight: 0.1}}", "no hidden states and no attention: set `distill.teacher: online`"),
        ("{objective: mse}", "logits of the whole vocabulary.*set `distill.teacher: online`"),
        ("{labels: sampled, objective: jsd}", "estimate forward_kl only, not jsd: take `labels: top_k`"),
        ("{temperature_schedule: {start: 4, end: 1}}", "give temperature_schedule a list"),
        ("{temperature_schedule: [2, 0]}", "temperature must be above 0"),
        ("{temperature_schedule: []}", "temperature_schedule needs at least one value"),
        ("{alpha_schedule: []}", "alpha_schedule needs at least one value"),
        ("{alpha_schedule: {start: 0.5, end: 1.5}}", "between 0 and 1"),
        ("{alpha_schedule: {start: 0.5, ende: 0.1}}", "unknown key `ende`.*did you mean `end`"),
        ("{objective: jsd, beta: 1}", "take the objective forward_kl or reverse_kl"),
        ("{objective: kl}", "Invalid enum value 'kl'.*distill.objective"),
        ("{top_k: 0}", "at least 1"),
        ("{teacher: online, hidden: {weight: 0}}", "weight must be above 0; leave the section out"),
        ("{teacher: online, hidden: {wieght: 1}}", "unknown key `wieght`.*did you mean `weight`"),
    ],
)
def test_what_cannot_be_done_is_refused_with_what_to_do(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        distill(tmp_path, text)

"""The catalogue: closed, complete, and able to explain every rule."""

from pathlib import Path

import msgspec
import pytest

from bundle.rules import Catalogue, Rule, load_catalogue
from compress.data.defects import DEFECTS
from compress.data.planted_hygiene import PLANTED_HYGIENE

CATALOGUE = load_catalogue()


def test_ids_are_unique_and_fit_for_a_fingerprint() -> None:
    assert len(set(CATALOGUE.ids)) == len(CATALOGUE.rules) > 10
    assert all(rule_id.replace("-", "").isalpha() and rule_id.islower() for rule_id in CATALOGUE.ids)


def test_a_linter_code_belongs_to_one_hygiene_rule() -> None:
    codes = [code for rule in CATALOGUE.rules for code in rule.linter]
    assert len(codes) == len(set(codes))
    assert all(bool(rule.linter) == (rule.origin == "hygiene") for rule in CATALOGUE.rules)


def test_every_injected_rule_has_a_planter_and_every_planter_a_rule() -> None:
    assert {rule.id for rule in CATALOGUE.rules if rule.origin == "injected"} == set(DEFECTS)
    assert {CATALOGUE[rule].origin for rule in PLANTED_HYGIENE} == {"hygiene"}


@pytest.mark.parametrize("rule", CATALOGUE.rules, ids=lambda rule: rule.id)
@pytest.mark.parametrize("fix", ["{new}", None])
def test_a_rule_explains_itself_with_and_without_a_fix(rule: Rule, fix: str | None) -> None:
    said = rule.explain("{old} {0}", fix)
    assert "{old} {0}" in said
    assert "{at}" not in said and "{fix}" not in said and "`None`" not in said
    if "{fix}" in rule.hint:
        assert ("{new}" in said) == (fix is not None)


def test_a_rule_is_found_by_id_and_an_unknown_one_names_those_there_are() -> None:
    assert CATALOGUE["off-by-one"].severity == "error"
    with pytest.raises(KeyError, match=r"no rule 'off-by-two'.*off-by-one"):
        CATALOGUE["off-by-two"]


@pytest.mark.parametrize(
    "change",
    [("origin: injected", "origin: guessed"), ("severity: error", "severity: fatal"), ("title:", "name:")],
)
def test_a_file_that_is_no_catalogue_is_refused(tmp_path: Path, change: tuple[str, str]) -> None:
    file = tmp_path / "rules.yaml"
    rule = "language: python\nrules:\n- {id: a, origin: injected, severity: error, title: A, message: B, hint: C}\n"
    file.write_text(rule)
    assert isinstance(load_catalogue(file), Catalogue)
    file.write_text(rule.replace(*change))
    with pytest.raises(msgspec.ValidationError):
        load_catalogue(file)

"""The pages in docs/ name what there is: every key, setting, option and rule, with its default, and no other."""

import argparse
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from bundle.manifest import Manifest
from bundle.rules import load_catalogue
from compress import recipe
from compress.evaluate import Evaluation
from compress.evaluation.scores import Scores
from compress.stages import STAGES
from serve.client.cli import build_parser
from serve.settings import ENVIRONMENT_PREFIX, Settings

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def section(page: str, heading: str) -> str:
    """The text below a heading, up to the next one of its level or higher."""
    text = (DOCS / page).read_text(encoding="utf-8")
    found = re.search(rf"^(#+) {re.escape(heading)}$", text, re.MULTILINE)
    assert found is not None, f"{page} has no heading {heading!r}"
    return re.split(rf"^#{{1,{len(found[1])}}} ", text[found.end() :], maxsplit=1, flags=re.MULTILINE)[0]


def table(page: str, heading: str) -> dict[str, list[str]]:
    """The rows of the tables below a heading: the names in the first cell -> the other cells."""
    rows: dict[str, list[str]] = {}
    for line in section(page, heading).splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        for name in re.findall(r"`([^`]+)`", cells[0]) if line.startswith("|") else ():
            rows[name] = cells[1:]
    return rows


def documented(cell: str) -> Any:
    """A default as a table says it: a value, perhaps in backquotes, before any remark."""
    value = re.split(r"[:;]", cell.replace("`", ""), maxsplit=1)[0]
    return None if value == "none" else yaml.safe_load(value)


def defaults(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Every field of a section and its default; a required one has `required`."""
    found = {}
    for field in msgspec.structs.fields(kind):
        if field.required:
            found[field.name] = "required"
        elif field.default is not msgspec.NODEFAULT:
            found[field.name] = field.default
        else:
            found[field.name] = field.default_factory()
    return found


@pytest.mark.parametrize(
    ("heading", "kind"),
    [
        ("data", recipe.Data),
        ("teacher", recipe.Teacher),
        ("distill", recipe.Distill),
        ("train", recipe.Train),
    ],
)
def test_every_key_of_a_recipe_is_there_with_its_default(heading: str, kind: type[msgspec.Struct]) -> None:
    assert {name: documented(cells[0]) for name, cells in table("compress.md", heading).items()} == defaults(kind)


def test_the_keys_of_evaluate_export_and_gate_are_there_with_their_defaults() -> None:
    evaluate = {name: documented(cells[0]) for name, cells in table("compress.md", "evaluate").items()}
    assert evaluate == {**defaults(recipe.Evaluate), "gate": "all 0"}
    assert set(table("compress.md", "The gate")) - {"evaluate.gate"} == set(defaults(recipe.Gate))
    assert set(defaults(recipe.Gate).values()) == {0.0}
    exports = {name: documented(cells[0]) for name, cells in table("compress.md", "quantize, export").items()}
    assert exports == {
        "quantize": {},
        "export.onnx": {},
        **{f"quantize.{name}": value for name, value in defaults(recipe.Quantize).items()},
        **{f"export.onnx.{name}": value for name, value in defaults(recipe.Onnx).items()},
        "export.cuda": None,
        **{f"export.cuda.{name}": value for name, value in defaults(recipe.Cuda).items()},
        "export.vllm": None,
        **{f"export.vllm.{name}": value for name, value in defaults(recipe.W4A16).items()},
    }


@pytest.mark.parametrize(
    "kind",
    [
        recipe.Recipe,
        recipe.Student,
        recipe.Scratch,
        recipe.Lora,
        recipe.Ramp,
        recipe.HiddenLoss,
        recipe.AttentionLoss,
        recipe.TeacherAnswers,
        recipe.OnPolicy,
        recipe.Recover,
    ],
)
def test_other_keys_of_a_recipe_are_named(kind: type[msgspec.Struct]) -> None:
    text = section("compress.md", "The recipe")
    assert [name for name in kind.__struct_fields__ if f"`{name}`" not in text] == []


def test_every_stage_is_there_in_its_order() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", section("compress.md", "Stages"), re.MULTILINE)
    assert tuple(rows) == STAGES


def test_every_setting_of_the_server_is_there_with_its_default() -> None:
    rows = [line.strip("| ").split(" | ") for line in section("serve.md", "Settings").splitlines() if "`DEEP" in line]
    told = {variable.strip("`"): (flag.strip("`"), documented(default)) for flag, variable, default, _ in rows}
    assert told == {
        f"{ENVIRONMENT_PREFIX}{name.upper()}": ("BUNDLE" if name == "bundle" else f"--{name.replace('_', '-')}", value)
        for name, value in defaults(Settings).items()
    }


def test_every_option_of_the_check_is_there() -> None:
    options = re.findall(r"^\| `(--[a-z-]+)", section("check.md", "Options"), re.MULTILINE)
    parser: argparse.ArgumentParser = build_parser()
    assert set(options) == set(re.findall(r"--[a-z-]+", parser.format_usage()))


def test_every_measure_of_an_evaluation_is_defined() -> None:
    text = section("evaluation.md", "The measures")
    assert [name for name in Scores.__struct_fields__ if f"`{name}`" not in text] == []


def test_every_key_of_a_report_and_of_a_manifest_is_there() -> None:
    assert set(table("compress.md", "The report")) >= set(Evaluation.__struct_fields__)
    assert set(table("bundle.md", "The manifest")) >= set(Manifest.__struct_fields__)


def test_every_rule_is_there_with_its_severity() -> None:
    rules = {rule.id: rule.severity for rule in load_catalogue().rules}
    assert {name: cells[0] for name, cells in table("bundle.md", "The rules").items()} == rules


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", page.read_text(encoding="utf-8")):
        linked = page.parent / target if target else page
        assert linked.is_file(), f"{page.name} links to {target}"
        headings = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert not anchor or anchor in anchors, f"{page.name} links to {target}#{anchor}"


def test_every_key_that_is_advised_to_be_changed_exists() -> None:
    text = section("scale.md", "When it does not go well")
    sections = {field.name: field.type for field in msgspec.structs.fields(recipe.Recipe)}
    for name, key in re.findall(r"`(data|teacher|distill|train|quantize|export|evaluate)\.(\w+)", text):
        kinds = getattr(sections[name], "__args__", (sections[name],))
        assert any(key in getattr(kind, "__struct_fields__", ()) for kind in kinds), f"{name}.{key}"

"""How a student is asked: one prefix for all, the code as data, one suffix."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from bundle.prompt import TEMPLATES, Prompt
from bundle.rules import load_catalogue
from bundle.units import Unit, UnitLine, cut_units
from tests.support.tiny_bundle import SPECIAL_TOKENS, make_tiny_tokenizer

CATALOGUE = load_catalogue()
TOKENIZER = make_tiny_tokenizer()
SPECIAL_IDS = {TOKENIZER.token_to_id(token) for token in SPECIAL_TOKENS}
UNIT = cut_units("def f(x):\n    return x + 1\n")[0]


def template(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def unit_of(text: str) -> Unit:
    return Unit("function", "f", (UnitLine(1, "def f():", 0), UnitLine(2, text, 0)), None)


@pytest.fixture(params=["compact", "chat"])
def prompt(request: pytest.FixtureRequest) -> Prompt:
    return Prompt(template(request.param), CATALOGUE, TOKENIZER)


def test_a_prompt_is_prefix_code_suffix(prompt: Prompt) -> None:
    code = TOKENIZER.encode(UNIT.numbered(), add_special_tokens=False).ids
    assert prompt.encode(UNIT) == prompt.prefix_ids + code + prompt.suffix_ids
    text = TOKENIZER.decode(prompt.encode(UNIT), skip_special_tokens=False)
    assert text == f"{prompt.prefix}1 def f(x):\n2     return x + 1{prompt.suffix}"


def test_the_same_unit_gets_the_same_tokens_from_every_prompt_of_its_template(prompt: Prompt) -> None:
    again = Prompt(prompt.prefix + "{{ code }}" + prompt.suffix, CATALOGUE, TOKENIZER)
    assert again.encode(UNIT) == prompt.encode(UNIT) == prompt.encode(UNIT)


def test_the_templates_own_special_tokens_are_single_tokens(prompt: Prompt) -> None:
    assert SPECIAL_IDS & set(prompt.prefix_ids) and SPECIAL_IDS & set(prompt.suffix_ids)


@pytest.mark.parametrize("special", SPECIAL_TOKENS)
def test_code_that_spells_a_special_token_stays_ordinary_text(prompt: Prompt, special: str) -> None:
    unit = unit_of(f"    return '{special}'  # {special}{special}")
    code = prompt.encode_data(unit.numbered())
    assert SPECIAL_IDS.isdisjoint(code)
    assert TOKENIZER.decode(code, skip_special_tokens=False) == unit.numbered()


@given(st.lists(st.one_of(st.sampled_from([*SPECIAL_TOKENS, "<|", "|>", "im_end", " "]), st.text(max_size=5))))
def test_no_text_becomes_a_special_token_and_all_of_it_is_kept(parts: list[str]) -> None:
    prompt = Prompt(template("compact"), CATALOGUE, TOKENIZER)
    text = "".join(parts)
    ids = prompt.encode_data(text)
    assert SPECIAL_IDS.isdisjoint(ids)
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


def test_the_callers_tokenizer_is_not_changed() -> None:
    tokenizer = Tokenizer.from_str(TOKENIZER.to_str())
    Prompt(template("compact"), CATALOGUE, tokenizer).encode(UNIT)
    assert tokenizer.encode("<|im_end|>").ids == [tokenizer.token_to_id("<|im_end|>")]


def test_the_chat_template_lists_every_rule() -> None:
    lines = Prompt(template("chat"), CATALOGUE, TOKENIZER).prefix.split("\n")
    assert [line for line in lines if line.startswith("- ")] == [
        f"- {rule.id}: {rule.title}" for rule in CATALOGUE.rules
    ]


@pytest.mark.parametrize("text", ["no code", "{{ code }}{{ code }}", "{% for rule in rules %}{{ code }}{% endfor %}"])
def test_a_template_uses_the_code_exactly_once(text: str) -> None:
    with pytest.raises(ValueError, match="exactly once"):
        Prompt(text, CATALOGUE, TOKENIZER)


@pytest.mark.parametrize(
    "text",
    [
        "{{ code }}{{ colour }}",
        "{{ code }}{% if %}",
        "{{ code }}{{ code.__class__ }}",
        "{{ code }}{{ rules.__class__.__mro__ }}",
    ],
    ids=["unknown name", "broken syntax", "internals of a string", "internals of a tuple"],
)
def test_a_template_that_cannot_be_trusted_or_read_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="prompt template cannot be filled in"):
        Prompt(text, CATALOGUE, TOKENIZER)

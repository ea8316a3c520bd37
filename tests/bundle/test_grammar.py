"""Grammars: whatever the student's weights, an answer can be read, and names only what it may."""

import re

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from bundle.answer import MAX_FINDINGS, MAX_SPAN_CHARS, Answer, AnswerFinding, parse_answer, write_answer
from bundle.grammar import AnswerGrammar
from bundle.rules import load_catalogue
from tests.support.tiny_bundle import make_tiny_tokenizer

RULES = load_catalogue().ids
code_lines = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=80)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return make_tiny_tokenizer()


@pytest.fixture(scope="module")
def grammar(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> AnswerGrammar:
    file = tmp_path_factory.mktemp("grammar") / "tokenizer.json"
    tokenizer.save(str(file))
    return AnswerGrammar(file, tokenizer.get_vocab_size(), (tokenizer.token_to_id("<|im_end|>"),))


@settings(max_examples=60, deadline=None)
@given(
    rules=st.sets(st.sampled_from(RULES), min_size=1),
    lines=st.lists(code_lines, min_size=1, max_size=40),
    seed=st.integers(0, 2**32 - 1),
)
@example(rules={"off-by-one"}, lines=["\\"], seed=0)
def test_every_walk_through_the_grammar_is_an_answer(
    grammar: AnswerGrammar, rules: set[str], lines: list[str], seed: int
) -> None:
    """A student that picks any allowed token, with the same chance for each."""
    random = np.random.default_rng(seed)
    matcher = grammar.matcher(tuple(sorted(rules)), lines)
    ids = matcher.take_forced()
    while not matcher.finished:
        token = int(random.choice(np.flatnonzero(matcher.allowed())))
        matcher.consume(token)
        ids += [token, *matcher.take_forced()]
    answer = parse_answer(b"".join(grammar.token_bytes[token] for token in ids).decode())
    assert len(answer.findings) <= MAX_FINDINGS
    for finding in answer.findings:
        assert finding.rule in rules
        assert 1 <= finding.line <= len(lines)
        named = lines[finding.line - 1]
        assert not named.strip() or finding.at in named or len(finding.at) == MAX_SPAN_CHARS


@settings(max_examples=20, deadline=None)
@given(lines=st.lists(code_lines, min_size=1, max_size=4), seed=st.integers(0, 2**32 - 1))
@example(lines=["a" * 200], seed=0)
def test_what_is_permitted_at_a_glance_is_allowed_and_all_of_it_where_there_is_a_choice(
    grammar: AnswerGrammar, lines: list[str], seed: int
) -> None:
    random = np.random.default_rng(seed)
    matcher = grammar.matcher(RULES, lines)
    at_a_glance = 0
    for _ in range(60):
        matcher.take_forced()
        if matcher.finished:
            break
        allowed = matcher.allowed()
        permitted = np.array([matcher.permits(token) for token in range(grammar.vocab_size)])
        assert not (permitted & ~allowed).any()
        assert not permitted.any() or (permitted == allowed).all()
        at_a_glance += permitted.any()
        matcher.consume(int(random.choice(np.flatnonzero(allowed))))
    assert at_a_glance


# llguidance writes every character but DEL.
text = st.text(st.characters(codec="utf-8", exclude_characters="\x7f"), max_size=60)
LINES = (
    '    if text[:1] == \'\\\\\' and name_of(b"\\x00") != "a\\tb":  # größer → naïve 🙂',
    "return [(a << 2) - 1, -1, --x, x_1 ** 2, f'{value!r:>10}']",
    "",
    "raise KeyError('No message with key: %s' % key)",
)


@st.composite
def quoting_findings(draw: st.DrawFn) -> AnswerFinding:
    """Findings that quote whole words of the line they name, as those of the training data do."""
    line = draw(st.sampled_from([1, 2, 4]))
    words = re.findall(r"\w+|.", LINES[line - 1].strip())
    start = draw(st.integers(0, len(words) - 1))
    at = "".join(words[start : draw(st.integers(start + 1, len(words)))])
    assume(len(at) <= MAX_SPAN_CHARS)
    fix = draw(st.none() | text)
    return AnswerFinding(rule=draw(st.sampled_from(RULES)), line=line, at=at, fix=fix)


@settings(max_examples=100, deadline=None)
@given(answer=st.builds(Answer, findings=st.lists(quoting_findings(), max_size=MAX_FINDINGS).map(tuple), summary=text))
def test_a_student_may_write_every_answer_in_the_tokens_it_was_trained_on(
    grammar: AnswerGrammar, tokenizer: Tokenizer, answer: Answer
) -> None:
    """Training encodes whole answers; at no step may a mask or a forced token lead elsewhere."""
    ids = tokenizer.encode(write_answer(answer), add_special_tokens=False).ids
    matcher = grammar.matcher(RULES, LINES)
    position = 0
    while True:
        forced = matcher.take_forced()
        assert forced == ids[position : position + len(forced)]
        position += len(forced)
        if position == len(ids):
            break
        assert matcher.allowed()[ids[position]], grammar.token_bytes[ids[position]]
        matcher.consume(ids[position])
        position += 1
    assert matcher.finished


def test_special_tokens_are_never_allowed_inside_an_answer(grammar: AnswerGrammar, tokenizer: Tokenizer) -> None:
    matcher = grammar.matcher(RULES, ["x = 1"])
    for token in tokenizer.encode('{"findings":[],"summary":"a', add_special_tokens=False).ids:
        matcher.consume(token)
    special = {tokenizer.token_to_id(name) for name in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")}
    assert not special & set(np.flatnonzero(matcher.allowed()).tolist())

"""A teacher from scratch: its tokenizer keeps answers short, and its loss weighs an answer's parts apart."""

import textwrap
from pathlib import Path

import pytest
import torch

from bundle.answer import CLOSING_FINDINGS, OPENING
from compress.code_training import CodeAndAnswerTrainer, LossWeights, line_labels
from compress.data.examples import Example
from compress.data.tokens import TokenDataset, collate, make_prompt
from compress.recipe import Scratch, Train
from compress.scratch import answer_parts, make_teacher

SHAPE = Scratch(
    vocab_size=700,
    num_hidden_layers=1,
    hidden_size=32,
    intermediate_size=64,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=512,
)


@pytest.fixture(scope="module")
def teacher(catalogue, examples: list[Example]):
    texts = [example.unit.numbered() for example in examples] + [textwrap.__doc__ or ""]
    return make_teacher(SHAPE, texts, catalogue, seed=1)


def test_the_vocabulary_is_the_models_and_padding_is_not_eos(teacher) -> None:
    model, tokenizer = teacher
    assert model.config.vocab_size == len(tokenizer) <= SHAPE.vocab_size
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_the_decision_is_one_token_and_a_line_number_another(teacher, catalogue) -> None:
    _, tokenizer = teacher
    for rule in catalogue.ids:
        text = f'{OPENING}{{"rule":"{rule}","line":17,"at":"x","fix":null}}{CLOSING_FINDINGS}'
        tokens = tokenizer.convert_ids_to_tokens(tokenizer.encode(text, add_special_tokens=False))
        assert tokens[:4] == [OPENING, f'{{"rule":"{rule}","line":', "17", ',"at":"']
        assert tokens[-1] == CLOSING_FINDINGS
    clean = tokenizer.encode(f'{OPENING}{CLOSING_FINDINGS}Do it."}}', add_special_tokens=False)
    assert tokenizer.decode(clean) == f'{OPENING}{CLOSING_FINDINGS}Do it."}}'


def test_each_part_of_an_answer_has_its_weight(teacher, catalogue, examples, tmp_path: Path) -> None:
    model, tokenizer = teacher
    prompt = make_prompt("compact", catalogue, tokenizer)
    example = next(each for each in examples if len(each.findings) == 1 and each.has_summary)
    dataset = TokenDataset([example], prompt, tokenizer.eos_token_id, max_tokens=1000)
    trainer = CodeAndAnswerTrainer(
        model=model,
        tokenizer=tokenizer,
        train=Train(max_steps=1, bf16=False),
        dataset=dataset,
        out=tmp_path,
        seed=1,
        description="test",
        weights=LossWeights(code=0.25, line=1.0, clean=8.0, decision=20.0, finding=4.0, summary=1.0),
        parts=answer_parts(tokenizer, catalogue),
    )
    batch = collate([dataset[0]], tokenizer.pad_token_id)
    targets, labels = batch["input_ids"][:, 1:], batch["labels"][:, 1:]
    weights = trainer._token_weights(targets, labels != -100)[0]
    weighed = list(zip(tokenizer.convert_ids_to_tokens(targets[0]), weights.tolist(), strict=True))
    answer = weighed[dataset.rows[0].answer_start - 1 : len(dataset.rows[0].ids) - 1]
    rule, line = answer[1], answer[2]
    assert rule == (f'{{"rule":"{example.findings[0].rule}","line":', 20.0)
    assert line == (str(example.findings[0].line), 20.0)
    closing = next(place for place, (token, _) in enumerate(answer) if token == CLOSING_FINDINGS)
    assert answer[closing][1] == 8.0
    assert {weight for _, weight in answer[3:closing]} == {4.0}
    assert {weight for _, weight in answer[closing + 1 :]} == {1.0}
    before = weights[: dataset.rows[0].answer_start - 1]
    assert torch.all(before == before[0]) and before[0] < 4.0


def test_every_line_is_labelled_with_the_rule_it_breaks(teacher, catalogue, examples) -> None:
    _, tokenizer = teacher
    prompt = make_prompt("compact", catalogue, tokenizer)
    parts = answer_parts(tokenizer, catalogue)
    dataset = TokenDataset(examples[:20], prompt, tokenizer.eos_token_id, max_tokens=1000)
    assert len(dataset) == 20
    batch = collate([dataset[index] for index in range(20)], tokenizer.pad_token_id)
    ends, rules = line_labels(batch["input_ids"], batch["labels"], parts)
    for row, example in enumerate(examples[:20]):
        broken: dict[int, int] = {}
        for finding in example.findings:
            broken.setdefault(finding.line, catalogue.ids.index(finding.rule) + 1)
        wanted = [broken.get(number, 0) for number in range(1, len(example.unit.lines) + 1)]
        assert rules[row][ends[row]].tolist() == wanted
    assert rules.any() and not rules[~ends].any()

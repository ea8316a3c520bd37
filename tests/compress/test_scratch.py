"""A teacher from scratch: its tokenizer keeps answers short, and its loss weighs an answer's parts apart."""

import copy
import textwrap
from pathlib import Path

import pytest
import torch

from bundle.answer import CLOSING_FINDINGS, OPENING
from compress.data.examples import Example
from compress.data.tokens import TokenDataset, make_prompt
from compress.from_scratch import CodeAndAnswerTrainer, LossWeights, token_notes
from compress.recipe import Scratch, Train
from compress.scratch import answer_parts, make_teacher

WEIGHTS = LossWeights(code=0.25, line=1.0, clean=8.0, decision=20.0, finding=4.0, summary=1.0)
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


def test_each_part_of_an_answer_has_its_weight(teacher, catalogue, examples) -> None:
    _, tokenizer = teacher
    prompt = make_prompt("compact", catalogue, tokenizer)
    example = next(each for each in examples if len(each.findings) == 1 and each.has_summary)
    tokens = TokenDataset([example], prompt, tokenizer.eos_token_id, max_tokens=1000).rows[0]
    weights = token_notes(tokens, WEIGHTS, answer_parts(tokenizer, catalogue))["weight"]
    weighed = list(zip(tokenizer.convert_ids_to_tokens(tokens.ids), weights, strict=True))
    answer = weighed[tokens.answer_start :]
    rule, line = answer[1], answer[2]
    assert rule == (f'{{"rule":"{example.findings[0].rule}","line":', 20.0)
    assert line == (str(example.findings[0].line), 20.0)
    closing = next(place for place, (token, _) in enumerate(answer) if token == CLOSING_FINDINGS)
    assert answer[closing][1] == 8.0
    assert {weight for _, weight in answer[3:closing]} == {4.0}
    assert {weight for _, weight in answer[closing + 1 :]} == {1.0}
    assert weights[0] == 0.0, "nothing predicts the first token"
    assert set(weights[1 : tokens.answer_start]) == {0.25}


def test_every_line_is_labelled_with_the_rule_it_breaks(teacher, catalogue, examples) -> None:
    _, tokenizer = teacher
    prompt = make_prompt("compact", catalogue, tokenizer)
    parts = answer_parts(tokenizer, catalogue)
    some = [example for example in examples if example.findings][:10] + list(examples[:10])
    dataset = TokenDataset(some, prompt, tokenizer.eos_token_id, max_tokens=1000)
    for example, tokens in zip(some, dataset.rows, strict=True):
        broken: dict[int, int] = {}
        for finding in example.findings:
            broken.setdefault(finding.line, catalogue.ids.index(finding.rule) + 2)
        wanted = [broken.get(number, 1) for number in range(1, len(example.unit.lines) + 1)]
        noted = token_notes(tokens, WEIGHTS, parts)["line_rule"]
        assert [rule for rule in noted if rule > 0] == wanted


def test_the_loss_is_the_same_packed_or_padded(teacher, catalogue, examples, tmp_path: Path) -> None:
    model, tokenizer = teacher
    prompt = make_prompt("compact", catalogue, tokenizer)
    dataset = TokenDataset(list(examples[:12]), prompt, tokenizer.eos_token_id, max_tokens=400)
    losses = []
    for packing in (False, True):
        trainer = CodeAndAnswerTrainer(
            model=copy.deepcopy(model),
            tokenizer=tokenizer,
            train=Train(max_steps=1, bf16=False, max_tokens_per_batch=100_000, packing=packing),
            dataset=dataset,
            out=tmp_path,
            seed=1,
            description="test",
            weights=WEIGHTS._replace(code=0.0),  # of the code a random part is drawn
            parts=answer_parts(tokenizer, catalogue),
        )
        torch.manual_seed(5)
        torch.nn.init.normal_(trainer.model.line_head.weight)
        torch.nn.init.zeros_(trainer.model.line_head.bias)
        batch = trainer.data_collator([dataset[index] for index in range(len(dataset))])
        assert (batch["input_ids"].shape[0] < len(dataset)) == packing
        losses.append(trainer.compute_loss(trainer.model, batch).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)

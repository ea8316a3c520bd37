"""Answers of a checkpoint: greedy, the same in any batch, each token with its log-probability."""

import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig

from bundle.grammar import AnswerMatcher
from bundle.rules import load_catalogue
from compress.data.tokens import TokenDataset
from compress.evaluation.checkpoint_generate import CheckpointLoop, computing_dtype
from compress.evaluation.generate import Decoding, Question, answers_from_checkpoint, token_budget_batches
from compress.quantize import quantize_nf4

MOST = 12


LINES = ("def first(items):", "    return items[0]")


@pytest.fixture
def prompts(dataset: TokenDataset) -> list[list[int]]:
    return [row.ids[: row.answer_start] for row in dataset.rows[:6]]


@pytest.fixture
def questions(prompts: list[list[int]]) -> list[Question]:
    return [Question(prompt, LINES) for prompt in prompts]


@pytest.fixture
def decoding(tiny_checkpoint: Path, model, tokenizer) -> Decoding:
    return Decoding(
        tokenizer_file=tiny_checkpoint / "tokenizer.json",
        rules=load_catalogue().ids,
        vocab_size=model.config.vocab_size,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_answer_tokens=MOST,
        max_tokens_per_batch=400,
        timed=2,
    )


@torch.no_grad()
def by_hand(
    model: torch.nn.Module, prompt: list[int], eos: int, matcher: AnswerMatcher | None = None
) -> tuple[list[int], list[float]]:
    """Greedy decoding without a cache, one whole forward pass a token, log-probabilities in float64."""
    ids, logprobs = list(prompt), []
    while len(ids) - len(prompt) < MOST and (len(ids) == len(prompt) or ids[-1] != eos):
        logits = model(torch.tensor([ids])).logits[0, -1].double()
        allowed = range(len(logits)) if matcher is None else matcher.allowed().nonzero()[0].tolist()
        ids.append(max(allowed, key=lambda token: float(logits[token])))
        logprobs.append(float(logits.log_softmax(-1)[ids[-1]]))
        if matcher is not None:
            matcher.consume(ids[-1])
    return ids[len(prompt) :], logprobs


def test_a_batch_answers_as_greedy_decoding_by_hand(
    tiny_checkpoint: Path, model, prompts, tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compress.evaluation.checkpoint_generate.computing_dtype", lambda: torch.float32)
    loop = CheckpointLoop(tiny_checkpoint, tokenizer.eos_token_id, tokenizer.pad_token_id, MOST)
    for prompt, answer in zip(prompts, loop.answer(prompts), strict=True):
        ids, logprobs = by_hand(model.eval(), prompt, tokenizer.eos_token_id)
        assert answer.ids == ids
        assert answer.logprobs == pytest.approx(logprobs, abs=1e-4)


def test_a_matcher_leaves_only_what_it_allows_and_the_log_probabilities_are_the_models(
    tiny_checkpoint: Path, model, prompts, tokenizer, decoding: Decoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compress.evaluation.checkpoint_generate.computing_dtype", lambda: torch.float32)
    loop = CheckpointLoop(tiny_checkpoint, tokenizer.eos_token_id, tokenizer.pad_token_id, MOST)
    grammar = decoding.grammar()
    matchers = [grammar.matcher(decoding.rules, LINES) for _ in prompts]
    for prompt, answer in zip(prompts, loop.answer(prompts, matchers), strict=True):
        matcher = grammar.matcher(decoding.rules, LINES)
        ids, logprobs = by_hand(model.eval(), prompt, tokenizer.eos_token_id, matcher)
        assert answer.ids == ids
        assert answer.logprobs == pytest.approx(logprobs, abs=1e-4)
        assert answer.aided == (ids != by_hand(model.eval(), prompt, tokenizer.eos_token_id)[0])


def test_settings_of_the_checkpoint_that_are_not_greedy_are_ignored(
    tiny_checkpoint: Path, prompts, tokenizer, tmp_path: Path
) -> None:
    loops = []
    for repetition_penalty in (1.0, 5.0):
        folder = tmp_path / str(repetition_penalty)
        folder.mkdir()
        for file in tiny_checkpoint.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        settings = GenerationConfig(repetition_penalty=repetition_penalty, do_sample=True, temperature=3.0, top_k=50)
        settings.save_pretrained(folder)
        loops.append(CheckpointLoop(folder, tokenizer.eos_token_id, tokenizer.pad_token_id, MOST))
    assert loops[0].answer(prompts[:2]) == loops[1].answer(prompts[:2])


def test_a_process_answers_every_prompt_in_its_place(tiny_checkpoint: Path, questions, decoding: Decoding) -> None:
    answers = answers_from_checkpoint(tiny_checkpoint, questions, decoding)
    backwards = answers_from_checkpoint(tiny_checkpoint, questions[::-1], decoding)
    assert [answer.ids for answer in answers.generated] == [answer.ids for answer in backwards.generated[::-1]]
    assert all(len(answer.ids) == len(answer.logprobs) for answer in answers.generated)
    assert answers.peak_memory_bytes > 0 and answers.tokens_per_second > 0


def test_an_nf4_checkpoint_answers_with_log_probabilities(
    tiny_checkpoint: Path, dataset: TokenDataset, questions, decoding: Decoding, tmp_path: Path
) -> None:
    quantize_nf4(tiny_checkpoint, dataset, tmp_path / "nf4")
    answers = answers_from_checkpoint(tmp_path / "nf4", questions[:2], decoding)
    for answer in answers.generated:
        assert 0 < len(answer.ids) == len(answer.logprobs) <= MOST
        assert all(math.isfinite(logprob) and logprob <= 0 for logprob in answer.logprobs)


@given(st.lists(st.integers(1, 500), max_size=40), st.integers(1, 2000))
def test_batches_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = list(token_budget_batches(lengths, budget))
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[place] for place in batch) <= budget


def test_it_computes_in_what_this_machine_is_fast_at() -> None:
    instructions = set(re.findall(r"\b(?:avx512_bf16|amx_bf16|bf16)\b", Path("/proc/cpuinfo").read_text()))
    native = torch.cuda.is_available() or bool(instructions)
    assert computing_dtype() == (torch.bfloat16 if native else torch.float32)

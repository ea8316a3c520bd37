"""Answers from a checkpoint or an export, each model in a process of its own so that its memory is its own."""

import multiprocessing
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from bundle.grammar import AnswerGrammar
from compress.console import quiet_libraries
from compress.evaluation.generated import Answers, Generated


class Question(msgspec.Struct, frozen=True):
    """A prompt, and the lines of the unit it is about: what the answer may name and quote."""

    prompt: list[int]
    lines: tuple[str, ...]


class Decoding(msgspec.Struct, frozen=True):
    """How questions are answered: greedily, as the grammar allows, up to `max_answer_tokens` or the EOS token.

    `max_tokens_per_batch` counts prompts and answers with their padding; `timed` is how many of the last
    questions are answered singly, one after another, for the speed.
    """

    tokenizer_file: Path
    rules: tuple[str, ...]
    vocab_size: int
    eos_token_id: int
    pad_token_id: int
    max_answer_tokens: int
    max_tokens_per_batch: int
    timed: int

    def grammar(self) -> AnswerGrammar:
        """What answers may be, as a server has it."""
        return AnswerGrammar(self.tokenizer_file, self.vocab_size, (self.eos_token_id,))


def answers_from_checkpoint(folder: Path, questions: Sequence[Question], decoding: Decoding) -> Answers:
    """Greedy answers from a transformers checkpoint (plain or bitsandbytes NF4), with log-probabilities.

    It computes in bf16 on a GPU and on a CPU that has instructions for it, else in fp32.
    """
    return _in_a_process(_checkpoint_worker, folder, questions, decoding)


def answers_from_onnx(folder: Path, head_dim: int, questions: Sequence[Question], decoding: Decoding) -> Answers:
    """Greedy answers from an ONNX export, one at a time, with log-probabilities."""
    return _in_a_process(_onnx_worker, folder, head_dim, questions, decoding)


def token_budget_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Places of `lengths` in batches of like length, the shortest first.

    A batch is as wide as its longest row and holds at most `budget` tokens, or a single row.
    """
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: lengths[place]):
        if batch and lengths[place] * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _in_a_process(worker: Callable[..., Answers], *arguments: object) -> Answers:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(worker, arguments)


def _peak_memory() -> int:
    """Peak resident set in bytes. getrusage would count the parent's memory from before the exec as well."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


def _speed(generated: list[Generated]) -> tuple[float, float]:
    seconds = sum(answer.seconds for answer in generated)
    return sum(len(answer.ids) for answer in generated) / seconds, len(generated) / seconds


def _onnx_worker(folder: Path, head_dim: int, questions: Sequence[Question], decoding: Decoding) -> Answers:
    from compress.export.onnx_generate import OnnxLoop

    loop = OnnxLoop(folder, head_dim)
    grammar = decoding.grammar()
    eos, most = decoding.eos_token_id, decoding.max_answer_tokens
    generated = [
        loop.answer(question.prompt, eos, most, grammar.matcher(decoding.rules, question.lines))
        for question in questions
    ]
    tokens, units = _speed(generated[-decoding.timed :])
    return Answers(generated, _peak_memory(), tokens, units)


def _checkpoint_worker(folder: Path, questions: Sequence[Question], decoding: Decoding) -> Answers:
    import torch

    from compress.evaluation.checkpoint_generate import CheckpointLoop

    quiet_libraries()
    loop = CheckpointLoop(folder, decoding.eos_token_id, decoding.pad_token_id, decoding.max_answer_tokens)
    grammar = decoding.grammar()

    def ask(asked: Sequence[Question]) -> list[Generated]:
        matchers = [grammar.matcher(decoding.rules, question.lines) for question in asked]
        return loop.answer([question.prompt for question in asked], matchers)

    generated: dict[int, Generated] = {}
    widths = [len(question.prompt) + decoding.max_answer_tokens for question in questions]
    for batch in token_budget_batches(widths, decoding.max_tokens_per_batch):
        generated.update(zip(batch, ask([questions[place] for place in batch]), strict=True))
    single = []
    for question in questions[-decoding.timed :]:
        begun = time.perf_counter()
        (answer,) = ask([question])
        single.append(msgspec.structs.replace(answer, seconds=time.perf_counter() - begun))
    tokens, units = _speed(single)
    memory = torch.cuda.max_memory_allocated() if loop.device == "cuda" else _peak_memory()
    return Answers([generated[place] for place in range(len(questions))], memory, tokens, units)

"""Sequence-level distillation: the teacher writes answers, and the good ones become what the student learns.

Kim & Rush (1606.07947, section 3.2), with greedy answers. A label says what was planted or linted and, where the
unit has a docstring, its summary. A teacher's answer is in its own words, always has a summary, and always ends
with EOS. It replaces a label only when it passes every filter; `provenance.jsonl` says for each example what
became of it.
"""

import math
import random
from pathlib import Path
from typing import Literal

import msgspec
from rich.progress import Progress
from transformers import PreTrainedTokenizerFast

from bundle.answer import parse_answer
from bundle.prompt import Prompt
from bundle.rules import Catalogue
from compress.data.examples import Example, write_examples
from compress.data.tokens import load_tokenizer
from compress.evaluation.answers import answer_text, read_said
from compress.evaluation.checkpoint_generate import CheckpointLoop
from compress.evaluation.generate import token_budget_batches
from compress.evaluation.generated import Generated
from compress.recipe import TeacherAnswers

EXAMPLES_FILE = "train.jsonl"
PROVENANCE_FILE = "provenance.jsonl"
_PROMPTS_PER_SHARD = 512

Verdict = Literal["accepted", "not asked", "truncated", "malformed", "disagrees", "unsure", "repeated"]


class Provenance(msgspec.Struct, frozen=True):
    """What became of one training example: line n of `provenance.jsonl` is about example n.

    Only with the verdict `accepted` is the answer what the student learns; else the example has its label still.
    """

    verdict: Verdict
    project: str
    path: str
    unit: str
    start_line: int
    planted: str | None
    confidence: float | None = None  # geometric mean of the probabilities of the answer's tokens
    answer: str | None = None  # as the teacher wrote it


def write_teacher_answers(
    teacher: Path,
    examples: list[Example],
    prompt: Prompt,
    catalogue: Catalogue,
    options: TeacherAnswers,
    max_tokens: int,
    seed: int,
    out: Path,
) -> dict[str, int]:
    """Write `train.jsonl`, with the accepted answers in the place of labels, and `provenance.jsonl` into `out`.

    Answers are kept in shards as they are written; a killed run goes on with the next shard.

    Args:
        teacher: a checkpoint folder.
        max_tokens: of prompt and answer; units that leave no room for an answer are not asked about.

    Returns:
        How many examples each verdict was given to.
    """
    tokenizer = load_tokenizer(teacher)
    encoded = prompt.encode_all([example.unit for example in examples])
    most = max_tokens - options.max_answer_tokens
    asked = _asked([len(ids) <= most for ids in encoded], options.max_units, seed)
    # The same unit may be drawn more than once: each prompt is answered once.
    prompts = [list(ids) for ids in dict.fromkeys(tuple(encoded[place]) for place in sorted(asked))]
    answers = dict(
        zip(map(tuple, prompts), _answers(teacher, tokenizer, prompts, options, out / "shards"), strict=True)
    )
    learnt, provenance = list(examples), []
    seen: set[tuple] = set()
    for place, example in enumerate(examples):
        if place not in asked:
            provenance.append(_provenance(example, "not asked"))
            continue
        verdict, replaced = _judge(example, answers[tuple(encoded[place])], tokenizer, catalogue, options)
        if replaced is not None:
            # Another draw of one unit adds nothing when the same is said about it.
            key = (example.project, example.path, example.unit.start_line, replaced.answer_text)
            if key in seen:
                verdict = msgspec.structs.replace(verdict, verdict="repeated")
            else:
                learnt[place] = replaced
            seen.add(key)
        provenance.append(verdict)
    staged = out / f"{PROVENANCE_FILE}.partial"
    staged.write_bytes(msgspec.json.Encoder().encode_lines(provenance))
    staged.replace(out / PROVENANCE_FILE)
    write_examples(out / EXAMPLES_FILE, learnt)
    return verdict_counts(out)


def verdict_counts(folder: Path) -> dict[str, int]:
    """How many examples each verdict was given to, the commonest first."""
    counts: dict[str, int] = {}
    for line in read_provenance(folder):
        counts[line.verdict] = counts.get(line.verdict, 0) + 1
    return dict(sorted(counts.items(), key=lambda pair: -pair[1]))


def read_provenance(folder: Path) -> list[Provenance]:
    """What became of each training example, in the order of `train.jsonl`."""
    return msgspec.json.Decoder(Provenance).decode_lines((folder / PROVENANCE_FILE).read_bytes())


def _asked(fits: list[bool], most: int | None, seed: int) -> set[int]:
    places = [place for place, fit in enumerate(fits) if fit]
    if most is not None and most < len(places):
        places = random.Random(seed).sample(places, most)
    return set(places)


def _answers(
    teacher: Path, tokenizer: PreTrainedTokenizerFast, prompts: list[list[int]], options: TeacherAnswers, shards: Path
) -> list[Generated]:
    """The greedy answer to each prompt, from shards where an earlier run wrote them."""
    shards.mkdir(exist_ok=True)
    files = {start: shards / f"{start:09d}.json" for start in range(0, len(prompts), _PROMPTS_PER_SHARD)}
    missing = [start for start, file in files.items() if not file.is_file()]
    if missing:
        loop = CheckpointLoop(teacher, tokenizer.eos_token_id, tokenizer.pad_token_id, options.max_answer_tokens)
        with Progress(transient=True) as progress:
            for start in progress.track(missing, description="teacher's answers"):
                answers = _answer_shard(loop, prompts[start : start + _PROMPTS_PER_SHARD], options)
                staged = files[start].with_suffix(".partial")
                staged.write_bytes(msgspec.json.encode(answers))
                staged.replace(files[start])
    kept: list[Generated] = []
    for file in files.values():
        kept += msgspec.json.decode(file.read_bytes(), type=list[Generated])
    return kept


def _answer_shard(loop: CheckpointLoop, prompts: list[list[int]], options: TeacherAnswers) -> list[Generated]:
    widths = [len(ids) + options.max_answer_tokens for ids in prompts]
    answers: dict[int, Generated] = {}
    for batch in token_budget_batches(widths, options.max_tokens_per_batch):
        answers.update(zip(batch, loop.answer([prompts[place] for place in batch]), strict=True))
    return [answers[place] for place in range(len(prompts))]


def _judge(
    example: Example,
    answer: Generated,
    tokenizer: PreTrainedTokenizerFast,
    catalogue: Catalogue,
    options: TeacherAnswers,
) -> tuple[Provenance, Example | None]:
    """The verdict on an answer, and the example with it when it was accepted."""
    text = answer_text(answer, tokenizer.backend_tokenizer, tokenizer.eos_token_id)
    confidence = math.exp(sum(answer.logprobs) / len(answer.logprobs))

    def judged(verdict: Verdict) -> Provenance:
        return _provenance(example, verdict, confidence, text)

    if answer.ids[-1] != tokenizer.eos_token_id:
        return judged("truncated"), None
    said = read_said(text, [], example, catalogue)
    # A finding that contradicts itself is dropped when it is served, and must not be learnt.
    if not said.valid or len(said.findings) != len(parse_answer(text).findings):
        return judged("malformed"), None
    known = {(finding.rule, finding.line) for finding in example.findings}
    if options.agree and {(finding.rule, finding.line) for finding in said.findings} != known:
        return judged("disagrees"), None
    if confidence < options.min_confidence:
        return judged("unsure"), None
    unit = msgspec.structs.replace(example.unit, summary=parse_answer(text).summary or None)
    return judged("accepted"), msgspec.structs.replace(example, unit=unit, findings=said.findings)


def _provenance(
    example: Example, verdict: Verdict, confidence: float | None = None, answer: str | None = None
) -> Provenance:
    unit = example.unit
    return Provenance(
        verdict, example.project, example.path, unit.name, unit.start_line, example.planted, confidence, answer
    )

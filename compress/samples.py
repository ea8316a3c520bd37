"""Answers to show a reader: the same few held-out units, asked of each model."""

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from compress.data.examples import Example
from compress.evaluation.answers import Said

SAMPLES_FILE = "samples.json"


class Sample(msgspec.Struct, frozen=True):
    """One unit and what each model said about it."""

    kind: str
    place: str
    truth: str
    code: str
    answers: tuple[tuple[str, str], ...]  # the model's name, its answer as it was written


def sample_answers(
    examples: Sequence[Example], texts: dict[str, list[str]], said: dict[str, list[Said]], models: Sequence[str]
) -> list[Sample]:
    """The first unit of each kind, by what the last model made of it.

    Args:
        texts: each model's answers to the examples; said: the findings read from them.
        models: whose answers are shown, in this order.
    """
    judged = list(enumerate(zip(examples, said[models[-1]], strict=True)))
    chosen: list[tuple[str, int]] = []
    for kind, wanted in _KINDS.items():
        found = next((place for place, (example, answer) in judged if wanted(example, answer)), None)
        if found is not None:
            chosen.append((kind, found))
    return [
        Sample(
            kind=kind,
            place=f"{examples[place].path}, {examples[place].unit.name}",
            truth=", ".join(f"{finding.rule} on line {finding.line}" for finding in examples[place].findings),
            code=examples[place].unit.numbered(),
            answers=tuple((model, texts[model][place]) for model in models),
        )
        for kind, place in chosen
    ]


def _found(example: Example, answer: Said) -> bool:
    true = {(finding.rule, finding.line) for finding in example.findings}
    return bool(true) and true == {(finding.rule, finding.line) for finding in answer.findings}


_KINDS: dict[str, Callable[[Example, Said], bool]] = {
    "a defect it found": lambda example, answer: example.planted is not None and _found(example, answer),
    "a defect it missed": lambda example, answer: example.planted is not None and not answer.findings and answer.valid,
    "a false alarm on clean code": lambda example, answer: not example.findings and bool(answer.findings),
    "clean code it left alone": lambda example, answer: not example.findings and answer.valid and not answer.findings,
    "an answer that is none": lambda example, answer: not answer.valid,
}


def write_samples(samples: list[Sample], file: Path) -> None:
    """Keep samples beside the answers they come from, whole or not at all."""
    staged = file.with_suffix(".tmp")
    staged.write_bytes(msgspec.json.encode(samples))
    staged.replace(file)


def read_samples(file: Path) -> list[Sample]:
    """What `write_samples` kept."""
    return msgspec.json.decode(file.read_bytes(), type=list[Sample])

"""What was kept and what was lost: every form of the student beside its teacher, on held-out projects."""

import random
from pathlib import Path

import msgspec
from accelerate import init_empty_weights
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from bundle.answer import CLOSING
from bundle.confidence import finding_confidences
from bundle.rules import Catalogue
from compress.data.examples import Example, read_examples
from compress.data.tokens import load_tokenizer, make_prompt
from compress.generate import answers_from_checkpoint, answers_from_onnx
from compress.generated import Answers
from compress.recipe import Evaluate, Gate, Recipe
from compress.scores import Scores, choose_thresholds, length_retention, score, term_retention
from compress.student import head_dimension

_TIMED_UNITS = 16


class Row(msgspec.Struct, frozen=True):
    """One line of the score table."""

    model: str
    scores: Scores
    f1: float
    precision: float
    recall: float
    hygiene_f1: float
    length_retention: float
    term_retention: float
    parameters: int
    bytes_on_disk: int
    peak_memory_bytes: int
    tokens_per_second: float
    units_per_second: float


class Evaluation(msgspec.Struct, frozen=True):
    """Everything report.json says."""

    name: str
    units: dict[str, int]
    rows: list[Row]
    thresholds: dict[str, float]
    retention: dict[str, float]
    gate: dict[str, float]
    gate_passed: bool
    failures: list[str]


class Candidate(msgspec.Struct, frozen=True):
    """A model to measure: a transformers checkpoint, or an ONNX export beside the checkpoint it was made from."""

    name: str
    folder: Path
    source: Path  # a checkpoint folder with the tokenizer and the architecture

    @property
    def is_onnx(self) -> bool:
        return (self.folder / "model.onnx").is_file()


def held_out_units(file: Path, evaluate: Evaluate, catalogue: Catalogue, seed: int) -> list[Example]:
    """Natural units and units with one planted defect, in a fixed order; a third as many planted hygiene."""
    examples = read_examples(file)
    rng = random.Random(seed)
    rng.shuffle(examples)
    natural = [example for example in examples if example.planted is None]
    injected = [e for e in examples if e.planted is not None and catalogue[e.planted].origin == "injected"]
    hygiene = [e for e in examples if e.planted is not None and catalogue[e.planted].origin == "hygiene"]
    chosen = natural[: evaluate.natural_units] + injected[: evaluate.planted_units]
    chosen += hygiene[: evaluate.planted_units // 3]
    rng.shuffle(chosen)
    return chosen


def evaluate_models(
    recipe: Recipe, catalogue: Catalogue, data: Path, candidates: list[Candidate], out: Path, console: Console
) -> Evaluation:
    """Ask every candidate about the same held-out units; the first is the teacher all are compared with.

    Answers are kept in `out` by model, so that a killed evaluation goes on with the next model.
    """
    examples = held_out_units(data / "test.jsonl", recipe.evaluate, catalogue, recipe.seed)
    examples = _fitting(examples, recipe, catalogue, candidates[0].folder)
    said = {each.name: _answers(recipe, catalogue, each, examples, out, console) for each in candidates}
    texts = {each.name: _texts(each, said[each.name]) for each in candidates}
    teacher = candidates[0].name
    rows = []
    for each in candidates:
        scores = score(examples, texts[each.name], catalogue)
        row = Row(
            model=each.name,
            scores=scores,
            f1=scores.injected.f1,
            precision=scores.injected.precision,
            recall=scores.injected.recall,
            hygiene_f1=scores.hygiene.f1,
            length_retention=length_retention(texts[teacher], texts[each.name]),
            term_retention=term_retention(examples, texts[teacher], texts[each.name]),
            parameters=_parameters(each.source),
            bytes_on_disk=_weight_bytes(each.folder),
            peak_memory_bytes=said[each.name].peak_memory_bytes,
            tokens_per_second=said[each.name].tokens_per_second,
            units_per_second=said[each.name].units_per_second,
        )
        rows.append(row)
    thresholds = {}
    if candidates[-1].is_onnx:
        thresholds = _thresholds(recipe, catalogue, data, candidates[-1], out, console)
    retention = _retention(rows[0], rows[-1])
    failures = gate_failures(recipe.evaluate.gate, retention)
    return Evaluation(
        name=recipe.name,
        units={
            "natural": sum(example.planted is None for example in examples),
            "planted": sum(example.planted is not None for example in examples),
            "projects": len({example.project for example in examples}),
        },
        rows=rows,
        thresholds=thresholds,
        retention=retention,
        gate=msgspec.to_builtins(recipe.evaluate.gate),
        gate_passed=not failures,
        failures=failures,
    )


def _retention(teacher: Row, shipped: Row) -> dict[str, float]:
    """The shipped student against its teacher, in the gate's own terms."""
    return {
        "f1_retention": shipped.f1 / teacher.f1 if teacher.f1 else 0.0,
        "hygiene_f1_retention": shipped.hygiene_f1 / teacher.hygiene_f1 if teacher.hygiene_f1 else 0.0,
        "answer_validity": shipped.scores.validity,
        "length_retention": shipped.length_retention,
        "term_retention": shipped.term_retention,
    }


def gate_failures(gate: Gate, retention: dict[str, float]) -> list[str]:
    """One sentence for each measure that is below the gate."""
    return [
        f"{name.replace('_', ' ')} is {retention[name]:.3f}, below the gate's {least:.3f}"
        for name, least in msgspec.to_builtins(gate).items()
        if retention[name] < least
    ]


def _fitting(examples: list[Example], recipe: Recipe, catalogue: Catalogue, teacher: Path) -> list[Example]:
    prompt = make_prompt(recipe.data.prompt, catalogue, load_tokenizer(teacher))
    most = recipe.data.max_tokens - recipe.evaluate.max_answer_tokens
    return [example for example in examples if len(prompt.encode(example.unit)) <= most]


def _answers(
    recipe: Recipe,
    catalogue: Catalogue,
    each: Candidate,
    examples: list[Example],
    out: Path,
    console: Console,
) -> Answers:
    kept = out / f"answers-{each.name.replace(' ', '-')}.json"
    if kept.is_file():
        return msgspec.json.decode(kept.read_bytes(), type=Answers)
    tokenizer = load_tokenizer(each.source)
    prompt = make_prompt(recipe.data.prompt, catalogue, tokenizer)
    prompts = [prompt.encode(example.unit) for example in examples]
    eos, most = tokenizer.eos_token_id, recipe.evaluate.max_answer_tokens
    with console.status(f"answers of {each.name}"):
        if each.is_onnx:
            head_dim = head_dimension(AutoConfig.from_pretrained(each.source))
            answers = answers_from_onnx(each.folder / "model.onnx", head_dim, prompts, eos, most, _TIMED_UNITS)
        else:
            answers = answers_from_checkpoint(
                each.folder,
                prompts,
                eos,
                tokenizer.pad_token_id,
                most,
                recipe.evaluate.batch_size,
                _TIMED_UNITS,
            )
    staged = kept.with_suffix(".tmp")
    staged.write_bytes(msgspec.json.encode(answers))
    staged.replace(kept)
    return answers


def _texts(each: Candidate, answers: Answers) -> list[str]:
    tokenizer = load_tokenizer(each.source)
    eos = tokenizer.eos_token_id
    texts = []
    for answer in answers.generated:
        ids = answer.ids[:-1] if answer.ids[-1:] == [eos] else answer.ids
        texts.append(str(tokenizer.decode(ids, skip_special_tokens=False)))
    return texts


def _thresholds(
    recipe: Recipe, catalogue: Catalogue, data: Path, shipped: Candidate, out: Path, console: Console
) -> dict[str, float]:
    """Confidence thresholds of the shipped export, fitted on the validation projects."""
    evaluate = recipe.evaluate
    examples = held_out_units(data / "validation.jsonl", evaluate, catalogue, recipe.seed)
    examples = _fitting(examples, recipe, catalogue, shipped.source)
    renamed = msgspec.structs.replace(shipped, name=f"{shipped.name} validation")
    answers = _answers(recipe, catalogue, renamed, examples, out, console)
    tokenizer = Tokenizer.from_file(str(shipped.source / "tokenizer.json"))
    confidences = [
        finding_confidences(
            (tokenizer.decode([token], skip_special_tokens=False).encode(), logprob)
            for token, logprob in zip(answer.ids, answer.logprobs, strict=True)
        )
        for answer in answers.generated
    ]
    texts = _texts(shipped, answers)
    usable = [index for index, text in enumerate(texts) if text.endswith(CLOSING)]
    return choose_thresholds(
        [examples[index] for index in usable],
        [texts[index] for index in usable],
        [confidences[index] for index in usable],
        catalogue,
        evaluate.precision,
    )


def _parameters(checkpoint: Path) -> int:
    """Of the architecture: a quantised form has as many as the checkpoint it was made from."""
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(checkpoint))
    model.tie_weights()
    return model.num_parameters()


def _weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for pattern in ("*.safetensors", "model.onnx*") for file in folder.glob(pattern))


def score_tables(evaluation: Evaluation) -> list[Table]:
    """The score table in two parts, as it is printed at the end of a run: what was kept, and what it costs."""
    units = evaluation.units
    quality = _table(
        f"{evaluation.name}: quality on {units['projects']} held-out projects "
        f"({units['natural']} units as written, {units['planted']} with a planted defect)",
        ("defects P", "R", "F1", "fix", "hygiene P", "R", "F1", "false/100 clean", "valid", "length", "terms"),
    )
    cost = _table("what it costs", ("parameters", "MB on disk", "peak MB", "tokens/s", "units/s"))
    for row in evaluation.rows:
        scores = row.scores
        shares = (
            *(row.precision, row.recall, row.f1, scores.fix_exact),
            *(scores.hygiene.precision, scores.hygiene.recall, scores.hygiene.f1),
        )
        quality.add_row(
            row.model,
            *(f"{share:.3f}" for share in shares),
            f"{scores.false_per_100_clean:.1f}",
            *(f"{share:.3f}" for share in (scores.validity, row.length_retention, row.term_retention)),
        )
        cost.add_row(
            row.model,
            f"{row.parameters / 1e6:.2f}M",
            f"{row.bytes_on_disk / 1e6:.1f}",
            f"{row.peak_memory_bytes / 1e6:.0f}",
            f"{row.tokens_per_second:.0f}",
            f"{row.units_per_second:.1f}",
        )
    return [quality, cost]


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("model", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table

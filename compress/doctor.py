"""What would go wrong with a recipe, found in seconds: shapes, tokenizers and free space, no weights."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
from rich.table import Table
from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerFast, Qwen2Config

from bundle.prompt import Prompt
from bundle.rules import load_catalogue
from compress.checks import Check, Verdict, count
from compress.cost import Size
from compress.data.corpus import find_sources, is_here
from compress.data.sample import Sample, sample_examples
from compress.data.stage import CORPUS_CACHE
from compress.data.tokens import load_tokenizer, make_prompt
from compress.environment import environment_checks
from compress.errors import RecipeError
from compress.fitting import Models, disk_and_work, memory_checks
from compress.losses import map_layers
from compress.recipe import AttentionLoss, HiddenLoss, Recipe, Shape
from compress.student import require_equal_tokenizers

_DIMENSIONS = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")


def diagnose(recipe: Recipe, folder: Path) -> list[Check]:
    """Everything about a recipe that can be known before any work, on this machine.

    Args:
        folder: where the run would be; need not exist.
    """
    checks = list(environment_checks(recipe))
    try:
        models = _models(recipe)
    except RecipeError as error:
        return [*checks, Check("models", "wrong", str(error))]
    checks += _shapes(models)
    checks += _tokenizers(recipe, models)
    checks += _layers(recipe, models)
    sample = None
    if models.tokenizer is not None:
        try:
            prompt = make_prompt(recipe.data.prompt, load_catalogue(), models.tokenizer)
            checks += _template(recipe, models.tokenizer, prompt)
            # Published packages are fetched by a run, not by a look at its recipe.
            here = [entry for entry in recipe.data.corpus if is_here(entry, CORPUS_CACHE)]
            sources, _ = find_sources(here, CORPUS_CACHE)
            sample = sample_examples(recipe.data, sources, prompt, models.tokenizer.eos_token_id)
            checks += _lengths(recipe, models, sample)
        except RecipeError as error:
            checks.append(Check("data", "wrong", str(error)))
    needs = memory_checks(recipe, models)
    checks += needs.checks
    if sample is not None and sample.examples and models.student is not None:
        checks += disk_and_work(recipe, models, sample, needs.together, folder)
    return checks


def is_well(checks: list[Check]) -> bool:
    """Whether a run can be started."""
    return all(check.verdict != "wrong" for check in checks)


def table(name: str, checks: list[Check]) -> Table:
    """The checks of the recipe of this name for a terminal."""
    shown = Table(title=f"{name}: before a run", title_justify="left")
    for column in ("", "looked at", "found"):
        shown.add_column(column, no_wrap=column == "looked at")
    marks = {"ok": "[green]ok[/green]", "note": "[yellow]note[/yellow]", "wrong": "[bold red]wrong[/bold red]"}
    for check in checks:
        shown.add_row(marks[check.verdict], check.about, check.found.replace("[", "\\["))
    return shown


def _models(recipe: Recipe) -> Models:
    own = recipe.teacher.scratch
    tokenizer = None
    if own is not None:
        teacher = _of_shape(Qwen2Config(vocab_size=own.vocab_size, tie_word_embeddings=True), own)
    else:
        teacher = load_config("teacher.model", recipe.teacher.model or "")
        tokenizer = load_tokenizer(recipe.teacher.model or "")
    if recipe.student is None:
        return Models(tokenizer, teacher, Size.of(teacher), None, None)
    if recipe.student.model is not None:
        student = load_config("student.model", recipe.student.model)
    elif recipe.student.prune is not None:
        student = _of_shape(teacher, recipe.student.prune)
    else:
        assert recipe.student.scratch is not None, "the recipe was validated"
        vocabulary = len(tokenizer) if tokenizer is not None else teacher.vocab_size
        student = _of_shape(Qwen2Config(vocab_size=vocabulary, tie_word_embeddings=True), recipe.student.scratch)
    return Models(tokenizer, teacher, Size.of(teacher), student, Size.of(student))


def load_config(key: str, name: str) -> PretrainedConfig:
    """The configuration of a model on disk or on the hub, without its weights.

    Args:
        key: of the recipe, for the message.

    Raises:
        RecipeError: there is none.
    """
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"{key}: no configuration of {name!r} here or on the hub: {str(error).splitlines()[0]}"
        ) from error


def _of_shape(base: PretrainedConfig, shape: Shape) -> PretrainedConfig:
    wanted = {name: value for name, value in msgspec.structs.asdict(shape).items() if name in _DIMENSIONS}
    of_depth = {"layer_types": None, "max_window_layers": shape.num_hidden_layers}
    return base.__class__.from_dict({**base.to_dict(), **wanted, **of_depth})


def _shapes(models: Models) -> Iterator[Check]:
    yield Check("teacher", "ok", _described(models.teacher, models.teacher_size))
    if models.student is not None and models.student_size is not None:
        share = models.student_size.parameters / models.teacher_size.parameters
        verdict: Verdict = "note" if share >= 1 else "ok"
        yield Check(
            "student", verdict, f"{_described(models.student, models.student_size)}: {share:.0%} of the teacher"
        )


def _described(config: PretrainedConfig, size: Size) -> str:
    return (
        f"{config.model_type}, {count(size.parameters)} parameters, {config.num_hidden_layers} layers of "
        f"{config.hidden_size}, {config.num_attention_heads} heads over {config.num_key_value_heads}"
    )


def _tokenizers(recipe: Recipe, models: Models) -> Iterator[Check]:
    if models.tokenizer is None:
        yield Check("tokenizer", "ok", "made from the training split, for teacher and student alike")
        return
    tokens = len(models.tokenizer)
    if recipe.student is not None and recipe.student.model is not None:
        try:
            own = load_tokenizer(recipe.student.model)
            require_equal_tokenizers(models.tokenizer, own)
            yield Check("tokenizer", "ok", f"{tokens:,} tokens, the same for teacher and student")
            if own.chat_template != models.tokenizer.chat_template:
                yield Check("chat template", "note", "differs between teacher and student; the recipe's prompt is used")
        except RecipeError as error:
            yield Check("tokenizer", "wrong", str(error))
    else:
        yield Check("tokenizer", "ok", f"{tokens:,} tokens; the student gets the teacher's")
    logits = [models.teacher.vocab_size, *([models.student.vocab_size] if models.student is not None else [])]
    found = f"{' and '.join(f'{count:,}' for count in logits)} logits, cut to {tokens:,} before they are compared"
    short = min(logits) < tokens
    yield Check(
        "vocabulary",
        "wrong" if short else "ok",
        f"{found}: too few; take a checkpoint of all tokens" if short else found,
    )


def _template(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, prompt: Prompt) -> Iterator[Check]:
    pieces = (piece for piece in (prompt.prefix + prompt.suffix).split("<|")[1:] if "|>" in piece)
    marks = sorted({f"<|{piece.split('|>')[0]}|>" for piece in pieces})
    unknown = [mark for mark in marks if mark not in tokenizer.get_vocab()]
    around = f"{recipe.data.prompt}: {len(prompt.prefix_ids) + len(prompt.suffix_ids)} tokens around the code"
    if unknown:
        yield Check(
            "prompt", "note", f"{around}; {', '.join(unknown)} is no token here: write a template for this model"
        )
    elif recipe.data.prompt == "compact" and tokenizer.chat_template and recipe.teacher.train is None:
        yield Check(
            "prompt", "note", f"{around}; a chat teacher that is not corrected answers better to data.prompt: chat"
        )
    else:
        yield Check("prompt", "ok", around)


def _layers(recipe: Recipe, models: Models) -> Iterator[Check]:
    asked: list[tuple[str, HiddenLoss | AttentionLoss | None]] = [
        ("hidden", recipe.distill.hidden),
        ("attention", recipe.distill.attention),
    ]
    for name, loss in asked:
        if loss is None or models.student is None:
            continue
        try:
            pairs = map_layers(loss.layer_map, models.student.num_hidden_layers, models.teacher.num_hidden_layers)
            yield Check(f"{name} layers", "ok", ", ".join(f"{own}-{taught}" for own, taught in pairs))
        except RecipeError as error:
            yield Check(f"{name} layers", "wrong", str(error))


def _lengths(recipe: Recipe, models: Models, sample: Sample) -> Iterator[Check]:
    if not sample.drawn:
        yield Check("data", "note", "no code to sample here yet: the run fetches published packages")
        return
    found = (
        f"about {count(sample.examples)} training examples of {sample.mean_tokens:.0f} tokens, "
        f"{sample.mean_answer_tokens:.0f} of them the answer (a sample of {sample.drawn})"
    )
    yield Check("data", "ok" if sample.examples else "wrong", found if sample.examples else "no training example fits")
    limit = recipe.data.max_tokens
    left_out = f"{sample.too_long:.1%} of examples are longer than data.max_tokens: {limit}, and left out"
    yield Check("length", "note" if sample.too_long > 0.1 else "ok", left_out)
    for name, config in (("teacher", models.teacher), ("student", models.student)):
        if config is not None and config.max_position_embeddings < limit:
            positions = config.max_position_embeddings
            yield Check("length", "wrong", f"the {name} has {positions} positions: lower data.max_tokens to that")

"""The teacher: a base model with or without an adapter, corrected on the domain; or one made from scratch."""

import functools
import random
from collections.abc import Callable
from pathlib import Path

from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from bundle.manifest import file_sha256
from bundle.rules import Catalogue
from compress import ranks
from compress.data.examples import Example, read_examples, rule_counts
from compress.data.tokens import TokenDataset, load_tokenizer, make_prompt
from compress.errors import RecipeError
from compress.from_scratch import CodeAndAnswerTrainer, LossWeights
from compress.qlora import QloraTrainer, lora_config, qlora_model
from compress.recipe import Recipe, Teacher
from compress.scratch import answer_parts, make_teacher
from compress.training import AnswerTrainer

_CARD = (".md", ".svg")  # what is said about a checkpoint changes nothing that is made from it


def prepare_teacher(recipe: Recipe, catalogue: Catalogue, data: Path, out: Path) -> None:
    """Write the teacher as a plain checkpoint into `out`/model: adapter merged, corrected where the recipe says so.

    Raises:
        RecipeError: the model or the adapter cannot be loaded.
    """
    target = out / "model"
    if target.is_dir():
        return
    if recipe.teacher.scratch is not None:
        _train_from_scratch(recipe, catalogue, data, out, target)
    elif recipe.teacher.train is not None:
        _correct(recipe, catalogue, data, out, target)
    else:
        model, tokenizer = load_teacher(recipe.teacher.model or "", recipe.teacher.adapter)
        staged = out / "model.partial"
        model.bfloat16().save_pretrained(staged)
        tokenizer.save_pretrained(staged)
        staged.rename(target)


def load_teacher(name: str, adapter: str | None) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A checkpoint from disk or a hub, with its LoRA adapter merged into the weights.

    Raises:
        RecipeError: nothing loadable is there; no remote code is ever run.
    """
    tokenizer = load_tokenizer(name)
    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype="auto", trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise RecipeError(f"teacher.model: cannot load {name!r}: {str(error).splitlines()[0]}") from error
    if adapter is not None:
        try:
            model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
        except (OSError, ValueError) as error:
            raise RecipeError(f"teacher.adapter: cannot load {adapter!r}: {str(error).splitlines()[0]}") from error
    return model, tokenizer


def checkpoint_fingerprint(teacher: Teacher) -> dict[str, str]:
    """sha256 of every file of a teacher that is on disk, its card left out; a hub name stands for itself."""
    folders = [Path(name) for name in (teacher.model, teacher.adapter) if name is not None]
    files = (file for folder in folders if folder.is_dir() for file in sorted(folder.iterdir()))
    return {str(file): file_sha256(file) for file in files if file.is_file() and file.suffix not in _CARD}


def _train_from_scratch(recipe: Recipe, catalogue: Catalogue, data: Path, out: Path, target: Path) -> None:
    """Two loops: the code and the answers, then the analysis, in which the decisions weigh most."""
    teacher = recipe.teacher
    assert teacher.scratch is not None and teacher.train is not None, "the recipe was validated"
    examples = read_examples(data / "train.jsonl")
    first = out / "first" if teacher.focus is not None else target
    if teacher.continue_from is not None:
        first = Path(teacher.continue_from)
    elif not first.is_dir():
        sample = random.Random(recipe.seed).sample(examples, min(teacher.tokenizer_units, len(examples)))
        texts = (text for example in sample for text in (example.unit.numbered(), example.unit.summary or ""))
        model, tokenizer = make_teacher(teacher.scratch, texts, catalogue, recipe.seed)
        prompt = make_prompt(recipe.data.prompt, catalogue, tokenizer)
        dataset = TokenDataset(examples, prompt, tokenizer.eos_token_id, recipe.data.max_tokens)
        trainer = CodeAndAnswerTrainer(
            model=model,
            tokenizer=tokenizer,
            train=teacher.train,
            dataset=dataset,
            out=out / "checkpoints",
            seed=recipe.seed,
            description="teacher",
            weights=LossWeights(code=1.0, line=0.3, clean=3.0, decision=6.0, finding=2.0, summary=0.5),
            parts=answer_parts(tokenizer, catalogue),
        )
        trainer.train_resuming(first)
    if teacher.focus is None:
        return
    started, tokenizer = load_teacher(str(first), None)
    prompt = make_prompt(recipe.data.prompt, catalogue, tokenizer)
    focused = _focused(examples, catalogue, recipe.seed)
    trainer = CodeAndAnswerTrainer(
        model=started.float(),
        tokenizer=tokenizer,
        train=teacher.focus,
        dataset=TokenDataset(focused, prompt, tokenizer.eos_token_id, teacher.focus_max_tokens),
        out=out / "focus-checkpoints",
        seed=recipe.seed,
        description="teacher, focused",
        weights=LossWeights(code=0.15, line=1.0, clean=8.0, decision=20.0, finding=4.0, summary=0.7),
        parts=answer_parts(tokenizer, catalogue),
    )
    trainer.train_resuming(target)


def _focused(examples: list[Example], catalogue: Catalogue, seed: int) -> list[Example]:
    """As many clean units as others; those with a rare rule three times, so that each rule is seen often."""
    counts = rule_counts(examples, catalogue)
    rare = {rule for rule, count in counts.items() if count < max(counts.values()) / 4}
    flawed = [
        example
        for example in examples
        if example.findings
        for _ in range(3 if any(finding.rule in rare for finding in example.findings) else 1)
    ]
    clean = [example for example in examples if not example.findings]
    rng = random.Random(seed)
    chosen = flawed + rng.sample(clean, min(len(flawed), len(clean)))
    rng.shuffle(chosen)
    return chosen


def _correct(recipe: Recipe, catalogue: Catalogue, data: Path, out: Path, target: Path) -> None:
    """Teacher correction: fine-tune on the domain before distilling (Minitron, 2408.11796, section 3.2)."""
    teacher = recipe.teacher
    assert teacher.model is not None and teacher.train is not None, "the recipe was validated"
    tokenizer = load_tokenizer(teacher.model)
    prompt = make_prompt(recipe.data.prompt, catalogue, tokenizer)
    examples = read_examples(data / "train.jsonl")
    make_trainer: Callable[..., AnswerTrainer] = AnswerTrainer
    model: PreTrainedModel | PeftModel
    if teacher.lora is not None and teacher.lora.quantize is not None:
        base = _base_checkpoint(teacher, out)
        model = qlora_model(base, teacher.lora, teacher.train.gradient_checkpointing)
        make_trainer = functools.partial(QloraTrainer, base=base)
    else:
        model, _ = load_teacher(teacher.model, teacher.adapter)
        if teacher.lora is not None:
            model = get_peft_model(model, lora_config(teacher.lora))
    trainer = make_trainer(
        model=model,
        tokenizer=tokenizer,
        train=teacher.train,
        dataset=TokenDataset(examples, prompt, tokenizer.eos_token_id, recipe.data.max_tokens),
        out=out / "checkpoints",
        seed=recipe.seed,
        description="teacher correction",
    )
    trainer.train_resuming(target)


def _base_checkpoint(teacher: Teacher, out: Path) -> str:
    """What is loaded in 4 bits: the model itself, or the model with its adapter merged, written into `out`/base."""
    assert teacher.model is not None, "the recipe was validated"
    if teacher.adapter is None:
        return teacher.model
    target = out / "base"
    if ranks.number() == 0 and not target.is_dir():
        model, _ = load_teacher(teacher.model, teacher.adapter)
        staged = out / "base.partial"
        model.bfloat16().save_pretrained(staged)
        staged.rename(target)
    ranks.meet()
    return str(target)

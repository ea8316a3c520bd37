"""The teacher: a base model with or without an adapter, corrected on the domain; or one made from scratch."""

import random
from pathlib import Path

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from bundle.manifest import file_sha256
from bundle.rules import Catalogue
from compress.data.examples import read_examples
from compress.data.tokens import TokenDataset, load_tokenizer, make_prompt
from compress.errors import RecipeError
from compress.recipe import Lora, Recipe, Teacher
from compress.scratch import make_teacher
from compress.training import AnswerTrainer, CodeAndAnswerTrainer


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
    """sha256 of every file of a teacher that is on disk; a hub name stands for itself."""
    folders = [Path(name) for name in (teacher.model, teacher.adapter) if name is not None]
    files = (file for folder in folders if folder.is_dir() for file in sorted(folder.iterdir()))
    return {str(file): file_sha256(file) for file in files if file.is_file()}


def _train_from_scratch(recipe: Recipe, catalogue: Catalogue, data: Path, out: Path, target: Path) -> None:
    teacher = recipe.teacher
    assert teacher.scratch is not None and teacher.train is not None, "the recipe was validated"
    examples = read_examples(data / "train.jsonl")
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
        code_loss_weight=teacher.code_loss_weight,
        answer_loss_weight=teacher.answer_loss_weight,
    )
    trainer.train_resuming(target)


def _correct(recipe: Recipe, catalogue: Catalogue, data: Path, out: Path, target: Path) -> None:
    """Teacher correction: fine-tune on the domain before distilling (Minitron, 2408.11796, section 3.2)."""
    assert recipe.teacher.model is not None and recipe.teacher.train is not None, "the recipe was validated"
    base, tokenizer = load_teacher(recipe.teacher.model, recipe.teacher.adapter)
    model = _with_adapter(base, recipe.teacher.lora) if recipe.teacher.lora is not None else base
    prompt = make_prompt(recipe.data.prompt, catalogue, tokenizer)
    examples = read_examples(data / "train.jsonl")
    dataset = TokenDataset(examples, prompt, tokenizer.eos_token_id, recipe.data.max_tokens)
    trainer = AnswerTrainer(
        model=model,
        tokenizer=tokenizer,
        train=recipe.teacher.train,
        dataset=dataset,
        out=out / "checkpoints",
        seed=recipe.seed,
        description="teacher correction",
    )
    trainer.train_resuming(target)


def _with_adapter(model: PreTrainedModel, lora: Lora) -> PeftModel:
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=list(lora.target_modules),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)

"""Whether a recipe fits: memory, disk, the work to be done, and how the teacher is best asked."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from transformers import PretrainedConfig, PreTrainedTokenizerFast

from compress.checks import Check, count, size
from compress.cost import Size, Tokens, distilling_flops, label_bytes
from compress.data.sample import Sample
from compress.memory import Plan, adapter_plan, free_memory, reading_plan, training_plan
from compress.mishaps import TRAINING_KNOBS
from compress.recipe import Ramp, Recipe

# A softmax at T >= 2 over so many tokens is spread thinly: the likeliest 64 hold a small part of it.
_LARGE_VOCABULARY = 32768
_LABELLING_TOKENS = 8192  # to a batch of the teacher's pass
_NF4_BYTES = 0.52  # a weight, and its share of the scales
_BYTES_PER_PARAMETER = {"float32": 4, "float16": 2, "bfloat16": 2}


class Models(NamedTuple):
    """What is known of teacher and student without their weights; the tokenizer is None when it is yet to be made."""

    tokenizer: PreTrainedTokenizerFast | None
    teacher: PretrainedConfig
    teacher_size: Size
    student: PretrainedConfig | None
    student_size: Size | None


class Needs(NamedTuple):
    checks: list[Check]
    together: bool  # teacher and student fit at once, as an online teacher needs


def memory_checks(recipe: Recipe, models: Models) -> Needs:
    where, free = free_memory()
    eager = where == "memory"
    checks = []
    width = _BYTES_PER_PARAMETER.get(str(models.teacher.dtype).removeprefix("torch."), 2)
    asked = reading_plan(models.teacher, models.teacher_size, _LABELLING_TOKENS, width)
    loop, lora = recipe.teacher.train, recipe.teacher.lora
    if loop is not None:
        trained = (models.teacher, models.teacher_size, loop)
        if lora is None:
            plan = training_plan(*trained, recipe.data.max_tokens, eager)
        else:
            of_base = _NF4_BYTES if lora.quantize else width
            plan = adapter_plan(*trained, lora, recipe.data.max_tokens, eager, of_base)
        advice = "set teacher.lora" if lora is None else "set teacher.lora.quantize: nf4"
        checks.append(memory_check("teacher", plan.total, parts_of(plan), f"{advice}; {TRAINING_KNOBS}"))
    if models.student is None or models.student_size is None:
        return Needs(checks, False)
    plan = training_plan(models.student, models.student_size, recipe.train, recipe.data.max_tokens, eager)
    together = asked.total + plan.total
    if recipe.distill.teacher == "online":
        parts = f"teacher {size(asked.total)}, {parts_of(plan)}"
        checks.append(memory_check("training", together, parts, TRAINING_KNOBS))
    else:
        more = "take a machine with more, or several GPUs"
        checks.append(memory_check("soft labels", asked.total, parts_of(asked), more))
        checks.append(memory_check("training", plan.total, parts_of(plan), TRAINING_KNOBS))
    return Needs(checks, together <= free)


def memory_check(purpose: str, total: int, parts: str, advice: str) -> Check:
    """Whether so many bytes are free where training would be.

    Args:
        parts: what they are for.
        advice: what helps when they are not.
    """
    where, free = free_memory()
    found = f"about {size(total)} ({parts}) of {size(free)} free in {where}"
    about = f"memory: {purpose}"
    return Check(about, "ok", found) if total <= free else Check(about, "wrong", f"{found}: {advice}")


def parts_of(plan: Plan) -> str:
    """A plan in words."""
    return ", ".join(f"{name} {size(value)}" for name, value in plan._asdict().items() if value)


def disk_and_work(recipe: Recipe, models: Models, sample: Sample, together: bool, folder: Path) -> Iterator[Check]:
    assert models.student_size is not None
    tokens = Tokens(
        sample.examples * sample.mean_tokens, sample.examples * sample.mean_answer_tokens, sample.mean_tokens
    )
    free = free_disk(folder)
    fits = True
    if recipe.distill.teacher == "cached":
        row = label_bytes(recipe.distill)
        found = f"{size(tokens.answer * row)}: {row} bytes for each of {count(tokens.answer)} answer tokens"
        fits = tokens.answer * row <= free
        advice = "" if fits else "; lower distill.top_k or distill.samples, or set distill.teacher: online"
        yield Check("disk: soft labels", "ok" if fits else "wrong", f"about {found}, of {size(free)} free{advice}")
    # The teacher in bf16, the student in float32 three times over, two checkpoints with Adam's moments.
    models_bytes = 2 * models.teacher_size.parameters + (3 * 4 + 2 * 12) * models.student_size.parameters
    yield Check(
        "disk: models", "ok" if models_bytes < free else "wrong", f"about {size(models_bytes)} of {size(free)} free"
    )
    train = recipe.train
    steps = tokens.all / (train.max_tokens_per_batch or train.per_device_train_batch_size * sample.mean_tokens)
    steps /= train.gradient_accumulation_steps
    epochs = train.max_steps / max(steps, 1) if train.max_steps > 0 else train.num_train_epochs
    sizes = models.teacher_size, models.student_size
    asking, training = distilling_flops(*sizes, tokens, recipe.distill, epochs, train.gradient_checkpointing)
    yield Check("work", "ok", f"{epochs:.1f} epochs: teacher {asking:.1e} FLOP, student {training:.1e} FLOP")
    yield recommendation(recipe, vocabulary=models.teacher.vocab_size, together=together, epochs=epochs, room=fits)


def free_disk(folder: Path) -> int:
    """The bytes free where a folder is, or would be made."""
    return shutil.disk_usage(
        next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    ).free


def recommendation(recipe: Recipe, vocabulary: int, together: bool, epochs: float, room: bool) -> Check:
    """Whether the teacher should be cached, sampled or online, and whether the recipe says so.

    Args:
        together: teacher and student fit into memory at once.
        epochs: how often each example is seen.
        room: the soft labels fit on the disk.
    """
    distill = recipe.distill
    schedule = distill.temperature_schedule
    ramp = isinstance(schedule, Ramp)
    temperatures = [schedule.start, schedule.end] if isinstance(schedule, Ramp) else schedule or [distill.temperature]
    if distill.hidden or distill.attention or distill.objective == "mse" or ramp:
        wanted, why = "teacher: online", "a loss or a schedule needs the teacher in every step"
    elif together and (not room or epochs <= 1):
        wanted, why = "teacher: online", "it fits, nothing is cut off, and each example is seen once or has no room"
    elif vocabulary > _LARGE_VOCABULARY and max(temperatures) >= 2 and distill.objective == "forward_kl":
        wanted = "labels: sampled"
        why = f"at T = {max(temperatures):g} the likeliest tokens of {vocabulary:,} hold little of the distribution"
    else:
        wanted, why = "labels: top_k", "the teacher is read once, and the likeliest tokens hold most of it"
    now = "teacher: online" if distill.teacher == "online" else f"labels: {distill.labels}"
    if wanted == now:
        return Check("teaching", "ok", f"{now}: {why}")
    return Check("teaching", "note", f"the recipe says {now}; consider distill.{wanted}: {why}")

"""Whether a search recipe fits: memory and disk, estimated from shapes."""

from collections.abc import Iterator
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedModel

from compress.checks import Check, count, size
from compress.code_search.recipe import SearchRecipe, SearchTrain
from compress.code_search.train import KNOBS
from compress.fitting import free_disk, memory_check, parts_of
from compress.memory import Plan, free_memory, optimizer_bytes

_LOGIT_COPIES = 6  # in float32: the student's and the teacher's, softened, and their gradient
_CHECKPOINTS = 2  # of a training loop, each with Adam's moments


def memory_checks(recipe: SearchRecipe, teacher: PreTrainedModel, student: PreTrainedModel) -> Iterator[Check]:
    """What each training loop takes, against what is free."""
    eager = free_memory()[0] == "memory"
    loops = [("training", student, recipe.train, 2 + recipe.distill.hard_negatives)]
    if recipe.teacher.train is not None:
        loops.insert(0, ("teacher", teacher, recipe.teacher.train, 2))
    for purpose, model, train, texts in loops:
        plan = encoder_plan(model.config, model.num_parameters(), train, texts, recipe.data.max_tokens, eager)
        yield memory_check(purpose, plan.total, parts_of(plan), KNOBS)


def encoder_plan(
    config: PretrainedConfig, parameters: int, train: SearchTrain, texts: int, max_tokens: int, eager: bool
) -> Plan:
    """An estimate for training an encoder of BERT's layout: float32 weights, all texts of a batch at once.

    Args:
        texts: of a pair: its query, its function, and hard negatives.
        max_tokens: of a text.
        eager: attention keeps its weights, as it does on CPUs.
    """
    pairs = train.per_device_train_batch_size
    return Plan(
        weights=(6 if train.bf16 else 4) * parameters,  # autocast keeps the 16-bit copies until the step's end
        gradients=4 * parameters,
        optimizer=int(optimizer_bytes(train.optim) * parameters),
        activations=activation_bytes(config, pairs * texts * max_tokens, max_tokens, train.bf16, eager),
        logits=_LOGIT_COPIES * 4 * pairs * pairs * (texts - 1),
    )


def activation_bytes(config: PretrainedConfig, tokens: int, length: int, bf16: bool, eager: bool) -> int:
    """What the backward pass is kept for, of a batch.

    A layer of BERT keeps, for every token, ten tensors as wide as the model: the inputs of projections, queries, keys,
    values, attention's output, and what enters and leaves dropout and norms, of which autocast halves three; and two
    as wide as the MLP. Attention with dropout keeps its weights, the mask and their product in float32.

    Args:
        tokens: of all texts together.
        length: of one text.
        eager: see `encoder_plan`.
    """
    layer = (34 if bf16 else 40) * config.hidden_size + (4 if bf16 else 8) * config.intermediate_size
    if eager:
        layer += 12 * config.num_attention_heads * length
    return tokens * config.num_hidden_layers * layer


def disk_checks(
    recipe: SearchRecipe, teacher: PreTrainedModel, student: PreTrainedModel, pairs: float, folder: Path
) -> Iterator[Check]:
    """The teacher's embeddings, and every model with its checkpoints and its graph.

    Args:
        pairs: of the training split.
        folder: where the run would be; need not exist.
    """
    free = free_disk(folder)
    embeddings = 2 * 4 * pairs * teacher.config.hidden_size
    found = f"about {size(embeddings)} for {count(2 * pairs)} texts, of {size(free)} free"
    yield Check("disk: embeddings", "ok" if embeddings <= free else "wrong", found)
    corrected, baseline = recipe.teacher.train is not None, recipe.distill.baseline
    # A model and its graph in float32, and what a loop saves beside its model.
    models, loop = 4 + 4, _CHECKPOINTS * 12
    of_teacher = models + (models + loop if corrected else 0)
    of_student = 4 + models + loop + 1 + (models + loop if baseline else 0)
    together = of_teacher * teacher.num_parameters() + of_student * student.num_parameters()
    found = f"about {size(together)} of {size(free)} free"
    yield Check("disk: models", "ok" if together <= free else "wrong", found)

"""Where a student starts: a checkpoint, from scratch, or pruned from its teacher."""

import itertools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from bundle.rules import Catalogue
from compress.data.batches import collate
from compress.data.tokens import TokenDataset
from compress.errors import RecipeError
from compress.recipe import Recipe, Shape
from compress.scratch import make_model
from compress.teacher import load_teacher

_CALIBRATION_EXAMPLES = 64


def start_student(recipe: Recipe, catalogue: Catalogue, teacher_folder: Path, dataset: TokenDataset, out: Path) -> None:
    """Write the untrained student as a checkpoint into `out`/model, with the teacher's tokenizer.

    Raises:
        RecipeError: the student's tokenizer differs from the teacher's, or it cannot be cut to the shape.
    """
    teacher, tokenizer = load_teacher(str(teacher_folder), None)
    assert recipe.student is not None, "the pipeline only comes here for recipes with a student"
    if recipe.student.prune is not None:
        student = prune(teacher.float(), recipe.student.prune, calibration_batch(dataset, tokenizer))
    elif recipe.student.scratch is not None:
        student = make_model(recipe.student.scratch, tokenizer, recipe.seed)
    else:
        student, own_tokenizer = load_teacher(recipe.student.model or "", None)
        require_equal_tokenizers(tokenizer, own_tokenizer)
    staged = out / "model.partial"
    student.float().save_pretrained(staged)
    tokenizer.save_pretrained(staged)
    staged.rename(out / "model")


def require_equal_tokenizers(teacher: PreTrainedTokenizerFast, student: PreTrainedTokenizerFast) -> None:
    """Logits can only be compared over one vocabulary.

    Raises:
        RecipeError: some token differs; the first one is named.
    """
    tokens = [{index: token for token, index in each.get_vocab().items()} for each in (teacher, student)]
    for index in range(max(len(tokens[0]), len(tokens[1]))):
        pair = [vocabulary.get(index, "nothing") for vocabulary in tokens]
        if pair[0] != pair[1]:
            raise RecipeError(
                f"the tokenizers differ: token {index} is {pair[0]!r} for the teacher and {pair[1]!r} for the "
                "student; choose a student of the teacher's family, or prune the teacher"
            )


def calibration_batch(dataset: TokenDataset, tokenizer: PreTrainedTokenizerFast) -> dict[str, Tensor]:
    """Some training examples as one padded batch, to see which parts of the teacher are used."""
    stride = max(len(dataset) // _CALIBRATION_EXAMPLES, 1)
    rows = [dataset[index] for index in range(0, len(dataset), stride)][:_CALIBRATION_EXAMPLES]
    return collate(rows, tokenizer.pad_token_id)


@torch.no_grad()
def prune(teacher: PreTrainedModel, shape: Shape, batch: dict[str, Tensor]) -> PreTrainedModel:
    """A smaller model of the same kind that does as nearly as possible what the teacher does on `batch`.

    Depth: the layers that change their input least go first (block influence: Men et al., 2403.03853).
    Width: the residual stream is rotated to its principal components and cut to the largest ones, after
    the norms' weights were folded into what reads them (SliceGPT, 2401.15024, with one rotation for all
    layers). Heads and MLP neurons: those with the largest activations stay (Minitron, 2407.14679).

    Raises:
        RecipeError: the shape is larger than the teacher, or keeps a head without its key-value head.
    """
    _check_shape(teacher.config, shape)
    teacher.eval()
    seen = _observe(teacher, batch)
    layers = _layers_to_keep(seen.influence, shape.num_hidden_layers)
    rotation, kept_share = _principal_directions(seen.covariance, shape.hidden_size)

    config = pruned_config(teacher.config, shape)
    student = AutoModelForCausalLM.from_config(config)
    # RMSNorm divides by the mean square over fewer, larger channels than before.
    scale = (teacher.config.hidden_size / shape.hidden_size * kept_share) ** 0.5
    student.model.embed_tokens.weight.copy_(teacher.model.embed_tokens.weight @ rotation)
    student.model.norm.weight.fill_(teacher.model.norm.weight.mean() * scale)
    if not config.tie_word_embeddings:
        folded = teacher.lm_head.weight * teacher.model.norm.weight
        student.lm_head.weight.copy_(folded @ rotation)
        student.model.norm.weight.fill_(scale)
    for new, old_index in zip(student.model.layers, layers, strict=True):
        old = teacher.model.layers[old_index]
        heads, kv_heads = _heads_to_keep(seen.heads[old_index], teacher.config, shape)
        neurons = seen.neurons[old_index].topk(shape.intermediate_size).indices.sort().values
        _cut_attention(old, new, heads, kv_heads, rotation, scale)
        _cut_mlp(old, new, neurons, rotation, scale)
    return student


def pruned_config(teacher: PretrainedConfig, shape: Shape) -> PretrainedConfig:
    """The teacher's configuration with another shape; heads keep their width."""
    return teacher.__class__.from_dict(
        {
            **teacher.to_dict(),
            "num_hidden_layers": shape.num_hidden_layers,
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.intermediate_size,
            "num_attention_heads": shape.num_attention_heads,
            "num_key_value_heads": shape.num_key_value_heads,
            "head_dim": head_dimension(teacher),
            "layer_types": None,
            "max_window_layers": shape.num_hidden_layers,
        }
    )


def _check_shape(config, shape: Shape) -> None:
    for name in (
        "num_hidden_layers",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
    ):
        if getattr(shape, name) > getattr(config, name):
            raise RecipeError(
                f"student.prune.{name} is {getattr(shape, name)}, more than the teacher's {getattr(config, name)}"
            )
    groups = config.num_attention_heads // config.num_key_value_heads
    per_group, rest = divmod(shape.num_attention_heads, shape.num_key_value_heads)
    if rest or per_group > groups:
        raise RecipeError(
            f"student.prune: {shape.num_attention_heads} heads over {shape.num_key_value_heads} key-value heads; "
            f"the teacher has {groups} heads to each, and a student must keep 1 to {groups} to each"
        )


class _Observed:
    """What one forward pass showed: per layer its influence, head and neuron activations; the residual's
    covariance [H, H] over all layers."""

    def __init__(self, layers: int) -> None:
        self.influence: list[float] = [0.0] * layers
        self.heads: list[Tensor] = [torch.empty(0)] * layers
        self.neurons: list[Tensor] = [torch.empty(0)] * layers
        self.covariance = torch.empty(0)


def _observe(teacher: PreTrainedModel, batch: dict[str, Tensor]) -> _Observed:
    valid = batch["attention_mask"].bool()
    seen = _Observed(len(teacher.model.layers))
    hooks = []
    for index, layer in enumerate(teacher.model.layers):

        def heads(module: nn.Module, inputs: tuple[Tensor], index: int = index) -> None:
            seen.heads[index] = inputs[0][valid].float().pow(2).mean(0)

        def neurons(module: nn.Module, inputs: tuple[Tensor], index: int = index) -> None:
            reach = module.weight.float().norm(dim=0)  # type: ignore[operator]
            seen.neurons[index] = inputs[0][valid].float().abs().mean(0) * reach

        hooks.append(layer.self_attn.o_proj.register_forward_pre_hook(heads))
        hooks.append(layer.mlp.down_proj.register_forward_pre_hook(neurons))
    output = teacher.model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True
    )
    for hook in hooks:
        hook.remove()
    states = [state[valid].float() for state in output.hidden_states]
    covariance = torch.zeros(states[0].shape[1], states[0].shape[1])
    # The last hidden state is after the final norm; the others are the residual stream itself.
    for index, (before, after) in enumerate(itertools.pairwise(states)):
        seen.influence[index] = float(1 - torch.cosine_similarity(before, after, dim=-1).mean())
    for state in states[:-1]:
        normed = state / state.pow(2).mean(-1, keepdim=True).sqrt().clamp_min(1e-6)
        covariance += normed.T @ normed / normed.shape[0]
    seen.covariance = covariance
    return seen


def _layers_to_keep(influence: list[float], count: int) -> list[int]:
    """The most influential layers in their order; the first and the last always stay."""
    last = len(influence) - 1
    ranked = sorted(range(len(influence)), key=lambda index: (index not in (0, last), -influence[index]))
    return sorted(ranked[:count])


def _principal_directions(covariance: Tensor, size: int) -> tuple[Tensor, float]:
    """Orthonormal columns [H, size] along which the residual varies most, and the share of it they hold."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors[:, -size:].flip(-1), float(values[-size:].sum() / values.sum())


def head_dimension(config: PretrainedConfig) -> int:
    """Width of one attention head."""
    return config.to_dict().get("head_dim") or config.hidden_size // config.num_attention_heads


def _heads_to_keep(activation: Tensor, config, shape: Shape) -> tuple[Tensor, Tensor]:
    """Query heads and key-value heads that stay: the strongest groups, and the strongest heads in each."""
    per_head = activation.view(config.num_attention_heads, -1).sum(-1)
    groups = per_head.view(config.num_key_value_heads, -1)
    kv_heads = groups.sum(-1).topk(shape.num_key_value_heads).indices.sort().values
    in_group = shape.num_attention_heads // shape.num_key_value_heads
    members = groups[kv_heads].topk(in_group, dim=-1).indices.sort(-1).values
    return (kv_heads[:, None] * groups.shape[1] + members).flatten(), kv_heads


def _rows(heads: Tensor, head_dim: int) -> Tensor:
    return (heads[:, None] * head_dim + torch.arange(head_dim)).flatten()


def _cut_attention(old: Any, new: Any, heads: Tensor, kv_heads: Tensor, rotation: Tensor, scale: float) -> None:
    head_dim = old.self_attn.head_dim
    reading = old.input_layernorm.weight
    new.input_layernorm.weight.fill_(scale)
    kept = {"q_proj": heads, "k_proj": kv_heads, "v_proj": kv_heads}
    for name, which in kept.items():
        source, target = getattr(old.self_attn, name), getattr(new.self_attn, name)
        rows = _rows(which, head_dim)
        target.weight.copy_((source.weight[rows] * reading) @ rotation)
        if source.bias is not None:
            target.bias.copy_(source.bias[rows])
    columns = _rows(heads, head_dim)
    new.self_attn.o_proj.weight.copy_(rotation.T @ old.self_attn.o_proj.weight[:, columns])
    for name in ("q_norm", "k_norm"):  # Qwen3
        if hasattr(old.self_attn, name):
            getattr(new.self_attn, name).weight.copy_(getattr(old.self_attn, name).weight)


def _cut_mlp(old: Any, new: Any, neurons: Tensor, rotation: Tensor, scale: float) -> None:
    reading = old.post_attention_layernorm.weight
    new.post_attention_layernorm.weight.fill_(scale)
    for name in ("gate_proj", "up_proj"):
        weight = getattr(old.mlp, name).weight[neurons]
        getattr(new.mlp, name).weight.copy_((weight * reading) @ rotation)
    new.mlp.down_proj.weight.copy_(rotation.T @ old.mlp.down_proj.weight[:, neurons])

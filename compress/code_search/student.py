"""Where a student starts: chosen layers of the teacher, as wide as the recipe says."""

import tempfile
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from compress.code_search.encoders import load_encoder, save_encoder, transformer
from compress.code_search.recipe import SearchStudent
from compress.errors import RecipeError

_LAYER = "encoder.layer."


def start_student(teacher: Path, options: SearchStudent, max_tokens: int, out: Path) -> None:
    """Write the untrained student into `out`/model, with the teacher's tokenizer and pooling.

    Raises:
        RecipeError: the student's shape can not be cut from this teacher.
    """
    if (out / "model").is_dir():
        return
    encoder = load_encoder(str(teacher), max_tokens)
    pooling = pooling_of(encoder)
    with tempfile.TemporaryDirectory(dir=out, prefix="cut.") as scratch:
        cut(transformer(encoder), options).save_pretrained(scratch)
        encoder.tokenizer.save_pretrained(scratch)
        body = Transformer(scratch)
    width = body.get_embedding_dimension()
    require_shorter(options.dimensions, width)
    student = SentenceTransformer(modules=[body, Pooling(width, pooling.pooling_mode), Normalize()])
    student.max_seq_length = max_tokens
    save_encoder(student, out / "model")


def pooling_of(encoder: SentenceTransformer) -> Pooling:
    """What makes one embedding of a teacher's states.

    Raises:
        RecipeError: the teacher is made of other parts than a transformer, pooling and normalising.
    """
    pooling = next((module for module in encoder if isinstance(module, Pooling)), None)
    if len(encoder) != 3 or pooling is None:
        raise RecipeError(
            "student: a student is cut from a teacher of a transformer, pooling and normalising, and this one has "
            f"{', '.join(type(module).__name__ for module in encoder)}"
        )
    return pooling


def require_shorter(dimensions: tuple[int, ...], width: int) -> None:
    """
    Raises:
        RecipeError: one of the Matryoshka widths is not below the student's own.
    """
    if dimensions and dimensions[0] >= width:
        raise RecipeError(f"student.dimensions: {dimensions[0]} is not below the student's width, {width}")


@torch.no_grad()
def cut(teacher: PreTrainedModel, options: SearchStudent) -> PreTrainedModel:
    """A smaller model of the same kind, made of the teacher's own weights.

    Width: channels stay that the norms weigh most, heads and neurons that write most into the residual stream, by
    the size of their weights; a head keeps its width.

    Raises:
        RecipeError: the teacher is no encoder of BERT's layout, lacks a layer, or is narrower than the student.
    """
    config = teacher.config
    weights = teacher.state_dict()
    if f"{_LAYER}0.attention.self.query.weight" not in weights:
        raise RecipeError(
            f"student: layers are cut from encoders of BERT's layout (bert, roberta, xlm-roberta), and the teacher is "
            f"{config.model_type}"
        )
    if options.layers[-1] > config.num_hidden_layers:
        raise RecipeError(
            f"student.layers: there is no layer {options.layers[-1]}, the teacher has {config.num_hidden_layers}"
        )
    hidden, neurons = options.hidden_size or config.hidden_size, options.intermediate_size or config.intermediate_size
    head = config.hidden_size // config.num_attention_heads
    for name, wanted, most in (
        ("hidden_size", hidden, config.hidden_size),
        ("intermediate_size", neurons, config.intermediate_size),
    ):
        if not 0 < wanted <= most:
            raise RecipeError(f"student.{name} is {wanted}: it must be 1 to the teacher's {most}")
    if hidden % head:
        raise RecipeError(f"student.hidden_size is {hidden}: it must be a multiple of a head's width, {head}")
    shape = {
        "num_hidden_layers": len(options.layers),
        "hidden_size": hidden,
        "intermediate_size": neurons,
        "num_attention_heads": hidden // head,
        # The teacher embeds without dropout: what a student can not see of a text it can not embed alike.
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    student = AutoModel.from_config(config.__class__.from_dict({**config.to_dict(), **shape}))
    channels = _largest(
        torch.stack([weights[name].abs() for name in weights if name.endswith("LayerNorm.weight")]).mean(0), hidden
    )
    kept: dict[str, Tensor] = {}
    for name in student.state_dict():
        source = name
        if name.startswith(_LAYER):
            number, _, rest = name.removeprefix(_LAYER).partition(".")
            source = f"{_LAYER}{options.layers[int(number)] - 1}.{rest}"
        kept[name] = _cut_weight(weights, source, channels, neurons, head)
    student.load_state_dict(kept)
    return student


def _largest(sizes: Tensor, count: int) -> Tensor:
    return sizes.topk(count).indices.sort().values


def _cut_weight(weights: dict[str, Tensor], name: str, channels: Tensor, neurons: int, head: int) -> Tensor:
    """A weight without the rows and columns that go: rows are what it writes, columns what it reads."""
    weight = weights[name]
    if weight.dim() == 0 or name in ("embeddings.position_ids", "embeddings.token_type_ids"):
        return weight
    layer = ".".join(name.split(".")[:3])  # encoder.layer.N
    rows = columns = channels
    if ".attention.self." in name or ".attention.output.dense." in name:
        heads = _heads(weights[f"{layer}.attention.output.dense.weight"], len(channels) // head, head)
        rows, columns = (heads, channels) if ".attention.self." in name else (channels, heads)
    elif name.startswith(_LAYER) and ".LayerNorm." not in name:
        writing = weights[f"{layer}.output.dense.weight"].norm(dim=0)
        strong = _largest(writing * weights[f"{layer}.intermediate.dense.weight"].norm(dim=1), neurons)
        rows, columns = (strong, channels) if ".intermediate." in name else (channels, strong)
    if weight.dim() == 1:
        return weight[rows]
    return weight[:, channels] if name.startswith("embeddings.") else weight[rows][:, columns]


def _heads(writing: Tensor, count: int, head: int) -> Tensor:
    """The columns [count * head] of the heads that write most."""
    strength = writing.unflatten(1, (-1, head)).norm(dim=(0, 2))
    return (_largest(strength, count)[:, None] * head + torch.arange(head)).flatten()

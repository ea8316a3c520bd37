"""What a run costs before it is started: floating-point operations and bytes on disk, from shapes alone."""

from typing import NamedTuple, Self

from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM, PretrainedConfig

from compress.recipe import Distill, Ramp
from compress.student import head_dimension


class Size(NamedTuple):
    """A decoder as far as its cost goes."""

    parameters: int
    head: int  # of them in the matrix that makes logits, which only answer positions pass through
    embeddings: int  # of them read and never multiplied with; 0 where the head is the same matrix
    layers: int
    attention_width: int  # all query heads side by side

    @classmethod
    def of(cls, config: PretrainedConfig) -> Self:
        """Counted on a model without weights."""
        with init_empty_weights():
            model = AutoModelForCausalLM.from_config(config)
        model.tie_weights()
        head = model.get_output_embeddings().weight
        tied = model.get_input_embeddings().weight is head
        return cls(
            parameters=model.num_parameters(),
            head=head.numel(),
            embeddings=0 if tied else model.get_input_embeddings().weight.numel(),
            layers=config.num_hidden_layers,
            attention_width=config.num_attention_heads * head_dimension(config),
        )

    @property
    def body(self) -> int:
        """Parameters that every token passes through."""
        return self.parameters - self.head - self.embeddings


class Tokens(NamedTuple):
    """How much is read once, in one epoch."""

    all: float
    answer: float  # the positions where logits are made
    length: float  # mean tokens of an example, which attention grows with


def forward_flops(size: Size, tokens: Tokens) -> float:
    """Of one pass: 2 a parameter and token (Kaplan et al., 2001.08361, section 2.1), logits at answer positions only,
    and attention's own products over the half of the positions that a causal model sees."""
    attention = 4 * size.layers * size.attention_width * tokens.length / 2
    return (2 * size.body + attention) * tokens.all + 2 * size.head * tokens.answer


def training_flops(size: Size, tokens: Tokens, gradient_checkpointing: bool) -> float:
    """Of one epoch: a forward and a backward pass of twice its cost, and what is made again on the way back:
    logits always, the layers with gradient checkpointing."""
    head = 2 * size.head * tokens.answer
    again = forward_flops(size, tokens) if gradient_checkpointing else head
    return 3 * forward_flops(size, tokens) + again


def label_bytes(distill: Distill) -> int:
    """Of one answer token's cached soft label."""
    kept = distill.top_k if distill.labels == "top_k" else distill.samples
    schedule = distill.temperature_schedule
    assert not isinstance(schedule, Ramp), "the recipe was validated: labels are cached for a list of temperatures"
    return 6 * kept + 4 * len(set(schedule or [distill.temperature]))


def distilling_flops(
    teacher: Size, student: Size, tokens: Tokens, distill: Distill, epochs: float, again: bool
) -> tuple[float, float]:
    """FLOPs of asking the teacher, and of training the student.

    The cached teacher reads everything once, the online one in every epoch.

    Args:
        again: the student's activations are made again in the backward pass (gradient checkpointing).
    """
    readings = epochs if distill.teacher == "online" else 1
    return readings * forward_flops(teacher, tokens), epochs * training_flops(student, tokens, again)

"""How much memory a stage will need, estimated from shapes, and how much there is."""

from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from transformers import PretrainedConfig

from compress.cost import Size
from compress.recipe import Lora, Train

_CHUNK_POSITIONS = 1024  # logits are made for so many positions at a time
_LOGIT_COPIES = 4  # in float32: the student's, softened, their gradient, the teacher's
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


class Plan(NamedTuple):
    """Bytes on one device, by what they are for."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return sum(self)


def training_plan(config: PretrainedConfig, size: Size, train: Train, max_tokens: int, eager: bool) -> Plan:
    """An estimate for full training: float32 weights and gradients, the optimiser's state, one micro-batch.

    Args:
        max_tokens: of one example.
        eager: attention keeps its weights, as it does on CPUs.
    """
    tokens = train.max_tokens_per_batch or train.per_device_train_batch_size * max_tokens
    casts = 2 * size.parameters if train.bf16 else 0  # autocast keeps the 16-bit copies until the step's end
    return Plan(
        weights=4 * size.parameters + casts,
        gradients=4 * size.parameters,
        optimizer=int(optimizer_bytes(train.optim) * size.parameters),
        activations=activation_bytes(config, size, tokens, max_tokens, train, eager),
        logits=_LOGIT_COPIES * 4 * config.vocab_size * min(tokens, _CHUNK_POSITIONS),
    )


def adapter_plan(
    config: PretrainedConfig, size: Size, train: Train, lora: Lora, max_tokens: int, eager: bool, weight_bytes: float
) -> Plan:
    """An estimate for training a LoRA adapter in float32 beside weights that stay as they are.

    Args:
        weight_bytes: of one weight of the base; NF4 with its scales takes about half a byte.
    """
    full = training_plan(config, size, train, max_tokens, eager)
    key_values = size.attention_width * config.num_key_value_heads // config.num_attention_heads
    hidden, queries, neurons = config.hidden_size, size.attention_width, config.intermediate_size
    both_sides = {
        "q_proj": hidden + queries,
        "k_proj": hidden + key_values,
        "v_proj": hidden + key_values,
        "o_proj": queries + hidden,
        "gate_proj": hidden + neurons,
        "up_proj": hidden + neurons,
        "down_proj": neurons + hidden,
    }
    adapter = lora.r * config.num_hidden_layers * sum(both_sides.get(name, 0) for name in lora.target_modules)
    return Plan(
        weights=int(weight_bytes * size.parameters) + 4 * adapter,
        gradients=4 * adapter,
        optimizer=int(optimizer_bytes(train.optim) * adapter),
        activations=full.activations,
        logits=full.logits,
    )


def reading_plan(config: PretrainedConfig, size: Size, tokens: int, weight_bytes: int) -> Plan:
    """An estimate for a model that is only asked, as a teacher is: weights, one layer's activations, logits."""
    widths = 2 * config.hidden_size + 3 * size.attention_width + 3 * config.intermediate_size
    return Plan(
        weights=weight_bytes * size.parameters,
        gradients=0,
        optimizer=0,
        activations=tokens * widths * max(weight_bytes, 2),
        logits=2 * 4 * config.vocab_size * min(tokens, _CHUNK_POSITIONS),
    )


def optimizer_bytes(optim: str) -> float:
    """State of one parameter, by transformers' name of the optimiser; 8, as Adam's, where the name says nothing."""
    if "sgd" in optim or "adafactor" in optim:
        return 0.0
    moments = 1 if "lion" in optim else 2
    return moments * (1.0 if "8bit" in optim else 4.0)


def activation_bytes(config: PretrainedConfig, size: Size, tokens: int, length: int, train: Train, eager: bool) -> int:
    """What the backward pass is kept for, of a micro-batch.

    A layer keeps, for every token, each norm's input three times in float32 and its output, queries and keys before
    and after rotation, values and attention's output, and four tensors as wide as the MLP. With gradient
    checkpointing all layers but one keep only their input.
    """
    half = 2 if train.bf16 else 4
    hidden, queries = config.hidden_size, size.attention_width
    key_values = queries * config.num_key_value_heads // config.num_attention_heads
    layer = 2 * (3 * 4 + half) * hidden
    layer += half * (3 * queries + 5 * key_values + 4 * config.intermediate_size)
    if eager:
        # Scores and probabilities, and keys and values repeated for every query head.
        layer += config.num_attention_heads * length * (4 + half) + 2 * half * queries
    layers = config.num_hidden_layers
    if not train.gradient_checkpointing:
        return tokens * layers * layer
    return tokens * (layers * 4 * hidden + layer)


def free_memory() -> tuple[str, int]:
    """The device training would use, in words, and the bytes free on it; a container's limit counts."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(), torch.cuda.mem_get_info()[0]
    available = psutil.virtual_memory().available
    limit = _CGROUP_LIMIT.read_text().strip() if _CGROUP_LIMIT.is_file() else "max"
    if limit.isdigit():
        available = min(available, int(limit) - psutil.Process().memory_info().rss)
    return "memory", available

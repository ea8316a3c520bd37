"""The teacher in every step of training: its logits, its hidden states, its attention.

It costs the teacher's forward pass each time an example is seen. In return nothing is cut off: the divergence
is over the whole vocabulary at any temperature, and layers can be compared.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

from compress.distilling import Distilling
from compress.errors import RecipeError
from compress.losses import (
    attention_map_sum,
    cross_entropy_sum,
    divergence_sum,
    entropy_sum,
    hidden_cosine_sum,
    hidden_mse_sum,
    in_chunks,
    logit_mse_sum,
    map_layers,
    relation_sum,
    tempered_log_probs,
)
from compress.losses.fused import can_fuse, fused_sums
from compress.recipe import Distill
from compress.training import decoder

_RELATED = ("q_proj", "k_proj", "v_proj")


class OnlineDistillTrainer(Distilling):
    """Learns the labels, the teacher's logits and, where the recipe says so, what happens in its layers.

    Projections from the student's width to the teacher's are trained with the student and left out of what is saved
    at the end.
    """

    def __init__(self, *args, distill: Distill, teacher: PreTrainedModel, **kwargs) -> None:
        """
        Raises:
            RecipeError: a layer map names a layer that is not there, or attention cannot be compared.
        """
        model = kwargs["model"]
        self.hidden_pairs = _pairs(distill.hidden, model, teacher)
        self.attention_pairs = _pairs(distill.attention, model, teacher)
        widths = model.config.hidden_size, teacher.config.hidden_size
        if self.hidden_pairs and widths[0] != widths[1]:
            model.hidden_projections = nn.ModuleList(_projection(model, teacher) for _ in self.hidden_pairs)
        super().__init__(*args, distill=distill, **kwargs)
        self.teacher: Any = teacher.eval().requires_grad_(False).to(self.args.device)
        if self.is_fsdp_enabled:
            # Each process keeps a part of every layer and gathers one at a time; embeddings and head stay whole.
            for layer in self.teacher.model.layers:
                fully_shard(layer, reshard_after_forward=True)
        self.vocabulary = len(self.tokenizer)
        self.student_seen, self.teacher_seen = _Seen(), _Seen()
        self.asked: dict[str, bool] = {"output_hidden_states": bool(self.hidden_pairs)}
        if distill.attention is not None and distill.attention.kind == "averaged_heads":
            # Fused attention kernels never make the weights.
            model.set_attn_implementation("eager")
            self.teacher.set_attn_implementation("eager")
            self.asked["output_attentions"] = True
        elif distill.attention is not None:
            # As many relation heads as both models have groups for.
            self.relation_heads = math.gcd(model.config.num_key_value_heads, teacher.config.num_key_value_heads)
            self.student_seen.keep_projections(model, [pair[0] for pair in self.attention_pairs], "student")
            self.teacher_seen.keep_projections(self.teacher, [pair[1] for pair in self.attention_pairs], "teacher")

    def finished_model(self) -> PreTrainedModel:
        model = super().finished_model()
        if "hidden_projections" in dict(model.named_children()):
            del model.hidden_projections
        self.student_seen.stop()
        return model

    def last_hidden_states(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        self.student_seen.outputs = self._ask(decoder(model), inputs)
        with torch.no_grad(), torch.autocast(self.args.device.type, enabled=False):
            self.teacher_seen.outputs = self._ask(self.teacher.model, inputs)
        return self.student_seen.outputs.last_hidden_state

    def _ask(self, layers: nn.Module, inputs: dict[str, Tensor]) -> Any:
        # With several examples to a row the positions say what may see what.
        visible = "position_ids" if "position_ids" in inputs else "attention_mask"
        tokens = {name: inputs[name] for name in ("input_ids", visible)}
        return layers(**tokens, use_cache=False, **self.asked)

    def loss_sum(
        self, model: nn.Module, hidden: Tensor, targets: Tensor, mask: Tensor, inputs: dict[str, Tensor]
    ) -> Tensor:
        if not len(targets):
            return hidden.sum() * 0.0
        total = self._logit_loss(model, hidden, targets, self.teacher_seen.outputs.last_hidden_state[mask])
        if self.distill.hidden is not None:
            everywhere = self.distill.hidden.positions == "all"
            hidden_sum = self._hidden_sum(model, inputs["attention_mask"].bool() if everywhere else mask)
            self.note(0, hidden=hidden_sum)
            total = total + self.distill.hidden.weight * hidden_sum
        if self.distill.attention is not None:
            attention_sum = self._attention_sum(mask, inputs.get("position_ids"))
            self.note(0, attention=attention_sum)
            total = total + self.distill.attention.weight * attention_sum
        return total

    def _logit_loss(self, model: nn.Module, hidden: Tensor, targets: Tensor, teacher_hidden: Tensor) -> Tensor:
        """alpha · CE + (1 - alpha) · T² · divergence; mse has no temperature."""
        distill, alpha, temperature = self.distill, self.alpha, self.temperature
        student_head: Any = model.lm_head
        scale = 1.0 if distill.objective == "mse" else temperature**2
        if can_fuse(distill.objective, student_head, self.teacher.lm_head, hidden.device):
            weights = tuple(head.weight[: self.vocabulary] for head in (student_head, self.teacher.lm_head))
            total, cross_entropy, divergence = fused_sums(
                (hidden, teacher_hidden),
                weights,
                targets,
                temperature=temperature,
                objective=distill.objective,
                beta=distill.beta,
                factors=(alpha, (1 - alpha) * scale),
            )
            self.note(len(targets), cross_entropy=cross_entropy, divergence=divergence)
            return total

        def sums(rows: Tensor, teacher_rows: Tensor, labels: Tensor) -> Tensor:
            student = student_head(rows)[:, : self.vocabulary]
            with torch.no_grad(), torch.autocast(rows.device.type, enabled=False):
                teacher = self.teacher.lm_head(teacher_rows)[:, : self.vocabulary]
                softened = tempered_log_probs(teacher, temperature)
                entropy = entropy_sum(softened)
            if distill.objective == "mse":
                divergence = logit_mse_sum(student, teacher)
            else:
                own = tempered_log_probs(student, temperature)
                divergence = divergence_sum(own, softened, distill.objective, distill.beta)
            return torch.stack([cross_entropy_sum(student, labels), divergence, entropy])

        cross_entropy, divergence, entropy = in_chunks(sums, hidden, (teacher_hidden, targets))
        self.note(len(targets), cross_entropy=cross_entropy, divergence=divergence, teacher_entropy=entropy)
        return alpha * cross_entropy + (1 - alpha) * scale * divergence

    def _hidden_sum(self, model: Any, mask: Tensor) -> Tensor:
        """Mean over layer pairs of the sum over rows."""
        assert self.distill.hidden is not None
        compare = hidden_mse_sum if self.distill.hidden.kind == "mse" else hidden_cosine_sum
        projected = "hidden_projections" in dict(model.named_children())
        sums = []
        for place, (own, taught) in enumerate(self.hidden_pairs):
            rows = self.student_seen.outputs.hidden_states[own][mask]
            if projected:
                rows = model.hidden_projections[place](rows)
            sums.append(compare(rows, self.teacher_seen.outputs.hidden_states[taught][mask]))
        return torch.stack(sums).mean()

    def _attention_sum(self, mask: Tensor, position_ids: Tensor | None) -> Tensor:
        """Mean over layer pairs (and queries, keys and values) of the sum over rows."""
        assert self.distill.attention is not None
        if self.distill.attention.kind == "averaged_heads":
            maps = [seen.outputs.attentions for seen in (self.student_seen, self.teacher_seen)]
            return torch.stack(
                [
                    attention_map_sum(maps[0][own - 1].mean(1)[mask], maps[1][taught - 1].mean(1)[mask])
                    for own, taught in self.attention_pairs
                ]
            ).mean()
        return torch.stack(
            [
                relation_sum(
                    self.student_seen.kept[own, name],
                    self.teacher_seen.kept[taught, name],
                    mask,
                    self.relation_heads,
                    position_ids,
                )
                for own, taught in self.attention_pairs
                for name in _RELATED
            ]
        ).mean()


def _projection(student: PreTrainedModel, teacher: PreTrainedModel) -> nn.Linear:
    """From the student's width to the teacher's, started as what best takes its embeddings to the teacher's.

    They have one vocabulary. For a student cut from its teacher this undoes the cut as far as it can be undone.
    """
    embeddings: list[Any] = [model.get_input_embeddings() for model in (student, teacher)]
    own, taught = (each.weight.detach().double().cpu() for each in embeddings)
    rows = min(len(own), len(taught))  # weights may be padded beyond the vocabulary
    projection = nn.Linear(own.shape[1], taught.shape[1], bias=False)
    projection.weight.data = torch.linalg.lstsq(own[:rows], taught[:rows]).solution.T.float().contiguous()
    return projection


class _Seen:
    """What a model showed in its last forward pass."""

    def __init__(self) -> None:
        self.outputs: Any = None
        self.kept: dict[tuple[int, str], Tensor] = {}
        self._hooks: list[Any] = []

    def keep_projections(self, model: nn.Module, layers: Sequence[int], whose: str) -> None:
        """Keep what the query, key and value projections of these layers, from 1, give: [B, S, W]."""
        for number in layers:
            modules = dict(decoder(model).layers[number - 1].self_attn.named_children())
            if missing := [name for name in _RELATED if name not in modules]:
                raise RecipeError(
                    f"distill.attention: the {whose}'s attention has no {', '.join(missing)}, so relations cannot "
                    "be compared; set `kind: averaged_heads`"
                )
            for name in _RELATED:

                def keep(module: nn.Module, inputs: tuple, output: Tensor, key: tuple[int, str] = (number, name)):
                    self.kept[key] = output

                self._hooks.append(modules[name].register_forward_hook(keep))

    def stop(self) -> None:
        for hook in self._hooks:
            hook.remove()


def _pairs(loss: Any, student: PreTrainedModel, teacher: PreTrainedModel) -> list[tuple[int, int]]:
    if loss is None:
        return []
    return map_layers(loss.layer_map, student.config.num_hidden_layers, teacher.config.num_hidden_layers)

"""The from-scratch teacher's training loop: the code itself, the lines of it, and the answers."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compress.losses import IGNORED, cross_entropy_sum, in_chunks
from compress.scratch import AnswerParts
from compress.training import AnswerTrainer, decoder

_CODE_POSITIONS_SAMPLED = 0.25
_FLAWED_LINE = 8.0  # a line with a defect counts as much as this many without


class LossWeights(NamedTuple):
    """What a token, or a line, counts by the part of an example it belongs to."""

    code: float
    line: float  # at each line's end: which rule the line breaks, if any
    clean: float  # the token that closes the findings: "nothing more to report"
    decision: float  # which rule, which line
    finding: float  # the rest of a finding: what it points at, and its fix
    summary: float


class CodeAndAnswerTrainer(AnswerTrainer):
    """Teaches a model from scratch, each part by its own weight.

    An answer makes one or two decisions about a whole unit, which is little to learn from. So a linear head,
    dropped after training, also asks the layers about two thirds up at the end of every line which rule it
    breaks. What is decided there is there to be read when the answer is written.

    It needs a tokenizer of `compress.scratch`, in which every part of an answer starts with a token of its own.
    """

    def __init__(self, *args, weights: LossWeights, parts: AnswerParts, **kwargs) -> None:
        model = kwargs["model"]
        model.line_head = nn.Linear(model.config.hidden_size, len(parts.rules) + 1)
        super().__init__(*args, **kwargs)
        self.weights, self.parts = weights, parts
        layers = decoder(model).layers
        self.middle: Tensor
        layers[max(len(layers) * 2 // 3 - 1, 0)].register_forward_hook(self._keep_middle)

    def finished_model(self) -> PreTrainedModel:
        model = super().finished_model()
        del model.line_head
        return model

    def _keep_middle(self, layer: nn.Module, inputs: tuple, output: Tensor) -> None:
        self.middle = output

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        everywhere = inputs["attention_mask"][:, 1:].bool()
        targets = inputs["input_ids"][:, 1:]
        in_answer = inputs["labels"][:, 1:] != IGNORED
        # A random part of the code positions, weighted up to stand for all: most of a step's time would
        # otherwise go into their logits.
        sampled = torch.rand(in_answer.shape, device=in_answer.device) < _CODE_POSITIONS_SAMPLED
        used = everywhere & (in_answer | sampled)
        hidden = self.last_hidden_states(model, inputs)[:, :-1][used]
        weights = self._token_weights(targets, in_answer)[used]

        def loss(rows: Tensor, labels: Tensor, factors: Tensor) -> Tensor:
            return cross_entropy_sum(model.lm_head(rows), labels, factors)

        total = in_chunks(loss, hidden, (targets[used], weights), chunk=8192) + self._line_loss(model, inputs)
        # num_items_in_batch counts answer tokens only; here every token counts. Windows hold about equally
        # many, so dividing each micro-batch by its own is good enough for a model that starts from noise.
        return total / everywhere.sum() * self.accelerator.num_processes / self.args.gradient_accumulation_steps

    def _line_loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        ends, rules = line_labels(inputs["input_ids"], inputs["labels"], self.parts)
        rows = nn.functional.rms_norm(self.middle[ends], self.middle.shape[-1:])
        wanted = rules[ends]
        factors = torch.where(wanted > 0, _FLAWED_LINE, 1.0) * self.weights.line
        return cross_entropy_sum(model.line_head(rows), wanted, factors)  # type: ignore[operator]

    def _token_weights(self, targets: Tensor, in_answer: Tensor) -> Tensor:
        """The weight of predicting each target: float [B, S - 1]."""
        opens_finding = torch.isin(targets, self.parts.rules.to(targets.device)) & in_answer
        closes = (targets == self.parts.closing) & in_answer
        line = torch.zeros_like(opens_finding)
        line[:, 1:] = opens_finding[:, :-1]
        in_summary = (closes.cumsum(dim=1) > 0) & ~closes & in_answer
        weights = torch.full(targets.shape, self.weights.code / _CODE_POSITIONS_SAMPLED, device=targets.device)
        weights[in_answer] = self.weights.finding
        weights[in_summary] = self.weights.summary
        weights[closes] = self.weights.clean
        weights[opens_finding | line] = self.weights.decision
        return weights


def line_labels(input_ids: Tensor, labels: Tensor, parts: AnswerParts) -> tuple[Tensor, Tensor]:
    """Where the lines of the prompts end, and what is wrong with each.

    Args:
        input_ids, labels: int64 [B, S]; labels are IGNORED outside the answer.

    Returns:
        ends: bool [B, S], a line's last token. rules: int64 [B, S], at a line's end the 1-based number of the
        rule that the answer says the line breaks, the first if several; 0 where it breaks none.
    """
    device = input_ids.device
    in_answer = labels != IGNORED
    before_answer = (in_answer.cumsum(dim=1) == 0) & (in_answer.any(dim=1, keepdim=True))
    newline = parts.newline.to(device)[input_ids] & before_answer
    # The first newline ends the prompt's head. The last line has none: the token before the answer stands for it.
    last = torch.zeros_like(before_answer)
    last[:, :-1] = before_answer[:, :-1] & in_answer[:, 1:]
    ends = (newline & (newline.cumsum(dim=1) > 1)) | last
    number = ends.cumsum(dim=1)
    rules = torch.zeros_like(input_ids)
    opening = torch.isin(input_ids, parts.rules.to(device)) & in_answer
    for row, place in opening.nonzero().tolist()[::-1]:
        line = int(parts.number[input_ids[row, place + 1]])
        rule = int((parts.rules == input_ids[row, place].cpu()).nonzero()[0, 0]) + 1
        rules[row][ends[row] & (number[row] == line)] = rule
    return ends, rules

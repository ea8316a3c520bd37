"""The from-scratch teacher's training loop: the code itself, the lines of it, and the answers."""

import functools
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compress.data.batches import Notes
from compress.data.tokens import Tokens
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
        self.notes: Notes = functools.partial(token_notes, weights=weights, parts=parts)
        super().__init__(*args, **kwargs)
        self.weights = weights
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
        targets, weights = inputs["input_ids"][:, 1:], inputs["weight"][:, 1:]
        in_answer = inputs["labels"][:, 1:] != IGNORED
        # A random part of the code positions, weighted up to stand for all: most of a step's time would
        # otherwise go into their logits.
        sampled = torch.rand(in_answer.shape, device=in_answer.device) < _CODE_POSITIONS_SAMPLED
        used = (weights > 0) & (in_answer | sampled)
        hidden = self.last_hidden_states(model, inputs)[:, :-1][used]
        factors = torch.where(in_answer, weights, weights / _CODE_POSITIONS_SAMPLED)[used]

        def loss(rows: Tensor, labels: Tensor, factors: Tensor) -> Tensor:
            return cross_entropy_sum(model.lm_head(rows), labels, factors)

        total = in_chunks(loss, hidden, (targets[used], factors), chunk=8192) + self._line_loss(model, inputs)
        # num_items_in_batch counts answer tokens only; here every token counts. Windows hold about equally
        # many, so dividing each micro-batch by its own is good enough for a model that starts from noise.
        tokens = inputs["attention_mask"].sum()
        return total / tokens * self.accelerator.num_processes / self.args.gradient_accumulation_steps

    def _line_loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        ends = inputs["line_rule"] > 0
        rows = nn.functional.rms_norm(self.middle[ends], self.middle.shape[-1:])
        rules = inputs["line_rule"][ends].long() - 1
        factors = torch.where(rules > 0, _FLAWED_LINE, 1.0) * self.weights.line
        return cross_entropy_sum(model.line_head(rows), rules, factors)  # type: ignore[operator]


def token_notes(tokens: Tokens, weights: LossWeights, parts: AnswerParts) -> dict[str, list[float]]:
    """What the loops need to know of each token of an example.

    Returns:
        weight: of predicting the token from those before it; the first has nothing before it.
        line_rule: at the last token of a line of the prompt, 1 where the line is as it should be, else 2 more
        than the number of the rule that the answer says it breaks, the first if several; 0 at other tokens.
    """
    ids, start = tokens.ids, tokens.answer_start
    rules = parts.rules.tolist()
    weight = [0.0] + [weights.code] * (start - 1)
    broken: dict[int, int] = {}
    closed = opened = False
    for place in range(start, len(ids)):
        token = ids[place]
        if closed:
            weight.append(weights.summary)
        elif token == parts.closing:
            weight.append(weights.clean)
            closed = True
        elif token in rules:
            weight.append(weights.decision)
            broken.setdefault(int(parts.number[ids[place + 1]]), rules.index(token))
        else:  # right after the rule comes the line
            weight.append(weights.decision if opened else weights.finding)
        opened = token in rules
    # The first newline ends the prompt's head. The last line has none: the token before the answer stands for it.
    newlines = [place for place in range(start) if parts.newline[ids[place]]]
    line_rule = [0.0] * len(ids)
    for number, place in enumerate([*newlines[1:], start - 1], start=1):
        line_rule[place] = 2.0 + broken[number] if number in broken else 1.0
    return {"weight": weight, "line_rule": line_rule}

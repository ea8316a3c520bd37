"""Recovery of what 4 bits lost: the quantised student learns to say what the unquantised one, or its teacher, says.

A LoRA adapter beside NF4 weights could not be merged into them: rounding again would undo most of it. So the change
is trained under the rounding: in training every linear layer computes with NF4(W + BA), and gradients pass through
the rounding as if it were not there (straight-through: Bengio et al., 1308.3432). Quantising the merged W + BA
afterwards then gives exactly the weights that were trained. Norms are trained too; they are never quantised.
The loss is KL from the source at temperature 1 and nothing else (QAD, 2601.20088).
"""

import math
import shutil
from pathlib import Path
from typing import Any

import msgspec
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import AutoModelForCausalLM, PreTrainedModel

from compress.data.batches import collate
from compress.data.tokens import TokenDataset, load_tokenizer
from compress.losses import divergence_sum, predicting_positions, tempered_log_probs
from compress.online import OnlineDistillTrainer
from compress.quantize import quantize_nf4
from compress.recipe import NF4_BLOCK, Distill, Recover

RECORD_FILE = "recovery.json"
_MEASURED_EXAMPLES = 256
_EXAMPLES_AT_A_TIME = 8


class Recovery(msgspec.Struct, frozen=True):
    """What recovery did. KL is in nats, the mean over answer tokens of code that was not trained on."""

    student_kl: float  # KL(student ‖ its 4-bit form): what the recipe's `max_kl` is compared with
    source_kl_before: float | None  # KL(source ‖ 4-bit form); None where there was no need to recover
    source_kl_after: float | None
    kept: bool  # the recovered weights were nearer to the source, and are the ones that go on


def recover_nf4(
    student: Path,
    teacher: Path,
    quantised: Path,
    train_set: TokenDataset,
    validation_set: TokenDataset,
    options: Recover,
    seed: int,
    out: Path,
) -> Recovery:
    """Write the better 4-bit student, `quantised` or a recovered one, into `out`/nf4, and what was measured beside it.

    A killed run goes on from its newest whole checkpoint.

    Args:
        student: the unquantised checkpoint that `quantised` was made from.
        teacher: the teacher's checkpoint; used where the recipe says it is the source.
        validation_set: examples of projects that are not trained on.
    """
    unquantised = _load(student)
    student_kl = mean_kl(unquantised, _load(quantised), validation_set)
    if student_kl <= options.max_kl:
        return _finish(Recovery(student_kl, None, None, kept=False), quantised, out)
    source = unquantised if options.source == "student" else _load(teacher)
    before = student_kl if options.source == "student" else mean_kl(source, _load(quantised), validation_set)
    if not (out / "model").is_dir():
        _train(student, source, train_set, options, seed, out)
    recovered = out / "recovered"
    quantize_nf4(out / "model", train_set, recovered)
    after = mean_kl(source, _load(recovered), validation_set)
    return _finish(
        Recovery(student_kl, before, after, kept=after < before), recovered if after < before else quantised, out
    )


def read_recovery(folder: Path) -> Recovery:
    """What `recover_nf4` measured."""
    return msgspec.json.decode((folder / RECORD_FILE).read_bytes(), type=Recovery)


def recovery_line(recovery: Recovery, options: Recover) -> str:
    """What recovery did, as a line to print."""
    line = f"4 bits: KL from the student {recovery.student_kl:.4f} nats an answer token"
    if recovery.source_kl_before is None:
        return f"{line}, within max_kl {options.max_kl:g}: nothing to recover"
    kept = "kept" if recovery.kept else "no better, so not kept"
    return (
        f"{line}, above max_kl {options.max_kl:g}; recovery took KL from the {options.source} from "
        f"{recovery.source_kl_before:.4f} to {recovery.source_kl_after:.4f}: {kept}"
    )


@torch.no_grad()
def mean_kl(source: PreTrainedModel, model: PreTrainedModel, dataset: TokenDataset) -> float:
    """KL(source ‖ model) at temperature 1 over the first examples of a dataset: the mean over answer tokens, in nats.

    The two may pad their vocabularies differently; what both have is compared.
    """
    source.eval()
    model.eval()
    vocabulary = min(source.config.vocab_size, model.config.vocab_size)
    total, tokens = 0.0, 0
    rows = [dataset[place] for place in range(min(len(dataset), _MEASURED_EXAMPLES))]
    for start in range(0, len(rows), _EXAMPLES_AT_A_TIME):
        batch = collate(rows[start : start + _EXAMPLES_AT_A_TIME], pad_token_id=0)
        mask, targets = predicting_positions(batch["labels"])
        log_probs = []
        for each in (source, model):
            inputs = {name: batch[name].to(each.device) for name in ("input_ids", "attention_mask")}
            hidden = each.model(**inputs, use_cache=False).last_hidden_state[mask.to(each.device)]
            log_probs.append(tempered_log_probs(each.lm_head(hidden)[:, :vocabulary], 1.0).to(source.device))
        total += divergence_sum(log_probs[1], log_probs[0]).item()
        tokens += len(targets)
    return total / tokens


def nf4_rounded(weight: Tensor) -> Tensor:
    """What a linear layer computes with once its weight [out, in] was quantised as `quantize_nf4` does."""
    packed, state = quantize_4bit(
        weight.to(torch.bfloat16).contiguous(), blocksize=NF4_BLOCK, compress_statistics=True, quant_type="nf4"
    )
    return dequantize_4bit(packed, state).to(weight.dtype)


class LowRankUnderNf4(nn.Module):
    """A weight as its quantised form will be: W -> NF4(W + BA · lora_alpha / r), gradients straight through."""

    def __init__(self, weight: Tensor, r: int, lora_alpha: int) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(torch.empty(r, weight.shape[1]))
        self.lora_B = nn.Parameter(torch.zeros(weight.shape[0], r))  # so that training starts from NF4(W)
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.scale = lora_alpha / r

    def merged(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.lora_B @ self.lora_A)

    def forward(self, weight: Tensor) -> Tensor:
        merged = self.merged(weight)
        return merged + (nf4_rounded(merged.detach()) - merged.detach())


class RecoveryTrainer(OnlineDistillTrainer):
    """Trains a student that computes in 4 bits; the finished model is unquantised again, to be quantised for good."""

    def finished_model(self) -> PreTrainedModel:
        model = super().finished_model()
        for module in _linear_layers(model):
            (change,) = module.parametrizations["weight"]
            merged = change.merged(module.parametrizations["weight"].original).detach()
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
            module.weight.data = merged
        return model.bfloat16()


def _train(
    student: Path, source: PreTrainedModel, dataset: TokenDataset, options: Recover, seed: int, out: Path
) -> None:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32).requires_grad_(False)
    for module in _linear_layers(model):
        change = LowRankUnderNf4(module.weight, options.r, options.lora_alpha)
        parametrize.register_parametrization(module, "weight", change)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or "norm" in name)
    trainer = RecoveryTrainer(
        model=model,
        tokenizer=load_tokenizer(student),
        train=options.train,
        dataset=dataset,
        out=out / "checkpoints",
        seed=seed,
        description="recovery",
        distill=Distill(teacher="online", alpha=0.0, temperature=1.0),
        teacher=source,
    )
    trainer.train_resuming(out / "model")


def _linear_layers(model: nn.Module) -> list[Any]:
    """The layers that `quantize_nf4` quantises."""
    return [module for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != "lm_head"]


def _load(checkpoint: Path) -> PreTrainedModel:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16, device_map=device)


def _finish(recovery: Recovery, better: Path, out: Path) -> Recovery:
    staged = out / "nf4.partial"
    shutil.rmtree(staged, ignore_errors=True)
    shutil.copytree(better, staged)
    shutil.rmtree(out / "nf4", ignore_errors=True)
    staged.rename(out / "nf4")
    (out / RECORD_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(recovery), indent=2))
    return recovery

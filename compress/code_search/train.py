"""Training a bi-encoder on pairs, with a teacher's embeddings or without, in sentence-transformers' loop."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments
from torch import Tensor, nn
from transformers import PrinterCallback, TrainerCallback

from compress import ranks
from compress.code_search.data import Pair
from compress.code_search.encoders import load_encoder, save_encoder, transformer
from compress.code_search.losses import (
    embedding_mse,
    info_nce,
    principal_projection,
    repeated_answers,
    shortened,
    similarities,
    similarity_kl,
)
from compress.code_search.recipe import SearchDistill, SearchTrain
from compress.losses.schedule import scheduled
from compress.mishaps import memory_advice, stop_for
from compress.recipe import Train
from compress.training import (
    ProgressBar,
    events_in,
    last_whole_checkpoint,
    plain_attention_on_cpus,
    training_arguments,
)
from compress.training_log import TRAINING_LOG

KNOBS = "lower train.per_device_train_batch_size, data.max_tokens or distill.hard_negatives"


class Taught(NamedTuple):
    """What a student learns from beside the pairs. Rows are in the order of the pairs."""

    queries: NDArray[np.float32]  # the teacher's embeddings [N, D]
    documents: NDArray[np.float32]  # likewise
    negatives: NDArray[np.int64]  # [N, n]: which pairs' documents are hard negatives


class PairLoss(nn.Module):
    """alpha * InfoNCE + (1 - alpha) * T² * KL + embedding_weight * MSE, averaged over the student's widths.

    Without a teacher it is InfoNCE alone. The squared distance is taken at the full width.
    """

    def __init__(
        self, encoder: SentenceTransformer, distill: SearchDistill, taught: Taught | None, dimensions: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.model, self.distill = encoder, distill
        width = encoder.get_embedding_dimension()
        assert width is not None, "an encoder that pools has a width"
        self.widths = (width, *dimensions)
        self.taught = taught
        self.targets = _targets(taught, width) if taught is not None else None
        self.step, self.total_steps = 0, 1

    def forward(self, features: Iterable[dict[str, Tensor]], labels: Tensor) -> dict[str, Tensor]:
        """The terms of a batch's loss, weighted, by their names.

        Args:
            features: tokens of the queries, of their functions, and of as many hard negatives as there are.
            labels: int64 [B], the pairs' numbers.
        """
        queries, *documents = (self.model(each)["sentence_embedding"] for each in features)
        numbers = self._numbers(labels, len(documents))
        logits = [
            similarities(
                shortened(queries, width),
                shortened(torch.cat(documents), width),
                self.distill.scale,
                repeated_answers(numbers, len(labels)),
            )
            for width in self.widths
        ]
        pairs = torch.stack([info_nce(each) for each in logits]).mean()
        if self.taught is None or self.targets is None:
            return {"info_nce": pairs}
        alpha = scheduled(self.distill.alpha, self.distill.alpha_schedule, self.step, self.total_steps)
        temperature = self.distill.temperature
        asked, held = _rows((self.taught.queries, self.taught.documents), labels, numbers)
        teacher = similarities(asked, held, self.distill.scale, repeated_answers(numbers, len(labels)))
        divergence = torch.stack([similarity_kl(each, teacher, temperature) for each in logits]).mean()
        near = embedding_mse(torch.cat([queries, *documents]), torch.cat(_rows(self.targets, labels, numbers)))
        return {
            "info_nce": alpha * pairs,
            "kl": (1 - alpha) * temperature**2 * divergence,
            "embedding_mse": self.distill.embedding_weight * near,
        }

    def _numbers(self, labels: Tensor, columns: int) -> Tensor:
        """Which pair's document each column is: the pairs' own, then their first hard negatives, and so on."""
        if self.taught is None or columns == 1:
            return labels
        negatives = torch.from_numpy(self.taught.negatives).to(labels.device)[labels]
        return torch.cat([labels, negatives.T.flatten()])


def _targets(taught: Taught, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What a student's embeddings of queries and of documents are to be near to, as wide as they are."""
    if taught.documents.shape[1] == width:
        return taught.queries, taught.documents
    projection = principal_projection(torch.from_numpy(taught.documents), width)
    queries, documents = (
        nn.functional.normalize(torch.from_numpy(part) @ projection, dim=-1).numpy()
        for part in (taught.queries, taught.documents)
    )
    return queries, documents


def _rows(embeddings: Iterable[NDArray[np.float32]], labels: Tensor, numbers: Tensor) -> list[Tensor]:
    """Those of a batch's queries, and of its documents, where the batch is."""
    return [
        torch.from_numpy(part[rows.cpu().numpy()]).to(labels.device)
        for part, rows in zip(embeddings, (labels, numbers), strict=True)
    ]


class _Progress(TrainerCallback):
    """Tells the loss where training is, so that a schedule goes on where it was when a run is resumed."""

    def __init__(self, loss: PairLoss) -> None:
        self.loss = loss

    def on_step_begin(self, args, state, control, **kwargs):
        self.loss.step, self.loss.total_steps = state.global_step, state.max_steps


class PairTrainer(SentenceTransformerTrainer):
    """sentence-transformers' loop, which stops where a loss is no number, and looks nothing up on a hub."""

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """One batch forwards and backwards.

        Raises:
            StageError: the loss is not a finite number; the batch is saved.
        """
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
            known = {"seed": str(self.args.seed), "learning_rate": str(self._get_learning_rate())}
            raise stop_for(tensors, "the loss", self.state.global_step, known, Path(str(self.args.output_dir)))
        return loss

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """A checkpoint needs no card."""


def train_encoder(
    start: str,
    pairs: list[Pair],
    train: SearchTrain,
    distill: SearchDistill,
    taught: Taught | None,
    dimensions: tuple[int, ...],
    max_tokens: int,
    seed: int,
    out: Path,
    description: str,
) -> None:
    """Train the encoder that starts at `start`, with a teacher or, without one, on the pairs alone.

    Writes `out`/model. A killed run goes on from its newest whole checkpoint.

    Raises:
        StageError: memory ran out, or the loss is not a finite number.
    """
    if (out / "model").is_dir():
        return
    ranks.require_one("training a bi-encoder, whose batch is one set of wrong answers,")
    torch.manual_seed(seed)
    encoder = load_encoder(start, max_tokens)
    plain_attention_on_cpus(transformer(encoder))
    loss = PairLoss(encoder, distill, taught, dimensions)
    checkpoints = out / "checkpoints"
    arguments = training_arguments(
        Train(**msgspec.structs.asdict(train)),
        checkpoints,
        seed,
        SentenceTransformerTrainingArguments,
        dataloader_drop_last=len(pairs) > train.per_device_train_batch_size,
    )
    arguments.include_num_input_tokens_seen = "no"  # a batch has several inputs here
    trainer = PairTrainer(
        model=encoder,
        args=arguments,
        train_dataset=_dataset(pairs, taught),
        loss=loss,
        callbacks=[ProgressBar(description), _Progress(loss), events_in(checkpoints / "events")],
    )
    trainer.remove_callback(PrinterCallback)
    checkpoint = last_whole_checkpoint(checkpoints)
    with memory_advice(description, KNOBS):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trained = out / "trained"
    shutil.rmtree(trained, ignore_errors=True)
    save_encoder(encoder, trained)
    trainer.state.save_to_json(str(trained / TRAINING_LOG))
    trained.rename(out / "model")


def _dataset(pairs: list[Pair], taught: Taught | None) -> Dataset:
    """The columns sentence-transformers gives the loss, in this order; `label` is the pair's number."""
    columns: dict[str, list] = {
        "query": [pair.query for pair in pairs],
        "document": [pair.document for pair in pairs],
    }
    for place, numbers in enumerate(taught.negatives.T if taught is not None else ()):
        columns[f"negative_{place}"] = [pairs[number].document for number in numbers]
    return Dataset.from_dict({**columns, "label": list(range(len(pairs)))})

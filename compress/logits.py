"""Soft labels: what the teacher thinks at every answer position, computed once and kept.

A position keeps the teacher's k largest raw logits, their ids, and the logsumexp over the whole
vocabulary at the distillation temperature, so that the k probabilities are exact and the rest of the
mass is known. Positions are looked up by example, never by order of reading. The cache is keyed by
everything it depends on; a cache made with anything else is an error, not a silent reuse.
"""

import hashlib
from pathlib import Path

import msgspec
import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor
from transformers import PreTrainedModel

from bundle.manifest import file_sha256
from compress.data.tokens import TokenBudgetBatches, TokenDataset, collate
from compress.errors import StageError
from compress.losses import predicting_positions

_EXAMPLES_PER_SHARD = 2048


class SoftLabelKey(msgspec.Struct, frozen=True):
    """Everything a cache depends on."""

    tokens: str  # hash over the token ids of every example, prompt template and tokenizer included
    tokenizer: str
    teacher: str  # hash of the teacher's weight files, adapter merged
    temperature: float
    top_k: int
    vocab_size: int
    dtype: str = "float16 logits, float32 logsumexp"


class StaleSoftLabels(StageError):
    """The cache on disk was made from other examples, another teacher or another temperature."""


def soft_label_key(
    dataset: TokenDataset, teacher_folder: Path, temperature: float, top_k: int, vocab_size: int
) -> SoftLabelKey:
    """The key of the soft labels that this dataset and this teacher would give."""
    digest = hashlib.sha256()
    for row in dataset.rows:
        digest.update(np.asarray([row.answer_start, *row.ids], dtype=np.int64).tobytes())
    weights = hashlib.sha256()
    for file in sorted(teacher_folder.glob("*.safetensors")):
        weights.update(file_sha256(file).encode())
    return SoftLabelKey(
        tokens=digest.hexdigest(),
        tokenizer=file_sha256(teacher_folder / "tokenizer.json"),
        teacher=weights.hexdigest(),
        temperature=temperature,
        top_k=min(top_k, vocab_size - 1),
        vocab_size=vocab_size,
    )


@torch.no_grad()
def write_soft_labels(
    teacher: PreTrainedModel,
    dataset: TokenDataset,
    key: SoftLabelKey,
    pad_token_id: int,
    folder: Path,
    tokens_per_batch: int = 16384,
) -> None:
    """One pass of the teacher over the dataset, in shards that are each written whole.

    Shards an earlier, killed run wrote are kept, if the key is the same; else the folder must be empty.

    Raises:
        StaleSoftLabels: the folder holds soft labels with another key.
    """
    _claim(folder, key)
    teacher.eval()
    starts = range(0, len(dataset), _EXAMPLES_PER_SHARD)
    with Progress(transient=True) as progress:
        for start in progress.track(starts, description="soft labels"):
            shard = folder / f"shard-{start:09d}.npz"
            if shard.is_file():
                continue
            indices = range(start, min(start + _EXAMPLES_PER_SHARD, len(dataset)))
            arrays = _label_shard(teacher, dataset, indices, key, pad_token_id, tokens_per_batch)
            staged = shard.with_suffix(".tmp")
            with staged.open("wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the names for options
            staged.replace(shard)


def _claim(folder: Path, key: SoftLabelKey) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    held = folder / "key.json"
    if held.is_file():
        found = msgspec.json.decode(held.read_bytes(), type=SoftLabelKey)
        if found != key:
            different = [name for name in key.__struct_fields__ if getattr(found, name) != getattr(key, name)]
            raise StaleSoftLabels(
                f"{folder} holds soft labels made with another {', '.join(different)}; "
                "delete the folder or run with --from logits"
            )
    elif any(folder.glob("shard-*.npz")):
        raise StaleSoftLabels(f"{folder} holds soft labels without a key; delete the folder")
    else:
        held.write_bytes(msgspec.json.encode(key))


def _label_shard(
    teacher: PreTrainedModel,
    dataset: TokenDataset,
    indices: range,
    key: SoftLabelKey,
    pad_token_id: int,
    tokens_per_batch: int,
) -> dict[str, np.ndarray]:
    """ids uint32 [M, k], logits float16 [M, k], logsumexp float32 [M], and where each example's rows start."""
    lengths = [dataset.lengths[index] for index in indices]
    counts = [len(dataset.rows[index].ids) - dataset.rows[index].answer_start for index in indices]
    offsets = np.concatenate([[0], np.cumsum(counts)])
    ids = np.zeros((offsets[-1], key.top_k), dtype=np.uint32)
    logits = np.zeros((offsets[-1], key.top_k), dtype=np.float16)
    logsumexp = np.zeros(offsets[-1], dtype=np.float32)
    for batch in TokenBudgetBatches(lengths, tokens_per_batch, seed=0):
        rows = [dataset[indices[place]] for place in batch]
        inputs = {name: tensor.to(teacher.device) for name, tensor in collate(rows, pad_token_id).items()}
        mask, _ = predicting_positions(inputs["labels"])
        hidden = teacher.model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
        ).last_hidden_state
        labels = soft_labels(teacher.lm_head(hidden[mask])[:, : key.vocab_size], key.temperature, key.top_k)
        where = np.concatenate([np.arange(offsets[place], offsets[place + 1]) for place in batch])
        ids[where] = labels[0].cpu().numpy()
        logits[where] = labels[1].cpu().numpy()
        logsumexp[where] = labels[2].cpu().numpy()
    return {"ids": ids, "logits": logits, "logsumexp": logsumexp, "offsets": offsets}


def soft_labels(logits: Tensor, temperature: float, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """What is kept of teacher logits [N, V]: ids and raw logits of the k largest [N, k], logsumexp(z / T) [N].

    The logits are shifted so that each row's largest is 0: float16 then keeps the likely ones exactly
    enough, and the softmax does not change.
    """
    logits = logits.float()
    top = logits.topk(top_k, dim=-1)
    largest = top.values[:, :1]
    kept = (top.values - largest).half()
    return top.indices, kept, ((logits - largest) / temperature).logsumexp(dim=-1)


class SoftLabels:
    """Soft labels read back by example; a shard is loaded when one of its examples is first asked for."""

    def __init__(self, folder: Path, key: SoftLabelKey) -> None:
        """
        Raises:
            StaleSoftLabels: the folder's key is not `key`.
        """
        _claim(folder, key)
        self.folder, self.key = folder, key
        self._shards: dict[int, dict[str, np.ndarray]] = {}

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Soft labels of a batch's answer positions, example after example.

        Args:
            index: int64 [B], places in the dataset.

        Returns:
            ids int64 [N, k], logits float32 [N, k], logsumexp float32 [N]; the same order as
            `predicting_positions` gives.
        """
        parts = [self._example(int(place)) for place in index]
        ids, logits, logsumexp = (np.concatenate(column) for column in zip(*parts, strict=True))
        return (
            torch.from_numpy(ids.astype(np.int64)),
            torch.from_numpy(logits.astype(np.float32)),
            torch.from_numpy(logsumexp),
        )

    def _example(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        start = index - index % _EXAMPLES_PER_SHARD
        if start not in self._shards:
            with np.load(self.folder / f"shard-{start:09d}.npz") as shard:
                self._shards[start] = dict(shard)
        shard = self._shards[start]
        here = slice(*shard["offsets"][index - start : index - start + 2])
        return shard["ids"][here], shard["logits"][here], shard["logsumexp"][here]

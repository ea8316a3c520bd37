"""Soft labels: what the teacher thinks at every answer position, computed once and kept.

A position keeps raw logits of some tokens, their ids, and the logsumexp over the whole vocabulary at every
temperature in use, so that the kept probabilities are exact at each of them. The tokens are the k likeliest,
or are drawn at random from the teacher's distribution. Positions are looked up by example, never by order of
reading. The cache is keyed by everything it depends on; a cache made with anything else is an error, not a
silent reuse.

On disk: `key.json`; `offsets.npy`, where each example's positions start; and shards of rows, `shard-*.npy`,
which are mapped into memory and not loaded, so that processes of one machine share them.
"""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor
from transformers import PreTrainedModel

from bundle.manifest import file_sha256
from compress import ranks
from compress.data.batches import TokenBudgetBatches, collate
from compress.data.tokens import TokenDataset
from compress.errors import StageError
from compress.label_cache import claim, write_array
from compress.losses import predicting_positions
from compress.recipe import Distill, Ramp

_EXAMPLES_PER_SHARD = 2048
_POSITIONS_AT_A_TIME = 1024

Labels = tuple[Tensor, Tensor, Tensor]


class SoftLabelKey(msgspec.Struct, frozen=True):
    """Everything a cache depends on."""

    tokens: str  # hash over the token ids of every example, prompt template and tokenizer included
    tokenizer: str
    teacher: str  # hash of the teacher's weight files, adapter merged
    labels: Literal["top_k", "sampled"]
    kept: int  # tokens a position
    temperatures: tuple[float, ...]  # rising; sampled labels are drawn at the last
    vocab_size: int
    dtype: str = "uint32 ids, float16 logits, float32 logsumexp"

    @property
    def row(self) -> np.dtype:
        """One position on disk."""
        return np.dtype(
            [
                ("ids", np.uint32, (self.kept,)),
                ("logits", np.float16, (self.kept,)),
                ("logsumexp", np.float32, (len(self.temperatures),)),
            ]
        )


def soft_label_key(dataset: TokenDataset, teacher_folder: Path, distill: Distill, vocab_size: int) -> SoftLabelKey:
    """The key of the soft labels that this dataset and this teacher would give.

    Args:
        vocab_size: len(tokenizer); logits beyond it are padding of the weights.
    """
    digest = hashlib.sha256()
    for row in dataset.rows:
        digest.update(np.asarray([row.answer_start, *row.ids], dtype=np.int64).tobytes())
    weights = hashlib.sha256()
    for file in sorted(teacher_folder.glob("*.safetensors")):
        weights.update(file_sha256(file).encode())
    schedule = distill.temperature_schedule
    assert not isinstance(schedule, Ramp), "the recipe was validated"
    return SoftLabelKey(
        tokens=digest.hexdigest(),
        tokenizer=file_sha256(teacher_folder / "tokenizer.json"),
        teacher=weights.hexdigest(),
        labels=distill.labels,
        kept=min(distill.top_k, vocab_size - 1) if distill.labels == "top_k" else distill.samples,
        temperatures=tuple(sorted(set(schedule or [distill.temperature]))),
        vocab_size=vocab_size,
    )


def require_room(folder: Path, dataset: TokenDataset, key: SoftLabelKey) -> str:
    """What the soft labels will take on disk, as a line to print; shards that are there already count as done.

    Raises:
        StageError: the disk below `folder` has less room than that.
    """
    counts = _positions(dataset)
    missing = sum(
        int(counts[start : start + _EXAMPLES_PER_SHARD].sum()) * key.row.itemsize
        for start in range(0, len(dataset), _EXAMPLES_PER_SHARD)
        if not _shard(folder, start).is_file()
    )
    free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
    plan = f"{counts.sum():,} answer tokens of {key.row.itemsize} bytes: {missing / 1e6:,.1f} MB to write"
    if missing > free:
        kept = "top_k" if key.labels == "top_k" else "samples"
        raise StageError(
            f"soft labels do not fit into {folder}: {plan}, {free / 1e6:,.1f} MB are free. "
            f"Lower distill.{kept}, set distill.teacher: online, or give the run a larger disk with --out"
        )
    return f"soft labels: {plan}, {free / 1e6:,.1f} MB free"


@torch.no_grad()
def write_soft_labels(
    teacher: PreTrainedModel,
    dataset: TokenDataset,
    key: SoftLabelKey,
    pad_token_id: int,
    folder: Path,
    tokens_per_batch: int = 8192,
) -> None:
    """One pass of the teacher over the dataset, in shards that are each written whole.

    Shards an earlier, killed run wrote are kept, if the key is the same; else the folder must be empty. Several
    processes share the shards out among them, each with a teacher of its own.

    Raises:
        StaleSoftLabels: the folder holds soft labels with another key.
        StageError: the disk has no room for them.
    """
    if ranks.number() == 0:
        claim(folder, key, "logits")
        require_room(folder, dataset, key)
        write_array(folder / "offsets.npy", np.concatenate([[0], np.cumsum(_positions(dataset))]))
    ranks.meet()
    teacher.eval()
    starts = range(0, len(dataset), _EXAMPLES_PER_SHARD)
    mine = starts[ranks.number() :: ranks.count()]
    with Progress(transient=True, disable=ranks.number() > 0) as progress:
        for start in progress.track(mine, description="soft labels"):
            if not _shard(folder, start).is_file():
                indices = range(start, min(start + _EXAMPLES_PER_SHARD, len(dataset)))
                rows = _label_shard(teacher, dataset, indices, key, pad_token_id, tokens_per_batch)
                write_array(_shard(folder, start), rows)
    ranks.meet()


def _shard(folder: Path, start: int) -> Path:
    return folder / f"shard-{start:09d}.npy"


def _positions(dataset: TokenDataset) -> np.ndarray:
    """How many positions of each example predict an answer token."""
    return np.array([len(row.ids) - row.answer_start for row in dataset.rows], dtype=np.int64)


def _label_shard(
    teacher: PreTrainedModel,
    dataset: TokenDataset,
    indices: range,
    key: SoftLabelKey,
    pad_token_id: int,
    tokens_per_batch: int,
) -> np.ndarray:
    """The rows of some examples, example after example."""
    lengths = [dataset.lengths[index] for index in indices]
    offsets = np.concatenate([[0], np.cumsum(_positions(dataset)[indices.start : indices.stop])])
    rows = np.zeros(offsets[-1], dtype=key.row)
    label = _labeller(key, torch.Generator(teacher.device).manual_seed(indices.start))
    for batch in TokenBudgetBatches(lengths, tokens_per_batch, seed=0):
        examples = [dataset[indices[place]] for place in batch]
        inputs = {name: tensor.to(teacher.device) for name, tensor in collate(examples, pad_token_id).items()}
        mask, _ = predicting_positions(inputs["labels"])
        hidden = teacher.model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
        ).last_hidden_state[mask]
        where = np.concatenate([np.arange(offsets[place], offsets[place + 1]) for place in batch])
        for first in range(0, len(where), _POSITIONS_AT_A_TIME):
            part = slice(first, first + _POSITIONS_AT_A_TIME)
            labels = label(teacher.lm_head(hidden[part])[:, : key.vocab_size])
            for name, column in zip(("ids", "logits", "logsumexp"), labels, strict=True):
                rows[name][where[part]] = column.cpu().numpy()
    return rows


def _labeller(key: SoftLabelKey, generator: torch.Generator) -> Callable[[Tensor], Labels]:
    if key.labels == "top_k":
        return lambda logits: top_k_labels(logits, key.temperatures, key.kept)
    return lambda logits: sampled_labels(logits, key.temperatures, key.kept, generator)


def top_k_labels(logits: Tensor, temperatures: tuple[float, ...], top_k: int) -> Labels:
    """What is kept of teacher logits [N, V]: the k largest.

    The logits are shifted so that each row's largest is 0: float16 then keeps the likely ones exactly
    enough, and the softmax does not change. The logsumexp is over the logits as they are kept, so that the
    mass of all other tokens, 1 less that of the kept ones, is exact as well.

    Returns:
        ids int64 [N, k], raw logits float16 [N, k], logsumexp(z / T) float32 [N, temperatures].
    """
    shifted = _shifted(logits)
    top = shifted.topk(top_k, dim=-1)
    kept = top.values.half()
    as_kept = shifted.scatter(-1, top.indices, kept.float())
    return top.indices, kept, _normalisers(as_kept, temperatures)


def sampled_labels(logits: Tensor, temperatures: tuple[float, ...], samples: int, generator: torch.Generator) -> Labels:
    """What is kept of teacher logits [N, V]: tokens drawn, with replacement, from their softmax at the last
    temperature. Returns the same as `top_k_labels`."""
    shifted = _shifted(logits)
    proposal = (shifted / temperatures[-1]).softmax(dim=-1)
    ids = proposal.multinomial(samples, replacement=True, generator=generator)
    return ids, shifted.gather(-1, ids).half(), _normalisers(shifted, temperatures)


def _shifted(logits: Tensor) -> Tensor:
    logits = logits.float()
    return logits - logits.amax(dim=-1, keepdim=True)


def _normalisers(logits: Tensor, temperatures: tuple[float, ...]) -> Tensor:
    return torch.stack([(logits / temperature).logsumexp(dim=-1) for temperature in temperatures], dim=-1)


class SoftLabels:
    """Soft labels read back by example, from shards that are mapped into memory."""

    def __init__(self, folder: Path, key: SoftLabelKey) -> None:
        """
        Raises:
            StaleSoftLabels: the folder's key is not `key`.
        """
        claim(folder, key, "logits")
        self.folder, self.key = folder, key
        self._offsets = np.load(folder / "offsets.npy")
        self._shards: dict[int, np.ndarray] = {}

    def rows(self, index: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
        """Soft labels of a batch's answer positions at a temperature, example after example: the same order as
        `predicting_positions` gives.

        Args:
            index: int64 [B], places in the dataset.
            temperature: one of those the labels were made for.

        Returns:
            ids: int64 [N, k]. log_probs: float32 [N, k], those tokens' under the teacher's softmax over the
            whole vocabulary. weights: float32 [N, k], how much a token stands for: its own probability with
            top-k labels, probability / (k · proposal) with sampled ones.
        """
        rows = np.concatenate([self._example(int(place)) for place in index])
        ids = torch.from_numpy(rows["ids"].astype(np.int64))
        logits = torch.from_numpy(rows["logits"].astype(np.float32))
        logsumexp = torch.from_numpy(rows["logsumexp"].copy())

        def log_probs(place: int) -> Tensor:
            return logits / self.key.temperatures[place] - logsumexp[:, place, None]

        at_temperature = log_probs(self.key.temperatures.index(temperature))
        if self.key.labels == "top_k":
            return ids, at_temperature, at_temperature.exp()
        return ids, at_temperature, (at_temperature - log_probs(-1)).exp() / self.key.kept

    def _example(self, index: int) -> np.ndarray:
        start = index - index % _EXAMPLES_PER_SHARD
        if start not in self._shards:
            self._shards[start] = np.load(_shard(self.folder, start), mmap_mode="r")
        first, end = self._offsets[index : index + 2] - self._offsets[start]
        return self._shards[start][first:end]

"""Token ids with labels as batches: padded or packed rows, filled by a token budget."""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch
from torch.utils.data import Sampler

from compress.data.tokens import Tokens
from compress.losses import IGNORED


def padded_width(length: int) -> int:
    """A batch's width: a multiple of 32, so that kernels are prepared for few shapes and not for every length."""
    return -(-length // 32) * 32


# What is known of each token of an example beyond its id, by name: one value a token, 0 in the padding.
Notes = Callable[[Tokens], dict[str, list[float]]]


def collate(rows: list[dict], pad_token_id: int, notes: Notes | None = None) -> dict[str, torch.Tensor]:
    """Right-padded batch, one example a row.

    Returns:
        input_ids, attention_mask, labels (prompt and padding IGNORED): int64 [B, S]; index: [B], the
        rows' places in the dataset, by which soft labels are looked up; what `notes` tells: float [B, S].
    """
    width = padded_width(max(len(row["tokens"].ids) for row in rows))
    return _lay_out([[row] for row in rows], width, pad_token_id, notes)


def collate_packed(
    rows: list[dict], pad_token_id: int, width: int, notes: Notes | None = None
) -> dict[str, torch.Tensor]:
    """A batch with several examples to each row of `width` tokens.

    No example sees another: transformers masks attention where `position_ids` start again, as long as it is
    given no attention mask.

    Returns:
        What `collate` returns, `index` in the order in which the examples lie, and position_ids: [B, S].
    """
    places = first_fit([len(row["tokens"].ids) for row in rows], width)
    packed: list[list[dict]] = [[] for _ in range(max(places) + 1)]
    for row, place in zip(rows, places, strict=True):
        packed[place].append(row)
    batch = _lay_out(packed, width, pad_token_id, notes)
    position_ids = torch.zeros_like(batch["input_ids"])
    for place, examples in enumerate(packed):
        lengths = [len(row["tokens"].ids) for row in examples]
        lengths.append(width - sum(lengths))  # the padding is a sequence of its own
        position_ids[place] = torch.cat([torch.arange(length) for length in lengths])
    return {**batch, "position_ids": position_ids}


def _lay_out(packed: list[list[dict]], width: int, pad_token_id: int, notes: Notes | None) -> dict[str, torch.Tensor]:
    shape = (len(packed), width)
    batch = {
        "input_ids": torch.full(shape, pad_token_id),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
        "labels": torch.full(shape, IGNORED),
    }
    for place, examples in enumerate(packed):
        start = 0
        for row in examples:
            tokens: Tokens = row["tokens"]
            end = start + len(tokens.ids)
            batch["input_ids"][place, start:end] = torch.tensor(tokens.ids)
            batch["attention_mask"][place, start:end] = 1
            batch["labels"][place, start + tokens.answer_start : end] = torch.tensor(tokens.ids[tokens.answer_start :])
            for name, values in (notes(tokens) if notes is not None else {}).items():
                batch.setdefault(name, torch.zeros(shape))[place, start:end] = torch.tensor(values)
            start = end
    batch["index"] = torch.tensor([row["index"] for examples in packed for row in examples])
    return batch


def first_fit(lengths: list[int], width: int) -> list[int]:
    """The row of `width` tokens each example goes to: the first that has room for it."""
    room: list[int] = []
    places = []
    for length in lengths:
        place = next((place for place, left in enumerate(room) if left >= length), len(room))
        if place == len(room):
            room.append(width)
        room[place] -= length
        places.append(place)
    return places


class _EpochBatches(Sampler[list[int]], ABC):
    """Batches of an order that depends on the epoch; every epoch has as many as the first, so that steps add up."""

    def __init__(self) -> None:
        self.epoch = 0
        self._count = len(self._batches())

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches()[: self._count])

    @abstractmethod
    def _batches(self) -> list[list[int]]:
        """Those of the current epoch."""


class PackedBatches(_EpochBatches):
    """Batches that `collate_packed` lays out in at most `budget // width` rows of `width` tokens each."""

    def __init__(self, lengths: list[int], budget: int, width: int, seed: int) -> None:
        self.lengths, self.rows, self.width, self.seed = lengths, max(budget // width, 1), width, seed
        super().__init__()

    def _batches(self) -> list[list[int]]:
        order = list(range(len(self.lengths)))
        random.Random(f"{self.seed}:{self.epoch}").shuffle(order)
        batches: list[list[int]] = [[]]
        room = [self.width] * self.rows
        for index in order:
            length = self.lengths[index]
            place = next((place for place, left in enumerate(room) if left >= length), None)
            if place is None:
                batches.append([])
                room, place = [self.width] * self.rows, 0
            room[place] -= length
            batches[-1].append(index)
        return batches


class TokenBudgetBatches(_EpochBatches):
    """Batches of rows of about one length, each of at most `budget` tokens with padding.

    Rows are shuffled, sorted by length within windows, cut into batches, and the batches shuffled: little
    padding, and an order that depends only on the seed and the epoch.
    """

    def __init__(self, lengths: list[int], budget: int, seed: int, window: int = 2048) -> None:
        self.lengths, self.budget, self.seed, self.window = lengths, budget, seed, window
        super().__init__()

    def _batches(self) -> list[list[int]]:
        rng = random.Random(f"{self.seed}:{self.epoch}")
        order = list(range(len(self.lengths)))
        rng.shuffle(order)
        batches: list[list[int]] = []
        for start in range(0, len(order), self.window):
            batch: list[int] = []
            for index in sorted(order[start : start + self.window], key=lambda row: (self.lengths[row], row)):
                if batch and padded_width(self.lengths[index]) * (len(batch) + 1) > self.budget:
                    batches.append(batch)
                    batch = []
                batch.append(index)
            batches.append(batch)
        rng.shuffle(batches)
        return batches

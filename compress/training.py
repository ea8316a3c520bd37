"""What every training loop here shares: transformers' Trainer, batches by token budget, resuming, progress."""

import functools
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.integrations import TensorBoardCallback

from compress import ranks
from compress.data.batches import Notes, PackedBatches, TokenBudgetBatches, collate, collate_packed, padded_width
from compress.data.tokens import TokenDataset
from compress.errors import RecipeError
from compress.losses import cross_entropy_sum, in_chunks, predicting_positions
from compress.mishaps import TRAINING_KNOBS, memory_advice, stop_for
from compress.recipe import Train
from compress.throughput import Throughput
from compress.training_log import TRAINING_LOG


def training_arguments(
    train: Train, out: Path, seed: int, kind: type[TrainingArguments] = TrainingArguments, **more: Any
) -> Any:
    """A recipe's `train` section as transformers sees it, with checkpoints below `out`.

    Args:
        kind: what to make of it; a library's own arguments extend transformers'.
        more: arguments only `kind` has.
    """
    return kind(
        output_dir=str(out),
        seed=seed,
        data_seed=seed,
        learning_rate=train.learning_rate,
        num_train_epochs=train.num_train_epochs,
        max_steps=train.max_steps,
        per_device_train_batch_size=train.per_device_train_batch_size,
        gradient_accumulation_steps=train.gradient_accumulation_steps,
        gradient_checkpointing=train.gradient_checkpointing,
        optim=train.optim,
        lr_scheduler_type=train.lr_scheduler_type,
        warmup_steps=train.warmup_steps,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        adam_beta2=0.95,
        bf16=train.bf16,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="steps",
        save_steps=train.save_steps,
        save_total_limit=2,
        logging_steps=10,
        report_to=[],
        ddp_find_unused_parameters=False,  # every weight has a part in every loss; looking for others costs time
        disable_tqdm=True,
        remove_unused_columns=False,
        include_num_input_tokens_seen="non_padding",
        dataloader_pin_memory=torch.cuda.is_available(),
        **more,
    )


def plain_attention_on_cpus(model: PreTrainedModel | PeftModel) -> None:
    """Without a GPU, attend by plain matrix products: the fused kernel takes up to three times as long backwards."""
    if not torch.cuda.is_available():
        model.set_attn_implementation("eager")


class AnswerTrainer(Trainer):
    """Learns answers by cross-entropy; subclasses say what else.

    The loss of a micro-batch is a sum over its valid tokens divided by the valid tokens of the whole
    accumulation window, so that neither micro-batches nor ranks change the gradient.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerFast,
        train: Train,
        dataset: TokenDataset,
        out: Path,
        seed: int,
        description: str,
    ) -> None:
        self.batches: TokenBudgetBatches | PackedBatches | None = None
        data_collator = functools.partial(collate, pad_token_id=tokenizer.pad_token_id, notes=self.notes)
        if train.packing:
            assert train.max_tokens_per_batch is not None, "the recipe was validated"
            width = padded_width(max(dataset.lengths))
            self.batches = PackedBatches(dataset.lengths, train.max_tokens_per_batch, width, seed)
            data_collator = functools.partial(
                collate_packed, pad_token_id=tokenizer.pad_token_id, width=width, notes=self.notes
            )
        elif train.max_tokens_per_batch is not None:
            self.batches = TokenBudgetBatches(dataset.lengths, train.max_tokens_per_batch, seed)
        self.dataset, self.out, self.tokenizer = dataset, out, tokenizer
        self.description = description
        empty = [place for place, row in enumerate(dataset.rows) if row.answer_start >= len(row.ids)]
        if empty:
            raise RecipeError(
                f"{description}: {len(empty)} of {len(dataset)} examples have an empty answer, the first is number "
                f"{empty[0]}: there is nothing to learn from them; leave them out of the data"
            )
        plain_attention_on_cpus(model)
        if train.torch_compile:
            # Layer by layer: all are one graph, so one is compiled, and for any batch shape.
            for layer in decoder(model).layers:
                layer.compile(dynamic=True)
        super().__init__(
            model=model,
            args=training_arguments(train, out, seed),
            train_dataset=dataset,
            data_collator=data_collator,
            processing_class=tokenizer,
            callbacks=[ProgressBar(description), Throughput(description, train.bf16), events_in(out / "events")],
        )
        self.remove_callback(PrinterCallback)
        self._seen: tuple[float, int] | None = None  # the time and the tokens trained on when the last log was written
        self._micro_batch: dict[str, Tensor] = {}

    # What a subclass needs to know of each token, laid out with the batch.
    notes: Notes | None = None

    def get_train_dataloader(self) -> DataLoader:
        if self.batches is None:
            return super().get_train_dataloader()
        loader = DataLoader(self.dataset, batch_sampler=self.batches, collate_fn=self.data_collator)
        prepared = self.accelerator.prepare(loader)
        # With several processes accelerate puts a sampler of its own around ours and tells ours of no epoch.
        prepared.batch_sampler.set_epoch = self.batches.set_epoch
        return prepared

    def compute_loss_context_manager(self) -> ExitStack:
        # Mixed precision is wrapped around a model's forward; the losses here call its parts.
        stack = ExitStack()
        stack.enter_context(self.accelerator.autocast())
        return stack

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        if self.accelerator.num_processes == 1:
            return self.batch_loss(model, inputs, num_items_in_batch)
        # DDP and FSDP share gradients and gather weights around a model's forward, so all of the loss is made in it.
        plain: Any = self.accelerator.unwrap_model(model)
        with forward_is(plain, lambda: self.batch_loss(plain, inputs, num_items_in_batch)):
            return model()

    def batch_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None
    ) -> Tensor:
        """This micro-batch's part of the loss of its accumulation window."""
        hidden = self.last_hidden_states(model, inputs)
        mask, targets = predicting_positions(inputs["labels"])
        total = self.loss_sum(model, hidden[mask], targets, mask, inputs)
        items = num_items_in_batch if num_items_in_batch is not None else targets.numel()
        # Ranks average their gradients; the window's token count is already over all of them.
        return total / items * self.accelerator.num_processes

    def last_hidden_states(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """What the head turns into logits: [B, S, H]. Logits are made only where a loss looks."""
        packed = "position_ids" in inputs  # then the positions say what may see what
        return decoder(model)(
            input_ids=inputs["input_ids"],
            attention_mask=None if packed else inputs["attention_mask"],
            position_ids=inputs["position_ids"] if packed else None,
            use_cache=False,
        ).last_hidden_state

    def loss_sum(
        self, model: nn.Module, hidden: Tensor, targets: Tensor, mask: Tensor, inputs: dict[str, Tensor]
    ) -> Tensor:
        """Sum of the loss over the N predicting positions.

        Args:
            hidden: [N, H]; targets: [N]; mask: [B, S], where in the batch the N positions are.
        """

        def loss(rows: Tensor, labels: Tensor) -> Tensor:
            return cross_entropy_sum(model.lm_head(rows), labels)  # type: ignore[operator]

        return in_chunks(loss, hidden, (targets,))

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One micro-batch forwards and backwards.

        Raises:
            StageError: the loss is not a finite number; the micro-batch is saved.
        """
        if self._seen is None:
            self._seen = time.perf_counter(), self.state.num_input_tokens_seen
        self._micro_batch = inputs
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise stop_for(inputs, "the loss", self.state.global_step, self.circumstances(), self.out)
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | float | None = None) -> Tensor | float:
        norm = super()._get_grad_norm(model, grad_norm)
        if not math.isfinite(float(norm)):
            # Before the optimiser puts it into every weight. With accumulation this is the window's last micro-batch.
            known = self.circumstances()
            raise stop_for(self._micro_batch, "the gradient", self.state.global_step, known, self.out)
        return norm

    def circumstances(self) -> dict[str, str]:
        """What a step's loss depends on beside the weights and the batch."""
        return {"seed": str(self.args.seed), "learning_rate": str(self._get_learning_rate())}

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs and self._seen is not None:
            now, tokens = time.perf_counter(), self.state.num_input_tokens_seen
            logs["tokens_per_second"] = (tokens - self._seen[1]) / (now - self._seen[0])
            self._seen = now, tokens
        super().log(logs, *args, **kwargs)

    def train_resuming(self, out: Path) -> None:
        """Train to the end, from the newest whole checkpoint if an earlier run left one, and save to `out`.

        Raises:
            StageError: memory ran out, or the loss or a gradient is not a finite number.
        """
        checkpoint = last_whole_checkpoint(self.out)
        with memory_advice(self.description, TRAINING_KNOBS):
            self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        weights = self._gathered_weights() if self.is_fsdp_enabled else None
        if self.is_world_process_zero():
            staged = out.with_name(f"{out.name}.partial")
            shutil.rmtree(staged, ignore_errors=True)
            self.finished_model().save_pretrained(staged, state_dict=weights)
            self.tokenizer.save_pretrained(staged)
            self.state.save_to_json(str(staged / TRAINING_LOG))
            staged.rename(out)
        ranks.meet()

    def _gathered_weights(self) -> dict[str, Tensor]:
        """What FSDP has spread over processes, whole, without what only training needed. All processes take part."""
        model: Any = self.accelerator.unwrap_model(self.model)
        if isinstance(model, PeftModel):
            raise RecipeError(
                "an adapter cannot be merged under FSDP: train it with torchrun alone, which copies the base"
            )
        weights = self.accelerator.get_state_dict(self.model)
        # Gathering gives a tied head a copy of its own.
        left_out = ("hidden_projections.", "lm_head." if model.config.tie_word_embeddings else "hidden_projections.")
        return {name: weight for name, weight in weights.items() if not name.startswith(left_out)}

    def finished_model(self) -> PreTrainedModel:
        """The trained model without what only training needed."""
        trained: Any = self.accelerator.unwrap_model(self.model)
        return trained.merge_and_unload() if isinstance(trained, PeftModel) else trained


@contextmanager
def forward_is(model: nn.Module, forward: Callable[[], Tensor]) -> Iterator[None]:
    """For a while, calling the model calls this."""
    own = model.__dict__.get("forward")
    model.forward = forward
    try:
        yield
    finally:
        if own is None:
            del model.forward
        else:
            model.forward = own


def events_in(folder: Path) -> TensorBoardCallback:
    """Writes every logged value for TensorBoard."""
    events = TensorBoardCallback()
    events.logging_dir = str(folder)
    return events


def decoder(model: nn.Module) -> Any:
    """The layers below the head."""
    return model.get_base_model().model if isinstance(model, PeftModel) else model.model


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; a killed run may leave half of one.

    Trainer writes trainer_state.json last, so a checkpoint without it is not whole.
    """
    found = [path for path in folder.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    return max(found, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)


class ProgressBar(TrainerCallback):
    """A bar with the time left, and the loss beside it."""

    def __init__(self, description: str) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("loss {task.fields[loss]:.3f}"),
        )
        self.task = self.progress.add_task(description, loss=float("nan"))

    def on_train_begin(self, args, state, control, **kwargs):
        self.progress.update(self.task, total=state.max_steps, completed=state.global_step)
        if state.is_world_process_zero:
            self.progress.start()

    def on_step_end(self, args, state, control, **kwargs):
        self.progress.update(self.task, completed=state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "loss" in logs:
            self.progress.update(self.task, loss=logs["loss"])

    def on_train_end(self, args, state, control, **kwargs):
        self.progress.stop()

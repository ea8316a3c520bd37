"""What every training loop here shares: transformers' Trainer, batches by token budget, resuming, progress."""

import functools
import shutil
from contextlib import ExitStack
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

from compress.data.batches import Notes, PackedBatches, TokenBudgetBatches, collate, collate_packed, padded_width
from compress.data.tokens import TokenDataset
from compress.losses import cross_entropy_sum, in_chunks, predicting_positions
from compress.recipe import Train
from compress.throughput import Throughput


def training_arguments(train: Train, out: Path, seed: int) -> TrainingArguments:
    """A recipe's `train` section as transformers sees it, with checkpoints below `out`."""
    return TrainingArguments(
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
        disable_tqdm=True,
        remove_unused_columns=False,
        include_num_input_tokens_seen="non_padding",
        dataloader_pin_memory=torch.cuda.is_available(),
    )


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
        if not torch.cuda.is_available():
            # On CPUs the fused kernel's backward pass takes three times as long as plain matrix products.
            model.set_attn_implementation("eager")
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
            callbacks=[_ProgressBar(description), Throughput(description, train.bf16)],
        )
        self.remove_callback(PrinterCallback)

    # What a subclass needs to know of each token, laid out with the batch.
    notes: Notes | None = None

    def get_train_dataloader(self) -> DataLoader:
        if self.batches is None:
            return super().get_train_dataloader()
        loader = DataLoader(self.dataset, batch_sampler=self.batches, collate_fn=self.data_collator)
        return self.accelerator.prepare(loader)

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

    def train_resuming(self, out: Path) -> None:
        """Train to the end, from the newest whole checkpoint if an earlier run left one, and save to `out`."""
        checkpoint = last_whole_checkpoint(self.out)
        self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        staged = out.with_name(f"{out.name}.partial")
        shutil.rmtree(staged, ignore_errors=True)
        self.finished_model().save_pretrained(staged)
        self.tokenizer.save_pretrained(staged)
        self.state.save_to_json(str(staged / "training.json"))
        staged.rename(out)

    def finished_model(self) -> PreTrainedModel:
        """The trained model without what only training needed."""
        trained: Any = self.model
        return trained.merge_and_unload() if isinstance(trained, PeftModel) else trained


def decoder(model: nn.Module) -> Any:
    """The layers below the head."""
    return model.get_base_model().model if isinstance(model, PeftModel) else model.model


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; a killed run may leave half of one.

    Trainer writes trainer_state.json last, so a checkpoint without it is not whole.
    """
    found = [path for path in folder.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    return max(found, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)


class _ProgressBar(TrainerCallback):
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
        self.progress.start()

    def on_step_end(self, args, state, control, **kwargs):
        self.progress.update(self.task, completed=state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "loss" in logs:
            self.progress.update(self.task, loss=logs["loss"])

    def on_train_end(self, args, state, control, **kwargs):
        self.progress.stop()

"""What a test has several processes do together: `torchrun --nproc-per-node 2 -m tests.support.two_processes FOLDER`.

FOLDER holds `student` and `teacher` (checkpoints) and `train.jsonl`. Each process count writes what it made into
`FOLDER/<count>`, so that a test can compare one with two.
"""

import sys
from pathlib import Path

import torch
from accelerate import DistributedType, FullyShardedDataParallelPlugin, PartialState
from transformers import AutoModelForCausalLM, Trainer

from bundle.rules import load_catalogue
from compress import logits, ranks
from compress.data.examples import read_examples
from compress.data.tokens import TokenDataset, load_tokenizer, make_prompt
from compress.distill import train_student
from compress.logits import SoftLabels, soft_label_key, write_soft_labels
from compress.recipe import Distill, HiddenLoss, Train

CACHED = Distill(temperature=2.0, top_k=16)
ONLINE = Distill(teacher="online", temperature=2.0, hidden=HiddenLoss(weight=0.5, kind="cosine"))


def shard_over_processors() -> None:
    """From here on trainers use FSDP2. accelerate does so for GPUs alone; processors can do all of it as well."""
    make_accelerator = Trainer.create_accelerator_and_postprocess

    def make(self: Trainer) -> None:
        make_accelerator(self)
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["Qwen2DecoderLayer"],
            reshard_after_forward=True,
            state_dict_type="SHARDED_STATE_DICT",
        )
        for state in (PartialState(), self.accelerator.state):
            state._shared_state["distributed_type"] = DistributedType.FSDP
        self.accelerator.state._shared_state["fsdp_plugin"] = plugin
        self.is_fsdp_enabled = True

    Trainer.create_accelerator_and_postprocess = make


def descent(**changes) -> Train:
    """Plain gradient descent, in which every difference of a gradient shows."""
    return Train(
        learning_rate=0.5,
        optim="sgd",
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=0.0,
        bf16=False,
        **changes,
    )


def work(folder: Path, sharded: bool) -> None:
    """Soft labels; training from them with batches by tokens; training with an online teacher, sharded if asked."""
    out = folder / str(ranks.count())
    if ranks.number() == 0:
        out.mkdir(exist_ok=True)
    tokenizer = load_tokenizer(folder / "student")
    prompt = make_prompt("compact", load_catalogue(), tokenizer)
    dataset = TokenDataset(read_examples(folder / "train.jsonl"), prompt, tokenizer.eos_token_id, max_tokens=512)
    teacher = AutoModelForCausalLM.from_pretrained(folder / "teacher", dtype=torch.float32)
    logits._EXAMPLES_PER_SHARD = 4
    key = soft_label_key(dataset, folder / "teacher", CACHED, len(tokenizer))
    write_soft_labels(teacher, dataset, key, tokenizer.pad_token_id, out / "labels")
    # Windows of four micro-batches, made by one process or by two. An epoch has eight, so none is filled up at its end.
    parts = 4 // ranks.count()
    by_tokens = descent(max_steps=4, max_tokens_per_batch=600, gradient_accumulation_steps=parts, save_steps=100)
    labels = SoftLabels(out / "labels", key)
    train_student(folder / "student", tokenizer, dataset, by_tokens, CACHED, labels, 1, out / "cached")
    if sharded:
        shard_over_processors()
    by_examples = descent(
        max_steps=3, per_device_train_batch_size=2, gradient_accumulation_steps=parts, gradient_checkpointing=True
    )
    train_student(folder / "student", tokenizer, dataset, by_examples, ONLINE, teacher, 1, out / "online")


if __name__ == "__main__":
    torch.set_num_threads(1)
    ranks.join()
    work(Path(sys.argv[1]), sharded=ranks.count() > 1)

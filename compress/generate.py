"""Answers from a checkpoint or an export, each model in a process of its own so that its memory is its own."""

import multiprocessing
import re
import time
from collections.abc import Callable
from pathlib import Path

from compress.console import quiet_libraries
from compress.generated import Answers, Generated

Prompts = list[list[int]]


def answers_from_checkpoint(
    folder: Path,
    prompts: Prompts,
    eos_token_id: int,
    pad_token_id: int,
    most: int,
    batch_size: int,
    timed: int,
) -> Answers:
    """Greedy answers from a transformers checkpoint (bf16, fp32 or bitsandbytes NF4).

    Args:
        most: tokens of an answer at most. timed: how many prompts are answered again singly for the speed.
    """
    options = (folder, prompts, eos_token_id, pad_token_id, most, batch_size, timed)
    return _in_a_process(_checkpoint_worker, options)


def answers_from_onnx(
    model: Path, head_dim: int, prompts: Prompts, eos_token_id: int, most: int, timed: int
) -> Answers:
    """Greedy answers from an ONNX export, one at a time, with log-probabilities."""
    return _in_a_process(_onnx_worker, (model, head_dim, prompts, eos_token_id, most, timed))


def _in_a_process(worker: Callable[..., Answers], options: tuple) -> Answers:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(worker, options)


def _peak_memory() -> int:
    """Peak resident set in bytes. getrusage would count the parent's memory from before the exec as well."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


def _speed(generated: list[Generated]) -> tuple[float, float]:
    seconds = sum(answer.seconds for answer in generated)
    return sum(len(answer.ids) for answer in generated) / seconds, len(generated) / seconds


def _onnx_worker(model: Path, head_dim: int, prompts: Prompts, eos_token_id: int, most: int, timed: int) -> Answers:
    from compress.export.onnx_generate import OnnxLoop

    loop = OnnxLoop(model, head_dim)
    generated = [loop.answer(prompt, eos_token_id, most) for prompt in prompts]
    tokens, units = _speed(generated[-timed:])
    return Answers(generated, _peak_memory(), tokens, units)


def _checkpoint_worker(
    folder: Path,
    prompts: Prompts,
    eos_token_id: int,
    pad_token_id: int,
    most: int,
    batch_size: int,
    timed: int,
) -> Answers:
    import torch
    from transformers import AutoModelForCausalLM

    quiet_libraries()
    # Without bf16 matrix units a CPU answers several times faster in float32.
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map=device).eval()

    @torch.no_grad()
    def answer(batch: Prompts) -> list[list[int]]:
        width = max(map(len, batch))
        ids = torch.full((len(batch), width), pad_token_id)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(batch):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        written = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            do_sample=False,
            max_new_tokens=most,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
        )[:, width:].tolist()
        return [row[: row.index(eos_token_id) + 1] if eos_token_id in row else row for row in written]

    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    generated: list[Generated | None] = [None] * len(prompts)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        for index, ids in zip(batch, answer([prompts[index] for index in batch]), strict=True):
            generated[index] = Generated(ids, [], 0.0)
    single = []
    for prompt in prompts[-timed:]:
        begun = time.perf_counter()
        ids = answer([prompt])[0]
        single.append(Generated(ids, [], time.perf_counter() - begun))
    tokens, units = _speed(single)
    memory = torch.cuda.max_memory_allocated() if device == "cuda" else _peak_memory()
    return Answers([each for each in generated if each is not None], memory, tokens, units)

"""The arithmetic of cost, beside what torch counts while a real model runs."""

import argparse
import re
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config, Qwen2ForCausalLM

from bench.cost import on_paper
from compress.cost import Size, Tokens, distilling_flops, forward_flops, label_bytes, training_flops
from compress.logits import SoftLabelKey
from compress.losses import cross_entropy_sum, in_chunks
from compress.recipe import Distill

BATCH, LENGTH, ANSWERS = 4, 64, 24
CONFIG = Qwen2Config(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=True,
    attn_implementation="eager",
)
TOKENS = Tokens(BATCH * LENGTH, ANSWERS, LENGTH)


def counted(gradient_checkpointing: bool, backwards: bool) -> int:
    """FLOPs of matrix products, as torch sees them, of a step as the trainers make it."""
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(CONFIG).train()
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    ids = torch.randint(0, 512, (BATCH, LENGTH))
    with FlopCounterMode(display=False) as counter:
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)[:ANSWERS]
        if backwards:
            targets = torch.zeros(ANSWERS, dtype=torch.long)
            in_chunks(
                lambda rows, labels: cross_entropy_sum(model.lm_head(rows), labels), hidden, (targets,)
            ).backward()
        else:
            model.lm_head(hidden)
    return counter.get_total_flops()


def hidden_half(passes: float) -> float:
    """Attention's products with positions that cannot be seen, which plain attention makes and nobody needs."""
    return passes * 2 * CONFIG.num_hidden_layers * CONFIG.hidden_size * LENGTH * TOKENS.all


def test_a_forward_pass() -> None:
    expected = forward_flops(Size.of(CONFIG), TOKENS) + hidden_half(1)
    assert counted(False, backwards=False) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(("again", "passes"), [(False, 3), (True, 4)], ids=["plain", "checkpointed"])
def test_a_training_step(again: bool, passes: int) -> None:
    expected = training_flops(Size.of(CONFIG), TOKENS, gradient_checkpointing=again) + hidden_half(passes)
    if again:
        # What a layer's last product gives is not needed on the way back, so torch does not make it again.
        last = 2 * CONFIG.hidden_size * CONFIG.intermediate_size * CONFIG.num_hidden_layers * TOKENS.all
        expected -= last
    assert counted(again, backwards=True) == pytest.approx(expected, rel=0.02)


def test_parameters_are_those_of_the_model_and_each_is_somewhere() -> None:
    model = Qwen2ForCausalLM(CONFIG)
    size = Size.of(CONFIG)
    assert size.parameters == model.num_parameters() == size.body + size.head + size.embeddings
    assert (size.head, size.embeddings) == (512 * 64, 0), "tied: read and multiplied with"
    untied = Size.of(Qwen2Config(**{**CONFIG.to_dict(), "tie_word_embeddings": False}))
    assert (untied.head, untied.embeddings, untied.body) == (512 * 64, 512 * 64, size.body)


@pytest.mark.parametrize(
    "distill", [Distill(top_k=16), Distill(labels="sampled", samples=9), Distill(temperature_schedule=[4.0, 2.0, 4.0])]
)
def test_a_soft_label_takes_what_its_row_takes(distill: Distill) -> None:
    kept = distill.top_k if distill.labels == "top_k" else distill.samples
    temperatures = tuple(sorted(set(distill.temperature_schedule or [distill.temperature])))
    key = SoftLabelKey("", "", "", distill.labels, kept, temperatures, 4096)
    assert label_bytes(distill) == key.row.itemsize


def test_a_cached_teacher_reads_once_and_an_online_one_every_time() -> None:
    size = Size.of(CONFIG)
    cached = distilling_flops(size, size, TOKENS, Distill(), epochs=3, again=False)
    online = distilling_flops(size, size, TOKENS, Distill(teacher="online"), epochs=3, again=False)
    assert online[0] == 3 * cached[0] == 3 * forward_flops(size, TOKENS)
    assert online[1] == cached[1] == 3 * training_flops(size, TOKENS, False)


def test_the_table_in_the_docs_is_what_the_command_prints() -> None:
    page = (Path(__file__).parents[2] / "docs" / "scale.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([^|]+) \| (.+) \|$", page, re.MULTILINE))
    options = argparse.Namespace(tokens=1e9, answer_share=0.15, length=512, epochs=1.0, tflops=989.0, utilisation=0.4)
    table = on_paper(options)
    columns = [list(column.cells) for column in table.columns]
    for name, _, student, hours, stored in zip(*columns, strict=True):
        told = rows[name if name != "labels only" else "not asked: labels only"].split(" | ")
        assert student == told[1].replace("e19", "e+19")
        assert hours == told[2]
        assert told[3] == ("0" if stored == "0.0 GB" else f"{float(stored.split()[0].replace(',', '')):,.0f} GB")

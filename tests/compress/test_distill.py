"""Distilling from an online teacher: the cached path's losses and more, masked, weighted, resumed and left out of
what is saved."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Phi3Config, Phi3ForCausalLM, Qwen2Config, Qwen2ForCausalLM

from compress.data.batches import collate, collate_packed
from compress.distill import DistillTrainer, train_student
from compress.distilling import Distilling
from compress.errors import RecipeError
from compress.logits import SoftLabels, soft_label_key, write_soft_labels
from compress.losses import IGNORED, predicting_positions
from compress.online import OnlineDistillTrainer
from compress.recipe import AttentionLoss, Distill, HiddenLoss, Ramp, Train
from compress.training import AnswerTrainer
from tests.compress import naive
from tests.compress.test_layer_losses import naive_relations
from tests.support.cut_off import cut_off_before

PLAIN = Train(
    learning_rate=1.0,
    max_steps=1,
    per_device_train_batch_size=8,
    optim="sgd",
    lr_scheduler_type="constant",
    weight_decay=0.0,
    max_grad_norm=0.0,
    bf16=False,
)


def changed(section, **values):
    return type(section)(**{**{name: getattr(section, name) for name in section.__struct_fields__}, **values})


@pytest.fixture
def teacher(tokenizer) -> Qwen2ForCausalLM:
    """Wider and deeper than the student, with other heads, and with more logits than there are tokens."""
    torch.manual_seed(3)
    config = Qwen2Config(
        vocab_size=len(tokenizer) + 24,
        hidden_size=96,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        initializer_range=0.3,
        tie_word_embeddings=False,
        layer_types=["full_attention"] * 3,
    )
    return Qwen2ForCausalLM(config)


def online(tiny_checkpoint, tokenizer, dataset, teacher, distill: Distill, out: Path, train: Train = PLAIN):
    """A trainer whose student is that of the checkpoint; projections are the same each time."""
    torch.manual_seed(5)
    return OnlineDistillTrainer(
        model=Qwen2ForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32),
        tokenizer=tokenizer,
        train=train,
        dataset=dataset,
        out=out,
        seed=1,
        description="test",
        distill=distill,
        teacher=teacher,
    )


def loss_and_gradients(trainer: AnswerTrainer, batch: dict) -> tuple[float, dict[str, torch.Tensor]]:
    """Of one micro-batch, as a sum over its tokens."""
    trainer.model.train()
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=1)
    loss.backward()
    return loss.item(), {name: weight.grad.clone() for name, weight in trainer.model.named_parameters()}


@pytest.fixture
def batch(dataset, tokenizer) -> dict:
    return collate([dataset[place] for place in (3, 0, 9)], tokenizer.pad_token_id)


@pytest.mark.parametrize("objective", ["forward_kl", "reverse_kl", "jsd"])
def test_the_online_teacher_is_the_cached_one_when_all_its_logits_are_kept(
    objective, dataset, batch, tiny_checkpoint, tokenizer, teacher, tmp_path
) -> None:
    distill = Distill(temperature=2.0, top_k=10**6, objective=objective)
    teacher.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    key = soft_label_key(dataset, tmp_path / "teacher", distill, len(tokenizer))
    write_soft_labels(teacher, dataset, key, tokenizer.pad_token_id, tmp_path / "labels")
    cached = DistillTrainer(
        model=Qwen2ForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32),
        tokenizer=tokenizer,
        train=PLAIN,
        dataset=dataset,
        out=tmp_path,
        seed=1,
        description="test",
        distill=distill,
        soft_labels=SoftLabels(tmp_path / "labels", key),
    )
    asked = online(tiny_checkpoint, tokenizer, dataset, teacher, distill, tmp_path)
    kept, found = loss_and_gradients(cached, batch), loss_and_gradients(asked, batch)
    assert kept[0] == pytest.approx(found[0], rel=1e-3)
    for name, gradient in found[1].items():
        # The cache holds logits in 16 bits.
        assert (kept[1][name] - gradient).norm() <= 5e-3 * gradient.norm(), name


def seen_by(model, batch, tokens: int):
    """Hidden states, attention and logits at the predicting positions, in float64, from the model by itself."""
    model = model.double().eval()
    model.set_attn_implementation("eager")
    projections: dict = {}
    for number, layer in enumerate(model.model.layers, start=1):
        for name in ("q_proj", "k_proj", "v_proj"):
            module = getattr(layer.self_attn, name)
            module.register_forward_hook(
                lambda module, inputs, output, key=(number, name): projections.__setitem__(key, output)
            )
    with torch.no_grad():
        out = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            output_hidden_states=True,
            output_attentions=True,
        )
    mask, targets = predicting_positions(batch["labels"])
    return {
        "logits": out.logits[mask][:, :tokens].tolist(),
        "states": {
            "answer": [state[mask] for state in out.hidden_states],
            "all": [state[batch["attention_mask"].bool()] for state in out.hidden_states],
        },
        "attention": [weights.mean(1)[mask].tolist() for weights in out.attentions],
        "projections": projections,
        "mask": mask,
        "targets": targets.tolist(),
    }


LAYER_LOSSES = [
    {"hidden": HiddenLoss(weight=0.7, kind="mse", layer_map=[1, 2])},
    {"hidden": HiddenLoss(weight=0.7, kind="mse", layer_map=[1, 2], positions="all")},
    {"hidden": HiddenLoss(weight=0.7, kind="cosine", layer_map={1: 3})},
    {"attention": AttentionLoss(weight=0.1, kind="averaged_heads", layer_map={1: 1, 2: 3})},
    {"attention": AttentionLoss(weight=0.1, kind="relations", layer_map={2: 2})},
]


LAYER_LOSS_NAMES = ["mse", "mse everywhere", "cosine", "averaged_heads", "relations"]


@pytest.mark.parametrize("objective", ["forward_kl", "mse"])
@pytest.mark.parametrize("losses", [{}, *LAYER_LOSSES], ids=["logits", *LAYER_LOSS_NAMES])
def test_the_loss_is_the_plain_weighted_sum_over_answer_positions(
    objective, losses, dataset, batch, tiny_checkpoint, tokenizer, teacher, tmp_path
) -> None:
    distill = Distill(temperature=2.0, alpha=0.3, teacher="online", objective=objective, **losses)
    trainer = online(tiny_checkpoint, tokenizer, dataset, teacher, distill, tmp_path)
    loss, _ = loss_and_gradients(trainer, batch)
    trainer.student_seen.stop()

    own, taught = seen_by(trainer.model, batch, len(tokenizer)), seen_by(teacher, batch, len(tokenizer))
    places = own["mask"]
    expected = -0.3 * sum(
        naive.math.log(naive.softmax(row)[target]) for row, target in zip(own["logits"], own["targets"], strict=True)
    )
    if objective == "forward_kl":
        expected += 0.7 * 4.0 * naive.of_logits(own["logits"], taught["logits"], 2.0, "forward_kl")
    else:
        pairs = zip(own["logits"], taught["logits"], strict=True)
        expected += 0.7 * sum(sum((a - b) ** 2 for a, b in zip(*rows, strict=True)) / len(rows[0]) for rows in pairs)
    if distill.hidden is not None:
        kind, where, total = distill.hidden.kind, distill.hidden.positions, 0.0
        for place, (mine, theirs) in enumerate([(1, 2), (2, 3)] if kind == "mse" else [(1, 3)]):
            projected = own["states"][where][mine] @ trainer.model.hidden_projections[place].weight.T
            for a, b in zip(projected.tolist(), taught["states"][where][theirs].tolist(), strict=True):
                if kind == "mse":
                    total += sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a) / 2
                else:
                    dot = sum(x * y for x, y in zip(a, b, strict=True))
                    total += 1 - dot / naive.math.hypot(*a) / naive.math.hypot(*b)
        expected += 0.7 * total
    elif distill.attention is not None and distill.attention.kind == "averaged_heads":
        expected += 0.1 * sum(
            naive.kl(b, a) / 2
            for mine, theirs in [(0, 0), (1, 2)]
            for a, b in zip(own["attention"][mine], taught["attention"][theirs], strict=True)
        )
    elif distill.attention is not None:
        heads = naive.math.gcd(trainer.model.config.num_key_value_heads, teacher.config.num_key_value_heads)
        for name in ("q_proj", "k_proj", "v_proj"):
            vectors = [seen["projections"][2, name].tolist() for seen in (own, taught)]
            for row, positions in enumerate(places):
                where = positions.nonzero().squeeze(-1).tolist()
                expected += 0.1 / 3 * naive_relations(vectors[0][row], vectors[1][row], where, heads)
    assert loss == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("losses", LAYER_LOSSES, ids=LAYER_LOSS_NAMES)
def test_gradient_checkpointing_changes_no_gradient(
    losses, dataset, batch, tiny_checkpoint, tokenizer, teacher, tmp_path
) -> None:
    distill = Distill(teacher="online", **losses)
    plain, recomputed = (
        online(tiny_checkpoint, tokenizer, dataset, teacher, distill, tmp_path / str(place)) for place in range(2)
    )
    recomputed.model.gradient_checkpointing_enable()
    expected, found = loss_and_gradients(plain, batch), loss_and_gradients(recomputed, batch)
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item())
    without = online(tiny_checkpoint, tokenizer, dataset, teacher, Distill(teacher="online"), tmp_path / "without")
    name = "model.layers.0.self_attn.k_proj.weight"
    assert not torch.allclose(loss_and_gradients(without, batch)[1][name], found[1][name], rtol=1e-2)


@pytest.mark.parametrize("losses", LAYER_LOSSES, ids=LAYER_LOSS_NAMES)
def test_packed_examples_have_the_loss_of_padded_ones(
    losses, dataset, batch, tiny_checkpoint, tokenizer, teacher, tmp_path
) -> None:
    trainer = online(tiny_checkpoint, tokenizer, dataset, teacher, Distill(teacher="online", **losses), tmp_path)
    packed = collate_packed([dataset[place] for place in (3, 0, 9)], tokenizer.pad_token_id, width=768)
    assert len(packed["input_ids"]) == 1
    padded_loss, packed_loss = (loss_and_gradients(trainer, each)[0] for each in (batch, packed))
    assert packed_loss == pytest.approx(padded_loss, rel=1e-4)


def test_what_is_not_an_answer_moves_no_layer_loss(
    dataset, batch, tiny_checkpoint, tokenizer, teacher, tmp_path
) -> None:
    """Tokens after an answer change hidden states and attention there, which must count for nothing."""
    distill = Distill(teacher="online", hidden=HiddenLoss(), attention=AttentionLoss(kind="averaged_heads", weight=0.5))
    trainer = online(tiny_checkpoint, tokenizer, dataset, teacher, distill, tmp_path)
    before, _ = loss_and_gradients(trainer, batch)
    padding = batch["attention_mask"] == 0
    assert padding.any()
    batch["input_ids"][padding] = 7
    assert loss_and_gradients(trainer, batch)[0] == pytest.approx(before, rel=1e-6)
    first = (batch["labels"][0] != IGNORED).nonzero()[0, 0]
    batch["input_ids"][0, first - 1] = 7
    assert loss_and_gradients(trainer, batch)[0] != pytest.approx(before, rel=1e-6)


def test_micro_batches_change_no_step_while_alpha_and_temperature_move(
    dataset, tiny_checkpoint, tokenizer, teacher, tmp_path
) -> None:
    distill = Distill(
        teacher="online",
        alpha_schedule=Ramp(start=0.9, end=0.1, type="cosine"),
        temperature_schedule=Ramp(start=4.0, end=1.0),
        hidden=HiddenLoss(weight=0.5, kind="cosine"),
        attention=AttentionLoss(weight=0.5),
    )
    ends, values = [], []
    for micro_batch, accumulation in [(8, 1), (4, 2), (2, 4)]:
        train = changed(
            PLAIN,
            learning_rate=0.1,
            max_steps=3,
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=accumulation,
        )
        trainer = online(tiny_checkpoint, tokenizer, dataset, teacher, distill, tmp_path / str(micro_batch), train)
        used = used_by(trainer)
        trainer.train()
        ends.append({name: weight.detach().clone() for name, weight in trainer.model.named_parameters()})
        values.append(used[::accumulation])
        assert used == [value for value in used[::accumulation] for _ in range(accumulation)]
    assert values[0] == values[1] == values[2]
    assert values[0] == [pytest.approx(pair) for pair in [(0.9, 4.0), (0.5, 2.5), (0.1, 1.0)]]
    before = dict(online(tiny_checkpoint, tokenizer, dataset, teacher, distill, tmp_path).model.named_parameters())
    for name, whole in ends[0].items():
        moved = (whole - before[name]).abs().max()
        for other in ends[1:]:
            assert (whole - other[name]).abs().max() <= 2e-3 * moved + 1e-6, name


def used_by(trainer: Distilling) -> list[tuple[float, float]]:
    """alpha and temperature of every micro-batch the trainer will see."""
    used: list[tuple[float, float]] = []
    trainer.model.model.register_forward_pre_hook(lambda *_: used.append((trainer.alpha, trainer.temperature)))
    return used


def test_a_cut_off_run_with_projections_and_schedules_ends_with_the_same_weights(
    dataset, tiny_checkpoint, tokenizer, teacher, tmp_path, monkeypatch
) -> None:
    train = Train(max_steps=6, max_tokens_per_batch=700, save_steps=2, bf16=False, learning_rate=1e-3)
    distill = Distill(
        teacher="online", alpha_schedule=Ramp(start=0.9, end=0.1), hidden=HiddenLoss(), attention=AttentionLoss()
    )
    untaught = {name: weight.clone() for name, weight in teacher.state_dict().items()}

    def run(out: Path) -> dict[str, torch.Tensor]:
        train_student(tiny_checkpoint, tokenizer, dataset, train, distill, teacher, 1, out)
        return load_file(out / "model" / "model.safetensors")

    whole = run(tmp_path / "whole")
    with cut_off_before(3, AnswerTrainer):
        run(tmp_path / "cut")
    resumed = run(tmp_path / "cut")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert whole.keys() == load_file(tiny_checkpoint / "model.safetensors").keys(), "projections are not saved"
    assert all(torch.equal(untaught[name], weight) for name, weight in teacher.state_dict().items())
    assert not teacher.training and not any(weight.requires_grad for weight in teacher.parameters())


def test_every_term_is_logged_as_a_mean_over_answer_tokens(
    dataset, tiny_checkpoint, tokenizer, teacher, tmp_path
) -> None:
    distill = Distill(
        teacher="online",
        temperature=2.0,
        alpha=0.25,
        hidden=HiddenLoss(weight=0.5, kind="cosine"),
        attention=AttentionLoss(weight=0.1),
    )
    train = changed(PLAIN, learning_rate=0.0, max_steps=10)
    train_student(tiny_checkpoint, tokenizer, dataset, train, distill, teacher, 1, tmp_path / "run")
    history = json.loads((tmp_path / "run" / "model" / "training.json").read_text())["log_history"]
    logged = next(entry for entry in history if "loss" in entry)
    assert (logged["alpha"], logged["temperature"]) == (0.25, 2.0)
    assert 0 < logged["teacher_entropy"] <= naive.math.log(len(tokenizer))
    parts = [logged["cross_entropy"], logged["divergence"], logged["hidden"], logged["attention"]]
    weighted = sum(weight * part for weight, part in zip((0.25, 0.75 * 4.0, 0.5, 0.1), parts, strict=True))
    assert weighted == pytest.approx(logged["loss"], rel=2e-2), "the loss averages over steps, the terms over tokens"


def test_a_projection_starts_as_the_best_map_between_the_embeddings(
    dataset, tiny_checkpoint, tokenizer, teacher, tmp_path
) -> None:
    distill = Distill(teacher="online", hidden=HiddenLoss())
    model = online(tiny_checkpoint, tokenizer, dataset, teacher, distill, tmp_path).model
    own, taught = (each.get_input_embeddings().weight.detach() for each in (model, teacher))
    own, taught = own[: len(taught)], taught[: len(own)]
    left = own @ model.hidden_projections[0].weight.T.detach() - taught
    # Least squares leaves nothing that the student's embeddings could still explain.
    assert (own.T @ left).abs().max() < 1e-3 * (own.T @ taught).abs().max()


def test_equal_widths_need_no_projection(dataset, tiny_checkpoint, tokenizer, model, tmp_path) -> None:
    distill = Distill(teacher="online", hidden=HiddenLoss())
    trainer = online(tiny_checkpoint, tokenizer, dataset, model, distill, tmp_path)
    assert not [name for name, _ in trainer.model.named_parameters() if "projection" in name]


@pytest.mark.parametrize("losses", [{"hidden": HiddenLoss(layer_map=[9])}, {"attention": AttentionLoss(layer_map=[9])}])
def test_a_layer_the_student_lacks_is_named(losses, dataset, tiny_checkpoint, tokenizer, teacher, tmp_path) -> None:
    with pytest.raises(RecipeError, match="names layer 9 of the student, which has layers 1 to 2"):
        online(tiny_checkpoint, tokenizer, dataset, teacher, Distill(teacher="online", **losses), tmp_path)


def test_a_teacher_without_separate_projections_cannot_be_compared_by_relations(
    dataset, tiny_checkpoint, tokenizer, tmp_path
) -> None:
    config = Phi3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    distill = Distill(teacher="online", attention=AttentionLoss())
    with pytest.raises(RecipeError, match=r"the teacher's attention has no q_proj, k_proj, v_proj.*averaged_heads"):
        online(tiny_checkpoint, tokenizer, dataset, Phi3ForCausalLM(config), distill, tmp_path)

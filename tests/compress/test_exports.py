"""The exported student is the student: ONNX in float32, NF4 after a round trip."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from bundle.answer import parse_answer
from bundle.grammar import AnswerGrammar
from compress.data.tokens import TokenDataset
from compress.errors import StageError
from compress.export.onnx import ExportError, export_onnx, export_onnx_for_cuda
from compress.export.onnx_attention import fold_scale
from compress.export.onnx_generate import OnnxLoop
from compress.quantize import quantize_nf4
from compress.recipe import Cuda, Onnx

HEAD_DIM = 16  # of the tiny checkpoint


@pytest.fixture(scope="module")
def float_export(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "onnx"
    export_onnx(tiny_checkpoint, Onnx(precision="fp32"), out)
    return out


def test_onnx_logits_are_torchs_in_prefill_and_in_decode(float_export: Path, model, dataset: TokenDataset) -> None:
    loop = OnnxLoop(float_export, HEAD_DIM)
    for row in dataset.rows[:3]:
        with torch.no_grad():
            expected = model.eval()(torch.tensor([row.ids])).logits[0].numpy()
        split = row.answer_start
        logits, past = loop.step(row.ids[:split], loop.past, 0)
        assert np.abs(logits - expected[split - 1]).max() < 1e-4, "prefill"
        for position in range(split, len(row.ids)):
            logits, past = loop.step([row.ids[position]], past, position)
            assert np.abs(logits - expected[position]).max() < 1e-4, f"decode at {position}"


def test_the_graph_for_cuda_computes_torchs_logits_in_16_bits(
    tiny_checkpoint: Path, model, dataset: TokenDataset, tmp_path: Path
) -> None:
    export_onnx_for_cuda(tiny_checkpoint, Cuda(precision="fp16"), tmp_path / "cuda")
    loop = OnnxLoop(tmp_path / "cuda", HEAD_DIM)
    assert {array.dtype for array in loop.past.values()} == {np.dtype(np.float16)}, "CUDA's attention has no float32"
    ids, split = dataset.rows[0].ids, dataset.rows[0].answer_start
    with torch.no_grad():
        expected = model.eval()(torch.tensor([ids])).logits[0].numpy()

    def error(logits: np.ndarray, position: int) -> float:
        return np.linalg.norm(logits - expected[position]) / np.linalg.norm(expected[position])

    logits, past = loop.step(ids[:split], loop.past, 0)
    assert error(logits, split - 1) < 0.02, "prefill"
    for position in range(split, len(ids)):
        logits, past = loop.step([ids[position]], past, position)
        assert error(logits, position) < 0.02, f"decode at {position}"


def test_the_graph_for_cuda_in_4_bits_is_smaller_and_near(
    tiny_cuda_bundle: Path, float_export: Path, dataset: TokenDataset
) -> None:
    """Its weights are those of the graph for CPUs: 4 bits, 8 in the head."""
    graph = onnx.load(tiny_cuda_bundle / "onnx" / "model.onnx", load_external_data=False).graph
    bits = [helper.get_node_attr_value(node, "bits") for node in graph.node if node.op_type == "MatMulNBits"]
    assert bits == [4] * (len(bits) - 1) + [8]
    assert not any(node.op_type == "MatMul" for node in graph.node)
    prompt = dataset.rows[0].ids
    logits = [OnnxLoop(folder, HEAD_DIM).read(prompt)[0] for folder in (tiny_cuda_bundle / "onnx", float_export)]
    assert np.corrcoef(*logits)[0, 1] > 0.8


def attention_scales(graph: Path) -> list[float]:
    model = onnx.load(graph, load_external_data=False)
    layers = [node for node in model.graph.node if node.op_type == "GroupQueryAttention"]
    return [helper.get_node_attr_value(node, "scale") for node in layers]


def test_scores_of_attention_are_not_scaled_where_the_rotary_embedding_can_carry_that(
    float_export: Path, two_graphs: Path, tiny_cuda_bundle: Path
) -> None:
    """That the logits are still torch's, other tests say. CUDA's attention gains nothing by it."""
    for graph in (float_export / "model.onnx", two_graphs / "model.onnx", two_graphs / "prefill.onnx"):
        assert set(attention_scales(graph)) == {1.0}
    assert set(attention_scales(tiny_cuda_bundle / "onnx" / "model.onnx")) == {HEAD_DIM**-0.5}


@pytest.mark.parametrize("rotated", [HEAD_DIM, HEAD_DIM // 2])
def test_a_scale_is_folded_only_where_whole_heads_are_rotated(tmp_path: Path, rotated: int) -> None:
    """Of a head that is rotated in part, the rest would keep its old length."""
    caches = [numpy_helper.from_array(np.full((8, rotated // 2), 2, np.float32), name) for name in ("cosines", "sines")]
    attention = helper.make_node(
        "GroupQueryAttention",
        ["qkv", "", "", "past.key", "past.value", "seqlens", "total", "cosines", "sines"],
        ["attended"],
        domain="com.microsoft",
        scale=0.25,
        do_rotary=1,
    )
    file = tmp_path / "model.onnx"
    onnx.save(helper.make_model(helper.make_graph([attention], "layer", [], [], initializer=caches)), file)
    fold_scale(file, HEAD_DIM)
    folded = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(file).graph.initializer}
    whole = rotated == HEAD_DIM
    assert attention_scales(file) == [1.0 if whole else 0.25]
    assert all((cache == (1.0 if whole else 2.0)).all() for cache in folded.values())


def test_greedy_answers_are_torchs(float_export: Path, model, dataset: TokenDataset, tokenizer) -> None:
    prompt = dataset.rows[0].ids[: dataset.rows[0].answer_start]
    written = model.generate(
        torch.tensor([prompt]), max_new_tokens=20, do_sample=False, pad_token_id=tokenizer.pad_token_id
    )[0, len(prompt) :]
    answer = OnnxLoop(float_export, HEAD_DIM).answer(prompt, tokenizer.eos_token_id, most=20)
    assert answer.ids == written.tolist()
    assert len(answer.logprobs) == len(answer.ids) and max(answer.logprobs) <= 0


def test_a_grammar_holds_in_the_plain_loop(
    float_export: Path, tiny_checkpoint: Path, model, dataset: TokenDataset, tokenizer
) -> None:
    """A model of noise, held to the grammar, writes an answer that quotes the unit."""
    lines = ("def first(items):", "    return items[0]")
    grammar = AnswerGrammar(tiny_checkpoint / "tokenizer.json", model.config.vocab_size, (tokenizer.eos_token_id,))
    prompt = dataset.rows[0].ids[: dataset.rows[0].answer_start]
    matcher = grammar.matcher(("off-by-one",), lines)
    answer = OnnxLoop(float_export, HEAD_DIM).answer(prompt, tokenizer.eos_token_id, most=2000, matcher=matcher)
    said = parse_answer(tokenizer.decode(answer.ids, skip_special_tokens=True))
    assert answer.aided
    assert all(finding.at in lines[finding.line - 1] for finding in said.findings)


def test_four_bits_are_smaller_and_near(float_export: Path, tiny_checkpoint, dataset: TokenDataset, tmp_path) -> None:
    export_onnx(tiny_checkpoint, Onnx(precision="int4"), tmp_path / "onnx")
    small, large = (
        sum(file.stat().st_size for file in folder.glob("model.onnx*")) for folder in (tmp_path / "onnx", float_export)
    )
    assert small < 0.7 * large
    prompt = dataset.rows[0].ids
    four, full = (OnnxLoop(folder, HEAD_DIM) for folder in (tmp_path / "onnx", float_export))
    logits = [loop.step(prompt, loop.past, 0)[0] for loop in (four, full)]
    assert np.corrcoef(*logits)[0, 1] > 0.8


@pytest.fixture(scope="module")
def two_graphs(tiny_bundle: Path) -> Path:
    """The export of the tiny checkpoint with a graph for prompts, calibrated on random tokens."""
    return tiny_bundle / "onnx"


def keys_and_values(folder: Path, prompts: list[list[int]]) -> dict[str, np.ndarray]:
    """Of prompts in one padded call of a folder's graph for prompts; padding left out: [kv_heads, tokens, head_dim]."""
    session = onnxruntime.InferenceSession(folder / "prefill.onnx")
    mask = np.array([[place < len(prompt) for place in range(max(map(len, prompts)))] for prompt in prompts])
    ids = np.zeros(mask.shape, np.int64)
    ids[mask] = np.concatenate(prompts)
    past = {name: array.repeat(len(prompts), axis=0) for name, array in OnnxLoop(folder, HEAD_DIM).past.items()}
    names = [entry.name for entry in session.get_outputs()]
    arrays = session.run(names, {"input_ids": ids, "attention_mask": mask.astype(np.int64), **past})
    return {
        f"{name} of {number}": array[number, :, : len(prompt)]
        for name, array in zip(names, arrays, strict=True)
        for number, prompt in enumerate(prompts)
    }


def test_the_graph_for_prompts_gives_keys_and_values_nearer_than_4_bits_do(
    two_graphs: Path, float_export: Path, dataset: TokenDataset
) -> None:
    prompt = dataset.rows[0].ids[: dataset.rows[0].answer_start]
    full, four = (OnnxLoop(folder, HEAD_DIM) for folder in (float_export, two_graphs))
    (_, expected), (_, coarse) = (loop.step(prompt, loop.past, 0) for loop in (full, four))
    given = keys_and_values(two_graphs, [prompt])
    assert given.keys() == {f"{name.replace('past_key_values', 'present')} of 0" for name in expected}

    def error(array: np.ndarray, name: str) -> float:
        return float(np.linalg.norm(array - expected[name][0]))

    for name in expected:
        array = given[f"{name.replace('past_key_values', 'present')} of 0"]
        assert error(array, name) < error(coarse[name][0], name), name


def test_a_prompt_read_beside_others_is_read_the_same_to_the_bit(two_graphs: Path, dataset: TokenDataset) -> None:
    """With a scale for each call, as dynamic quantisation has it, a large activation would change its neighbours."""
    prompts = [row.ids[: row.answer_start] for row in dataset.rows[:4]]
    together = keys_and_values(two_graphs, prompts)
    for number, prompt in enumerate(prompts):
        for name, array in keys_and_values(two_graphs, [prompt]).items():
            assert np.array_equal(array, together[name.replace(" of 0", f" of {number}")]), name


def test_an_answer_after_a_prompt_read_in_8_bits_is_near_the_full_one(
    two_graphs: Path, float_export: Path, dataset: TokenDataset
) -> None:
    prompt = dataset.rows[0].ids
    logits = [OnnxLoop(folder, HEAD_DIM).read(prompt)[0] for folder in (two_graphs, float_export)]
    assert np.corrcoef(*logits)[0, 1] > 0.8


def test_the_graph_in_8_bits_is_nearer_than_4_bits_are_in_prompts_and_in_answers(
    tiny_int8_bundle: Path, two_graphs: Path, float_export: Path, dataset: TokenDataset
) -> None:
    eight, four, full = (OnnxLoop(folder, HEAD_DIM) for folder in (tiny_int8_bundle / "onnx", two_graphs, float_export))
    distances: dict[str, list[float]] = {"eight": [], "four": []}
    for row in dataset.rows[:4]:
        split = row.answer_start
        for name, loop in (("eight", eight), ("four", four)):
            (logits, past), (expected, exact) = (each.read(row.ids[:split]) for each in (loop, full))
            distances[name].append(float(np.linalg.norm(logits - expected)))
            for position in range(split, len(row.ids)):
                logits, past = loop.step([row.ids[position]], past, position)
                expected, exact = full.step([row.ids[position]], exact, position)
                distances[name].append(float(np.linalg.norm(logits - expected)))
    assert np.mean(distances["eight"]) < np.mean(distances["four"])


def test_a_graph_in_8_bits_has_no_matrix_in_4_bits_or_in_floats(tiny_int8_bundle: Path) -> None:
    folder = tiny_int8_bundle / "onnx"
    assert {file.name for file in folder.iterdir()} == {"model.onnx", "model.onnx.data"}
    graph = onnx.load(folder / "model.onnx").graph
    kinds = {node.op_type for node in graph.node}
    assert "MatMulNBits" not in kinds
    matrices = [tensor for tensor in graph.initializer if len(tensor.dims) == 2 and min(tensor.dims) > 16]
    embeddings = {node.input[0] for node in graph.node if node.op_type == "GatherBlockQuantized"}
    assert {tensor.data_type for tensor in matrices if tensor.name not in embeddings} == {onnx.TensorProto.INT8}


def test_embeddings_and_head_are_one_place_in_the_file_of_data(two_graphs: Path) -> None:
    """ONNX Runtime would keep a copy of what is reshaped in the graph, in every session."""
    graph = onnx.load(two_graphs / "model.onnx", load_external_data=False).graph
    places = {tensor.name: {entry.key: entry.value for entry in tensor.external_data} for tensor in graph.initializer}
    (embedding,) = (node.input[0] for node in graph.node if node.op_type == "GatherBlockQuantized")
    (head,) = (node.input[1] for node in graph.node if node.output[0] == "logits")
    assert embedding != head
    assert places[embedding] == places[head]


def test_a_student_of_another_architecture_is_exported_in_8_bits_too(
    tiny_checkpoint: Path, dataset: TokenDataset, tmp_path: Path
) -> None:
    """Qwen3 has norms between projections and attention, so that its graph is another one."""
    known = AutoConfig.from_pretrained(tiny_checkpoint)
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    shape = {name: getattr(known, name) for name in names}
    config = Qwen3Config(**shape, num_key_value_heads=2, head_dim=HEAD_DIM, initializer_range=0.3)
    Qwen3ForCausalLM(config).save_pretrained(tmp_path / "qwen3")
    for file in tiny_checkpoint.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "qwen3")
    forms = {"float": Onnx(precision="fp32"), "prompts": Onnx(prefill="int8"), "whole": Onnx(precision="int8")}
    logits = {}
    for name, options in forms.items():
        export_onnx(tmp_path / "qwen3", options, tmp_path / name, dataset.spread(16))
        logits[name] = OnnxLoop(tmp_path / name, HEAD_DIM).read(dataset.rows[0].ids)[0]
    assert np.corrcoef(logits["prompts"], logits["float"])[0, 1] > 0.8
    assert np.corrcoef(logits["whole"], logits["float"])[0, 1] > 0.8


@pytest.mark.parametrize("options", [Onnx(prefill="int8"), Onnx(precision="int8")], ids=["prompts", "whole"])
def test_8_bits_want_examples(tiny_checkpoint: Path, tmp_path: Path, options: Onnx) -> None:
    with pytest.raises(StageError, match="calibrated on examples"):
        export_onnx(tiny_checkpoint, options, tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


def test_a_checkpoint_that_cannot_be_exported_says_why(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExportError, match="builder failed on"):
        export_onnx(tmp_path / "empty", Onnx(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nf4_is_saved_as_vllm_loads_it_and_loads_as_it_was_saved(
    tiny_checkpoint: Path, dataset: TokenDataset, tmp_path: Path
) -> None:
    quantize_nf4(tiny_checkpoint, dataset, tmp_path / "nf4")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "nf4")
    settings = model.config.quantization_config
    assert (settings.bnb_4bit_quant_type, settings.bnb_4bit_use_double_quant) == ("nf4", True)
    assert settings.bnb_4bit_quant_storage == torch.uint8
    weights = {name: weight.dtype for name, weight in model.named_parameters()}
    assert weights["model.layers.0.mlp.up_proj.weight"] == torch.uint8
    assert weights["model.embed_tokens.weight"] == torch.bfloat16

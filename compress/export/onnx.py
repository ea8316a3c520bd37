"""The student as an ONNX graph with a KV cache, built by onnxruntime-genai's builder.

Built from the bf16 or fp32 student and quantised in ONNX: bitsandbytes modules do not export.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx
from transformers import AutoConfig

from bundle.manifest import MODEL_GRAPH
from compress.errors import StageError
from compress.export.onnx_attention import fold_scale
from compress.export.onnx_int8 import write_in_8_bits, write_prefill
from compress.recipe import Cuda, Onnx
from compress.student import head_dimension


class ExportError(StageError):
    """The exporter refused the checkpoint; the message ends with what it said."""


def export_onnx(checkpoint: Path, options: Onnx, out: Path, examples: Sequence[Sequence[int]] = ()) -> None:
    """Write model.onnx (and model.onnx.data) into `out`, and prefill.onnx likewise where `options` ask for it.

    Inputs are input_ids, attention_mask and past_key_values.N.key|value [B, kv_heads, T, head_dim]; outputs
    are the last position's logits and present.N.key|value, whose keys carry the attention's scale
    (`compress.export.onnx_attention`). Weights are MatMulNBits blocks of 4 bits, and by
    choice of 8 in the head; activations are quantised row by row (accuracy_level 4), so that a row's result
    does not depend on the batch it is in. That holds for 8 bits too; `compress.export.onnx_int8` says what is in them.

    Args:
        checkpoint: the unquantised student.
        options: how weights are stored.
        out: a folder, made here.
        examples: token ids of what the student is asked, which graphs in 8 bits are calibrated on.

    Raises:
        ExportError: the builder failed.
        StageError: what is to be in 8 bits can not be, or there are no examples for it.
    """
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f"{out.name}.") as scratch:
        built = Path(scratch) / "built"
        precision = "fp32" if options.precision == "fp32" else "int4"  # what becomes 8 bits later is built in 4
        _build(checkpoint, "cpu", precision, options, built)
        head_dim = head_dimension(AutoConfig.from_pretrained(checkpoint))
        fold_scale(built / MODEL_GRAPH, head_dim)
        if options.in_8_bits:
            full = Path(scratch) / "full"
            _build(checkpoint, "cpu", "fp32", options, full)
            if options.prefill is not None:
                write_prefill(built / MODEL_GRAPH, full / MODEL_GRAPH, head_dim, examples)
            else:
                whole = Path(scratch) / "whole"
                whole.mkdir()
                write_in_8_bits(built / MODEL_GRAPH, full / MODEL_GRAPH, head_dim, examples, whole)
                built = whole
        _take(built, out)


def export_onnx_for_cuda(checkpoint: Path, options: Cuda, out: Path) -> None:
    """Write model.onnx and model.onnx.data into `out`: the student in 16 bits, as attention on NVIDIA's GPUs computes.

    Inputs and outputs are `export_onnx`'s, keys, values and logits in float16. It is made without a GPU, and runs
    without one. The last bits of a row's result may depend on the batch it is in: CUDA chooses kernels by its size.

    Raises:
        ExportError: the builder failed.
    """
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f"{out.name}.") as scratch:
        built = Path(scratch) / "built"
        _build(checkpoint, "cuda", options.precision, options, built)
        _take(built, out)


def _take(built: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for file in built.glob("*.onnx*"):
        shutil.move(file, out / file.name)


def _build(checkpoint: Path, provider: str, precision: str, options: Onnx | Cuda, built: Path) -> None:
    extra = ["prune_lm_head=true"]
    if precision == "int4":
        extra += [f"block_size={options.block_size}", "algo_config=k_quant"]
        if provider == "cpu":
            extra.append("accuracy_level=4")
        if options.int8_head:
            extra.append("matmul_mixed_precision=last_matmul:int8")
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", checkpoint.name]
    command += ["-i", str(checkpoint), "-o", str(built), "-p", precision, "-e", provider]
    command += ["-c", str(built.with_name("cache")), "--extra_options", *extra]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0 or not (built / MODEL_GRAPH).is_file():
        said = (result.stderr.strip() or result.stdout.strip())[-800:]
        raise ExportError(f"onnxruntime-genai's builder failed on {checkpoint}:\n{said}")
    _share_embeddings(built / MODEL_GRAPH)


def _share_embeddings(graph: Path) -> None:
    """Let a head's matrix in another shape be that of the embeddings, at the same place in the file of data.

    The builder reshapes it in the graph, and ONNX Runtime keeps a copy of the result in every session.
    """
    model = onnx.load(graph, load_external_data=False)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    shapes = {value.name: value.type.tensor_type.shape for value in model.graph.value_info}
    for node in list(model.graph.node):
        if node.op_type == "Reshape" and node.input[0] in weights:
            reshaped = model.graph.initializer.add()
            reshaped.CopyFrom(weights[node.input[0]])
            reshaped.name = node.output[0]
            reshaped.dims[:] = [size.dim_value for size in shapes[node.output[0]].dim]
            model.graph.node.remove(node)
    onnx.save(model, graph)

"""The student as an ONNX graph with a KV cache, built by onnxruntime-genai's builder.

Built from the bf16 or fp32 student and quantised in ONNX: bitsandbytes modules do not export.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from compress.errors import StageError
from compress.recipe import Onnx


class ExportError(StageError):
    """The exporter refused the checkpoint; the message ends with what it said."""


def export_onnx(checkpoint: Path, options: Onnx, out: Path) -> None:
    """Write model.onnx (and model.onnx.data) into `out`.

    Inputs are input_ids, attention_mask and past_key_values.N.key|value [B, kv_heads, T, head_dim]; outputs
    are the last position's logits and present.N.key|value. Weights are MatMulNBits blocks of 4 bits, and by
    choice of 8 in the head; activations are quantised row by row (accuracy_level 4), so that a row's result
    does not depend on the batch it is in.

    Raises:
        ExportError: the builder failed.
    """
    extra = ["prune_lm_head=true"]
    if options.precision == "int4":
        extra += ["accuracy_level=4", f"block_size={options.block_size}", "algo_config=k_quant"]
        if options.int8_head:
            extra.append("matmul_mixed_precision=last_matmul:int8")
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f"{out.name}.") as scratch:
        built = Path(scratch) / "built"
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", checkpoint.name]
        command += ["-i", str(checkpoint), "-o", str(built), "-p", options.precision, "-e", "cpu"]
        command += ["-c", str(Path(scratch) / "cache"), "--extra_options", *extra]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0 or not (built / "model.onnx").is_file():
            said = (result.stderr.strip() or result.stdout.strip())[-800:]
            raise ExportError(f"onnxruntime-genai's builder failed on {checkpoint}:\n{said}")
        out.mkdir(parents=True, exist_ok=True)
        for file in built.glob("model.onnx*"):
            shutil.move(file, out / file.name)

"""A graph in 8 bits throughout: matrices and what they are multiplied with, so that a CPU multiplies integers.

Activations get one scale for each place in the graph, found on examples beforehand, and not one for each call: a row's
result does not depend on the rows beside it.
"""

from collections.abc import Iterable
from pathlib import Path

from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

from compress.console import quietly

CALIBRATION_EXAMPLES = 256  # so many show how large activations become


def quantize_matrices(floats: Path, examples: Iterable[dict[str, NDArray]], out: Path) -> None:
    """Write `out`, and `out`.data where that is large: the graph in `floats` with its constant matrices in 8 bits.

    A matrix has 7 bits in truth, and a scale for each column: with 8, CPUs without VNNI would saturate the sums of
    products. Products of two activations, as in attention, stay in floats.

    Args:
        floats: an ONNX graph.
        examples: what the graph is fed with; the ranges of activations are those that are seen here.
        out: a file.
    """
    with quietly():
        quantize_static(
            floats,
            out,
            _Reader(examples),
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            use_external_data_format=floats.with_name(f"{floats.name}.data").exists(),
            extra_options={"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": ["MatMul"]},
        )


class _Reader(CalibrationDataReader):
    def __init__(self, examples: Iterable[dict[str, NDArray]]) -> None:
        self._rest = iter(examples)

    def get_next(self) -> dict[str, NDArray] | None:
        """The next example; None after the last."""
        return next(self._rest, None)

"""A copy of a model in ONNX with 8-bit weights, and what it costs.

Weights of the transformer's matrix products become int8, one scale a column; their inputs are
quantised as they come. The patch projection, attention, the norms and the head stay float32.
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import ModelProto


def quantised(model: "ModelProto") -> "ModelProto":
    """The quantised copy of what `score_graph` returned."""
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    # Without this mark, it asks on the root logger for an optimisation that changes nothing here.
    add_pre_process_metadata(copy)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        quantization.quantize_dynamic(
            copy,
            path,
            op_types_to_quantize=["MatMul"],
            # Not the head's product, a Gemm, which the library would turn into another MatMul.
            nodes_to_quantize=[node.name for node in model.graph.node if node.op_type == "MatMul"],
            per_channel=True,
            # 7 bits: on CPUs without VNNI, sums of two 8-bit products would saturate.
            reduce_range=True,
        )
        return onnx.load(path)

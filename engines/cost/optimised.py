"""The graph as onnxruntime runs it: functions inlined, constants folded, nodes fused, casts where a type has no kernel.

onnxruntime writes its own optimised graph to a temporary directory when the session is opened, weights included.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from artifact.errors import UserError
from artifact.free import available_bytes
from engines.cost.graph import Graph, Shape, read
from engines.sizes import model_bytes

OPENED = 3  # bytes of memory for one of the file: onnxruntime widens 16-bit weights and writes them out
_EXACT_MATMUL = ("session.qdq_matmulnbits_accuracy_level", "1")  # as engines/session.py opens every graph


def optimised(model: Path, shapes: Mapping[str, Shape]) -> Graph:
    """The graph that onnxruntime's CPU provider runs for this .onnx file, with the options of engines/session.py.

    Opens a session, so it needs the memory and the disk of the model's weights. Raises UserError where onnxruntime
    refuses the file, and where the memory is not there.
    """
    import onnxruntime as ort

    needed, free = OPENED * model_bytes(model), available_bytes()  # refuses weights outside the model's directory, too
    if needed > free:
        raise UserError(
            f"Opening {model.name} here takes about {needed / 1e9:.0f} GB of memory, {free / 1e9:.0f} GB are free: "
            "predict it for another target, or close other programs."
        )
    with tempfile.TemporaryDirectory() as directory:
        written = Path(directory) / "optimised.onnx"
        options = ort.SessionOptions()
        options.log_severity_level = 4  # it warns that such a file suits this machine only
        options.optimized_model_filepath = str(written)
        options.add_session_config_entry(*_EXACT_MATMUL)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.data")
        try:
            ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        except Exception as e:  # onnxruntime's exceptions share no base class of their own
            raise UserError(f"onnxruntime refuses {model} ({str(e).splitlines()[0][:200]}): rebuild it.") from None
        return read(written, shapes)

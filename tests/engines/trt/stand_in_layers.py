"""What TensorRT would say of the layers of a graph that it built just as it stands, in the words of a version.

Faults: "float32" a matrix product in float32, "unfused" a 4-bit node that became a product, "names" without details.
"""

from __future__ import annotations

import json
from typing import Any

import onnx

TYPES = {1: "float", 10: "half", 7: "int", 6: "int", 9: "bool"}
EIGHT = {"float": "Row major linear FP32", "half": "Row major linear FP16 format", "int": "Row major linear INT32",
         "bool": "Row major linear BOOL"}  # fmt: skip
TEN = {"float": "Float", "half": "Half", "int": "Int64", "bool": "Bool"}
PRODUCTS = ("MatMul", "Conv", "Gemm")


def information(model: str, major: int, fault: str = "") -> str:
    """The JSON of the inspector of TensorRT `major` for an engine of the .onnx file."""
    graph = onnx.load(model, load_external_data=False).graph
    types = {
        v.name: TYPES.get(v.type.tensor_type.elem_type, "half")
        for v in (*graph.input, *graph.value_info, *graph.output)
    }
    types |= {t.name: TYPES.get(t.data_type, "half") for t in graph.initializer}
    listed: list[Any] = []
    broken = {"float32": ("MatMul", "Conv"), "unfused": ("SvdqLinear",)}.get(fault, ())
    for i, node in enumerate(graph.node):
        if node.op_type == "Constant":
            continue
        if node.op_type == "Cast":
            types[node.output[0]] = TYPES[next(a.i for a in node.attribute if a.name == "to")]
        elif node.output[0] not in types:
            types[node.output[0]] = "half" if node.op_type == "SvdqLinear" else types.get(node.input[0], "half")
        kind = {o: types[o] for o in node.output}
        plugin = node.op_type == "SvdqLinear"
        if node.op_type in broken:
            broken = ()
            plugin, kind = False, {o: "float" if fault == "float32" else k for o, k in kind.items()}
            listed.append(_layer(node, i, major, kind, types, plugin, "gemm"))
        else:
            listed.append(_layer(node, i, major, kind, types, plugin, "gemm" if node.op_type in PRODUCTS else "kgen"))
    if fault == "names":
        listed = [layer["Name"] for layer in listed]
    names = [v.name for v in (*graph.input, *graph.output)]
    tensors = (
        {"I/O Tensors": [{"Name": n, "DataType": TEN[types[n]]} for n in names]} if major > 10 else {"Bindings": names}
    )
    return json.dumps({"Layers": listed, **tensors}, indent=1)


def _layer(node: Any, i: int, major: int, made: dict[str, str], types: dict[str, str], plugin: bool, kind: str) -> Any:
    name = node.name if plugin or major < 10 else f"__myl_{node.op_type[:4]}_myl0_{i}"
    common = {"Name": name, "Inputs": [_tensor(n, types.get(n, "half"), major) for n in node.input[:1]],
              "Outputs": [_tensor(n, t, major) for n, t in made.items()], "TacticName": "",
              "Metadata": f"[ONNX Layer: {node.name}]"}  # fmt: skip
    if plugin:
        return common | {"LayerType": "PluginV2" if major < 10 else "PluginV3", "PluginType": node.op_type}
    if major < 10:
        kind = {"gemm": "CaskGemmMatrixMultiply", "kgen": "PointWiseV2"}[kind]
    return common | {"LayerType": kind}


def _tensor(name: str, kind: str, major: int) -> dict[str, str]:
    if major < 10:
        return {"Name": name, "Location": "Device", "Format/Datatype": EIGHT[kind]}
    if major == 10:
        return {"Name": name, "Format/Datatype": TEN[kind]}
    return {"Name": name, "Format": EIGHT[kind] + " (kLINEAR)", "DataType": TEN[kind]}

"""Writing block-quantized weights into a graph, in the form that runs best where they are.

- *MatMulNBits* for matrix products: onnxruntime multiplies the packed integers themselves.
- *Q/DQ*: standard ONNX (block DequantizeLinear, opset 21); onnxruntime makes MatMulNBits of it by itself.
- *GatherBlockQuantized* for embeddings: only the rows that are read are unpacked.
- *unpacked at load* for everything else: Cast and Mul of constants, which a runtime computes once when it loads the
  model. Small on disk and exactly as fast as float; a DequantizeLinear would be computed anew in every run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from studio.engine import edit
from studio.engine.graph import Model, constant
from studio.engine.quantization import grids
from studio.engine.quantization.blocks import Blocks

Array: TypeAlias = npt.NDArray[Any]

CONTRIB = "com.microsoft"
_INT8_PRODUCTS = 4  # accuracy_level of MatMulNBits: products on int8, the fast way


def matrix_view(node: ir.Node, position: int) -> tuple[int, int, bool] | None:
    """(outputs, inputs, transposed) of a 2-D weight that a MatMul or plain Gemm reads; None for anything else."""
    tensor = constant(node.inputs[position])
    if tensor is None or position != 1 or len(tensor.shape) != 2 or node.op_type not in {"MatMul", "Gemm"}:
        return None
    rows, columns = (int(d) for d in tensor.shape.numpy())
    if node.op_type == "MatMul":
        return columns, rows, True
    attributes = {name: a.value for name, a in node.attributes.items()}
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    outputs, inputs, flipped = (rows, columns, False) if attributes.get("transB") else (columns, rows, True)
    plain = (
        attributes.get("alpha", 1.0) == 1.0
        and attributes.get("beta", 1.0) == 1.0
        and not attributes.get("transA")
    )
    has_bias = len(node.inputs) > 2 and node.inputs[2] is not None
    fits = not has_bias or (bias is not None and tuple(bias.shape.numpy()) in {(outputs,), (1, outputs)})
    return (outputs, inputs, flipped) if plain and fits else None


def write_matmul(model: Model, node: ir.Node, weights: Blocks) -> None:
    """Put MatMulNBits in the place of a MatMul or plain Gemm; name and output stay."""
    graph = edit.owner(node)
    base = node.inputs[1].name or "weight"  # type: ignore[union-attr]
    n, count, size = weights.q.shape
    packed = grids.pack(weights.q, weights.bits)
    inputs: list[ir.Value | None] = [
        node.inputs[0],
        edit.add_constant(model, graph, f"{base}_codes", packed.reshape(n, count, -1)),
        edit.add_constant(model, graph, f"{base}_scales", weights.scale.astype(np.float32)),
    ]
    if not weights.symmetric:
        floats = weights.zero.dtype.kind == "f"
        zero = weights.zero.astype(np.float32) if floats else grids.pack(weights.zero, weights.bits)
        inputs.append(edit.add_constant(model, graph, f"{base}_zeros", zero))
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        numbers = constant(bias)
        assert numbers is not None
        flat = numbers.numpy().reshape(-1)
        inputs += [None] * (5 - len(inputs))
        inputs.append(
            bias if len(numbers.shape) == 1 else edit.add_constant(model, graph, f"{base}_bias", flat)
        )
    attributes = {
        "K": weights.columns,
        "N": n,
        "bits": weights.bits,
        "block_size": size,
        "accuracy_level": _INT8_PRODUCTS,
    }
    _replace(model, node, "MatMulNBits", inputs, attributes)


def write_gather(model: Model, node: ir.Node, weights: Blocks) -> None:
    """Put GatherBlockQuantized in the place of a Gather of table rows."""
    graph = edit.owner(node)
    base = node.inputs[0].name or "table"  # type: ignore[union-attr]
    rows = weights.q.reshape(len(weights.q), -1)[:, : weights.columns]
    packed = grids.pack(rows, weights.bits)
    inputs: list[ir.Value | None] = [
        edit.add_constant(model, graph, f"{base}_codes", packed),
        node.inputs[1],
        edit.add_constant(model, graph, f"{base}_scales", weights.scale.astype(np.float32)),
    ]
    if not weights.symmetric:
        zero = grids.pack(weights.zero, weights.bits)
        inputs.append(edit.add_constant(model, graph, f"{base}_zeros", zero))
    attributes = {
        "bits": weights.bits,
        "block_size": weights.q.shape[2],
        "gather_axis": 0,
        "quantize_axis": 1,
    }
    _replace(model, node, "GatherBlockQuantized", inputs, attributes)


def _replace(
    model: Model, node: ir.Node, op: str, inputs: list[ir.Value | None], attributes: dict[str, int]
) -> None:
    name = node.name
    new = edit.make_node(model, op, inputs, attributes, domain=CONTRIB, name=f"{name or op}_packed")
    new.outputs[0].type = node.outputs[0].type
    model.ir.graph.opset_imports.setdefault(CONTRIB, 1)
    edit.replace_node(node, [new], [new.outputs[0]])
    if name:
        new.name = name


def write_dequantized(
    model: Model, node: ir.Node, position: int, weights: Blocks, *, transposed: bool
) -> None:
    """Standard block DequantizeLinear (opset 21) before a layer.

    Args:
        model: changed in place, on opset 21 at least.
        node: the layer.
        position: of the weight among its inputs.
        weights: (n, k) with an output a row.
        transposed: the layer reads (k, n).
    """
    graph = edit.owner(node)
    base = node.inputs[position].name or "weight"  # type: ignore[union-attr]
    codes = weights.q.reshape(len(weights.q), -1)[:, : weights.columns]
    scale, zero = weights.scale, weights.zero
    if transposed:
        codes, scale, zero = codes.T, scale.T, zero.T
    inputs = [
        edit.add_constant(model, graph, f"{base}_codes", grids.stored(codes, weights.bits, signed=False)),
        edit.add_constant(model, graph, f"{base}_scales", np.ascontiguousarray(scale, np.float32)),
        edit.add_constant(model, graph, f"{base}_zeros", grids.stored(zero, weights.bits, signed=False)),
    ]
    attributes = {"axis": 0 if transposed else 1, "block_size": weights.q.shape[2]}
    new = edit.make_node(
        model, "DequantizeLinear", inputs, attributes, name=f"{base}_restore", dtype=ir.DataType.FLOAT
    )
    new.outputs[0].shape = ir.Shape(codes.shape)
    graph.insert_before(node, new)
    node.replace_input_with(position, new.outputs[0])


def write_unpacked(
    model: Model,
    graph: ir.Graph,
    value: ir.Value,
    weights: Blocks,
    shape: tuple[int, ...],
    *,
    transposed: bool = False,
) -> ir.Value:
    """Constants and the nodes that make the weights of them when the model is loaded; the new value.

    Args:
        model: changed in place.
        graph: where the constant lies; the nodes go to its beginning.
        value: the float weights; every user gets the new value.
        weights: codes of the weights as a matrix.
        shape: of the weights.
        transposed: the weights are (k, n), an output a column.
    """
    base = value.name or "weight"
    n, count, size = weights.q.shape
    if transposed:
        shape = shape[::-1]
    whole = count == 1 and size == weights.columns
    nodes: list[ir.Node] = []

    def store(what: str, array: Array) -> ir.Value:
        return edit.add_constant(model, graph, f"{base}_{what}", array)

    def add(op: str, inputs: list[ir.Value], **attributes: Any) -> ir.Value:
        node = edit.make_node(model, op, inputs, attributes, name=f"{base}_unpack", dtype=ir.DataType.FLOAT)
        nodes.append(node)
        return node.outputs[0]

    wide = [n, *([1] * (len(shape) - 1))] if whole else [n, count, 1]
    scale = weights.scale.reshape(_scale_shape(shape, n) if whole else wide)
    codes = _codes_at_load(weights, shape if whole else None, store, add)
    if weights.zero.dtype.kind == "f":
        codes = add("Sub", [codes, store("zeros", weights.zero.astype(np.float32).reshape(scale.shape))])
    elif not weights.symmetric:
        zeros = store("zeros", weights.zero.astype(np.uint8).reshape(scale.shape))
        codes = add("Sub", [codes, add("Cast", [zeros], to=int(ir.DataType.FLOAT))])
    result = add("Mul", [codes, store("scales", scale.astype(np.float32))])
    if not whole:
        if count * size != weights.columns:
            borders = [np.asarray(a, np.int64) for a in ([n, count * size], [0], [weights.columns], [1])]
            flat, *cut = (store("cut", b) for b in borders)
            result = add("Slice", [add("Reshape", [result, flat]), *cut])
        result = add("Reshape", [result, store("shape", np.asarray(shape, np.int64))])
    if transposed:
        result, shape = add("Transpose", [result], perm=[1, 0]), shape[::-1]
    result.shape = ir.Shape(shape)
    edit.replace_uses(value, result)
    graph.insert_before(graph[0], nodes)
    return result


def _codes_at_load(
    weights: Blocks,
    shape: tuple[int, ...] | None,
    store: Callable[[str, Array], ir.Value],
    add: Callable[..., ir.Value],
) -> ir.Value:
    """Codes as floats, around zero where the blocks are symmetric; (n, blocks, size), or `shape` where that is given.

    ONNX has integers of 4 and 8 bits. Of 2 and 3 bits every bit is stored in a plane of its own, and Σ_b 2^b · bit_b
    puts them together.
    """
    middle = 2 ** (weights.bits - 1)
    if weights.bits in {4, 8}:
        q = weights.q - middle if weights.symmetric else weights.q
        codes = grids.stored(q if shape is None else q.reshape(shape), weights.bits, signed=weights.symmetric)
        return add("Cast", [store("codes", codes)], to=int(ir.DataType.FLOAT))
    packed = grids.planes(weights.q, weights.bits)[..., None]
    # Up by 7 − i pushes the higher bits out, down by 7 the lower ones: bit i is left.
    up, down = np.arange(7, -1, -1, dtype=np.uint8), np.full(1, 7, np.uint8)
    lifted = add("BitShift", [store("planes", packed), store("up", up)], direction="LEFT")
    bits = add("BitShift", [lifted, store("down", down)], direction="RIGHT")
    for node in (lifted.producer(), bits.producer()):
        assert node is not None
        node.outputs[0].type = ir.TensorType(ir.DataType.UINT8)
    worth = (2.0 ** np.arange(weights.bits)).astype(np.float32).reshape(-1, 1, 1)
    parts = add("Mul", [add("Cast", [bits], to=int(ir.DataType.FLOAT)), store("worth", worth)])
    whole = add("ReduceSum", [parts, store("axes", np.zeros(1, np.int64))], keepdims=0)
    flat = add("Reshape", [whole, store("flat", np.asarray([-1], np.int64))])
    if weights.q.size % 8:
        ends = [store("end", np.asarray(end, np.int64)) for end in ([0], [weights.q.size])]
        flat = add("Slice", [flat, *ends])
    wanted = np.asarray(weights.q.shape if shape is None else shape, np.int64)
    shaped = add("Reshape", [flat, store("codes_shape", wanted)])
    if not weights.symmetric:
        return shaped
    return add("Sub", [shaped, store("middle", np.full(1, middle, np.float32))])


def _scale_shape(shape: tuple[int, ...], rows: int) -> tuple[int, ...]:
    """One scale a row of the matrix view, shaped to broadcast over the weights."""
    lead: list[int] = []
    left = rows
    for size in shape:
        lead.append(size if left > 1 else 1)
        left //= max(1, lead[-1])
    return tuple(lead)


def row_view(shape: tuple[int, ...], op: str) -> tuple[int, int]:
    """(rows, values a row) of a weight that is no plain matrix: a row is an output channel where that comes first."""
    rows = int(np.prod(shape[:-1])) if op in {"LSTM", "GRU", "RNN", "MatMul"} else int(shape[0])
    return rows, int(np.prod(shape)) // max(1, rows)


def even_blocks(columns: int, size: int) -> int:
    """A block size of at most `size` that wastes little: the blocks of a row are of (nearly) one length."""
    return -(-columns // -(-columns // size))

"""Raising the version of the default operator set without changing what the model computes.

Where an operator's meaning changed, an adapter rewrites the node; where only types or optional inputs
came along, nothing has to be done; where no equal exists, the model is refused.
Sources: onnx, Changelog.md; onnxruntime's kernels where the text leaves a choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from studio.base.errors import StudioError
from studio.engine.graph.model import Model, constant, copy, graphs, leave_old_ir, node_key, nodes
from studio.engine.graph.shapes import Shapes, infer_shapes
from studio.engine.graph.sizes import dynamic_dimensions


def raise_opset(model: Model, version: int) -> Model:
    """A copy of the model on at least `version` of the default operator set; all outputs stay as they are.

    Raises:
        StudioError: an operator has no equal in the newer set.
    """
    raised = copy(model)
    before = model.opset
    if before >= version:
        return raised
    if not before:
        raise StudioError("Cannot raise the opset", "the model names no version of the standard operators")
    work = _Raising(raised, before)
    for node in list(nodes(raised)):
        if node.domain in {"", "ai.onnx"}:
            _adapt(work, node, before, version)
    for _path, graph in graphs(raised):
        graph.opset_imports[""] = version
    needed = {entry[2]: entry[1] for entry in onnx.helper.VERSION_TABLE}.get(version, 0)
    leave_old_ir(raised, needed)
    return raised


@dataclass
class _Raising:
    """A model on its way to a newer operator set."""

    model: Model
    before: int
    taken: set[str] = field(default_factory=set)
    _shapes: Shapes | None = None

    def __post_init__(self) -> None:
        self.taken = {v.name for n in nodes(self.model) for v in n.outputs if v.name}
        self.taken |= {n.name for n in nodes(self.model) if n.name}
        self.taken |= {name for _path, g in graphs(self.model) for name in g.initializers}

    def name(self, base: str) -> str:
        """A name that nothing has yet."""
        name, number = base, 0
        while name in self.taken:
            number += 1
            name = f"{base}_{number}"
        self.taken.add(name)
        return name

    def rank(self, value: ir.Value | None) -> int | None:
        """How many dimensions a value has; None where that is not known."""
        if value is None:
            return None
        if value.shape is not None:
            return len(value.shape)
        if self._shapes is None:
            self._shapes = infer_shapes(self.model, dynamic_dimensions(self.model), run=False)
        dims = self._shapes.of(value)
        return None if dims is None else len(dims)

    def insert(
        self, node: ir.Node, op: str, inputs: Sequence[ir.Value | None], **attributes: Any
    ) -> ir.Value:
        """A new node in front of `node`; its output."""
        new = ir.node(op, list(inputs), attributes=attributes, name=self.name(f"{node_key(node)}_{op}"))
        new.outputs[0].name = self.name(f"{node_key(node)}_{op}_out")
        graph = node.graph
        assert isinstance(graph, ir.Graph)
        graph.insert_before(node, new)
        return new.outputs[0]

    def number(self, node: ir.Node, what: str, values: npt.NDArray[Any]) -> ir.Value:
        """A Constant in front of `node`."""
        name = self.name(f"{node_key(node)}_{what}")
        value = self.insert(node, "Constant", [], value=ir.tensor(values, name=name))
        value.type, value.shape = ir.TensorType(ir.DataType.from_numpy(values.dtype)), ir.Shape(values.shape)
        return value


Adapter = Callable[[_Raising, ir.Node], None]


def _adapt(work: _Raising, node: ir.Node, before: int, version: int) -> None:
    adapted = False
    for step in range(before + 1, version + 1):
        adapter = ADAPTERS.get((node.op_type, step))
        if adapter is not None:
            adapter(work, node)
            adapted = True
    if not adapted:
        _check_unchanged(node, before, version)


def _check_unchanged(node: ir.Node, before: int, version: int) -> None:
    """Refuse a node that the newer set has no place for."""
    if not onnx.defs.has(node.op_type, domain=""):
        return  # an operator of the runtime's own in the default domain
    try:
        old = onnx.defs.get_schema(node.op_type, before, "")
        new = onnx.defs.get_schema(node.op_type, version, "")
    except onnx.defs.SchemaError:
        return
    lost = [name for name in node.attributes if name in old.attributes and name not in new.attributes]
    if new.deprecated or lost or len(node.inputs) > new.max_input:
        _refuse(node, f"opset {version} has no equal for it" + (f" ({', '.join(lost)})" if lost else ""))


def _refuse(node: ir.Node, why: str) -> None:
    raise StudioError(
        f"Cannot raise the opset because of {node.op_type} '{node.name or node_key(node)}'", why
    )


# ------------------------------------------------------------------ adapters


def _give_input(node: ir.Node, position: int, value: ir.Value | None) -> None:
    if len(node.inputs) <= position:
        node.resize_inputs(position + 1)
    node.replace_input_with(position, value)


def _attribute_to_input(attribute: str, position: int, dtype: Any = np.int64) -> Adapter:
    """What was an attribute is an input now; absent stays absent."""

    def adapt(work: _Raising, node: ir.Node) -> None:
        attr = node.attributes.pop(attribute, None)
        if attr is not None:
            values = np.array(attr.value, dtype=dtype)
            _give_input(node, position, work.number(node, attribute, values))

    return adapt


def _scalar_to_vector(attribute: str, position: int) -> Adapter:
    """A number as a vector of one (TopK's k)."""

    def adapt(work: _Raising, node: ir.Node) -> None:
        attr = node.attributes.pop(attribute, None)
        if attr is not None:
            values = np.array([attr.as_int()], dtype=np.int64)
            _give_input(node, position, work.number(node, attribute, values))

    return adapt


def _batch_norm_9(_work: _Raising, node: ir.Node) -> None:
    spatial = node.attributes.pop("spatial", None)
    if spatial is not None and spatial.as_int() == 0:
        _refuse(node, "its statistics are per activation, which newer sets do not know")


def _batch_norm_14(_work: _Raising, node: ir.Node) -> None:
    if any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        _refuse(node, "it is in training form")
    node.resize_outputs(1)


def _upsample_9(work: _Raising, node: ir.Node) -> None:
    _attribute_to_input("scales", 1, np.float32)(work, node)


def _upsample_10(_work: _Raising, node: ir.Node) -> None:
    node.op_type = "Resize"


def _resize_11(work: _Raising, node: ir.Node) -> None:
    """Resize-10 is asymmetric; onnxruntime rounds down where it enlarges and up where it shrinks."""
    scales = node.inputs[1] if len(node.inputs) > 1 else None
    tensor = constant(scales)
    values = np.ones(1) if tensor is None else tensor.numpy()
    nearest = node.attributes.get_string("mode", "nearest") == "nearest"
    if nearest and (values < 1).any() and (values > 1).any():
        _refuse(node, "it enlarges one axis and shrinks another with rounding that newer sets do not know")
    roi = work.number(node, "roi", np.zeros(0, np.float32))
    node.resize_inputs(3)
    node.replace_input_with(1, roi)
    node.replace_input_with(2, scales)
    node.attributes["coordinate_transformation_mode"] = ir.AttrString(
        "coordinate_transformation_mode", "asymmetric"
    )
    if nearest:
        rounding = "ceil" if (values < 1).any() else "floor"
        node.attributes["nearest_mode"] = ir.AttrString("nearest_mode", rounding)


def _slice_10(work: _Raising, node: ir.Node) -> None:
    for position, attribute in enumerate(("starts", "ends", "axes"), start=1):
        _attribute_to_input(attribute, position)(work, node)


def _clip_11(work: _Raising, node: ir.Node) -> None:
    for position, attribute in enumerate(("min", "max"), start=1):
        attr = node.attributes.pop(attribute, None)
        if attr is not None:
            _give_input(node, position, work.number(node, attribute, _in_type_of(node, attr.as_float())))


def _in_type_of(node: ir.Node, number: float) -> npt.NDArray[Any]:
    """A number in the type of a node's first input."""
    first = node.inputs[0]
    dtype = first.dtype if first is not None and first.dtype is not None else ir.DataType.FLOAT
    return np.array(number, dtype=dtype.numpy())


def _pad_11(work: _Raising, node: ir.Node) -> None:
    _attribute_to_input("pads", 1)(work, node)
    attr = node.attributes.pop("value", None)
    if attr is not None and attr.as_float() != 0:
        _give_input(node, 2, work.number(node, "value", _in_type_of(node, attr.as_float())))


def _scatter_11(_work: _Raising, node: ir.Node) -> None:
    node.op_type = "ScatterElements"


def _scan_9(_work: _Raising, node: ir.Node) -> None:
    _refuse(node, "its loop is over samples, which newer sets do not know")


def _dropout_10(_work: _Raising, node: ir.Node) -> None:
    if any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        _refuse(node, "its mask is used and changed its type")


def _dropout_12(work: _Raising, node: ir.Node) -> None:
    _attribute_to_input("ratio", 1, np.float32)(work, node)


def _softmax_13(work: _Raising, node: ir.Node) -> None:
    """Before 13 the input counted as a matrix: all axes from `axis` on together."""
    source, axis = node.inputs[0], node.attributes.get_int("axis", 1)
    rank = work.rank(source)
    if rank is not None and axis % max(rank, 1) == rank - 1:
        node.attributes["axis"] = ir.AttrInt64("axis", -1)
        return
    shape = work.insert(node, "Shape", [source])
    flat = work.insert(node, "Flatten", [source], axis=axis)
    soft = work.insert(node, node.op_type, [flat], axis=-1)
    node.op_type = "Reshape"
    node.attributes.clear()
    node.resize_inputs(2)
    node.replace_input_with(0, soft)
    node.replace_input_with(1, shape)


def _split_18(_work: _Raising, node: ir.Node) -> None:
    if len(node.inputs) < 2 or node.inputs[1] is None:
        node.attributes["num_outputs"] = ir.AttrInt64("num_outputs", len(node.outputs))


def _roi_align_16(_work: _Raising, node: ir.Node) -> None:
    node.attributes["coordinate_transformation_mode"] = ir.AttrString(
        "coordinate_transformation_mode", "output_half_pixel"
    )


def _average_pool_19(_work: _Raising, node: ir.Node) -> None:
    if node.attributes.get_int("ceil_mode", 0) and node.attributes.get_int("count_include_pad", 0):
        _refuse(node, "what it divides by at the border changed in opset 19")


def _grid_sample_20(_work: _Raising, node: ir.Node) -> None:
    names = {"bilinear": "linear", "bicubic": "cubic"}
    mode = node.attributes.get_string("mode", "bilinear")
    node.attributes["mode"] = ir.AttrString("mode", names.get(mode, mode))


def _dft_20(work: _Raising, node: ir.Node) -> None:
    axis = node.attributes.pop("axis", None)
    number = np.array(1 if axis is None else axis.as_int(), dtype=np.int64)
    _give_input(node, 2, work.number(node, "axis", number))


def _group_norm_21(_work: _Raising, node: ir.Node) -> None:
    _refuse(node, "its scale is per group before opset 21 and per channel from then on")


_AXES = _attribute_to_input("axes", 1)
_REDUCTIONS = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
    "ReduceProd", "ReduceSumSquare",
)  # fmt: skip

# (operator, version that changed it) -> what keeps its meaning.
ADAPTERS: dict[tuple[str, int], Adapter] = {
    ("BatchNormalization", 9): _batch_norm_9,
    ("Scan", 9): _scan_9,
    ("Upsample", 9): _upsample_9,
    ("Dropout", 10): _dropout_10,
    ("Slice", 10): _slice_10,
    ("TopK", 10): _scalar_to_vector("k", 1),
    ("Upsample", 10): _upsample_10,
    ("Clip", 11): _clip_11,
    ("Pad", 11): _pad_11,
    ("Resize", 11): _resize_11,
    ("Scatter", 11): _scatter_11,
    ("Dropout", 12): _dropout_12,
    ("Hardmax", 13): _softmax_13,
    ("LogSoftmax", 13): _softmax_13,
    ("ReduceSum", 13): _AXES,
    ("Softmax", 13): _softmax_13,
    ("Split", 13): _attribute_to_input("split", 1),
    ("Squeeze", 13): _AXES,
    ("Unsqueeze", 13): _AXES,
    ("BatchNormalization", 14): _batch_norm_14,
    ("RoiAlign", 16): _roi_align_16,
    **{(op, 18): _AXES for op in _REDUCTIONS},
    ("Split", 18): _split_18,
    ("AveragePool", 19): _average_pool_19,
    ("DFT", 20): _dft_20,
    ("GridSample", 20): _grid_sample_20,
    ("GroupNormalization", 21): _group_norm_21,
}

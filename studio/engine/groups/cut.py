"""The physical cut: constants lose rows and columns, nodes get the repairs their rules asked for.

Constants are cut lazily: the copy knows its new shapes at once and reads a weight when it is asked for.
"""

from __future__ import annotations

from collections import defaultdict
from math import prod

import numpy as np
import onnx_ir as ir

from studio.engine.edit import add_constant, make_node, owner, remove_dead, set_constant
from studio.engine.graph import Model, constant, copy, graphs
from studio.engine.groups.atoms import Array, Axis
from studio.engine.groups.grouping import kept
from studio.engine.groups.repairs import Counted, Measured, Padded, Parted, Picked, Rescaled, Scaled
from studio.engine.groups.trace import Constant, Labels, Trace

_PASSED_ON = {"Unsqueeze", "Squeeze", "Gather", "Slice", "Cast", "Identity"}  # what hands sizes on unchanged


class Twins:
    """A copy of a model, and what each node and value of the original is in it."""

    def __init__(self, model: Model) -> None:
        self.copy = copy(model)
        self.nodes: dict[ir.Node, ir.Node] = {}
        self.values: dict[ir.Value, ir.Value] = {}
        for (_, old), (_, new) in zip(graphs(model), graphs(self.copy), strict=True):
            self.values.update(zip(old.inputs, new.inputs, strict=True))
            self.values.update({old.initializers[name]: new.initializers[name] for name in old.initializers})
            for a, b in zip(old, new, strict=True):
                self.nodes[a] = b
                self.values.update(zip(a.outputs, b.outputs, strict=True))


def cut(trace: Trace, gone: Array) -> Model:
    """A copy of the traced model without the atoms in `gone` (mask over all atoms)."""
    return cut_twins(trace, gone).copy


def cut_twins(trace: Trace, gone: Array) -> Twins:
    """Like `cut`; with what became of every node and value of the original."""
    work = _Cut(trace, gone)
    work.result()
    return work.twins


class _Cut:
    def __init__(self, trace: Trace, gone: Array) -> None:
        self._trace, self._gone = trace, gone
        self.twins = Twins(trace.model)
        self._model = self.twins.copy

    def result(self) -> Model:
        self._constants()
        for repair in self._trace.repairs:
            match repair:
                case Rescaled():
                    self._rescale(repair)
                case Measured():
                    self._measure(repair)
                case Counted():
                    self._count(repair)
                case Parted():
                    self._part(repair)
                case Picked():
                    self._pick(repair)
                case Padded():
                    self._pad(repair)
                case Scaled():
                    self._scale(repair)
        self._shapes()
        remove_dead(self._model)
        return self._model

    def _mask(self, axis: Axis | None) -> Array | None:
        """Mask of what stays; None when all of it does."""
        if axis is None:
            return None
        mask = kept(self._trace, self._gone, axis)
        return None if mask.all() else mask

    def _lengths(self, labels: Labels) -> list[tuple[int, int] | None]:
        """(positions before, after) of every axis that changes."""
        masks = [self._mask(axis) for axis in labels]
        return [None if m is None else (len(m), int(m.sum())) for m in masks]

    def _node(self, node: ir.Node) -> ir.Node:
        return self.twins.nodes[node]

    def _graph(self, node: ir.Node) -> ir.Graph:
        return owner(node)

    # ------------------------------------------------------------------ constants

    def _constants(self) -> None:
        """Uses of a constant that lose the same channels share what is left, whichever those are: so a plan is exact."""
        by_value: dict[ir.Value, list[tuple[Constant, tuple[bytes | None, ...]]]] = defaultdict(list)
        for held in self._trace.constants.values():
            by_value[held.value].append((held, tuple(map(self._loses, held.labels))))
        for value, uses in by_value.items():
            wanted = {lost for _, lost in uses}
            if wanted == {(None,) * len(uses[0][0].labels)}:
                continue
            twin = self.twins.values[value]
            if len(wanted) == 1:
                set_constant(twin, self._sliced(twin, uses[0][0].labels))
                continue
            made: dict[tuple[bytes | None, ...], ir.Value] = {}
            for held, lost in uses:
                if held.use is None or all(axis is None for axis in lost):
                    continue
                node = self._node(held.use[0])
                if lost not in made:
                    made[lost] = add_constant(
                        self._model, self._graph(node), f"{value.name}_kept", self._sliced(twin, held.labels)
                    )
                node.replace_input_with(held.use[1], made[lost])

    def _loses(self, axis: Axis | None) -> bytes | None:
        """What tells apart the channels of axes that change; None for one that does not."""
        if axis is None or self._mask(axis) is None:
            return None
        return self._trace.atoms.parts(axis).tobytes()

    def _sliced(self, value: ir.Value, labels: Labels) -> ir.TensorProtocol:
        source = constant(value)
        if source is None:
            raise ValueError(f"{value.name} is not constant")
        masks = [self._mask(axis) for axis in labels]
        sizes = [d if m is None else int(m.sum()) for d, m in zip(source.shape.numpy(), masks, strict=True)]

        def read(tensor: ir.TensorProtocol = source) -> ir.TensorProtocol:
            data = tensor.numpy()
            for k, mask in enumerate(masks):
                if mask is not None:
                    data = data.compress(mask, axis=k)
            return ir.tensor(np.ascontiguousarray(data).reshape(sizes), dtype=tensor.dtype, name=tensor.name)

        return ir.LazyTensor(read, dtype=source.dtype, shape=ir.Shape(sizes), name=source.name)

    def _shapes(self) -> None:
        """What the file says of intermediate shapes follows the cut."""
        for value, labels in self._trace.labels.items():
            lengths = self._lengths(labels)
            twin = self.twins.values[value]
            if twin.shape is None or not any(lengths) or len(twin.shape) != len(lengths):
                continue
            # A symbolic size that changes is one of several samples together: nothing is said of it any more.
            twin.shape = ir.Shape(
                [
                    d if length is None else length[1] if isinstance(d, int) else None
                    for d, length in zip(twin.shape, lengths, strict=True)
                ]
            )

    # ------------------------------------------------------------------ repairs

    def _rescale(self, repair: Rescaled) -> None:
        lengths = self._lengths(repair.axes)
        if not any(lengths):
            return
        node = self._node(repair.node)
        if repair.position >= len(node.inputs):  # Reshape before opset 5
            listed = np.array(node.attributes["shape"].as_ints())
            node.attributes["shape"] = ir.AttrInt64s("shape", _rescaled(listed, lengths).tolist())
            return
        operand = node.inputs[repair.position]
        tensor = constant(operand)
        if tensor is not None:
            sizes = _rescaled(tensor.numpy(), lengths)
            new = add_constant(self._model, self._graph(node), f"{node.name or node.op_type}_sizes", sizes)
            node.replace_input_with(repair.position, new)
        elif not self._rescale_concat(node, repair, lengths):
            self._rescale_computed(node, repair.position, lengths)

    def _rescale_concat(self, node: ir.Node, repair: Rescaled, lengths: list[tuple[int, int] | None]) -> bool:
        """Sizes joined from single numbers: exchange constants and what a Shape said; False where that is not enough."""
        operand = repair.node.inputs[repair.position]
        old = operand.producer() if operand is not None else None
        if old is None or old.op_type != "Concat" or len(old.inputs) != len(lengths):
            return False
        source = self._node(old)
        sizes = [
            None if length is None else _piece(v, length)
            for v, length in zip(old.inputs, lengths, strict=True)
        ]
        if any(size is None for size, length in zip(sizes, lengths, strict=True) if length is not None):
            return False
        inputs = list(source.inputs)
        for k, size in enumerate(sizes):
            if size is None:
                continue
            inputs[k] = add_constant(self._model, self._graph(node), f"{source.name or 'Concat'}_size", size)
        joined = make_node(
            self._model,
            "Concat",
            inputs,
            {"axis": 0},
            name=f"{source.name or 'Concat'}_kept",
            dtype=ir.DataType.INT64,
        )
        self._graph(node).insert_before(node, joined)
        node.replace_input_with(repair.position, joined.outputs[0])
        return True

    def _rescale_computed(self, node: ir.Node, position: int, lengths: list[tuple[int, int] | None]) -> None:
        """Sizes above 1 × kept ÷ original; −1, 0 and 1 say something else and stay."""
        graph = self._graph(node)
        operand = node.inputs[position]
        after = np.array([1 if length is None else length[1] for length in lengths], np.int64)
        before = np.array([1 if length is None else length[0] for length in lengths], np.int64)
        one = add_constant(self._model, graph, "size_one", np.array([1], np.int64))
        scaled = self._chain(graph, node, operand, (("Mul", after), ("Div", before)))
        large = make_node(self._model, "Greater", [operand, one], dtype=ir.DataType.BOOL)
        chosen = make_node(
            self._model,
            "Where",
            [large.outputs[0], scaled, operand],
            dtype=ir.DataType.INT64,
            name="sizes_kept",
        )
        graph.insert_before(node, [large, chosen])
        node.replace_input_with(position, chosen.outputs[0])

    def _chain(
        self, graph: ir.Graph, before: ir.Node, value: ir.Value | None, steps: tuple[tuple[str, Array], ...]
    ) -> ir.Value:
        """Apply (operator, constant) pairs to a value, in front of a node."""
        if value is None:
            raise ValueError("no value to rescale")
        for op, data in steps:
            other = add_constant(self._model, graph, f"size_{op.lower()}", data)
            step = make_node(self._model, op, [value, other], dtype=ir.DataType.INT64)
            graph.insert_before(before, step)
            value = step.outputs[0]
        return value

    def _measure(self, repair: Measured) -> None:
        """Shape of a narrower tensor must say the original sizes: arithmetic built on it stays what it was."""
        lengths = self._lengths(repair.axes)
        if not any(lengths):
            return
        node = self._node(repair.node)
        value = node.outputs[0]
        if node.op_type == "Size":
            pairs = [length for length in lengths if length is not None]
            mul = np.array(prod(p[0] for p in pairs), np.int64)
            div = np.array(prod(p[1] for p in pairs), np.int64)
        else:
            start = node.attributes["start"].as_int() if "start" in node.attributes else 0
            end = node.attributes["end"].as_int() if "end" in node.attributes else len(lengths)
            said = lengths[start:end]
            if not any(said):
                return
            mul = np.array([1 if p is None else p[0] for p in said], np.int64)
            div = np.array([1 if p is None else p[1] for p in said], np.int64)
        users = [
            (user, position)
            for user, position in value.uses()
            if not _reads_only(user, [i for i, f in enumerate(mul.reshape(-1)) if f == 1], mul.size)
        ]
        if not users:
            return
        graph = self._graph(node)
        anchor = make_node(
            self._model,
            "Mul",
            [value, add_constant(self._model, graph, "size_mul", mul)],
            dtype=ir.DataType.INT64,
        )
        back = make_node(
            self._model, "Div", [anchor.outputs[0], add_constant(self._model, graph, "size_div", div)], dtype=ir.DataType.INT64
        )  # fmt: skip
        graph.insert_after(node, [anchor, back])
        for user, position in users:
            user.replace_input_with(position, back.outputs[0])

    def _count(self, repair: Counted) -> None:
        mask = self._mask(repair.axis)
        if mask is not None:
            node = self._node(repair.node)
            node.attributes[repair.name] = ir.AttrInt64(repair.name, int(mask.sum()))

    def _part(self, repair: Parted) -> None:
        masks = [self._mask(part) for part in repair.parts]
        if all(m is None for m in masks):
            return
        sizes = [len(p) if m is None else int(m.sum()) for p, m in zip(repair.parts, masks, strict=True)]
        node = self._node(repair.node)
        node.attributes.pop("num_outputs", None)
        if self._model.opset < 13:
            node.attributes["split"] = ir.AttrInt64s("split", sizes)
            return
        value = add_constant(
            self._model, self._graph(node), f"{node.name or 'Split'}_sizes", np.array(sizes, np.int64)
        )
        if len(node.inputs) < 2:
            node.resize_inputs(2)
        node.replace_input_with(1, value)

    def _pick(self, repair: Picked) -> None:
        mask = self._mask(repair.labels)
        if mask is None:
            return
        node = self._node(repair.node)
        numbers = np.cumsum(mask) - 1
        chosen = np.array([numbers[i] for i in repair.indices if mask[i]], np.int64)
        graph = self._graph(node)
        indices = add_constant(self._model, graph, f"{node.name or node.op_type}_kept", chosen)
        if node.op_type == "Gather":
            node.replace_input_with(1, indices)
            return
        gather = make_node(
            self._model, "Gather", [node.inputs[0], indices], {"axis": repair.axis}, name="Slice_kept"
        )
        source = node.inputs[0]
        if source is not None:
            gather.outputs[0].type = source.type
        graph.insert_before(node, gather)
        node.replace_input_with(0, gather.outputs[0])
        dims = self._trace.dims(repair.node.inputs[0])
        self._widen(node, repair.axis, None if dims is None else len(dims))

    def _widen(self, node: ir.Node, axis: int, rank: int | None) -> None:
        """Let a Slice take all of one axis."""
        everything = {"starts": 0, "ends": np.iinfo(np.int64).max, "steps": 1}
        if "starts" in node.attributes:
            starts = list(node.attributes["starts"].as_ints())
            axes = (
                list(node.attributes["axes"].as_ints())
                if "axes" in node.attributes
                else list(range(len(starts)))
            )
            at = _position(axes, axis, rank)
            for name in ("starts", "ends"):
                values = list(node.attributes[name].as_ints())
                values[at] = everything[name]
                node.attributes[name] = ir.AttrInt64s(name, values)
            return
        given = [constant(v) for v in node.inputs[1:]]
        starts_tensor = given[0]
        if starts_tensor is None or given[1] is None:  # computed bounds, then of this axis alone
            for position, name in ((1, "starts"), (2, "ends"), (3, "axes"), (4, "steps")):
                value = axis if name == "axes" else everything[name]
                if position < len(node.inputs):
                    new = add_constant(
                        self._model, self._graph(node), f"Slice_{name}", np.array([value], np.int64)
                    )
                    node.replace_input_with(position, new)
            return
        axes_tensor = given[2] if len(given) > 2 else None
        axes = (
            list(range(starts_tensor.size))
            if axes_tensor is None
            else axes_tensor.numpy().reshape(-1).tolist()
        )
        at = _position(axes, axis, rank)
        for position, name in ((1, "starts"), (2, "ends"), (4, "steps")):
            tensor = constant(node.inputs[position]) if position < len(node.inputs) else None
            if tensor is None:
                continue
            values_ = tensor.numpy().copy().reshape(-1)
            values_[at] = min(everything[name], np.iinfo(values_.dtype).max)
            new = add_constant(self._model, self._graph(node), f"{node.name or 'Slice'}_{name}", values_)
            node.replace_input_with(position, new)

    def _pad(self, repair: Padded) -> None:
        change = []
        for axes in (repair.before, repair.after):
            for axis in axes:
                mask = self._mask(axis) if axis is not None and len(axis) else None
                change.append(0 if mask is None else int(mask.sum()) - len(mask))
        if not any(change):
            return
        node = self._node(repair.node)
        name = "pads" if "pads" in node.attributes else "paddings"
        if name in node.attributes:
            amounts = np.array(node.attributes[name].as_ints()) + change
            node.attributes[name] = ir.AttrInt64s(name, amounts.tolist())
            return
        graph = self._graph(node)
        less = add_constant(self._model, graph, "pads_less", np.array(change, np.int64))
        add = make_node(self._model, "Add", [node.inputs[1], less], dtype=ir.DataType.INT64)
        graph.insert_before(node, add)
        node.replace_input_with(1, add.outputs[0])

    def _scale(self, repair: Scaled) -> None:
        if self._mask(repair.axis) is not None:
            node = self._node(repair.node)
            node.attributes[repair.name] = ir.AttrFloat32(repair.name, repair.value)


def _piece(value: ir.Value | None, length: tuple[int, int]) -> Array | None:
    """The size (1,) that one number of a list becomes: a constant, or what a Shape said, which is the axis's length."""
    tensor = constant(value)
    if tensor is not None:
        return _rescaled(tensor.numpy().reshape(-1), [length]) if tensor.size == 1 else None
    node = None if value is None else value.producer()
    while node is not None and node.op_type in _PASSED_ON:
        source = node.inputs[0]
        node = None if source is None else source.producer()
    return np.array([length[1]], np.int64) if node is not None and node.op_type == "Shape" else None


def _rescaled(sizes: Array, lengths: list[tuple[int, int] | None]) -> Array:
    """Sizes × kept ÷ original where an axis changes; 1, 0 and −1 stay."""
    found = np.array(sizes, np.int64).reshape(-1).copy()
    for k, length in enumerate(lengths):
        if length is not None and found[k] > 1:
            found[k] = found[k] * length[1] // length[0]
    return found


def _reads_only(user: ir.Node, harmless: list[int], size: int) -> bool:
    """Whether a node takes only these entries of a list of sizes, by constant index."""
    if user.op_type != "Gather":
        return False
    indices = constant(user.inputs[1])
    return indices is not None and all(int(i) % max(1, size) in harmless for i in indices.numpy().reshape(-1))


def _position(axes: list[int], axis: int, rank: int | None) -> int:
    """Where an axis stands in a list that may count from the end."""
    for position, listed in enumerate(axes):
        if listed == axis or (rank is not None and listed % rank == axis):
            return position
    raise ValueError(f"axis {axis} is not sliced")

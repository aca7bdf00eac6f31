"""What a model is, as the front sees it: costs, layers, groups, findings. No weights."""

from __future__ import annotations

from typing import Literal

from studio.records.base import Record


class Cost(Record, frozen=True, kw_only=True):
    """What something costs. Sums of costs are costs.

    Attributes:
        parameters: stored weight values.
        bytes: bytes those values take in the file (packed types count packed).
        macs: multiply-accumulates of one run at the chosen input sizes; None where not known.
        activation_bytes: bytes of the outputs of one run at the chosen input sizes.
    """

    parameters: int = 0
    bytes: int = 0
    macs: int | None = 0
    activation_bytes: int | None = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            parameters=self.parameters + other.parameters,
            bytes=self.bytes + other.bytes,
            macs=_both(self.macs, other.macs),
            activation_bytes=_both(self.activation_bytes, other.activation_bytes),
        )

    def __sub__(self, other: Cost) -> Cost:
        return self + Cost(
            parameters=-other.parameters,
            bytes=-other.bytes,
            macs=None if other.macs is None else -other.macs,
            activation_bytes=None if other.activation_bytes is None else -other.activation_bytes,
        )


def _both(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a + b


class TensorInfo(Record, frozen=True, kw_only=True):
    """A named input or output. A dimension is a size, or the name of a symbolic one ('' = unnamed)."""

    name: str
    dtype: str
    shape: tuple[int | str, ...] | None = None


class Layer(Record, frozen=True, kw_only=True):
    """A node that owns weights, with everything that belongs to it (its Q/DQ nodes, its bias).

    Attributes:
        name: stable and unique: the node's name, or its first output where it has none or shares it;
            inside a subgraph behind the path of the holding nodes ('if_7/then_branch/conv').
        key: the first output name of the main node, unique in its graph; the graph view's key.
        op: the operator of the float form ('Conv', 'MatMul', 'Gather', 'LSTM'…).
        operators: the operators of all its nodes, the main one first.
        nodes: keys of all its nodes, the main one first.
        weight: name of the main weight tensor (initializer or Constant output).
        weight_shape: as stored in the float form, e.g. (out, in, kh, kw).
        dtype: of the main weight as stored: 'float32', 'int8', 'uint4'…
        precision: in words for the table: 'fp32', 'fp16', 'int8', 'int4 weights'…
        share: of the model's weight bytes, 0..1.
        sparsity: share of zeros among its weights, 0..1; None when not counted yet.
        shared_with: names of other layers that use the same weight tensor.
        untreatable: why no technique can treat it; '' when it can be treated.
        attributes: of the main node, as text.
        output_shape: of the first output at the chosen input sizes; None where not known.
    """

    name: str
    key: str
    op: str
    operators: tuple[str, ...]
    nodes: tuple[str, ...]
    weight: str
    weight_shape: tuple[int, ...]
    dtype: str
    precision: str
    cost: Cost
    share: float
    sparsity: float | None = None
    shared_with: tuple[str, ...] = ()
    untreatable: str = ""
    attributes: tuple[tuple[str, str], ...] = ()
    input_shape: tuple[int | str, ...] | None = None
    output_shape: tuple[int | str, ...] | None = None


class Finding(Record, frozen=True, kw_only=True):
    """One line of the preflight: something about the model that the user should know."""

    level: Literal["note", "caution", "blocker"]
    subject: str  # 'opset', 'dynamic dimensions', 'custom operators', 'quantized already'…
    what: str
    hint: str = ""
    layers: tuple[str, ...] = ()


class ModelInfo(Record, frozen=True, kw_only=True):
    """A model, inspected.

    Attributes:
        path: of the file inspected.
        digest: of its content, external data included (hex); the identity of a model.
        file_bytes: on disk, external data included.
        opsets: (domain, version), the default domain as ''.
        input_sizes: the size chosen for every dynamic dimension, by its name; the base of all
            MACs and activation bytes; editable.
        cost: of the whole model, weights outside layers included.
        nodes: count of nodes, subgraphs included.
    """

    path: str
    name: str
    digest: str
    file_bytes: int
    opsets: tuple[tuple[str, int], ...]
    ir_version: int
    producer: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    input_sizes: tuple[tuple[str, int], ...]
    cost: Cost
    layers: tuple[Layer, ...]
    findings: tuple[Finding, ...]
    nodes: int

    @property
    def opset(self) -> int:
        """Version of the default operator set; 0 when the model has none."""
        return dict(self.opsets).get("", 0)


class OutlineNode(Record, frozen=True, kw_only=True):
    """A node of the native graph overview; `key` is its first output name."""

    key: str
    op: str
    name: str
    layer: str = ""  # name of the layer it belongs to; '' for weightless nodes


class Outline(Record, frozen=True, kw_only=True):
    """The top graph as nodes and edges (indices into `nodes`)."""

    nodes: tuple[OutlineNode, ...]
    edges: tuple[tuple[int, int], ...]


class Member(Record, frozen=True, kw_only=True):
    """One axis of one layer's weight that a group takes part in."""

    layer: str
    axis: Literal["out", "in", "hidden", "heads"]
    channels: int  # of this axis that belong to the group


class Group(Record, frozen=True, kw_only=True):
    """Channels that must be cut together.

    Attributes:
        name: of the layer that leads it.
        width: how many channels can be chosen from.
        unit: channels that go together for one choice (a head's size, the channels of a conv group).
        members: every layer axis that narrows.
        blocked: why it cannot be cut; '' when it can.
        keep: how many channels the plan leaves; None when the plan leaves the group alone.
    """

    name: str
    width: int
    unit: int = 1
    members: tuple[Member, ...] = ()
    blocked: str = ""
    keep: int | None = None

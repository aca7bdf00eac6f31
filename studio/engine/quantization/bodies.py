"""The body of an If as a model of its own: lifted out, quantized like any model, and put back.

What a body reads of the graphs around it becomes an input, or a constant where it is one; what it reads while the
calibration data run becomes its own calibration data. Bodies of Loop and Scan stay where they are: what they carry from
turn to turn would have to be on a grid, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from studio.base.progress import Progress
from studio.engine import execute
from studio.engine.dataset import Batch, Dataset
from studio.engine.graph import Model, Shapes, graphs, type_of
from studio.records.measure import DataSpec

Array: TypeAlias = npt.NDArray[Any]

# Numbers that are kept of what a body reads.
_KEPT = 8_000_000


@dataclass(frozen=True)
class Lifted:
    """A body as a model.

    Attributes:
        model: whose inputs are what the body reads and the graphs around it compute.
        sizes: of its inputs' dimensions, by the names they have here.
        read: by input, the name under which `execute.stream` gives it.
        ran: the name of a value that is there only if the body ran.
    """

    model: Model
    sizes: Mapping[str, int]
    read: Mapping[str, str]
    ran: str


def within_ifs(model: Model, path: str) -> bool:
    """Whether nothing but Ifs lies between the main graph and the one at `path`."""
    return all(node.op_type == "If" for _graph, node in _around(ir.to_proto(model.ir).graph, path))


def lift(model: Model, path: str, shapes: Shapes, key: str) -> Lifted | None:
    """The body at `path`; None where the type of a value at its border is not known.

    Args:
        model: left untouched.
        path: of the body, as `graphs` names it.
        shapes: of the whole model's values.
        key: of a node in it.
    """
    proto = ir.to_proto(model.ir)
    body = _at(proto.graph, path)
    values = _values(model, path)
    lifted = onnx.ModelProto()
    lifted.CopyFrom(_without_graph(proto))
    lifted.graph.CopyFrom(body)
    lifted.graph.name = "body"
    del lifted.graph.output[:]
    read: dict[str, str] = {}
    sizes: dict[str, int] = {}
    for name in _free(body):
        tensor, home = _constant(proto.graph, path, name)
        if tensor is not None:
            lifted.graph.initializer.append(tensor)
        elif not _declare(lifted.graph.input.add(), values.get(name), name, shapes, sizes):
            return None
        else:
            read[name] = f"{home}/{name}" if home else name
    for output in body.output:
        if not _declare(lifted.graph.output.add(), values.get(output.name), output.name, shapes, sizes):
            return None
    return Lifted(Model(ir.from_proto(lifted), model.path, model.maps), sizes, read, f"{path}/{key}")


def graft(model: Model, path: str, inner: Model) -> Model:
    """A copy of a model with the body at `path` replaced by the graph of `inner`, which was lifted from there.

    Names that are new get others where the model has them already.
    """
    proto, new = ir.to_proto(model.ir), ir.to_proto(inner.ir)
    body = _at(proto.graph, path)
    taken, own, outer = _names(proto.graph), _names(body), set(_free(body))
    renamed = {
        name: _fresh(name, taken)
        for name in sorted(_names(new.graph))
        if name not in own and name not in outer
    }
    _rename(new.graph, lambda name: renamed.get(name, name))
    del body.node[:], body.initializer[:], body.value_info[:]
    body.node.extend(new.graph.node)
    body.initializer.extend(tensor for tensor in new.graph.initializer if tensor.name not in outer)
    known = {entry.domain for entry in proto.opset_import}
    proto.opset_import.extend(entry for entry in new.opset_import if entry.domain not in known)
    return Model(ir.from_proto(proto), model.path, model.maps)


def calibration(
    lifted: Lifted, model: Model, data: Dataset, progress: Progress, threads: int
) -> Dataset | None:
    """What the body reads while the data run; None where no sample takes that branch.

    Args:
        lifted: the body.
        model: it was lifted from.
        data: samples of the whole model.
        progress: ticked once a run.
        threads: of the runtime.
    """
    feeds: list[dict[str, Array]] = []
    kept = 0
    names = [lifted.ran, *lifted.read.values()]
    for values in execute.stream(model, names, data.feeds(1), progress, threads, total=data.runs(1)):
        if lifted.ran not in values:
            continue
        feeds.append({name: values[asked] for name, asked in lifted.read.items()})
        kept += sum(array.size for array in feeds[-1].values())
        if kept > _KEPT:
            break
    if not feeds:
        return None
    source = _Seen(tuple(feeds), data.source.what)
    return Dataset(DataSpec(), (), source, np.arange(len(feeds)), data.random)


@dataclass(frozen=True)
class _Seen:
    """What a body has read, a run a sample; see `dataset.core.Source`."""

    feeds: Sequence[Mapping[str, Array]]
    what: str
    batch: int = 1
    labelled: bool = False
    cautions: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        return len(self.feeds)

    def read(self, order: Array, size: int) -> Iterator[Batch]:
        del size  # runs are of different shapes
        for index in order:
            yield Batch(feed=dict(self.feeds[int(index)]), labels=None, count=1)

    def labels(self, order: Array) -> Iterator[Array]:
        del order
        return iter(())


# ------------------------------------------------------------ graphs in graphs


def _inner(node: onnx.NodeProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    """The graphs that a node holds, named as in `graph.subgraphs`."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.name, attribute.g
        yield from ((f"{attribute.name}.{i}", graph) for i, graph in enumerate(attribute.graphs))


def _around(main: onnx.GraphProto, path: str) -> list[tuple[onnx.GraphProto, onnx.NodeProto]]:
    """From the main graph inwards: each graph around the one at `path`, and its node that holds the next."""

    def walk(graph: onnx.GraphProto, here: str) -> list[tuple[onnx.GraphProto, onnx.NodeProto]] | None:
        if here == path:
            return []
        for node in graph.node:
            for attribute, inner in _inner(node):
                name = node.name or next((n for n in node.output if n), "")
                deeper = "/".join(filter(None, (here, name, attribute)))
                if path == deeper or path.startswith(f"{deeper}/"):
                    rest = walk(inner, deeper)
                    if rest is not None:
                        return [(graph, node), *rest]
        return None

    found = walk(main, "")
    if found is None:
        raise LookupError(f"the model has no graph at {path}")
    return found


def _at(main: onnx.GraphProto, path: str) -> onnx.GraphProto:
    _graph, node = _around(main, path)[-1]
    return next(inner for attribute, inner in _inner(node) if path.endswith(f"/{attribute}"))


def _free(graph: onnx.GraphProto) -> list[str]:
    """What a graph reads of those around it, in order."""
    defined = {v.name for v in graph.input} | {t.name for t in graph.initializer}
    found: dict[str, None] = {}
    for node in graph.node:
        names = [*node.input, *(name for _attribute, inner in _inner(node) for name in _free(inner))]
        found.update((name, None) for name in names if name and name not in defined)
        defined.update(node.output)
    found.update((v.name, None) for v in graph.output if v.name not in defined)
    return list(found)


def _constant(main: onnx.GraphProto, path: str, name: str) -> tuple[onnx.TensorProto | None, str]:
    """The tensor behind a name that the body at `path` reads, and the path of the graph where that lies."""
    here, places = "", []
    for graph, node in _around(main, path):
        places.append((graph, here))
        inner = path[len(here) + 1 if here else 0 :]
        attribute = next(a for a, _ in _inner(node) if _leads(node, a, inner))
        called = node.name or next((n for n in node.output if n), "")
        here = "/".join(filter(None, (here, called, attribute)))
    for graph, where in reversed(places):
        for tensor in graph.initializer:
            if tensor.name == name:
                return tensor, where
        for node in graph.node:
            if name in node.output:
                held = (
                    [a.t for a in node.attribute if a.name == "value"] if node.op_type == "Constant" else []
                )
                if not held:
                    return None, where
                copied = onnx.TensorProto()
                copied.CopyFrom(held[0])
                copied.name = name
                return copied, where
        if any(v.name == name for v in graph.input):
            return None, where
    return None, ""


def _leads(node: onnx.NodeProto, attribute: str, rest: str) -> bool:
    called = node.name or next((n for n in node.output if n), "")
    start = f"{called}/{attribute}"
    return rest == start or rest.startswith(f"{start}/")


def _values(model: Model, path: str) -> dict[str, ir.Value]:
    """The values that the graph at `path` can read or holds, by name; the innermost of each."""
    found: dict[str, ir.Value] = {}
    for here, graph in graphs(model):
        if here in {"", path} or path.startswith(f"{here}/"):
            made = (value for node in graph for value in node.outputs)
            found.update((v.name, v) for v in (*graph.inputs, *made) if v.name)
    return found


def _declare(
    info: onnx.ValueInfoProto, value: ir.Value | None, name: str, shapes: Shapes, sizes: dict[str, int]
) -> bool:
    """Say of what type a value is, its dimensions by name; False where the type or rank is not known."""
    kind, dims = shapes.dtype(value), shapes.of(value)
    if value is None or kind is None or dims is None:
        return False
    info.name = name
    info.type.tensor_type.elem_type = int(type_of(kind))
    info.type.tensor_type.shape.SetInParent()
    for axis, size in enumerate(dims):
        called = f"{name}.{axis}"
        info.type.tensor_type.shape.dim.add().dim_param = called
        if isinstance(size, int):
            sizes[called] = size
    return True


def _without_graph(proto: onnx.ModelProto) -> onnx.ModelProto:
    bare = onnx.ModelProto()
    for descriptor, value in proto.ListFields():
        if descriptor.name in {"ir_version", "producer_name"}:
            setattr(bare, descriptor.name, value)
        elif descriptor.name in {"opset_import", "functions"}:
            getattr(bare, descriptor.name).extend(value)
    return bare


def _names(graph: onnx.GraphProto) -> set[str]:
    """Of all values and nodes, those of graphs within included."""
    found = {v.name for v in graph.input} | {t.name for t in graph.initializer}
    for node in graph.node:
        found.update((node.name, *node.output))
        for _attribute, inner in _inner(node):
            found |= _names(inner)
    return found - {""}


def _fresh(name: str, taken: set[str]) -> str:
    number, tried = 0, name
    while tried in taken:
        number += 1
        tried = f"{name}_{number}"
    taken.add(tried)
    return tried


def _rename(graph: onnx.GraphProto, called: Callable[[str], str]) -> None:
    for tensor in graph.initializer:
        tensor.name = called(tensor.name)
    for value in (*graph.input, *graph.output):
        value.name = called(value.name)
    for node in graph.node:
        node.name = called(node.name)
        _replace(node.input, called)
        _replace(node.output, called)
        for _attribute, inner in _inner(node):
            _rename(inner, called)


def _replace(names: Any, called: Callable[[str], str]) -> None:
    changed: Iterable[str] = [called(name) for name in names]
    del names[:]
    names.extend(changed)

"""Nodes that have a body: functions of the model itself, and operators that the standard defines by others.

A standard body may depend on the types and shapes of the inputs, so it is compiled when it first runs, once per
combination of types and shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import onnx
import onnx_ir as ir
import torch

from studio.engine.trainable.operators import Call, Operator
from studio.engine.trainable.program import Arguments, Compiler
from studio.engine.trainable.values import CARRIED, onnx_type, tensor_of

# Element type and shape of every input.
Types: TypeAlias = tuple[tuple[int, tuple[int, ...]], ...]
_REMEMBERED = 32  # compiled bodies that a node keeps


class Functions:
    """Makes operators out of function bodies."""

    def __init__(self, model: ir.Model, promote: bool = False) -> None:
        self._local: Mapping[Any, ir.Function] = model.functions
        self._promote = promote

    def make(self, node: ir.Node, version: int, attributes: Arguments) -> Operator | None:
        """The operator of a node with a body; None where it has none."""
        for function in self._local.values():
            if (function.domain, function.name) == (node.domain, node.op_type):
                body = self._compile(function, attributes)
                return lambda _call, *inputs: body(inputs)
        schema = _schema(node.op_type, version, node.domain)
        if schema is None or not (schema.has_function or schema.has_context_dependent_function):
            return None
        attributes = _defaults(schema) | dict(attributes)
        text = _node_text(node, attributes)

        def run(call: Call, *inputs: Any) -> Any:
            types = tuple(_type_of(v, t) for v, t in zip(inputs, call.input_types, strict=False))
            if types not in call.memory:
                if len(call.memory) >= _REMEMBERED:
                    call.memory.clear()
                call.memory[types] = self._compile(_body(schema, text, types, version), attributes)
            return call.memory[types](inputs)

        return run

    def _compile(self, function: ir.Function, given: Arguments) -> Any:
        arguments = {n: a for n, a in function.attributes.items() if a.value is not None} | dict(given)
        compiler = Compiler(function.opset_imports, self.make, self._promote)
        program = compiler.compile(function, arguments=arguments)
        template: list[Any] = [None] * compiler.size
        for slot, held in compiler.constants.items():
            template[slot] = tensor_of(held.tensor.numpy())
        if compiler.unsupported:
            raise NotImplementedError(compiler.unsupported[0].operator)

        def run(inputs: tuple[Any, ...]) -> Any:
            result = program.run(list(template), inputs)
            return result[0] if len(result) == 1 else tuple(result)

        return run


def _schema(name: str, version: int, domain: str) -> Any:
    try:
        return onnx.defs.get_schema(name, version, domain)
    except onnx.defs.SchemaError:
        return None


def _defaults(schema: Any) -> dict[str, ir.Attr]:
    protos = {name: attr.default_value for name, attr in schema.attributes.items()}
    return {name: ir.serde.deserialize_attribute(proto) for name, proto in protos.items() if proto.type}


def _node_text(node: ir.Node, attributes: Arguments) -> bytes:
    proto = ir.to_proto(node)
    del proto.attribute[:]
    for name, attr in attributes.items():
        new = ir.to_proto(attr)
        new.name = name
        proto.attribute.append(new)
    return bytes(proto.SerializeToString())


def _type_of(value: Any, stated: ir.DataType | None) -> tuple[int, tuple[int, ...]]:
    """ONNX's number of a value's element type and its shape; 0 for a missing value."""
    if isinstance(value, torch.Tensor):
        known = stated is not None and CARRIED.get(stated) == value.dtype
        return int(stated if known and stated else onnx_type(value.dtype)), tuple(value.shape)
    return 0, ()


def _body(schema: Any, node: bytes, types: Types, version: int) -> ir.Function:
    if schema.has_function:
        usable = [v for v in schema.function_opset_versions if v <= version] or schema.function_opset_versions
        data = schema.get_function_with_opset_version(max(usable))
    else:
        protos = [
            onnx.helper.make_tensor_type_proto(t, s).SerializeToString() if t else b"" for t, s in types
        ]
        versions = schema.context_dependent_function_opset_versions
        usable = [v for v in versions if v <= version] or versions
        data = schema.get_context_dependent_function_with_opset_version(max(usable), node, protos)
    proto = onnx.FunctionProto()
    proto.ParseFromString(data)
    made = {name for inner in proto.node for name in inner.output} | set(proto.input)
    for missing in [
        name for name in proto.output if name not in made
    ]:  # optional outputs that are not asked for
        proto.node.append(onnx.helper.make_node("Optional", [], [missing]))
    function = ir.serde.deserialize_function(proto)
    function.opset_imports.setdefault("", version)
    return function

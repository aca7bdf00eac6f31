"""A graph compiled to a flat list of steps over numbered slots.

All graphs of a model share one list of live values (`env`), subgraphs included, so that a branch sees what
surrounds it. Slot 0 stays None: the missing optional input. A value is dropped right after the last step
that reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from studio.engine.graph import is_constant_node, node_key
from studio.engine.trainable.operators import Call, Operator, find, find_control
from studio.engine.trainable.values import tensor_of

Env = list[Any]
# Attributes of a function that is being expanded, by name.
Arguments = Mapping[str, ir.Attr]


@dataclass(slots=True)
class Step:
    """One node: what runs, where its inputs lie, where its outputs go, what nobody reads afterwards."""

    run: Operator
    call: Call
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    node: ir.Node
    control: bool = False
    frees: tuple[int, ...] = ()

    def execute(self, env: Env) -> None:
        """Run on the live values."""
        arguments = [env[i] for i in self.inputs]
        result = self.run(self.call, env, *arguments) if self.control else self.run(self.call, *arguments)
        outputs = self.outputs
        if len(outputs) == 1 and not isinstance(result, tuple):
            env[outputs[0]] = result
        else:
            for slot, value in zip(outputs, result if isinstance(result, tuple) else (result,), strict=False):
                if slot:
                    env[slot] = value
        for slot in self.frees:
            env[slot] = None


@dataclass
class Program:
    """Steps in order, and the slots of what goes in and comes out."""

    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    local: set[int] = field(default_factory=set)  # slots that this graph defines

    def run(self, env: Env, arguments: Sequence[Any]) -> list[Any]:
        """Run all steps; extra arguments are ignored, missing ones keep what the slot holds."""
        for slot, value in zip(self.inputs, arguments, strict=False):
            env[slot] = value
        for step in self.steps:
            step.execute(env)
        return [env[slot] for slot in self.outputs]


@dataclass(frozen=True)
class Unsupported:
    """A node that the interpreter cannot run."""

    node: str  # its name, or its first output
    operator: str


@dataclass(frozen=True)
class Held:
    """A constant: the value that holds it (an initializer or a Constant's output) and where that lies."""

    value: ir.Value
    tensor: ir.TensorProtocol
    path: str  # of its graph; '' = the main one


FunctionMaker = Callable[[ir.Node, int, Arguments], Operator | None]


class Compiler:
    """Turns graphs into programs.

    Args:
        opsets: version by domain.
        make_function: the operator of a node that has a function body, or None.
        promote: half floats are computed in float32.
    """

    def __init__(
        self, opsets: Mapping[str, int], make_function: FunctionMaker, promote: bool = False
    ) -> None:
        self.opsets, self.make_function, self.promote = opsets, make_function, promote
        self.slots: dict[ir.Value, int] = {}
        self.constants: dict[int, Held] = {}
        self.unsupported: list[Unsupported] = []
        self.size = 1

    def slot(self, value: ir.Value | None) -> int:
        """The slot of a value, a new one where it has none; 0 for a missing one."""
        if value is None or (value.name == "" and value.producer() is None):
            return 0
        if value not in self.slots:
            self.slots[value] = self.size
            self.size += 1
        return self.slots[value]

    def compile(
        self,
        graph: ir.Graph | ir.Function,
        path: str = "",
        keep: Sequence[ir.Value] = (),
        arguments: Arguments | None = None,
    ) -> Program:
        """Compile one graph and everything inside it.

        Args:
            graph: main graph, subgraph or function body.
            path: as in `graph.graphs`.
            keep: values to be kept alive besides the outputs.
            arguments: attributes that references in a function body resolve to.
        """
        program = Program()
        program.inputs = [self._local(program, v) for v in graph.inputs]
        if isinstance(graph, ir.Graph):
            for value in graph.initializers.values():
                if value.const_value is not None:
                    self.constants[self._local(program, value)] = Held(value, value.const_value, path)
        for node in graph:
            self._node(program, node, path, arguments or {})
        program.outputs = [self.slot(v) for v in graph.outputs]
        _free_after_last_use(
            program, {*program.outputs, *(self.slot(v) for v in keep)} | self.constants.keys()
        )
        return program

    def _local(self, program: Program, value: ir.Value) -> int:
        slot = self.slot(value)
        program.local.add(slot)
        return slot

    def _node(self, program: Program, node: ir.Node, path: str, arguments: Arguments) -> None:
        attributes = resolve(node, arguments)
        if is_constant_node(node) and "value" in attributes and not _is_text(attributes["value"]):
            slot = self._local(program, node.outputs[0])
            self.constants[slot] = Held(node.outputs[0], attributes["value"].as_tensor(), path)
            return
        domain = "" if node.domain == "ai.onnx" else node.domain
        version = node.version or self.opsets.get(domain) or self.opsets.get("ai.onnx", 1)
        inner = "/".join(filter(None, (path, node.name or node_key(node))))
        call = Call(
            op=node.op_type,
            domain=domain,
            version=version,
            attributes={k: self._attribute(a, f"{inner}/{k}", arguments) for k, a in attributes.items()},
            input_types=tuple(None if v is None else v.dtype for v in node.inputs),
            output_types=tuple(v.dtype for v in node.outputs),
            outputs=_output_count(node),
            promote=self.promote,
        )
        local_function = (
            self.make_function(node, version, attributes) if domain not in ("", "com.microsoft") else None
        )
        run = local_function or find_control(domain, node.op_type) or find(domain, node.op_type)
        run = run or self.make_function(node, version, attributes)
        if run is None:
            self.unsupported.append(
                Unsupported(node.name or node_key(node), ".".join(filter(None, (domain, node.op_type))))
            )
            run = _missing(node.op_type)
        program.steps.append(
            Step(
                run,
                call,
                tuple(self.slot(v) for v in node.inputs),
                tuple(self._local(program, v) if v.name else 0 for v in node.outputs),
                node,
                control=find_control(domain, node.op_type) is run,
            )
        )

    def _attribute(self, attr: ir.Attr, path: str, arguments: Arguments) -> Any:
        if attr.type == ir.AttributeType.GRAPH:
            return self.compile(attr.as_graph(), path, arguments=arguments)
        if attr.type == ir.AttributeType.TENSOR:
            return tensor_of(attr.as_tensor().numpy())
        return attr.value


def _is_text(attr: ir.Attr) -> bool:
    return attr.as_tensor().dtype == ir.DataType.STRING


def _output_count(node: ir.Node) -> int:
    count = len(node.outputs)
    while count > 1 and not node.outputs[count - 1].name:
        count -= 1
    return count


def _missing(op: str) -> Operator:
    def run(_call: Call, *_inputs: Any) -> Any:
        raise NotImplementedError(op)

    return run


def resolve(node: ir.Node, arguments: Arguments) -> dict[str, ir.Attr]:
    """A node's attributes with references to function attributes replaced; unresolved ones are left out."""
    result = {}
    for name, attr in node.attributes.items():
        if not attr.is_ref():
            result[name] = attr
        elif (referred := arguments.get(attr.ref_attr_name or "")) is not None:
            result[name] = referred
    return result


def reads(step: Step) -> set[int]:
    """All slots that a step reads, those that its subgraphs capture included."""
    result = set(step.inputs)
    for value in step.call.attributes.values():
        if isinstance(value, Program):
            result |= captured(value)
    return result


def captured(program: Program) -> set[int]:
    """Slots that a subgraph reads from its surroundings."""
    result = set(program.outputs)
    for step in program.steps:
        result |= reads(step)
    return result - program.local - {0}


def _free_after_last_use(program: Program, kept: set[int]) -> None:
    seen = set(kept)
    for step in reversed(program.steps):
        mentioned = reads(step) | set(step.outputs)
        step.frees = tuple(s for s in mentioned if s and s in program.local and s not in seen)
        seen |= mentioned

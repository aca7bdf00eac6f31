"""An ONNX graph as a torch module.

The interpreter walks the compiled graph. Parameters are the graph's own constants, under their own names;
what is not trained is listed with a reason. Work that depends on constants alone is done once, work that
depends on the shapes of the inputs alone once per combination of shapes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from studio.base.errors import StudioError
from studio.engine.graph import Model
from studio.engine.trainable.constants import frozen_reason
from studio.engine.trainable.functions import Functions
from studio.engine.trainable.program import Compiler, Held, Program, Step, Unsupported, reads
from studio.engine.trainable.shapes import shape_steps
from studio.engine.trainable.values import HALVES, numpy_of, tensor_of

_RANDOM = frozenset(
    {
        "RandomNormal",
        "RandomUniform",
        "RandomNormalLike",
        "RandomUniformLike",
        "Bernoulli",
        "Multinomial",
        "Dropout",
    }
)
_CACHED_SHAPES = 64  # combinations of input shapes whose shape arithmetic is remembered
_FOLD_LIMIT = 2**26  # bytes that folding one node may add


@dataclass(frozen=True)
class Frozen:
    """A constant that is not trained."""

    name: str
    reason: str


@dataclass
class Weight:
    """One trained constant.

    Attributes:
        name: of the initializer or Constant output, with the path of its subgraph where names repeat.
        held: where it lies in the model.
        parameter: float32 master copy for half-precision models that are promoted.
        transform: applied before every use (a sparse mask, a fake quantizer); None = as it is.
    """

    name: str
    held: Held
    slot: int
    parameter: nn.Parameter
    transform: Callable[[Tensor], Tensor] | None = None

    @property
    def current(self) -> Tensor:
        """What the graph sees."""
        return self.parameter if self.transform is None else self.transform(self.parameter)


def unsupported(model: Model) -> tuple[Unsupported, ...]:
    """The nodes that the interpreter cannot run, so that training cannot be offered."""
    compiler = Compiler(model.ir.opset_imports, Functions(model.ir).make)
    compiler.compile(model.graph)
    return tuple(compiler.unsupported)


class GraphModule(nn.Module):
    """Runs a model in torch with gradients.

    Args:
        model: left untouched; see `writeback`.
        trainable: asked for every weight that could be trained; False freezes it.
        promote: compute half-precision models in float32, with float32 master weights.
        watch: names of values of the main graph to return besides the outputs.
        unfolded: operators that run every time, even where they depend on constants alone.

    Raises:
        StudioError: a node cannot be run.
    """

    def __init__(
        self,
        model: Model,
        *,
        trainable: Callable[[str], bool] = lambda _name: True,
        promote: bool = True,
        watch: Sequence[str] = (),
        unfolded: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.model, self.promote = model, promote
        compiler = Compiler(model.ir.opset_imports, Functions(model.ir, promote).make, promote)
        watched = _named(model, watch)
        self._program = compiler.compile(model.graph, keep=watched)
        if compiler.unsupported:
            first = compiler.unsupported[0]
            raise StudioError(
                "This model cannot be trained here",
                f"{len(compiler.unsupported)} node(s) are not supported, first {first.node} ({first.operator})",
                "Techniques that need no gradients still work.",
            )
        self.inputs = tuple(v.name or "" for v in model.graph.inputs if not v.is_initializer())
        self._input_slots = {v.name or "": compiler.slot(v) for v in model.graph.inputs}
        self._input_types = {v.name or "": v.dtype for v in model.graph.inputs}
        self.outputs = tuple(v.name or "" for v in model.graph.outputs)
        self._results = {v.name or "": compiler.slot(v) for v in (*model.graph.outputs, *watched)}
        self._template: list[Any] = [None] * compiler.size
        self.weights: dict[str, Weight] = {}
        self.moving: dict[int, Held] = {}  # frozen constants that training changes all the same
        self.held = compiler.constants
        frozen: list[Frozen] = []
        self._load_constants(compiler.constants, trainable, frozen)
        self.frozen = tuple(frozen)
        self._live = self._fold(unfolded)
        self._shape_steps, self._shape_slots = shape_steps(
            self._live,
            self._program,
            {s for s, v in enumerate(self._template) if v is not None},
            {w.slot for w in self.weights.values()},
            set(self._results.values()),
            unfolded,
        )
        self._after_shapes = [s for s in self._live if id(s) not in self._shape_steps]
        self._shapes: dict[Any, dict[int, Any]] = {}
        self._device = torch.device("cpu")

    def _load_constants(
        self, constants: Mapping[int, Held], trainable: Callable[[str], bool], frozen: list[Frozen]
    ) -> None:
        names = [h.value.name or "" for h in constants.values()]
        for slot, held in constants.items():
            name = held.value.name or ""
            if names.count(name) > 1 and held.path:
                name = f"{held.path}/{name}"
            reason = frozen_reason(held)
            if not reason and not trainable(name):
                reason = "kept as it is, as asked"
            value = tensor_of(held.tensor.numpy())
            if isinstance(value, Tensor) and self.promote and value.dtype in HALVES:
                value = value.to(torch.float32)
            if reason:
                frozen.append(Frozen(name, reason))
                self._template[slot] = value
            else:
                parameter = nn.Parameter(value)
                self.register_parameter(f"w{slot}", parameter)
                self.weights[name] = Weight(name, held, slot, parameter)

    @torch.no_grad()
    def _fold(self, unfolded: Collection[str]) -> list[Step]:
        """Run once what depends on frozen constants alone; the steps that are left."""
        known = {s for s, v in enumerate(self._template) if v is not None}
        kept = set(self._results.values())
        live = []
        for step in self._program.steps:
            needed = reads(step) - {0}
            if step.control or step.call.op in _RANDOM or step.call.op in unfolded or not needed <= known:
                live.append(step)
                continue
            env = list(self._template)
            frees, step.frees = step.frees, ()
            step.execute(env)
            step.frees = frees
            made = [s for s in step.outputs if s]
            if sum(_bytes(env[s]) for s in made) > _FOLD_LIMIT + sum(_bytes(env[s]) for s in needed):
                live.append(step)
                continue
            for slot in made:
                self._template[slot] = env[slot]
                known.add(slot)
        for step in live:  # what was folded is shared by all runs: never drop it
            step.frees = tuple(s for s in step.frees if s not in known and s not in kept)
        return live

    @property
    def steps(self) -> list[Step]:
        """The steps of the main graph that run, in order; what runs may be exchanged."""
        return self._live

    def value(self, slot: int) -> Tensor:
        """The frozen constant in a slot."""
        value = self._template[slot]
        assert isinstance(value, Tensor)
        return value

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._device

    def place(self, device: str | torch.device) -> GraphModule:
        """Move weights and constants to a device."""
        self._device = torch.device(device)
        self.to(self._device)
        self._template = [v.to(self._device) if isinstance(v, Tensor) else v for v in self._template]
        self._shapes.clear()
        return self

    def forward(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """Outputs (and watched values) by name.

        Args:
            feed: a torch tensor or numpy array per input.
        """
        env = self.constants()
        given = self.start(feed)
        for slot, value in given.items():
            env[slot] = value
        shapes = [tuple(value.shape) if isinstance(value, Tensor) else None for value in given.values()]
        # Where tensors are made; on the CPU they are anyway, and the context costs a little on every call.
        with contextlib.nullcontext() if self._device.type == "cpu" else torch.device(self._device):
            self._run(env, tuple(shapes))
        return {name: env[slot] for name, slot in self._results.items()}

    def constants(self) -> list[Any]:
        """A value for every slot: weights as they are now, what is constant or folded, None for the rest."""
        env = list(self._template)
        for weight in self.weights.values():
            env[weight.slot] = weight.current
        return env

    def start(self, feed: Mapping[str, Any]) -> dict[int, Any]:
        """The inputs by slot.

        Raises:
            StudioError: one is missing.
        """
        given = {}
        for name, slot in self._input_slots.items():
            if name in feed:
                given[slot] = self._input(feed[name])
            elif self._template[slot] is None and self._input_types[name] is not None:
                raise StudioError(f"Input '{name}' is missing", "the data do not feed it")
        return given

    def _run(self, env: list[Any], key: tuple[Any, ...]) -> None:
        cached = self._shapes.get(key) if self._shape_slots else None
        if cached is not None:
            for slot, value in cached.items():
                env[slot] = value
            steps = self._after_shapes
        else:
            steps = self._live
        found: dict[int, Any] = {}
        remember = cached is None and bool(self._shape_slots) and len(self._shapes) < _CACHED_SHAPES
        for step in steps:
            if remember and id(step) in self._shape_steps:
                frees, step.frees = step.frees, ()
                step.execute(env)
                step.frees = frees
                found.update({s: env[s] for s in step.outputs if s in self._shape_slots})
            else:
                step.execute(env)
        if remember:
            self._shapes[key] = found

    def _input(self, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            value = tensor_of(value)
        if isinstance(value, Tensor):
            value = value.to(self._device)
            return value.to(torch.float32) if self.promote and value.dtype in HALVES else value
        return value

    def numpy(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """As `forward`, without gradients, in the types that the model states."""
        types = {v.name: v.dtype for v in self.model.graph.outputs}
        with torch.no_grad():
            return {n: numpy_of(v, types.get(n)) for n, v in self(feed).items()}


def _bytes(value: Any) -> int:
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0


def _named(model: Model, names: Sequence[str]) -> list[ir.Value]:
    found = {v.name: v for node in model.graph for v in node.outputs} | {
        v.name: v for v in model.graph.inputs
    }
    missing = [n for n in names if n not in found]
    if missing:
        raise StudioError(
            f"The model has no value named '{missing[0]}'", "names of values change when a model is edited"
        )
    return [found[n] for n in names]


__all__ = ["Frozen", "GraphModule", "Program", "Weight", "unsupported"]

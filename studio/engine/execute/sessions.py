"""Sessions of onnxruntime: how they are set up, fed, and how their errors become sentences.

The one thing to know: threads never spin here. A spinning pool keeps the cores busy between runs
and makes every timing beside it noise.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from studio.base.errors import StudioError
from studio.engine.graph import Model, to_bytes
from studio.engine.graph.strip import proto_with

if TYPE_CHECKING:
    import onnxruntime as ort

Array: TypeAlias = npt.NDArray[Any]
Optimization: TypeAlias = Literal["off", "basic", "extended", "all"]

_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
# Weights from this size on are handed over as they are; smaller ones go with the graph.
_LARGE_BYTES = 65_536
_MAX_INLINE = 1_500_000_000
# Not integers of 32 and 64 bits: the runtime reads sizes and axes out of the graph before it has the rest.
_SHAREABLE = {
    ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.INT8, ir.DataType.UINT8,
}  # fmt: skip
_FATAL_ONLY = 4  # everything milder is raised, and told in words


def options(
    *, threads: int = 0, optimize: Optimization = "all", spinning: bool = False, seed: int = 0
) -> ort.SessionOptions:
    """Session options: intra-op threads (0 = one per core), graph optimization, a silent log."""
    import onnxruntime as ort

    levels = {
        "off": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
        "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
        "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    }
    chosen = ort.SessionOptions()
    chosen.intra_op_num_threads = threads
    chosen.inter_op_num_threads = 1
    chosen.graph_optimization_level = levels[optimize]
    chosen.log_severity_level = _FATAL_ONLY
    chosen.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    ort.set_seed(seed)
    return chosen


def session(
    model: Model | Path | bytes,
    *,
    threads: int = 0,
    optimize: Optimization = "all",
    spinning: bool = False,
    profile_prefix: str = "",
    optimized: Path | None = None,
) -> ort.InferenceSession:
    """An onnxruntime session on the CPU.

    Args:
        model: a model in memory, a file, or the bytes of one without external data.
        threads: intra-op threads; 0 = the runtime's choice.
        optimize: how far the runtime may rewrite the graph.
        spinning: whether idle threads burn a core to start sooner.
        profile_prefix: where the runtime's profile goes; '' = no profile.
        optimized: where to write the rewritten graph.

    Raises:
        StudioError: onnxruntime does not accept the model.
    """

    def chosen() -> ort.SessionOptions:
        asked = options(threads=threads, optimize=optimize, spinning=spinning)
        if profile_prefix:
            asked.enable_profiling = True
            asked.profile_file_prefix = profile_prefix
        if optimized is not None:
            asked.optimized_model_filepath = str(optimized)
            # Beside the graph, so that there is no limit of 2 GiB and reading it back stays cheap.
            asked.add_session_config_entry(
                "session.optimized_model_external_initializers_file_name", f"{optimized.name}.data"
            )
        return asked

    if not isinstance(model, Model):
        return _create(model if isinstance(model, bytes) else str(model), chosen())
    graph, weights = _apart(model)
    try:
        return _with_weights(graph, weights, chosen())
    except StudioError:
        # Once more in one piece, where that is possible: the runtime may have wanted to read a weight early.
        if not weights or sum(array.nbytes for array in weights.values()) > _MAX_INLINE:
            raise
        return _create(to_bytes(model), chosen())


def _with_weights(
    graph: bytes, weights: Mapping[str, Array], chosen: ort.SessionOptions
) -> ort.InferenceSession:
    """A session on a graph whose large weights are given apart."""
    import onnxruntime as ort

    values = [ort.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
    chosen.add_external_initializers(list(weights), values)
    sess = _create(graph, chosen)
    sess.weights_kept_alive = values  # the session uses their memory
    return sess


def _create(source: str | bytes, chosen: ort.SessionOptions) -> ort.InferenceSession:
    import onnxruntime as ort

    with _in_words("onnxruntime cannot load this model"):
        return ort.InferenceSession(source, chosen, providers=["CPUExecutionProvider"])


def _apart(model: Model) -> tuple[bytes, dict[str, Array]]:
    """The graph as bytes, and its large weights as arrays in memory (or mapped from their file).

    So there is no limit of 2 GiB, nothing is written, and weights are not copied before the runtime does.
    """
    # The runtime drops what nothing reads before it takes what it is given, and then misses it.
    own = {name: value.const_value for name, value in model.graph.initializers.items() if value.uses()}
    weights: dict[str, Array] = {}

    def hand_over(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
        if own.get(name) is tensor and tensor.nbytes >= _LARGE_BYTES and tensor.dtype in _SHAREABLE:
            weights[name] = np.ascontiguousarray(tensor.numpy())
            return _elsewhere(tensor, name)
        return _inline(tensor, name) if isinstance(tensor, ir.ExternalTensor) else tensor

    return bytes(proto_with(model, hand_over).SerializeToString()), weights


def _elsewhere(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    """A tensor without values that says they are external; the session is given them by name."""
    proto = onnx.TensorProto(name=name, data_type=tensor.dtype.value, dims=_dims(tensor))
    proto.data_location = onnx.TensorProto.EXTERNAL
    proto.external_data.add(key="location", value="in memory")
    return ir.TensorProtoTensor(proto)


def _inline(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    """An external tensor with its values in the graph, whose own folder is not known to the session."""
    proto = onnx.TensorProto(
        name=name, data_type=tensor.dtype.value, dims=_dims(tensor), raw_data=tensor.tobytes()
    )
    return ir.TensorProtoTensor(proto)


def _dims(tensor: ir.TensorProtocol) -> list[int]:
    return [int(size) for size in tensor.shape.numpy()]


@contextlib.contextmanager
def _in_words(what: str) -> Iterator[None]:
    """Turn the runtime's own exceptions into a StudioError with its message."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    kinds = (
        state.EPFail, state.EngineError, state.Fail, state.InvalidArgument, state.InvalidGraph,
        state.InvalidProtobuf, state.ModelLoaded, state.NoModel, state.NoSuchFile, state.NotImplemented,
        state.RuntimeException, ValueError, RuntimeError,
    )  # fmt: skip
    try:
        yield
    except kinds as error:
        raise StudioError(what, _first_sentence(str(error)), details=str(error)) from error


def _first_sentence(message: str) -> str:
    """The runtime's message without its error code prefix and source file, on one line."""
    text = message.rsplit(" : ", maxsplit=1)[-1] if message.startswith("[ONNXRuntimeError]") else message
    line = text.strip().splitlines()[0] if text.strip() else "no reason given"
    return line if len(line) <= 300 else f"{line[:300]}…"


def run(
    sess: ort.InferenceSession, feed: Mapping[str, Array], names: Sequence[str] | None = None
) -> list[Array]:
    """The outputs of one run, in the session's order or that of `names`.

    Raises:
        StudioError: the feed does not fit, or an operator failed.
    """
    with _in_words("onnxruntime cannot run this model"):
        return list(sess.run(names, fitted(sess, feed)))


def fitted(sess: ort.InferenceSession, feed: Mapping[str, Array]) -> dict[str, Array]:
    """The feed with float inputs in the session's precision, and without inputs that it does not have.

    So two models of different precision take the same samples.
    """
    ready = {}
    for node in sess.get_inputs():
        if node.name in feed:
            array, kind = feed[node.name], _FLOATS.get(node.type)
            ready[node.name] = (
                array if kind is None or array.dtype.kind != "f" else array.astype(kind, copy=False)
            )
    return ready

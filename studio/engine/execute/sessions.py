"""Sessions of onnxruntime: how they are set up, fed, and how their errors become sentences.

The one thing to know: threads never spin here. A spinning pool keeps the cores busy between runs
and makes every timing beside it noise.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from studio.base.errors import StudioError
from studio.engine.graph import Model, nodes, save, to_bytes

if TYPE_CHECKING:
    import onnxruntime as ort

Array: TypeAlias = npt.NDArray[Any]
Optimization: TypeAlias = Literal["off", "basic", "extended", "all"]

_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
# Protobuf ends at 2 GiB, and a model handed over as bytes is in memory twice while it loads.
_MAX_INLINE_BYTES = 1_000_000_000
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
    chosen = options(threads=threads, optimize=optimize, spinning=spinning)
    if profile_prefix:
        chosen.enable_profiling = True
        chosen.profile_file_prefix = profile_prefix
    if optimized is not None:
        chosen.optimized_model_filepath = str(optimized)
        # Beside the graph, so that there is no limit of 2 GiB and reading it back stays cheap.
        chosen.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", f"{optimized.name}.data"
        )
    if isinstance(model, Model):
        if _constant_bytes(model) < _MAX_INLINE_BYTES:
            return _create(to_bytes(model), chosen)
        with tempfile.TemporaryDirectory(prefix="featherweight-") as folder:
            path = Path(folder) / "model.onnx"
            save(model, path)
            return _create(str(path), chosen)
    return _create(model if isinstance(model, bytes) else str(model), chosen)


def _create(source: str | bytes, chosen: ort.SessionOptions) -> ort.InferenceSession:
    import onnxruntime as ort

    with _in_words("onnxruntime cannot load this model"):
        return ort.InferenceSession(source, chosen, providers=["CPUExecutionProvider"])


def _constant_bytes(model: Model) -> int:
    total = sum(
        int(v.const_value.nbytes) for v in model.graph.initializers.values() if v.const_value is not None
    )
    for node in nodes(model):
        attr = node.attributes.get("value")
        if attr is not None and attr.type == ir.AttributeType.TENSOR:
            total += int(attr.as_tensor().nbytes)
    return total


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

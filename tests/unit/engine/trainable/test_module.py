"""An ONNX graph as a torch module: the same numbers, the same gradients, and nothing else changed on the way back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from torch.nn import functional as F

from studio.base.errors import StudioError
from studio.engine import graph
from studio.engine.graph import Model
from studio.engine.trainable import GraphModule, unsupported, write_back
from studio.engine.training.norms import Norms

RNG = np.random.default_rng(0)

CONV_NET = """
<ir_version: 8, opset_import: ["" : 17]>
agraph (float[N, 3, 8, 8] x) => (float[N, 5] y)
<float low = {0.0}, float high = {6.0}>
{
  c = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
  n = BatchNormalization (c, scale, shift, mean, variance)
  r = Clip (n, low, high)
  p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
  f = Flatten (p)
  y = Gemm (f, w2, b2)
}
"""
BRANCHES = """
<ir_version: 8, opset_import: ["" : 17]>
agraph (float[2, 3] x, bool up) => (float[2, 3] y)
{
  h = MatMul (x, outer)
  y = If (up) <
    then_branch = one () => (a) { w = Constant <value = float[3] {1.0, 2.0, 3.0}> ()  a = Mul (h, w) },
    else_branch = two () => (a) { w = Constant <value = float[3] {3.0, 2.0, 1.0}> ()  a = Add (h, w) }
  >
}
"""


def model_of(text: str, **constants: np.ndarray) -> Model:
    proto = onnx.parser.parse_model(text)
    for name, array in constants.items():
        wanted = array if array.dtype == np.float16 else array.astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(wanted, name))
    return Model(ir.from_proto(proto))


def conv_net(activation: str = "Clip (n, low, high)") -> Model:
    return model_of(
        CONV_NET.replace("Clip (n, low, high)", activation),
        w1=RNG.normal(size=(4, 3, 3, 3)),
        b1=RNG.normal(size=4),
        scale=RNG.uniform(0.5, 2, 4),
        shift=np.array([0.0, 0.0, 3.0, 1.0]),
        mean=RNG.normal(size=4),
        variance=RNG.uniform(0.5, 2, 4),
        w2=RNG.normal(size=(64, 5)),
        b2=RNG.normal(size=5),
    )


def runtime(model: Model, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    return ort.InferenceSession(graph.to_bytes(model), providers=["CPUExecutionProvider"]).run(None, feed)


def test_the_outputs_are_those_of_onnxruntime() -> None:
    model = conv_net()
    x = RNG.normal(size=(5, 3, 8, 8)).astype(np.float32)
    got = GraphModule(model).numpy({"x": x})["y"]
    np.testing.assert_allclose(got, runtime(model, {"x": x})[0], rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_torch_itself() -> None:
    model = conv_net()
    module = GraphModule(model)
    x = RNG.normal(size=(5, 3, 8, 8)).astype(np.float32)
    native = {
        n: torch.tensor(v.const_value.numpy(), requires_grad=True)
        for n, v in model.graph.initializers.items()
    }
    c = F.conv2d(torch.tensor(x), native["w1"], native["b1"], padding=1)
    n = F.batch_norm(
        c, native["mean"].detach(), native["variance"].detach(), native["scale"], native["shift"]
    )
    y = F.linear(F.max_pool2d(F.relu6(n), 2).flatten(1), native["w2"].T, native["b2"])
    y.square().mean().backward()
    module({"x": x})["y"].square().mean().backward()
    assert set(module.weights) == {"w1", "b1", "scale", "shift", "w2", "b2"}
    for name, weight in module.weights.items():
        scale = float(native[name].grad.abs().max())
        np.testing.assert_allclose(
            weight.parameter.grad.numpy(), native[name].grad.numpy(), atol=1e-6 * scale
        )


@pytest.mark.parametrize("bounds", [(0.0, 6.0), (-1.0, 1.0)])
def test_a_clip_on_its_bound_passes_no_gradient_like_relu6(bounds: tuple[float, float]) -> None:
    low, high = bounds
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    agraph (float[4] x) => (float[4] y) <float low = {{{low}}}, float high = {{{high}}}>
    {{ h = Mul (x, w)  y = Clip (h, low, high) }}"""
    module = GraphModule(model_of(text, w=np.ones(4)))
    x = np.array([low, high, 0.5, 99], np.float32)
    module({"x": x})["y"].sum().backward()
    native = torch.tensor(x, requires_grad=True)
    F.hardtanh(native, low, high).sum().backward()
    np.testing.assert_array_equal(module.weights["w"].parameter.grad.numpy(), native.grad.numpy() * x)


def test_nothing_stays_behind_when_a_module_moves_to_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The meta device stands in for a graphics card: it refuses to mix with what lies on the CPU."""
    monkeypatch.setattr(torch.__future__, "_swap_module_params_on_conversion", True)
    module = GraphModule(conv_net("Relu (n)"))
    norms = Norms(module)
    module.place("meta")
    norms.to("meta").train(True)
    got = module({"x": RNG.normal(size=(16, 3, 8, 8)).astype(np.float32)})["y"]
    got.square().mean().backward()
    assert got.device.type == "meta"
    assert all(w.parameter.grad.device.type == "meta" for w in module.weights.values())
    assert all(module.value(slot).device.type == "meta" for slot in norms.statistics())


def test_weights_inside_branches_are_trained_under_names_of_their_own() -> None:
    module = GraphModule(model_of(BRANCHES, outer=RNG.normal(size=(3, 3))))
    x = torch.ones(2, 3)
    module({"x": x, "up": torch.tensor(True)})["y"].sum().backward()
    names = list(module.weights)
    assert len(names) == 3
    assert "outer" in names
    then = next(w for n, w in module.weights.items() if "then_branch" in n)
    other = next(w for n, w in module.weights.items() if "else_branch" in n)
    assert then.parameter.grad is not None
    assert other.parameter.grad is None


def test_write_back_changes_trained_numbers_and_nothing_else() -> None:
    model = model_of(BRANCHES, outer=RNG.normal(size=(3, 3)))
    before = graph.to_bytes(model)
    module = GraphModule(model)
    assert graph.to_bytes(write_back(module)) == before
    with torch.no_grad():
        next(w for n, w in module.weights.items() if "then_branch" in n).parameter += 1
    after = write_back(module)
    assert graph.to_bytes(model) == before
    assert graph.to_bytes(after) != before
    assert [n.op_type for n in graph.nodes(after)] == [n.op_type for n in graph.nodes(model)]
    x = np.ones((2, 3), np.float32)
    base = runtime(model, {"x": x, "up": np.array(False)})[0]
    np.testing.assert_array_equal(runtime(after, {"x": x, "up": np.array(False)})[0], base)
    changed = runtime(after, {"x": x, "up": np.array(True)})[0]
    np.testing.assert_allclose(changed, module.numpy({"x": x, "up": np.array(True)})["y"], rtol=1e-6)


def test_half_precision_models_train_with_float32_masters() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    agraph (float16[N, 3] x) => (float16[N, 3] y) { y = MatMul (x, w) }"""
    array = RNG.normal(size=(3, 3)).astype(np.float16)
    module = GraphModule(model_of(text, w=array))
    weight = module.weights["w"].parameter
    assert weight.dtype == torch.float32
    with torch.no_grad():
        weight += 1e-5  # far below half precision's step
    np.testing.assert_array_equal(
        write_back(module).graph.initializers["w"].const_value.numpy(),
        (array + np.float32(1e-5)).astype(np.float16),
    )


def test_what_is_not_trained_has_a_reason() -> None:
    reasons = {f.name: f.reason for f in GraphModule(conv_net()).frozen}
    assert "running statistics" in reasons["mean"]
    assert "Clip" in reasons["low"]


def test_nodes_that_cannot_be_run_are_reported_before_anything_runs() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
    agraph (float[3] x) => (float[3] y) { h = Relu (x)  y = own.Mystery (h) }"""
    model = Model(ir.from_onnx_text(text))
    assert [u.operator for u in unsupported(model)] == ["own.Mystery"]
    with pytest.raises(StudioError, match=r"own\.Mystery"):
        GraphModule(model)


def test_functions_of_the_model_are_expanded() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
    agraph (float[3] x) => (float[3] y) { h = Mul (x, w)  y = own.twice <by = 3.0> (h) }
    <domain: "own", opset_import: ["" : 17]>
    twice <by> (a) => (b) { k = Constant <value_float: float = @by> ()  b = Mul (a, k) }"""
    module = GraphModule(model_of(text, w=np.array([1.0, 2.0, 3.0])))
    np.testing.assert_allclose(module.numpy({"x": np.ones(3, np.float32)})["y"], [3, 6, 9])


def test_shape_arithmetic_is_remembered_per_shape_and_stays_right() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    agraph (float[N, T, 4] x) => (float[N, M] y) <int64[1] last = {-1}, int64[1] zero = {0}, int64[1] one = {1}>
    { s = Shape (x)  n = Slice (s, zero, one)  t = Concat <axis = 0> (n, last)  h = MatMul (x, w)  y = Reshape (h, t) }"""
    module = GraphModule(model_of(text, w=np.eye(4)))
    for shape in ((2, 3, 4), (5, 1, 4), (2, 3, 4), (5, 1, 4)):
        x = RNG.normal(size=shape).astype(np.float32)
        np.testing.assert_allclose(module.numpy({"x": x})["y"], x.reshape(shape[0], -1), rtol=1e-6)
    assert len(module._shapes) == 2


def test_watched_shape_arithmetic_is_there_in_every_run() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    agraph (float[N, T, 4] x) => (float[N, M] y) <int64[1] last = {-1}, int64[1] zero = {0}, int64[1] one = {1}>
    { s = Shape (x)  n = Slice (s, zero, one)  more = Add (n, one)  less = Sub (more, one)
      t = Concat <axis = 0> (less, last)  h = MatMul (x, w)  y = Reshape (h, t) }"""
    module = GraphModule(model_of(text, w=np.eye(4)), watch=("more",))
    for _ in range(2):
        assert int(module({"x": np.ones((2, 3, 4), np.float32)})["more"]) == 3


def test_quantized_graphs_pass_gradients_straight_through() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    agraph (float[3] x) => (float[3] y) <float scale = {0.1}, uint8 zero = {128}>
    { h = Mul (x, w)  q = QuantizeLinear (h, scale, zero)  y = DequantizeLinear (q, scale, zero) }"""
    model = model_of(text, w=np.array([1.0, 1.0, 1.0]))
    module = GraphModule(model)
    x = np.array([0.26, -3.0, 50.0], np.float32)
    y = module({"x": x})["y"]
    np.testing.assert_allclose(y.detach(), runtime(model, {"x": x})[0], rtol=1e-6)
    y.sum().backward()
    np.testing.assert_allclose(module.weights["w"].parameter.grad.numpy(), [0.26, -3.0, 0.0], rtol=1e-5)


@pytest.mark.cases
@pytest.mark.parametrize(
    "name", ["fashion_resnet", "tinylm", "ppocr_cls", "ppocr_det", "silero_vad", "efficientnet_lite0"]
)
def test_real_models_give_the_runtimes_numbers_and_finite_gradients(case_models: Path, name: str) -> None:
    model = graph.load(case_models / f"{name}.onnx")
    session = ort.InferenceSession(
        str(case_models / f"{name}.onnx"), _plainly(), providers=["CPUExecutionProvider"]
    )
    feed = {i.name: _noise(i) for i in session.get_inputs()}
    module = GraphModule(model)
    for got, wanted in zip(module.numpy(feed).values(), session.run(None, feed), strict=True):
        spread = max(float(wanted.std()), 1e-3 * float(np.abs(wanted).max()))
        assert np.abs(got - wanted).max() <= 1e-4 * spread + 1e-6
    loss = sum(v.float().square().mean() for v in module(feed).values())
    loss.backward()
    grads = [w.parameter.grad for w in module.weights.values() if w.parameter.grad is not None]
    assert len(grads) >= 0.9 * len(module.weights)
    assert all(bool(torch.isfinite(g).all()) for g in grads)


def _plainly() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def _noise(info: ort.NodeArg) -> np.ndarray:
    shape = [d if isinstance(d, int) else (64 if i else 2) for i, d in enumerate(info.shape)]
    if "int" in info.type:
        return RNG.integers(1, 100, shape).astype(np.int64)
    return RNG.normal(size=shape).astype(np.float32)

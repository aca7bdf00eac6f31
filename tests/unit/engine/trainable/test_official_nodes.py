"""The official test cases of every ONNX operator, run through the interpreter."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from studio.engine.graph import Model
from studio.engine.trainable import GraphModule
from studio.engine.trainable.values import tensor_of

# The rest draw at random, work on texts and trees, or are optimisers.
ENOUGH = 1780


def value(item: Any) -> Any:
    if isinstance(item, onnx.TensorProto):
        return numpy_helper.to_array(item)
    if isinstance(item, onnx.SequenceProto):
        return numpy_helper.to_list(item)
    if isinstance(item, onnx.OptionalProto):
        return numpy_helper.to_optional(item)
    return item


def feed_of(item: Any) -> Any:
    if isinstance(item, list):
        return [feed_of(v) for v in item]
    return tensor_of(np.asarray(item)) if isinstance(item, np.ndarray | np.generic) else item


def check(got: Any, wanted: Any, rtol: float, atol: float) -> None:
    if isinstance(wanted, list):
        assert len(got) == len(wanted)
        for a, b in zip(got, wanted, strict=True):
            check(a, b, rtol, atol)
        return
    if wanted is None:
        assert got is None
        return
    got, wanted = np.asarray(got), np.asarray(wanted)
    assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
    if wanted.dtype.kind not in "fiubc":
        got, wanted = got.astype(np.float32), wanted.astype(np.float32)
    np.testing.assert_allclose(got, wanted, rtol=max(rtol, 1e-3), atol=max(atol, 1e-6))


def passes(case: Any) -> bool:
    try:
        module = GraphModule(Model(ir.from_proto(case.model)), promote=False)
        for inputs, outputs in case.data_sets:
            names = [i.name for i in case.model.graph.input]
            got = module.numpy(dict(zip(names, (feed_of(value(v)) for v in inputs), strict=False)))
            for a, b in zip(got.values(), outputs, strict=True):
                check(a, value(b), case.rtol or 1e-3, case.atol or 1e-7)
    except Exception:
        return False
    return True


def test_nearly_all_official_node_cases_give_the_official_results() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        cases = collect_testcases(None)
        good = sum(passes(case) for case in cases)
    assert good >= ENOUGH, f"{good} of {len(cases)}"

"""What onnxruntime's own quantizer makes of a case, scored beside the studio's file.

    python tests/benchmarks/quantization_peers.py CASES_DIR NAME OURS.onnx

Prints one line a model: onnxruntime U8S8 static (MinMax, per channel), onnxruntime dynamic, and OURS.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from onnxruntime import quantization as peer


class Feeds(peer.CalibrationDataReader):
    """The case's calibration feeds, one after the other."""

    def __init__(self, feeds: list[dict[str, object]]) -> None:
        self._left = iter(feeds)

    def get_next(self) -> dict[str, object] | None:
        return next(self._left, None)


def main() -> None:
    folder, name, ours = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    sys.path.insert(0, str(folder))
    from cases import load

    case = load(name)
    with tempfile.TemporaryDirectory() as temporary:
        static, dynamic = Path(temporary) / "ort_static.onnx", Path(temporary) / "ort_dynamic.onnx"
        peer.quantize_static(
            str(case.model),
            str(static),
            Feeds(case.calibration()),
            per_channel=True,
            activation_type=peer.QuantType.QUInt8,
            weight_type=peer.QuantType.QInt8,
        )
        peer.quantize_dynamic(str(case.model), str(dynamic), per_channel=True)
        for model in (static, dynamic, ours):
            print(model.name, flush=True)
            subprocess.run([sys.executable, str(folder / "cases.py"), "score", name, str(model)], check=False)


if __name__ == "__main__":
    main()

"""PyTorch in: a file of weights, a program or a TorchScript module becomes an ONNX model under the same names.

The one thing to know: everything that can run code from a file waits for consent, and then runs in a
process of its own that may not reach the network, start programs or write outside one folder.
"""

from studio.engine.importing.convert import import_model
from studio.engine.importing.kinds import Kind, kind_of

__all__ = ["Kind", "import_model", "kind_of"]

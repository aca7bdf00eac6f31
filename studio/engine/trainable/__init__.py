"""An ONNX graph as a torch module, and back, weights by name.

The one thing to know: `GraphModule(model)` runs the graph with gradients, `write_back(module)` gives a copy
of the model in which nothing but trained weights has changed.
"""

from studio.engine.trainable.module import Frozen, GraphModule, Weight, unsupported
from studio.engine.trainable.probe import gradients
from studio.engine.trainable.writeback import write_back

__all__ = ["Frozen", "GraphModule", "Weight", "gradients", "unsupported", "write_back"]

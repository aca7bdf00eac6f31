"""Running a model in onnxruntime: a session, feeds in, outputs and intermediate values out, streamed.

The one thing to know: threads never spin here. A spinning pool keeps the cores busy between runs
and makes every timing beside it noise.
"""

from studio.engine.execute.sessions import Array, Optimization, fitted, options, run, session
from studio.engine.execute.streaming import outputs, stream

__all__ = ["Array", "Optimization", "fitted", "options", "outputs", "run", "session", "stream"]

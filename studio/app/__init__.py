"""The desk: project, versions, jobs, session. Imports no onnx, onnxruntime or torch."""

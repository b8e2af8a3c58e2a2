"""The device wing: numpy, onnxruntime and psutil; never torch, never onnx."""

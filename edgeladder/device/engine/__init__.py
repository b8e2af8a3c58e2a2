"""Two engines behind one protocol: stock onnxruntime and onnxruntime-training."""

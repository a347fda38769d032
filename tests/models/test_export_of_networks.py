"""The published parts trace to ONNX with a dynamic batch and compute the same there, at batch sizes never traced."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from visrt.models.deformable import DeformablePixelDecoder
from visrt.models.swin import Stage, SwinSettings

CHANNELS = {"res2": 8, "res3": 12, "res4": 20, "res5": 24}


class Decoded(nn.Module):
    """A pixel decoder fed with maps pooled from one image, so that the graph has one input."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, maps: Tensor) -> tuple[Tensor, ...]:
        pooled = {n: nn.functional.avg_pool2d(maps[:, :c], 2**i) for i, (n, c) in enumerate(CHANNELS.items())}
        mask_features, levels = self.decoder(pooled)
        return (mask_features, *levels)


def swin_stage() -> tuple[nn.Module, Callable[[int], Tensor]]:
    """One plain and one shifted block, on a map that is neither even nor a multiple of the window."""
    stage = Stage(SwinSettings(embed_dim=8, depths=(2, 1, 1, 1), heads=(2, 1, 1, 1), window=3), 0)
    return stage, lambda batch: torch.randn(batch, 7, 10, 8)


def pixel_decoder() -> tuple[nn.Module, Callable[[int], Tensor]]:
    decoder = DeformablePixelDecoder(CHANNELS, dim=32, mask_dim=16, heads=4, layers=1, feedforward_dim=32)
    nn.init.normal_(decoder.get_parameter("transformer.encoder.layers.0.self_attn.sampling_offsets.weight"))
    return Decoded(decoder), lambda batch: torch.randn(batch, 24, 16, 24)


@pytest.mark.parametrize("part", [swin_stage, pixel_decoder], ids=["swin_stage", "pixel_decoder"])
def test_onnx_equals_torch_at_batch_sizes_that_were_not_traced(
    part: Callable[[], tuple[nn.Module, Callable[[int], Tensor]]], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network, example = part()
    path = tmp_path / "part.onnx"
    export(network.eval(), example(2), path)
    assert "GridSample" not in {node.op_type for node in onnx.load(path).graph.node}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        given = example(batch)
        outputs = session.run(None, {session.get_inputs()[0].name: given.numpy()})
        with torch.inference_mode():
            expected = network(given)
        for ours, theirs in zip(outputs, expected, strict=True):
            np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4)


def export(network: nn.Module, example: Tensor, path: Path) -> None:
    with warnings.catch_warnings():
        # The exporter uses deprecated corners of torch and of copyreg itself.
        warnings.simplefilter("ignore")
        shapes = ({0: torch.export.Dim("batch")},)
        program = torch.onnx.export(
            network, (example,), dynamo=True, opset_version=18, dynamic_shapes=shapes, verbose=False
        )
    assert program is not None
    program.save(path)

"""The video VAE at full width on a real card: half precision against float32, compiled code against plain code."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fastdiffusers.benchmarks.plain_video_vae import PlainVideoVae
from fastdiffusers.vae import VaeSettings, decode_raw, encode_raw
from fastdiffusers.vae.config import VaeConfig
from fastdiffusers.vae.network.model import VideoVAE

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

CARD = torch.device("cuda")
WORSE_THAN_PLAIN = 1.2
"""How much further from float32 than plain PyTorch in the same precision a decode may be."""
AGREES = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.05}
"""Compiled against plain code: sums in another order, through the whole network."""


@pytest.fixture(scope="module")
def full() -> VideoVAE:
    """Full size with random weights, in float32 on the CPU."""
    torch.manual_seed(0)
    return VideoVAE(VaeConfig()).eval().requires_grad_(False)


@pytest.fixture(autouse=True)
def _exact_float32() -> Iterator[None]:
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
    torch._dynamo.reset()
    torch.cuda.empty_cache()


def on_card(vae: VideoVAE, dtype: torch.dtype) -> VideoVAE:
    twin = VideoVAE(vae.config).eval().requires_grad_(False)
    twin.load_state_dict(vae.state_dict())
    return twin.to(CARD, dtype).prepare()


def latents(frames: int = 3, height: int = 20, width: int = 24) -> torch.Tensor:
    return torch.randn(1, 16, frames, height, width, generator=torch.Generator().manual_seed(0))


def difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).abs().max() / expected.std())


@pytest.mark.parametrize("kernels", ["auto", "eager"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_close_as_plain_pytorch(full: VideoVAE, dtype: torch.dtype, kernels: str) -> None:
    z = latents()
    expected, _ = decode_raw(on_card(full, torch.float32), z, VaeSettings(kernels="eager"))
    plain = PlainVideoVae({name: tensor.to(CARD, dtype) for name, tensor in full.state_dict().items()})
    with torch.inference_mode():
        usual = plain.decode(z.to(CARD, dtype)).float().cpu()
    result, _ = decode_raw(on_card(full, dtype), z, VaeSettings(kernels=kernels))
    assert difference(result, expected) <= WORSE_THAN_PLAIN * difference(usual, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_compiled_and_plain_code_agree(full: VideoVAE, dtype: torch.dtype) -> None:
    """With inductor, at the beginning of a clip and behind it; `vae/compiled.py` would say what is wrong."""
    vae = on_card(full, dtype)
    plain = VaeSettings(mode="whole", temporal_slice=2, kernels="eager")
    compiled = VaeSettings(mode="whole", temporal_slice=2, kernels="eager", compile={})
    z = latents(frames=5)
    expected, _ = decode_raw(vae, z, plain)
    result, report = decode_raw(vae, z, compiled)
    assert not report["torch_compile"].failed, report["torch_compile"].reason
    assert difference(result, expected) <= AGREES[dtype]
    pixels = torch.rand(1, 3, 9, 96, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected, _ = encode_raw(vae, pixels, plain)
    result, report = encode_raw(vae, pixels, compiled)
    assert not report["torch_compile"].failed, report["torch_compile"].reason
    assert difference(result, expected) <= AGREES[dtype]


def test_compiled_code_and_graphs_together(full: VideoVAE) -> None:
    vae = on_card(full, torch.float16)
    z = latents(frames=7)
    expected, _ = decode_raw(vae, z, VaeSettings(mode="whole", temporal_slice=1, kernels="eager"))
    both = VaeSettings(mode="whole", temporal_slice=1, kernels="eager", compile={}, cuda_graphs=True)
    result, report = decode_raw(vae, z, both)
    assert difference(result, expected) <= AGREES[torch.float16]
    assert report["cuda_graphs"].requested != "off"

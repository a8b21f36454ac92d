"""Tiling and slicing: every class of VAE, values restored, automatic decisions, and decodes that run out of memory."""

from __future__ import annotations

from types import SimpleNamespace

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiffusers.memory import GIB, MemoryState
from fastdiffusers.optimizations import vae_memory, vae_tiles
from fastdiffusers.optimizations.settings import TilingSettings, Workload
from fastdiffusers.report import OptimizationRecord, OptimizationReport

PLENTY = MemoryState(1000 * GIB, 1000 * GIB)
OFF = TilingSettings(mode="off", slicing="off")
BLOCKS = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}


def image_vae(sample_size=256):
    return diffusers.AutoencoderKL(
        **BLOCKS, block_out_channels=(4,) * 4, norm_num_groups=2, latent_channels=4, sample_size=sample_size
    )


def flux2_vae():
    return diffusers.AutoencoderKLFlux2(
        **BLOCKS, block_out_channels=(4,) * 4, norm_num_groups=2, layers_per_block=1, sample_size=256
    )


def hunyuan_image_vae():
    return diffusers.AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 32, 32),
        layers_per_block=1,
        spatial_compression_ratio=4,
        sample_size=256,
    )


def ltx_vae():
    return diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
    )


def mochi_vae():
    return diffusers.AutoencoderKLMochi(
        latent_channels=4,
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1,) * 5,
    )


def dc_ae():
    return diffusers.AutoencoderDC(
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_layers_per_block=(1,) * 4,
        decoder_layers_per_block=(1,) * 4,
        encoder_qkv_multiscales=((),) * 4,
        decoder_qkv_multiscales=((),) * 4,
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
    )


def hunyuan_video_vae():
    return diffusers.AutoencoderKLHunyuanVideo(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=4
    )


def hunyuan15_vae():
    return diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(8, 8, 8, 8, 8), layers_per_block=1
    )


def cogvideox_vae():
    return diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), norm_num_groups=4, layers_per_block=1, latent_channels=4
    )


MAKERS = {
    "AutoencoderKL": image_vae,
    "AutoencoderKLFlux2": flux2_vae,
    "AutoencoderKLHunyuanImage": hunyuan_image_vae,
    "AutoencoderDC": dc_ae,
    "AutoencoderKLWan": lambda: diffusers.AutoencoderKLWan(base_dim=4, num_res_blocks=1),
    "AutoencoderKLQwenImage": lambda: diffusers.AutoencoderKLQwenImage(base_dim=4, num_res_blocks=1),
    "AutoencoderKLHunyuanVideo": hunyuan_video_vae,
    "AutoencoderKLHunyuanVideo15": hunyuan15_vae,
    "AutoencoderKLLTXVideo": ltx_vae,
    "AutoencoderKLMochi": mochi_vae,
    "AutoencoderKLCogVideoX": cogvideox_vae,
}


def make(name):
    torch.manual_seed(0)
    return MAKERS[name]().eval()


def pipeline_with(vae):
    return SimpleNamespace(components={"vae": vae})


def latent_for(vae, pixels, frames=1):
    ratio = vae_tiles.ratio_of(vae)
    channels = vae.config.get("latent_channels") or vae.config.get("z_dim")
    shape = [1, channels, pixels // ratio, pixels // ratio]
    if any(isinstance(module, torch.nn.Conv3d) for module in vae.modules()):
        shape.insert(2, frames)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def decode(vae, latent):
    with torch.no_grad():
        return vae.decode(latent, return_dict=False)[0]


def tiles_made(vae, latent):
    """Height and width of what the decoder was given, one pair per call, and the picture."""
    seen = []
    hook = vae.decoder.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape[-2:])))
    try:
        return seen, decode(vae, latent)
    finally:
        hook.remove()


@pytest.mark.parametrize("name", MAKERS)
def test_every_class_tiles_at_the_size_asked_for_and_is_restored(name):
    vae = make(name)
    ratio, before = vae_tiles.ratio_of(vae), dict(vae.__dict__)
    latent = latent_for(vae, 192)
    plain = decode(vae, latent)

    record, _ = vae_memory.use(pipeline_with(vae), TilingSettings("on", 128, 32), Workload(192, 192), PLENTY)
    seen, tiled = tiles_made(vae, latent)

    assert record.applied == "tiles of 128 px"
    assert not record.failed
    assert tiled.shape == plain.shape
    assert torch.isfinite(tiled).all()
    assert len(seen) >= 4
    assert max(max(edges) for edges in seen) == 128 // ratio
    # Tiles change a picture, and leave it the same picture.
    assert torch.corrcoef(torch.stack([tiled.flatten(), plain.flatten()]))[0, 1] > 0.6

    vae_memory.use(pipeline_with(vae), OFF, Workload(192, 192), PLENTY)
    assert {k: v for k, v in vae.__dict__.items() if k in before} == before
    assert torch.equal(decode(vae, latent), plain)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(("size", "overlap"), [(64, 0), (100, 7), (136, 96), (96, 90)])
def test_any_size_and_overlap_gives_a_picture_of_the_right_shape(name, size, overlap):
    vae = make(name)
    latent = latent_for(vae, 160)
    shape = decode(vae, latent).shape
    vae_memory.use(pipeline_with(vae), TilingSettings("on", size, overlap), Workload(160, 160), PLENTY)
    assert decode(vae, latent).shape == shape


@given(latent=st.integers(2, 300), ratio=st.sampled_from([4, 8, 16, 32]), data=st.data())
@settings(max_examples=300, deadline=None)
def test_an_overlap_factor_is_one_that_rounding_cannot_break(latent, ratio, data):
    wished = data.draw(st.integers(0, latent // 2))
    overlap = vae_tiles.expressible_overlap(latent, ratio, wished)
    factor = overlap / latent
    assert int(latent * (1 - factor)) + overlap == latent
    assert int(latent * ratio * factor) == overlap * ratio
    assert 0 <= overlap <= latent // 2


def test_what_is_clamped_is_said():
    vae = make("AutoencoderKLWan")
    use = lambda size, overlap: vae_memory.use(
        pipeline_with(vae), TilingSettings("on", size, overlap), Workload(512, 512), PLENTY
    )[0]
    assert use(256, 64).reason == ""
    record = use(250, 200)
    assert "tile size 250 became 248: a multiple of 8" in record.reason
    assert "overlap 200 became 120: it is a multiple of 8 and at most half of 248" in record.reason
    assert (vae.tile_sample_min_height, vae.tile_sample_stride_width) == (248, 128)


def test_an_overlap_alone_keeps_the_vaes_own_tiles():
    vae = make("AutoencoderKLWan")
    vae_memory.use(pipeline_with(vae), TilingSettings("on", 0, 32), Workload(512, 512), PLENTY)
    assert (vae.tile_sample_min_width, vae.tile_sample_stride_width) == (256, 224)


def test_on_with_the_vaes_own_values_changes_none_of_them():
    vae = make("AutoencoderKLWan")
    before = {name: value for name, value in vae.__dict__.items() if name.startswith("tile")}
    record, _ = vae_memory.use(pipeline_with(vae), TilingSettings("on"), Workload(512, 512), PLENTY)
    assert vae.use_tiling
    assert {name: value for name, value in vae.__dict__.items() if name.startswith("tile")} == before
    assert record.applied == "tiles of 256 px"


def test_a_picture_within_one_tile_is_said_to_be():
    vae = make("AutoencoderKL")
    record, _ = vae_memory.use(pipeline_with(vae), TilingSettings("on"), Workload(256, 192), PLENTY)
    assert "one tile holds the whole picture" in record.reason


def test_frames_are_tiled_too_where_the_vae_can():
    vae = make("AutoencoderKLLTXVideo")
    assert not vae.use_framewise_decoding
    vae_memory.use(pipeline_with(vae), TilingSettings("on", 128), Workload(160, 160, 33), PLENTY)
    assert vae.use_framewise_decoding
    vae_memory.use(pipeline_with(vae), OFF, Workload(), PLENTY)
    assert not vae.use_framewise_decoding


@pytest.mark.parametrize(("choice", "batch", "expected"), [("auto", 1, False), ("auto", 3, True), ("on", 1, True)])
def test_slicing(choice, batch, expected):
    vae = make("AutoencoderKL")
    settings = TilingSettings("off", slicing=choice)
    _, record = vae_memory.use(pipeline_with(vae), settings, Workload(64, 64, batch=batch), PLENTY)
    assert vae.use_slicing == expected
    assert record.applied == ("on" if expected else "off")
    vae_memory.restore(pipeline_with(vae))
    assert not vae.use_slicing


def test_what_a_vae_cannot_is_said():
    tiny = diffusers.AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4)
    del tiny.use_tiling, tiny.use_slicing
    tiling, slicing = vae_memory.use(pipeline_with(tiny), TilingSettings("on", slicing="on"), Workload(), PLENTY)
    assert tiling.failed
    assert slicing.failed
    assert "AutoencoderTiny has no tiled decode" in tiling.reason
    tiling, _ = vae_memory.use(SimpleNamespace(components={}), TilingSettings(), Workload(), PLENTY)
    assert tiling.reason == "the pipeline has no VAE"


@pytest.mark.parametrize("name", ["AutoencoderKLCosmos", "AutoencoderKLKVAEVideo", "ConsistencyDecoderVAE"])
def test_a_switch_that_the_decode_does_not_look_at_is_no_tiling(name):
    with torch.device("meta"):
        vae = getattr(diffusers, name)()
    record, _ = vae_memory.use(pipeline_with(vae), TilingSettings("on"), Workload(512, 512), PLENTY)
    assert record.failed
    assert f"{name} has no tiled decode" in record.reason
    assert not vae.use_tiling
    calls = []
    with pytest.raises(torch.OutOfMemoryError):
        vae_memory.shrink_until_it_fits(vae, lambda: calls.append(1) or out_of_memory(), edge=512)
    assert len(calls) == 1


@pytest.mark.parametrize("mode", ["on", "off", "auto"])
def test_vaes_that_tile_by_themselves_are_said_to(mode):
    with torch.device("meta"):
        allegro, minimax = diffusers.AutoencoderKLAllegro(), diffusers.AutoencoderKLMiniMaxH3()
    record, _ = vae_memory.use(pipeline_with(allegro), TilingSettings(mode, 128), Workload(512, 512), PLENTY)
    assert allegro.use_tiling
    assert record.applied == "the VAE's own tiles"
    assert ("own size only" if mode == "on" else "in tiles only") in record.reason
    vae_memory.restore(pipeline_with(allegro))
    assert not allegro.use_tiling
    record, _ = vae_memory.use(pipeline_with(minimax), TilingSettings(mode), Workload(512, 512), PLENTY)
    assert minimax.use_tiling
    assert record.applied == "tiles of 256 px"


def tiny_vae(channels, stages=4):
    blocks = {"encoder_block_out_channels": (8,) * stages, "decoder_block_out_channels": (8,) * stages}
    depth = {"num_encoder_blocks": (1,) * stages, "num_decoder_blocks": (1,) * stages}
    return diffusers.AutoencoderTiny(**blocks, **depth, latent_channels=channels).eval()


def test_a_tiny_vae_encodes_in_tiles_without_dividing_by_zero_or_not_at_all():
    vae, picture = tiny_vae(4), torch.rand(1, 3, 192, 160)
    record, _ = vae_memory.use(pipeline_with(vae), TilingSettings("on", 64, 8), Workload(160, 192), PLENTY)
    assert "overlap 8 became 16: it is a multiple of 8, at least 16 and at most half of 64" in record.reason
    with torch.no_grad():
        assert vae.encode(picture).latents.isfinite().all()
    vae = tiny_vae(16)
    record, _ = vae_memory.use(pipeline_with(vae), TilingSettings("on", 64), Workload(160, 192), PLENTY)
    assert record.failed
    assert "AutoencoderTiny encodes to 4 channels in tiles, and here there are 16" in record.reason
    with torch.no_grad():
        assert vae.encode(picture).latents.shape == (1, 16, 24, 20)
    vae = tiny_vae(4, stages=2)
    record, _ = vae_memory.use(pipeline_with(vae), TilingSettings("on", 64), Workload(160, 192), PLENTY)
    assert record.failed
    assert "cuts tiles for a latent 8 times as small, and here it is 2 times" in record.reason
    with torch.no_grad():
        assert vae.decode(vae.encode(picture).latents).sample.shape == picture.shape


def out_of_memory():
    raise torch.OutOfMemoryError("CUDA out of memory")


class TestAuto:
    def decide(self, width, height, free, vae=None, **workload):
        vae = vae or make("AutoencoderKL")
        work = Workload(width, height, **workload)
        return vae, vae_memory.use(pipeline_with(vae), TilingSettings(), work, MemoryState(free, 24 * GIB))[0]

    def test_off_when_it_fits_with_figures(self):
        vae, record = self.decide(1536, 1536, 20 * GIB)
        assert not vae.use_tiling
        assert record.applied == "off"
        assert "20.00 GiB free" in record.reason

    def test_on_above_1536_squared_even_when_it_fits(self):
        vae, record = self.decide(1537, 1536, 1000 * GIB)
        assert vae.use_tiling
        assert "1536x1536" in record.reason

    def test_on_when_it_does_not_fit_in_tiles_that_do(self):
        vae = make("AutoencoderKL")
        work = Workload(1024, 1024)
        needed = vae_memory.estimate(vae, work)
        vae, record = self.decide(1024, 1024, needed // 2, vae)
        assert vae.use_tiling
        assert "estimated for the whole decode" in record.reason
        tile = Workload(vae.tile_sample_min_size, vae.tile_sample_min_size)
        assert vae_memory.estimate(vae, tile) <= needed // 2

    def test_tiles_that_are_smaller_than_the_vaes_own_where_those_do_not_fit(self):
        vae = image_vae(sample_size=1024).eval()
        own = vae_memory.estimate(vae, Workload(1024, 1024))
        self.decide(1024, 1024, own // 5, vae)
        assert vae.tile_sample_min_size == 384
        self.decide(1024, 1024, 1, vae)
        assert vae.tile_sample_min_size == 128

    def test_a_batch_is_sliced_and_needs_no_more(self):
        vae = make("AutoencoderKL")
        needed = vae_memory.estimate(vae, Workload(512, 512))
        vae, _ = self.decide(512, 512, int(needed * 1.1), vae, batch=4)
        assert not vae.use_tiling
        assert vae.use_slicing

    def test_an_unknown_size_is_left_alone(self):
        vae, record = self.decide(0, 0, 1)
        assert not vae.use_tiling
        assert "not known" in record.reason

    def test_a_vae_whose_memory_is_not_known_is_not_said_to_fit(self):
        vae = diffusers.AutoencoderVidTok(ch=32, ch_mult=(1, 1, 1), z_channels=4)
        assert vae_memory.estimate(vae, Workload(512, 512, 5)) is None
        vae, record = self.decide(512, 512, 1000 * GIB, vae, frames=5)
        assert record.applied == "off"
        assert "AutoencoderVidTok takes is not known" in record.reason
        assert "fits" not in record.reason
        assert not vae.use_tiling

    def test_frames_that_leave_the_device_do_not_add_up(self):
        vae = make("AutoencoderKLWan")
        whole = vae_memory.estimate(vae, Workload(256, 256, 81))
        streamed = vae_memory.estimate(vae, Workload(256, 256, 81, streamed=True))
        assert streamed < whole


class TestOutOfMemory:
    def failing(self, vae, largest):
        """The decoder runs out of memory on anything with a longer edge than `largest` pixels."""
        edges = []
        ratio = vae_tiles.ratio_of(vae)

        def check(module, args):
            edges.append(max(args[0].shape[-2:]) * ratio)
            if edges[-1] > largest:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

        vae.decoder.register_forward_pre_hook(check)
        return edges

    @pytest.mark.parametrize("name", ["AutoencoderKL", "AutoencoderKLWan", "AutoencoderKLHunyuanVideo15"])
    def test_smaller_tiles_until_it_fits(self, name):
        vae = make(name)
        latent = latent_for(vae, 320)
        shape, before = decode(vae, latent).shape, dict(vae.__dict__)
        edges = self.failing(vae, largest=200)
        report = OptimizationReport([OptimizationRecord("vae_tiling", "auto", "off", "it fits")])
        result = vae_memory.shrink_until_it_fits(vae, lambda: decode(vae, latent), report, edge=320)
        assert result.shape == shape
        assert max(edges[-4:]) <= 200
        record = report["vae_tiling"]
        assert record.applied == "tiles of 192 px"
        assert record.reason.startswith("it fits; out of memory, decoded again in tiles of")
        assert record.reason.count("decoded again") == len([s for s in vae_memory.TILE_SIZES if 192 <= s < 320])
        changed = {k for k, v in before.items() if k in vae_tiles.values_of(vae) and vae.__dict__[k] != v}
        assert not changed

    def test_a_tiled_decode_shrinks_below_its_own_tiles(self):
        vae = make("AutoencoderKLWan")
        vae_memory.use(pipeline_with(vae), TilingSettings("on", 192, 64), Workload(320, 320), PLENTY)
        edges = self.failing(vae, largest=128)
        latent = latent_for(vae, 320)
        vae_memory.shrink_until_it_fits(vae, lambda: decode(vae, latent), None)
        assert edges[0] == 192
        assert edges[-1] <= 128
        assert (vae.tile_sample_min_width, vae.tile_sample_stride_width) == (192, 128)

    def test_the_floor_keeps_the_type_of_the_error(self):
        vae = make("AutoencoderKL")
        self.failing(vae, largest=0)
        report = OptimizationReport()
        with pytest.raises(torch.OutOfMemoryError, match="20 GiB"):
            vae_memory.shrink_until_it_fits(vae, lambda: decode(vae, latent_for(vae, 320)), report, edge=320)
        assert not vae.use_tiling
        assert "tiles of 128 px" in report["vae_tiling"].applied

    def test_other_errors_travel_at_once(self):
        class Interrupted(Exception):
            pass

        calls = []

        def run():
            calls.append(1)
            raise Interrupted

        with pytest.raises(Interrupted):
            vae_memory.shrink_until_it_fits(make("AutoencoderKL"), run)
        assert len(calls) == 1

    def test_a_vae_without_tiles_raises_what_it_raised(self):
        def run():
            raise RuntimeError("MPS backend out of memory")

        with pytest.raises(RuntimeError, match="MPS backend out of memory"):
            vae_memory.shrink_until_it_fits(SimpleNamespace(), run)

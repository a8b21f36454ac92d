"""Every key and every shape of LATENT that ComfyUI's nodes give: honoured, refused, or said."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import core_vaes
import pytest
import torch

from fastdiffusers.callbacks import SILENT
from fastdiffusers.errors import InputError
from fastdiffusers.pipelines.families import FAMILIES
from fastdiffusers.pipelines.requests import check_request
from fastdiffusers.pipelines.types import SampleRequest

if TYPE_CHECKING:
    from fastdiffusers.pipelines.families import Family

torch.set_num_threads(1)

IMAGE, VIDEO, FLUX2 = "sdxl", "wan-t2v", "flux2-klein"


def family(name: str) -> Family:
    return next(family for family in FAMILIES if family.name == name)


@pytest.fixture
def read(core: Any) -> Any:
    """`(family name, latent, **request)` to the request that comes of it, and the notes."""
    from fastdiffusers.nodes import latent_input

    def run(name: str, latent: dict[str, Any], **request: Any) -> tuple[SampleRequest, list[str]]:
        return latent_input.start_from(latent, family(name), replace(SampleRequest("a fox", seed=5), **request))

    return run


def filled(*shape: int) -> torch.Tensor:
    return torch.rand(shape) + 0.5


class TestSampler:
    def test_a_plain_latent_is_taken_as_it_is(self, read: Any) -> None:
        samples = filled(1, 4, 8, 8)
        request, notes = read(IMAGE, {"samples": samples}, strength=0.5)
        assert request == replace(SampleRequest("a fox", seed=5, strength=0.5), latent=request.latent)
        assert torch.equal(request.latent, samples)
        assert notes == []

    def test_a_clip_in_an_image_model_is_its_first_frame(self, read: Any) -> None:
        samples = filled(1, 4, 3, 8, 8)
        request, notes = read(IMAGE, {"samples": samples}, strength=0.5)
        assert torch.equal(request.latent, samples[:, :, 0])
        assert notes == ["the first of the latent's 3 frames was used: sdxl makes pictures"]

    def test_a_picture_in_a_video_model_is_one_frame(self, read: Any) -> None:
        request, notes = read(VIDEO, {"samples": filled(1, 16, 8, 8)})
        assert request.latent.shape == (1, 16, 1, 8, 8)
        assert request.num_frames is None
        assert notes == []

    def test_a_clip_s_length_is_the_latent_s(self, read: Any) -> None:
        latent = {"samples": torch.zeros(1, 16, 3, 8, 8)}
        request, notes = read(VIDEO, latent)
        assert (request.num_frames, notes) == (9, ["num_frames: 9, as the latent has them"])
        assert read(VIDEO, latent, num_frames=5)[0].num_frames == 5

    def test_a_nested_latent_is_its_video(self, read: Any) -> None:
        from comfy.nested_tensor import NestedTensor

        video, sound = filled(1, 16, 3, 8, 8), filled(1, 8, 16, 4)
        request, notes = read(VIDEO, {"samples": NestedTensor([video, sound])}, num_frames=9)
        assert torch.equal(request.latent, video)
        assert notes == ["the latent holds sound too, which was left out: only its video was used"]

    @pytest.mark.parametrize(
        ("items", "asked", "strength", "batch", "said"),
        [
            (1, 3, 0.5, 3, ""),
            (3, 1, 0.5, 3, "batch_size: 3, as many as the latent holds"),
            (3, 1, 1.0, 3, "batch_size: 3, as many as the latent holds"),
            (3, 3, 0.5, 3, ""),
            (3, 2, 0.5, 2, "of the latent's 3 items, only the first 2 were used: batch_size = 2"),
            (2, 3, 0.5, 3, "of the latent's 2 items, some were used repeatedly: batch_size = 3"),
            (2, 3, 1.0, 3, ""),
        ],
    )
    def test_the_latent_s_batch_and_batch_size(
        self, read: Any, items: int, asked: int, strength: float, batch: int, said: str
    ) -> None:
        request, notes = read(IMAGE, {"samples": filled(items, 4, 8, 8)}, batch=asked, strength=strength)
        assert request.batch == batch
        assert notes == ([said] if said else [])

    def test_items_that_comfyui_took_out_of_a_batch_keep_their_seeds(self, read: Any, core: Any) -> None:
        whole = {"samples": filled(4, 4, 8, 8)}
        (taken,) = sys.modules["nodes"].LatentFromBatch().frombatch(whole, 2, 2)
        request, notes = read(IMAGE, taken, strength=0.5)
        assert (request.seed, request.batch) == (7, 2)
        assert "batch_index: the latent begins with item 2, which starts from seed + 2" in notes
        assert read(IMAGE, taken, seed=2**64 - 1)[0].seed == 1

    def test_other_batch_indices_are_said(self, read: Any) -> None:
        request, notes = read(IMAGE, {"samples": filled(2, 4, 8, 8), "batch_index": torch.tensor([0, 0])}, batch=2)
        assert request.seed == 5
        assert notes == ["batch_index [0, 0] ignored: item i starts from seed + i"]

    @pytest.mark.parametrize("strength", [0.5, 1.0])
    def test_a_mask_is_kept_to_where_it_keeps_something(self, read: Any, strength: float) -> None:
        mask = torch.ones(1, 64, 64)
        (latent,) = sys.modules["nodes"].SetLatentNoiseMask().set_mask({"samples": filled(1, 4, 8, 8)}, mask)
        assert read(IMAGE, latent, strength=strength)[0].conditions == ()
        mask[..., :32] = 0
        request, notes = read(IMAGE, latent, strength=strength)
        (condition,) = request.conditions
        assert torch.equal(condition.mask, mask)
        assert condition.of_latent
        assert notes == []

    @pytest.mark.parametrize(
        ("value", "shape"), [(255.0, (1, 64, 64)), (float("nan"), (1, 64, 64)), (1.0, (0, 64, 64))]
    )
    def test_a_mask_that_is_none_is_handed_on_to_be_refused(
        self, read: Any, value: float, shape: tuple[int, ...]
    ) -> None:
        request, _ = read(IMAGE, {"samples": filled(1, 4, 8, 8), "noise_mask": torch.full(shape, value)})
        with pytest.raises(InputError, match="a mask is"):
            check_request(family(IMAGE), request)

    def test_of_several_clips_masks_the_first_is_used_and_that_is_said(self, read: Any) -> None:
        mask = torch.zeros(2, 1, 3, 64, 64)
        latent = {"samples": filled(2, 16, 3, 8, 8), "noise_mask": mask}
        assert not any("noise_mask" in note for note in read(VIDEO, latent)[1])
        mask[1] = 1.0
        request, notes = read(VIDEO, latent)
        assert "noise_mask: that of the first of its 2 clips holds for all of them" in notes
        assert torch.equal(request.conditions[0].mask, torch.zeros(3, 64, 64))

    @pytest.mark.parametrize("latent", [{}, {"samples": None}, {"samples": [1, 2]}])
    def test_what_holds_no_latent_is_refused(self, read: Any, latent: dict[str, Any]) -> None:
        with pytest.raises(InputError, match=r"samples = .*a latent holds a tensor of that name"):
            read(IMAGE, latent)

    def test_more_items_than_a_run_makes(self, read: Any) -> None:
        with pytest.raises(InputError, match=r"latent = '65 items': a run makes 64 at most. Take some of them out"):
            read(IMAGE, {"samples": filled(65, 4, 8, 8)})

    def test_an_empty_latent_of_another_kind_of_model(self, read: Any) -> None:
        """Empty Latent Image is 4 channels at an eighth; Flux.2 has 128 at a sixteenth."""
        (latent,) = sys.modules["nodes"].EmptyLatentImage().generate(512, 256, 1)
        latent = {"downscale_ratio_spacial": 8, **latent}
        request, _ = read(FLUX2, latent)
        assert (request.width, request.height) == (512, 256)
        assert request.latent.shape == (1, 128, 16, 32)
        asked, _ = read(FLUX2, latent, width=1024)
        assert (asked.width, asked.height) == (1024, 256)

    def test_an_empty_latent_is_resized_as_comfyui_resizes_it(self, read: Any) -> None:
        import comfy.latent_formats
        import comfy.sample

        empty = torch.zeros(2, 4, 32, 64)
        model = SimpleNamespace(get_model_object=lambda name: comfy.latent_formats.Flux2())
        expected = comfy.sample.fix_empty_latent_channels(model, empty, 8)
        request, _ = read(FLUX2, {"samples": empty, "downscale_ratio_spacial": 8})
        assert request.latent.shape == expected.shape

    @pytest.mark.parametrize(
        ("more", "what"),
        [
            ({"type": "audio", "sample_rate": 44100}, "sound"),
            ({"type": "hunyuan3dv2"}, "a 3D shape"),
            ({"type": "trellis2"}, "a 3D shape"),
            ({"coords": torch.zeros(1)}, "a 3D shape"),
        ],
    )
    def test_sound_and_shapes_are_refused(self, read: Any, more: dict[str, Any], what: str) -> None:
        with pytest.raises(InputError, match=f"this latent holds {what}"):
            read(IMAGE, {"samples": filled(1, 4, 8, 8), **more})

    def test_what_is_unknown_is_said(self, read: Any) -> None:
        _, notes = read(IMAGE, {"samples": filled(1, 4, 8, 8), "somebody_s_key": 1})
        assert notes == ["of the latent, somebody_s_key had no use here"]


class TestDecodeAndEncode:
    @pytest.fixture(scope="class")
    def wan(self, core: Any) -> Any:
        with torch.inference_mode():
            return core_vaes.small_wan(core_vaes.video_vae(core), "wan 2.1")

    @pytest.fixture(params=["ComfyUI's", "Load Video VAE", "borrowed"])
    def vae(self, request: pytest.FixtureRequest, core: Any, wan: Any, tmp_path: Any) -> tuple[Any, int]:
        """A video VAE of each kind that the nodes take, and the channels of its latents."""
        from safetensors.torch import save_file

        from fastdiffusers.nodes import types, video_vae
        from fastdiffusers.vae import VaeConfig, VideoVAE

        if request.param == "ComfyUI's":
            return wan, 4
        torch.manual_seed(0)
        network = VideoVAE(VaeConfig(block_out_channels=(32, 32, 32, 32)))
        if request.param == "borrowed":
            parts = {"vae_dtype": torch.float32, "device": torch.device("cpu"), "latent_channels": 16}
            return SimpleNamespace(first_stage_model=network, **parts), 16
        path = tmp_path / "vae.safetensors"
        save_file(network.state_dict(), path)
        return types.VideoVaeHandle(types.video_vae_file(str(path), video_vae.identity(path))), 16

    def decode(self, vae: Any, latent: dict[str, Any], **choices: Any) -> tuple[torch.Tensor, Any]:
        from fastdiffusers.nodes import vae_engines
        from fastdiffusers.nodes.vae_choices import VaeChoices

        with torch.inference_mode():
            return vae_engines.decode(vae, latent, VaeChoices(**choices), SILENT)

    def encode(self, vae: Any, pixels: torch.Tensor, **choices: Any) -> tuple[dict[str, Any], Any]:
        from fastdiffusers.nodes import vae_engines
        from fastdiffusers.nodes.vae_choices import VaeChoices

        with torch.inference_mode():
            return vae_engines.encode(vae, pixels, VaeChoices(**choices), SILENT)

    @pytest.mark.parametrize("length", [1, 2, 4, 5, 7, 8])
    @pytest.mark.parametrize("axes", [4, 5])
    def test_a_clip_of_any_length_comes_back_or_the_report_says_what_was_dropped(
        self, vae: tuple[Any, int], length: int, axes: int
    ) -> None:
        pixels = torch.rand(length, 32, 48, 3)
        latent, report = self.encode(vae[0], pixels if axes == 4 else pixels[None])
        frames, _ = self.decode(vae[0], latent)
        assert frames.shape[0] == 1
        dropped = length - frames.shape[1]
        said = [note for note in report.notes if "dropped" in note]
        assert dropped >= 0
        assert said == (
            [f"the last {dropped} of {length} frames were dropped: this VAE encodes {length - dropped} of them"]
            if dropped
            else []
        )
        if vae[1] == 16:
            assert not dropped, "this pack's own networks fill the clip up and cut it"

    def test_a_latent_that_was_cut_since_is_decoded_whole(self, vae: tuple[Any, int]) -> None:
        latent, _ = self.encode(vae[0], torch.rand(8, 32, 48, 3))
        for part, made in ((slice(0, 1), 1), (slice(0, 2), 5)):
            frames, _ = self.decode(vae[0], latent | {"samples": latent["samples"][:, :, part]})
            assert frames.shape[1] == made

    def test_axes_and_keys(self, vae: tuple[Any, int]) -> None:
        from comfy.nested_tensor import NestedTensor

        clip = torch.randn(1, vae[1], 2, 4, 6)
        expected, report = self.decode(vae[0], {"samples": clip})
        assert expected.shape[:2] == (1, 5)
        assert "not needed of the latent" not in report.facts
        latent = {"samples": NestedTensor([clip, torch.zeros(1, 8, 4)]), "noise_mask": 1, "batch_index": [0]}
        frames, report = self.decode(vae[0], latent)
        assert torch.equal(frames, expected)
        assert any("sound too" in note for note in report.notes)
        assert report.facts["not needed of the latent"] == "batch_index, noise_mask"
        single, _ = self.decode(vae[0], {"samples": clip[:, :, 0]})
        assert torch.equal(single, self.decode(vae[0], {"samples": clip[:, :, :1]})[0])
        with pytest.raises(InputError, match="this latent holds sound"):
            self.decode(vae[0], {"samples": torch.zeros(1, 8, 4), "type": "audio"})

    def test_a_latent_of_no_numbers_is_said(self, vae: tuple[Any, int]) -> None:
        with pytest.raises(InputError, match="samples = 'int32': a latent holds numbers with a floating point"):
            self.decode(vae[0], {"samples": torch.zeros(1, vae[1], 1, 4, 6, dtype=torch.int32)})
        broken = {"samples": torch.full((1, vae[1], 1, 4, 6), float("nan"))}
        if vae[1] == 16:
            with pytest.raises(InputError, match="are not finite"):
                self.decode(vae[0], broken)
            return
        assert any("holds NaN or infinite values" in note for note in self.decode(vae[0], broken)[1].notes)
        eighth = {"samples": torch.ones(1, vae[1], 1, 4, 6).to(torch.float8_e4m3fn)}
        assert not self.decode(vae[0], eighth)[1].notes

    @pytest.mark.parametrize("kind", ["decode", "encode"])
    def test_widgets_for_tiles_are_said_to_do_nothing_where_none_are_cut(self, vae: tuple[Any, int], kind: str) -> None:
        given: Any = {"samples": torch.randn(1, vae[1], 1, 4, 6)} if kind == "decode" else torch.rand(1, 32, 48, 3)
        how = {"tile_size": 64, "overlap": 32, "temporal_slice": 8}
        for tiling in ("whole", "exact") if vae[1] == 16 else ("whole",):
            notes = getattr(self, kind)(vae[0], given, tiling=tiling, **how)[1].notes
            further = "" if vae[1] == 16 else ", temporal_slice = 8"
            assert f"tile_size = 64, overlap = 32{further} ignored: tiling is '{tiling}'" in notes
        notes = getattr(self, kind)(vae[0], given, tiling="tiles", **how)[1].notes
        assert not any("ignored" in note for note in notes)

    def test_channels(self, vae: tuple[Any, int]) -> None:
        pixels = torch.rand(5, 32, 48, 4)
        latent, report = self.encode(vae[0], pixels)
        assert torch.equal(latent["samples"], self.encode(vae[0], pixels[..., :3])[0]["samples"])
        assert "1 of 4 channels (alpha) left out: this VAE encodes 3" in report.notes
        if vae[1] == 4:
            latent, report = self.encode(vae[0], pixels[..., :1])
            with torch.inference_mode():
                assert torch.equal(latent["samples"], vae[0].encode(pixels[..., :1]))
            assert any("2 of 3 channels filled up" in note for note in report.notes)
            return
        with pytest.raises(InputError, match="this VAE encodes pictures of 3 channels, not 1"):
            self.encode(vae[0], pixels[..., :1])

    @pytest.mark.parametrize("shape", [(32, 48, 3), (0, 32, 48, 3)])
    def test_no_image(self, vae: tuple[Any, int], shape: tuple[int, ...]) -> None:
        with pytest.raises(InputError, match=r"an image is \[batch, height, width, channels\]"):
            self.encode(vae[0], torch.rand(shape))


class TestBorrowing:
    """ComfyUI's objects that hold this pack's networks, as other nodes leave them: then ComfyUI's node decides."""

    def test_what_another_node_has_changed_is_not_borrowed(self, core: Any) -> None:
        import comfy.model_patcher

        from fastdiffusers.nodes import video_vae
        from fastdiffusers.vae import VaeConfig, VideoVAE

        def fresh() -> Any:
            network = VideoVAE(VaeConfig(block_out_channels=(32, 32, 32, 32)))
            device = torch.device("cpu")
            patcher = comfy.model_patcher.ModelPatcher(network, device, device)
            parts = {"vae_dtype": torch.float32, "device": device, "latent_channels": 16}
            return SimpleNamespace(first_stage_model=network, patcher=patcher, **parts)

        assert video_vae.borrow(fresh()) is not None
        changes = {
            "decode of the object": lambda vae: setattr(vae, "decode", print),
            "decode of the network": lambda vae: vae.first_stage_model.__dict__.update(decode=print),
            "compiled": lambda vae: vae.first_stage_model.decoder.compile(backend="eager"),
            "hooked": lambda vae: vae.first_stage_model.decoder.register_forward_hook(lambda *_: None),
            "forward": lambda vae: setattr(vae.first_stage_model.decoder, "forward", print),
            "exchanged": lambda vae: setattr(
                vae.first_stage_model.decoder, "conv_in", _Other(vae.first_stage_model.decoder.conv_in)
            ),
            "patched": lambda vae: vae.patcher.add_object_patch("decoder", torch.nn.Identity()),
        }
        for name, change in changes.items():
            vae = fresh()
            change(vae)
            assert video_vae.borrow(vae) is None, name


class _Other(torch.nn.Module):
    """A module of somebody else's, with another's weights."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.__dict__["_parameters"] = module._parameters
        self.__dict__["_modules"] = module._modules


def test_alpha_is_kept_in_pictures_and_left_out_of_videos(core: Any) -> None:
    from fastdiffusers.nodes import sampler_outputs

    frames = torch.rand(2, 3, 16, 16, 4)
    result = SimpleNamespace(frames=frames, audio=None, frame_rate=8.0, latent=None, report=None)
    images, _, _, _, video, _ = sampler_outputs.values(result)
    assert torch.equal(images, frames.flatten(0, 1))
    assert torch.equal(video.get_components().images, images[..., :3])


def test_what_a_pipeline_does_not_give_blocks_its_output_alone_and_says_so(core: Any) -> None:
    from comfy_execution.graph_utils import ExecutionBlocker

    from fastdiffusers.nodes import sampler_outputs

    frames, sound = torch.rand(1, 3, 16, 16, 3), {"waveform": torch.rand(1, 1, 80), "sample_rate": 8000}
    without_latent = SimpleNamespace(frames=frames, audio=None, frame_rate=8.0, latent=None, report=None)
    images, latent, *_ = sampler_outputs.values(without_latent)
    assert torch.equal(images, frames[0])
    assert isinstance(latent, ExecutionBlocker)
    assert "shows no latent" in latent.message
    sound_alone = SimpleNamespace(frames=None, audio=sound, frame_rate=None, latent=torch.rand(1, 4, 8), report=None)
    images, latent, _, _, video, audio = sampler_outputs.values(sound_alone)
    assert audio is sound
    for blocked in (images, video):
        assert isinstance(blocked, ExecutionBlocker)
        assert "sound alone" in blocked.message


def test_pictures_of_clips_and_grey_ones_reach_the_sampler(core: Any) -> None:
    from fastdiffusers.nodes.sampler import _image_list

    clips, grey = torch.rand(1, 2, 8, 8, 4), torch.rand(1, 8, 8, 1)
    images = _image_list({"image_1": clips, "image_2": grey, "image_3": None})
    assert [tuple(image.shape) for image in images] == [(8, 8, 4), (8, 8, 4), (8, 8, 3)]
    assert torch.equal(images[1], clips[0, 1])
    assert torch.equal(images[2], grey[0].repeat(1, 1, 3))


class TestPipelines:
    """The VAE of a pipeline, with latents and images in every number of axes."""

    @pytest.fixture(scope="class")
    def handle(self, core: Any) -> Any:
        from fastdiffusers.pipelines.loading import loader
        from fastdiffusers.pipelines.types import PipelineHandle

        return lambda name: PipelineHandle(loader.resolve(f"tiny:{name}", device="cpu"))

    def run(self, kind: str, *args: Any, **choices: Any) -> Any:
        from fastdiffusers.nodes import vae_engines
        from fastdiffusers.nodes.vae_choices import VaeChoices

        with torch.inference_mode():
            return getattr(vae_engines, kind)(*args, VaeChoices(**choices), SILENT)

    def test_decode(self, handle: Any) -> None:
        pictures = handle("sdxl")
        clip = torch.randn(1, 4, 3, 8, 8)
        frames, report = self.run("decode", pictures, {"samples": clip})
        assert torch.equal(frames, self.run("decode", pictures, {"samples": clip[:, :, 0]})[0])
        assert "the first of the latent's 3 frames was used: the VAE of sdxl decodes pictures" in report.notes
        _, report = self.run("decode", pictures, {"samples": clip[:, :, 0]}, temporal_slice=4, memory_budget_gib=0.5)
        assert [note.split(",")[0] for note in report.notes] == [
            "memory_budget_gib = 0.5 ignored",
            "temporal_slice = 4 ignored",
        ]
        edges: dict[str, Any] = {"tile_size": 64, "overlap": 32}
        _, report = self.run("decode", pictures, {"samples": clip[:, :, 0]}, tiling="whole", **edges)
        assert report.notes == ["tile_size = 64, overlap = 32 ignored: tiling is 'whole'"]
        _, report = self.run("decode", pictures, {"samples": clip[:, :, 0]}, tiling="tiles", **edges)
        assert not report.notes
        for name in ("wan22-t2v", "qwenimage"):  # whose VAEs have a time axis
            samples = torch.randn(1, 16, 2, 8, 8)
            assert self.run("decode", handle(name), {"samples": samples})[0].shape[1] == 5
            single, _ = self.run("decode", handle(name), {"samples": samples[:, :, 0]})
            assert torch.equal(single, self.run("decode", handle(name), {"samples": samples[:, :, :1]})[0])

    @pytest.mark.parametrize("length", [4, 5])
    def test_encode(self, handle: Any, length: int) -> None:
        pixels = torch.rand(1, length, 64, 64, 3)
        latent, report = self.run("encode", handle("wan22-t2v"), pixels)
        assert torch.equal(latent["samples"], self.run("encode", handle("wan22-t2v"), pixels[0])[0]["samples"])
        frames, _ = self.run("decode", handle("wan22-t2v"), latent)
        dropped = [note for note in report.notes if "dropped" in note]
        assert frames.shape[1] == length or dropped == [
            "the last 3 of 4 frames were dropped: this VAE encodes 1 of them"
        ]
        clear = torch.cat((pixels, pixels[..., :1]), -1)
        latent, report = self.run("encode", handle("sdxl"), clear)
        assert latent["samples"].shape[0] == length
        assert torch.equal(latent["samples"], self.run("encode", handle("sdxl"), pixels)[0]["samples"])
        assert "1 of 4 channels (alpha) left out: this VAE encodes 3" in report.notes
        assert "the frames of the clips were encoded one by one: this VAE encodes pictures" in report.notes
        with pytest.raises(InputError, match="NaN or infinite"):
            self.run("encode", handle("sdxl"), pixels / 0)


@pytest.mark.parametrize("scaled", [{}, {"latent_format_version_0": torch.tensor([])}])
def test_a_latent_file_is_what_load_latent_makes_of_it(
    core: Any, scaled: dict[str, Any], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import folder_paths
    from safetensors.torch import save_file

    from fastdiffusers.commands.latent_file import read_latent

    path = tmp_path / "a.latent"
    save_file({"latent_tensor": filled(1, 4, 8, 8), **scaled}, path)
    monkeypatch.setattr(folder_paths, "get_annotated_filepath", lambda name: str(path))
    (theirs,) = sys.modules["nodes"].LoadLatent().load("a.latent")
    assert torch.equal(read_latent(path)[0], theirs["samples"])


@pytest.mark.parametrize(
    ("shape", "said"),
    [((0, 8, 8, 3), "no picture is in it"), ((8, 8, 3), "no picture is in it"), ((1, 8, 8, 12), "have 12 channels")],
)
def test_what_is_no_picture_is_refused_by_every_socket_for_one(core: Any, shape: tuple[int, ...], said: str) -> None:
    from fastdiffusers.nodes.conditions.argument import PipelineArgumentNode
    from fastdiffusers.nodes.conditions.control import ControlConditionNode
    from fastdiffusers.nodes.conditions.image_prompt import ImagePromptConditionNode
    from fastdiffusers.nodes.conditions.video import KeyframeConditionNode, VideoConditionNode
    from fastdiffusers.nodes.sampler import _image_list

    images: Any = torch.zeros(shape)
    for socket in (
        lambda: _image_list({"image_1": images}),
        lambda: ControlConditionNode.execute(images, 1.0),
        lambda: ImagePromptConditionNode.execute(images, SimpleNamespace(), 1.0),
        lambda: KeyframeConditionNode.execute(images, 0, 1.0),
        lambda: VideoConditionNode.execute(images, "video"),
        lambda: PipelineArgumentNode.execute("image", "", images),
    ):
        with pytest.raises(InputError, match=said):
            socket()


def test_conditions_take_grey_pictures_and_those_of_a_clip(core: Any) -> None:
    from fastdiffusers.nodes.conditions.control import ControlConditionNode
    from fastdiffusers.nodes.conditions.video import VideoConditionNode

    clip, grey = torch.rand(1, 3, 8, 8, 3), torch.rand(1, 8, 8, 1)
    assert torch.equal(VideoConditionNode.execute(clip, "video").args[0][0].frames, clip[0])
    assert torch.equal(ControlConditionNode.execute(grey, 1.0).args[0][0].image, grey.expand(1, 8, 8, 3))
    with pytest.raises(InputError, match="2 clips are in it"):
        VideoConditionNode.execute(clip.repeat(2, 1, 1, 1, 1), "video")


def test_pictures_of_any_number_of_channels(core: Any) -> None:
    from fastdiffusers.nodes.sampler import _image_list

    grey, clear = torch.rand(2, 8, 8, 1), torch.rand(1, 8, 8, 4)
    pictures = _image_list({"image_1": grey, "image_2": clear, "image_3": None, "image_4": grey.repeat(1, 1, 1, 2)})
    assert [picture.shape[-1] for picture in pictures] == [3, 3, 4, 4, 4]
    assert torch.equal(pictures[1], grey[1].expand(8, 8, 3))
    assert torch.equal(pictures[2], clear[0])
    assert torch.equal(pictures[3], grey[0].expand(8, 8, 4))

"""Scenes that move, and the training of a small video VAE of SeedVR2's architecture on them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ...benchmarks.plain_video_vae import PlainVideoVae
from ...commands.media import write_frames
from ...vae import VaeConfig, VideoVAE
from . import loop, scenes

SHOWN, SHOWN_FRAMES = 3462, 33
"""Seed and length of the clip that comes with the weights: a boat at dusk, two seconds."""
CONFIG = VaeConfig(block_out_channels=(16, 16, 32, 32), layers_per_block=1, norm_num_groups=2)
PICTURES = (8, 1, 64), (4, 1, 96)
CLIPS = (2, 5, 64), (2, 9, 48), (2, 5, 64), (2, 13, 40)
"""Count, frames and side in pixels of what the steps learn from, in turn. A pixel of a picture costs a third."""
FRAME_RATE = 16
SPEEDS = {2: 0.05, 3: 0.12, 5: 0.15, 6: 0.15, 7: 0.15, 16: 0.15, 30: 1.0}
"""Free number of a scene -> the most that it changes in a second: sun, clouds, ripples, flakes sideways."""
BOAT, BOAT_SPEED = 18, 0.15
FLAKES, FLAKE_SPEED, RAIN_SPEED = 31, 2.0, 3.0


def choose_clips(batch: int, frames: int, seed: int) -> scenes.Scenes:
    """Choose `batch` clips of so many frames: scenes of batch * frames pictures, clip by clip."""
    first = scenes.choose(batch, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    seconds = torch.arange(frames) / FRAME_RATE

    def moved(most: float, *, onward: bool = False) -> torch.Tensor:
        speed = torch.rand(batch, 1, generator=generator)
        return most * ((speed + 1) / 2 if onward else 2 * speed - 1) * seconds

    free = first.free[:, None].repeat(1, frames, 1)
    for index, most in SPEEDS.items():
        free[:, :, index] += moved(most)
    free[:, :, BOAT] += moved(BOAT_SPEED) * (first.thing == 3)[:, None]
    free[:, :, FLAKES] += 16 - moved(FLAKE_SPEED, onward=True)
    fall = moved(RAIN_SPEED, onward=True)

    def each(index: torch.Tensor) -> torch.Tensor:
        return index.repeat_interleave(frames, 0)

    return scenes.Scenes(
        time=each(first.time),
        weather=each(first.weather),
        ground=each(first.ground),
        thing=each(first.thing),
        colour=each(first.colour),
        body=each(first.body),
        free=free.flatten(0, 1),
        captions=first.captions,
        fall=fall.flatten(),
    )


def draw_clips(
    batch: int, frames: int, seed: int, device: torch.device | str = "cpu", window: tuple[int, int, int] | None = None
) -> torch.Tensor:
    """Draw clips: float32 of shape (batch, 3, frames, side, side), in [-1, 1].

    Args:
        window: (top, left, side) of a square part; None draws all of `scenes.SIZE`.
    """
    pictures = scenes.draw(choose_clips(batch, frames, seed), device, window=window)
    return pictures.unflatten(0, (batch, frames)).transpose(1, 2)


class Trained(PlainVideoVae):
    """The networks by their specification, which has gradients. Pictures teach the newest of three frames alone.

    So what time adds is learned from clips, and what pictures teach is at once right for a clip that stands still.
    """

    def conv(
        self, name: str, x: torch.Tensor, padding: int = 1, stride: tuple[int, int, int] = (1, 1, 1)
    ) -> torch.Tensor:
        weight, bias = self.parameters(name)
        if x.shape[2] > 1:
            return super().conv(name, x, padding, stride)
        taps = weight[:, :, -1] + weight[:, :, :-1].detach().sum(2)
        return F.conv2d(x[:, :, 0], taps, bias, stride[1:], padding)[:, :, None]

    def upsample(self, name: str, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self.parameters(f"{name}.upscale_conv")
        channels = weight.shape[1]
        z = weight.shape[0] // channels // 4
        if x.shape[2] > 1 or z == 1:
            return super().upsample(name, x)
        # Of the two frames that a frame becomes, a picture has the first; the second one's weights learn along.
        first, second = weight.unflatten(0, (4, z, channels)).unbind(1)
        first_bias, second_bias = bias.unflatten(0, (4, z, channels)).unbind(1)
        weight = (first + (second - second.detach())).flatten(0, 1)
        bias = (first_bias + (second_bias - second_bias.detach())).flatten()
        y = F.conv3d(x, weight, bias).unflatten(1, (2, 2, channels))
        return self.conv(f"{name}.conv", y.permute(0, 3, 4, 5, 1, 6, 2).flatten(3, 4).flatten(4, 5))


def start(seed: int) -> VideoVAE:
    """Return the network as training begins: each frame by itself, small additions by blocks, little latent noise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = VideoVAE(CONFIG)
    with torch.no_grad():
        for name, weight in vae.named_parameters():
            if name.endswith((".conv2.weight", ".to_out.0.weight")):
                weight.mul_(0.2)
            if ".upscale_conv." in name:  # every new pixel is a copy
                channels = vae.get_submodule(name.rpartition(".")[0]).in_channels
                weight.unflatten(0, (-1, channels)).copy_(weight[:channels].clone())
            elif weight.ndim == 5 and weight.shape[2] == 3:
                weight[:, :, :2] = 0
                weight[:, :, 2] *= 3**0.5
        bias_of(vae.encoder.conv_out)[CONFIG.latent_channels :] = -6.0
    return vae


def on_the_way(vae: VideoVAE) -> list[torch.Tensor]:
    """Weights that all passes through, around the blocks: what they enlarge, drowns what the blocks add."""
    names = (".conv_in.weight", "samplers.0.conv.weight", ".upscale_conv.weight", ".conv_shortcut.weight")
    return [weight for name, weight in vae.named_parameters() if name.endswith(names)]


def hold(weights: list[torch.Tensor], norms: list[torch.Tensor]) -> None:
    """Keep weights from growing beyond their norms; normalised afterwards as they are, nothing else keeps them."""
    with torch.no_grad():
        for weight, norm in zip(weights, norms, strict=True):
            weight.mul_((norm / weight.norm()).clamp(max=1))


def bias_of(layer: torch.nn.Conv3d) -> torch.Tensor:
    """A layer's bias. Raises ValueError where it has none."""
    if layer.bias is None:
        raise ValueError("this layer has no bias")
    return layer.bias


def plain(vae: VideoVAE) -> PlainVideoVae:
    """The networks of a VAE with its own weights."""
    return Trained(dict(vae.named_parameters()), CONFIG.norm_num_groups, CONFIG.norm_eps)


def loss(
    network: PlainVideoVae, step: int, options: argparse.Namespace, device: torch.device
) -> dict[str, torch.Tensor]:
    """What a step learns from: the error of what comes back, also between neighbours, and a little the latent's size.

    Args:
        options: `seed`, `steps` in all, `batch` (how many times as much a step takes), `bf16`.
    """
    # Pictures first: they are cheaper, and most of what a clip shows is what its pictures show.
    clips_from = 8 if step < 0.6 * options.steps else 3
    moving, turn = step % clips_from == 0, step // clips_from
    batch, frames, side = CLIPS[turn % len(CLIPS)] if moving else PICTURES[step // 3 % len(PICTURES)]
    random = torch.Generator().manual_seed(options.seed * 10**9 + step)
    top, left = torch.randint(scenes.SIZE - side + 1, (2,), generator=random).tolist()
    seed = options.seed * 10**9 + 2 * step
    clips = draw_clips(batch * max(1, options.batch), frames, seed, device, (top, left, side))
    with torch.autocast(device.type, torch.bfloat16, enabled=options.bf16 or device.type == "cuda"):
        mean, spread = network.encode(clips).float().split(CONFIG.latent_channels, dim=1)
        latents = mean + (spread / 2).exp() * torch.randn_like(mean)
        if step % 4 == 3:
            # Tiles: a part of a latent is decoded by itself, so it has to be right without the rest.
            cells = side // 8 - 2
            top, left = torch.randint(3, (2,), generator=random).tolist()
            latents = latents[..., top : top + cells, left : left + cells]
            clips = clips[..., 8 * top : 8 * (top + cells), 8 * left : 8 * (left + cells)]
        made = network.decode(latents)
    error = made.float() - clips
    edges = error.diff(dim=3).abs().mean() + error.diff(dim=4).abs().mean()
    if moving:
        edges = edges + error.diff(dim=2).abs().mean()
    kl = 0.5 * (mean.square() + spread.exp() - 1 - spread).mean()
    total = error.abs().mean() + 0.3 * edges + 2e-4 * kl
    psnr = -10 * torch.log10((error.detach() / 2).square().mean())
    return {"loss": total, "clip_psnr" if moving else "psnr": psnr, "kl": kl.detach()}


def train_video(options: argparse.Namespace, device: torch.device) -> None:
    vae = start(options.seed).to(device)
    network, latent_channels = plain(vae), CONFIG.latent_channels
    held = on_the_way(vae)
    norms: list[torch.Tensor] = []

    def loss_of(step: int) -> dict[str, torch.Tensor]:
        norms.extend(weight.detach().norm() for weight in held[len(norms) :])
        hold(held, norms)
        return loss(network, step, options, device)

    def show(averages: dict[str, Any]) -> None:
        clips = draw_clips(2, 13, 10**15, device)
        with torch.no_grad():
            seen = plain(averages["video"])
            made = seen.decode(seen.encode(clips)[:, :latent_channels])
        psnr = -10 * torch.log10(((made.clamp(-1, 1) - clips) / 2).square().mean())
        print(json.dumps({"whole frames, psnr": round(psnr.item(), 2)}), flush=True)
        sheet = torch.cat([x[:, :, ::4].transpose(1, 2).flatten(0, 1) for x in (clips, made)])
        save_sheet(sheet, options.output / "video.png")

    averages = loop.train("video", {"video": vae}, loss_of, show, options.output, options.steps, 0.004, device)
    if averages is None:
        return
    show(averages)
    average: Any = averages["video"]
    save(average, options.output / "video_vae.safetensors")
    clip = draw_clips(1, SHOWN_FRAMES, SHOWN)
    write_frames((clip.permute(0, 2, 3, 4, 1) + 1) / 2, options.output / "clip.mp4", FRAME_RATE)


def save(vae: VideoVAE, file: Path) -> None:
    """Write the weights in float16, with latents scaled as the architecture's own factor expects them."""
    from safetensors.torch import save_file

    latent = CONFIG.latent_channels
    network = plain(vae.cpu())
    with torch.no_grad():
        means = [network.encode(draw_clips(4, 5, 10**14 + k))[:, :latent] for k in range(8)]
        scale = 1 / (CONFIG.scaling_factor * torch.cat(means).std())
        for tensor in (vae.encoder.conv_out.weight, bias_of(vae.encoder.conv_out)):
            tensor[:latent] *= scale
        bias_of(vae.encoder.conv_out)[latent:] += 2 * scale.log()
        vae.decoder.conv_in.weight /= scale
    weights = {key: tensor.half().contiguous() for key, tensor in vae.state_dict().items()}
    save_file(weights, file, metadata={"norm_num_groups": str(CONFIG.norm_num_groups)})


def save_sheet(pictures: torch.Tensor, path: Path) -> None:
    """Save (count, 3, height, width) pictures in [-1, 1] as a sheet of four columns."""
    from PIL import Image

    rows = pictures.cpu().unflatten(0, (-1, 4)).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    Image.fromarray(((rows.clamp(-1, 1) + 1) * 127.5).round().byte().numpy()).save(path)

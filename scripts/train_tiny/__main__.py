"""Train the embedded tiny Flux from drawn landscapes, and the embedded video VAE from such that move.

`python . scripts.train_tiny --stage vae --steps 2500 --output FOLDER`, then the same with `--stage flux --steps 3000`.
A stage that was stopped goes on where it was. FOLDER/flux is then a pipeline in float16 that
`FluxPipeline.from_pretrained` reads; the `.jsonl` files are the losses. `--stage video` is by itself, and makes
FOLDER/video_vae.safetensors, and FOLDER/clip.mp4 to try it with.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...commands.libraries import declare_torchvision_ops
from . import loop, models, scenes
from .video import save_sheet, train_video

PROMPTS = (
    "a red lighthouse at dusk, calm sea",
    "a white house on the hills at noon, clear sky, sun",
    "green trees in the snow, dawn, snowing",
    "a blue boat at night, full moon, calm sea",
    "yellow house, desert, sunset",
    "rainy day, hills, red trees",
    "foggy sea at dawn, white lighthouse",
    "a castle of glass",
)

CROP = 128
"""Side in pixels of what the VAE learns from."""
LENGTHS = (48,) * 8 + (128, 512)
"""Tokens of T5 in a step, drawn from these; short ones take a third of the time."""
NOTHING = scenes.OBJECTS.index("none")
THING_WEIGHT = 6.0
"""How many times as much an error counts where the thing stands that a caption names: it takes few of a picture's
tokens, and without it in sight sky and ground are learned alone."""
READING_WEIGHT = 0.05
"""What the text encoders' own loss counts: to tell, by themselves, what a caption names."""
SCENES = 8192
"""Pictures that Flux learns from. Each is worded anew every time it comes."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="train_tiny", description=__doc__)
    parser.add_argument("--stage", choices=STAGES, required=True)
    parser.add_argument("--steps", type=int, required=True, help="in all; the learning rate ends there")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--batch", type=int, default=0, help="0: as the stage needs it here; of video, so many times that"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast on a CPU too; a card always has it")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    declare_torchvision_ops()
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    STAGES[options.stage](options, device)
    return 0


def train_vae(options: argparse.Namespace, device: torch.device) -> None:
    batch = options.batch or (32 if device.type == "cuda" else 8)
    vae = models.image_vae().to(device, memory_format=torch.channels_last)
    half = options.bf16 or device.type == "cuda"

    def loss_of(step: int) -> dict[str, torch.Tensor]:
        # Crops, because nothing in this VAE looks further than its convolutions; they cost less than half.
        left, top = ((step * prime) % (scenes.SIZE - CROP + 1) for prime in (37, 101))
        pictures = scenes.draw(scenes.choose(batch, options.seed * 10**9 + step), device)
        pictures = pictures[..., top : top + CROP, left : left + CROP].contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            posterior = vae.encode(pictures).latent_dist
            made = vae.decode(posterior.sample()).sample
        error = made.float() - pictures
        edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        mean, spread = posterior.mean.float(), posterior.logvar.float()
        kl = 0.5 * (mean.square() + spread.exp() - 1 - spread).mean()
        loss = error.abs().mean() + 0.5 * edges + 5e-4 * kl
        psnr = -10 * torch.log10((error.detach() / 2).square().mean())
        return {"loss": loss, "psnr": psnr, "kl": kl.detach()}

    def show(averages: dict[str, Any]) -> None:
        pictures = scenes.draw(scenes.choose(8, 10**15), device)
        with torch.no_grad():
            made = averages["vae"].decode(averages["vae"].encode(pictures).latent_dist.mode()).sample
        save_sheet(torch.cat([pictures, made.float()]), options.output / "vae.png")

    averages = loop.train("vae", {"vae": vae}, loss_of, show, options.output, options.steps, 0.05, device)
    if averages is None:
        return
    average: Any = averages["vae"]
    show({"vae": average})
    with torch.no_grad():
        seen = [average.encode(scenes.draw(scenes.choose(16, 10**14 + k), device)).latent_dist.mode() for k in range(8)]
    latents = torch.cat(seen).double()
    average.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())
    average.save_pretrained(options.output / "vae")


def train_flux(options: argparse.Namespace, device: torch.device) -> None:
    from diffusers import AutoencoderKL, FluxPipeline

    batch = options.batch or (192 if device.type == "cuda" else 16)
    vae: Any = AutoencoderKL.from_pretrained(options.output / "vae").to(device).eval().requires_grad_(False)
    vae.register_to_config(_name_or_path="")  # else the pipeline's folder would say where it was trained
    shift, scale = vae.config.shift_factor, vae.config.scaling_factor
    (clip_tokens, clip_size), (t5_tokens, t5_size) = models.clip_tokenizer(), models.t5_tokenizer()
    clip, t5 = models.text_encoders(clip_size, t5_size)
    readers = models.CaptionReaders(scenes.CHOICES)
    parts = {"clip": clip, "t5": t5, "flux": models.transformer(), "readers": readers}
    for part in parts.values():
        part.to(device).train()
    print({name: sum(p.numel() for p in part.parameters()) for name, part in {**parts, "vae": vae}.items()}, flush=True)
    side = scenes.SIZE // 8
    image_ids = FluxPipeline._prepare_latent_image_ids(1, side // 2, side // 2, device, torch.float32)
    half = options.bf16 or device.type == "cuda"
    # exp(mu) is the shift that the pipeline's scheduler applies to 144 tokens; here it moves the logit's middle.
    mu = 0.5 + (1.15 - 0.5) / (4096 - 256) * (image_ids.shape[0] - 256)

    latents, shown, weights = encoded_scenes(vae, options, device)

    def prepare(step: int) -> list[torch.Tensor]:
        random = torch.Generator().manual_seed(options.seed * 10**9 + step)
        chosen = torch.randint(len(shown), (batch,), generator=random)
        empty = (torch.rand(batch, generator=random) < 0.1).tolist()
        texts = scenes.describe(shown[chosen], options.seed * 10**9 + step)
        texts = ["" if gone else text for gone, text in zip(empty, texts, strict=True)]
        # Pipelines pad prompts to 512 tokens unless told otherwise, and nothing masks the padding: all lengths occur.
        length = LENGTHS[int(torch.randint(len(LENGTHS), (1,), generator=random))]
        fixed: dict[str, Any] = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        rows = [rows[chosen] for rows in (latents, weights, shown)]
        return [
            *rows,
            clip_tokens(texts, max_length=77, **fixed).input_ids,
            t5_tokens(texts, max_length=length, **fixed).input_ids,
        ]

    worker = ThreadPoolExecutor(1)
    ready: dict[int, Any] = {}

    def loss_of(step: int) -> dict[str, torch.Tensor]:
        for ahead in range(step, step + 4):
            if ahead not in ready:
                ready[ahead] = worker.submit(prepare, ahead)
        seen, weight, named, clip_ids, t5_ids = (part.to(device) for part in ready.pop(step).result())
        clean = FluxPipeline._pack_latents((seen.float() - shift) * scale, batch, 16, side, side)
        noise = torch.randn_like(clean)
        sigma = torch.sigmoid(torch.randn(batch, device=device) * 1.1 + mu)
        # The first of a few steps decide what the picture shows, and they are all near 1.
        near = 1 - 0.2 * torch.rand(batch, device=device).square()
        sigma = torch.where(torch.rand(batch, device=device) < 0.4, near, sigma)
        noisy = torch.lerp(clean, noise, sigma[:, None, None])
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            pooled = parts["clip"](clip_ids).pooler_output
            text = parts["t5"](t5_ids)[0]
            guess = parts["flux"](
                hidden_states=noisy,
                encoder_hidden_states=text,
                pooled_projections=pooled,
                timestep=sigma,
                img_ids=image_ids,
                txt_ids=torch.zeros(t5_ids.shape[1], 3, device=device),
                return_dict=False,
            )[0]
        error = (guess.float() - (noise - clean)).square().mean(2)
        reading = readers(pooled, text, t5_ids != t5.config.pad_token_id, named)
        loss = (error * weight).sum() / weight.sum() + READING_WEIGHT * reading
        return {"loss": loss, "plain": error.detach().mean(), "reading": reading.detach()}

    def show(averages: dict[str, Any]) -> None:
        sample(models.pipeline(vae, averages["clip"], averages["t5"], averages["flux"]), options.output / "flux.png")

    averages: Any = loop.train("flux", parts, loss_of, show, options.output, options.steps, 0.02, device)
    worker.shutdown(cancel_futures=True)
    if averages is None:
        return
    final = [copy.deepcopy(part).cpu().half() for part in (vae, averages["clip"], averages["t5"], averages["flux"])]
    models.pipeline(*final).save_pretrained(options.output / "flux")
    sample(FluxPipeline.from_pretrained(options.output / "flux").to(device, torch.float32), options.output / "flux.png")


def encoded_scenes(
    vae: Any, options: argparse.Namespace, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Encode `SCENES` pictures, once for all runs.

    Returns:
        Latents (count, 16, side, side) in float16, what each shows (count, 6), and how much each token of it counts
        (count, tokens).
    """
    file = options.output / "latents.pt"
    if file.is_file():
        saved = torch.load(file, weights_only=True)
        return saved["latents"], saved["shown"], saved["weights"]
    latents, shown, weights = [], [], []
    with torch.no_grad():
        for start in range(0, SCENES, 32):
            chosen = scenes.choose(32, options.seed * 10**9 + 10**8 + start)
            pictures = scenes.draw(chosen, device)
            without = scenes.draw(replace(chosen, thing=torch.full_like(chosen.thing, NOTHING)), device)
            of_thing = ((pictures - without).abs().amax(1, keepdim=True) > 0.1).float()
            cells = torch.nn.functional.max_pool2d(of_thing, 16).flatten(1).cpu()
            weights.append(1 + (THING_WEIGHT - 1) * cells)
            latents.append(vae.encode(pictures).latent_dist.mode().half().cpu())
            columns = (chosen.time, chosen.weather, chosen.ground, chosen.thing, chosen.colour, chosen.body)
            shown.append(torch.stack(columns, 1))
    saved = {"latents": torch.cat(latents), "shown": torch.cat(shown), "weights": torch.cat(weights)}
    torch.save(saved, file)
    return saved["latents"], saved["shown"], saved["weights"]


def sample(pipeline: Any, path: Path) -> None:
    """Draw `PROMPTS` by the pipeline, 8 steps and a seed each, and say how many times of day are told by the sky."""
    pipeline.set_progress_bar_config(disable=True)
    with torch.no_grad():
        made = pipeline(
            list(PROMPTS),
            height=scenes.SIZE,
            width=scenes.SIZE,
            num_inference_steps=8,
            generator=[torch.Generator().manual_seed(k) for k in range(len(PROMPTS))],
            output_type="pt",
        ).images
    made = made.float().cpu() * 2 - 1
    save_sheet(made, path)
    print(json.dumps({"sheet": str(path), "times": scenes.classify(made)}), flush=True)


STAGES = {"vae": train_vae, "flux": train_flux, "video": train_video}


if __name__ == "__main__":
    sys.exit(main())

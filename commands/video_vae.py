"""Options of the 3D video VAE, shared by `decode` and `encode`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..vae.embedded import PREFIX, TRAINED
from ..vae.settings import CONVOLUTIONS, KERNEL_CHOICES, MODES, tile_choices
from .declared import add_tile_options, declared_by, refuse_given
from .options import add_vae_compile_options, vae_compile_settings

if TYPE_CHECKING:
    from ..vae import VaeSettings, VideoVAE


VAE_HELP = f"checkpoint of the 3D video VAE (.safetensors), or {TRAINED} for the one that is embedded"


def add_video_vae_options(parser: argparse.ArgumentParser) -> None:
    add_own_options(parser.add_argument_group("video VAE (--vae)"))
    add_vae_compile_options(parser)


def add_own_options(group: argparse._ActionsContainer) -> None:
    """Those that no pipeline's VAE follows."""
    group.add_argument("--mode", choices=MODES, default="auto", help="how space is cut (default: auto)")
    group.add_argument("--temporal-slice", type=int, default=0, metavar="N", help="latent frames at a time, 0: chosen")
    group.add_argument("--memory-budget-gib", type=float, default=0.0, metavar="GIB", help="0: from the free memory")
    group.add_argument(
        "--kernels", choices=KERNEL_CHOICES, default="auto", help="fused kernels where they work (default: auto)"
    )
    group.add_argument(
        "--convolution",
        choices=CONVOLUTIONS,
        default="auto",
        help="on a processor, fewer multiplications over time where measured faster; fast: in half precision too, "
        "which rounds a little more: for one with bfloat16 arithmetic",
    )
    group.add_argument("--cuda-graphs", action="store_true", help="replay recorded slices on a CUDA card")
    group.add_argument("--overlap-tiles", action="store_true", help="two tiles at a time on a CUDA card")
    group.add_argument(
        "--fp16-accumulation", action="store_true", help="float16 sums where a kernel has them: less exact"
    )


def vae_settings(args: argparse.Namespace) -> VaeSettings:
    """The settings that the options describe.

    Raises:
        InputError: a value is out of range, or one describes tiles where there are none.
    """
    from ..vae import VaeSettings

    if args.mode in ("whole", "exact"):
        reason, cure = f"--mode {args.mode} makes no tiles, so it would do nothing", "leave it out, or use --mode tiles"
        refuse_given(args, declared_by(add_tile_options), reason, cure)
    chosen: dict[str, Any] = {
        "mode": args.mode,
        "temporal_slice": args.temporal_slice,
        "memory_budget_gib": args.memory_budget_gib,
        "kernels": args.kernels,
        "convolution": args.convolution,
        "cuda_graphs": args.cuda_graphs,
        "overlap_tiles": args.overlap_tiles,
        "fp16_accumulation": args.fp16_accumulation,
    }
    chosen |= tile_choices(args.tile_size, args.tile_overlap)
    if how := vae_compile_settings(args):
        chosen |= how.for_video_vae()
    return VaeSettings(**chosen)


@contextmanager
def compiling(args: argparse.Namespace) -> Iterator[None]:
    """Hold this around a run: what compiling asks of torch as a whole, when it is asked for."""
    how = vae_compile_settings(args)
    if how is None:
        yield
        return
    from ..optimizations.compile import switches

    with switches(how):
        yield


def load(args: argparse.Namespace) -> VideoVAE:
    """Load the checkpoint of `--vae`. Raises ModelFileError for a file that is not this VAE."""
    from ..cache_folder import cache_folder
    from ..vae import embedded_video_vae, load_video_vae, remember_in

    remember_in(cache_folder())
    name = str(args.vae)
    source = embedded_video_vae(name, cache_folder()) if name.startswith(PREFIX) else args.vae
    return load_video_vae(source, dtype=args.dtype, device=args.device)

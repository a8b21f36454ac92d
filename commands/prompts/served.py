"""`generate --engine`: what of the options has no meaning for a server, one result from it, and items made by it."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...callbacks import SILENT, Callbacks
from ...engines.settings import IMAGES, NO_LATENT, VIDEO
from ...errors import InputError
from ..declared import declared_by, refuse_given
from ..media import check_output
from ..options import add_model_options, add_parts_options, lora_specs, optimization_settings
from .make import Made, Maker, shape_of_picture, target_of, written
from .request import LATENT, sample_request

if TYPE_CHECKING:
    from ...engines.servers import Served
    from ...engines.settings import Engine
    from ...pipelines.types import SampleRequest, SampleResult
    from .items import Item

ONLY_HERE = (
    *("diffusion_model", "text_encoder", "vae", "second_expert", "audio_vae"),
    *("revision", "quantization", "dtype", "device"),
)
"""Options that load a model, which a server does itself."""


def check_options(args: argparse.Namespace) -> None:
    """Refuse, by name, what loads a model here. Raises InputError."""
    from ...engines.requests import refuse_loras

    declared = declared_by(add_parts_options) | declared_by(add_model_options)
    ignored = {name: declared[name] for name in ONLY_HERE}
    refuse_given(args, ignored, "the server has loaded its model already", "leave it out")
    refuse_loras(lora_specs(args))


def make_one(args: argparse.Namespace, engine: Engine, callbacks: Callbacks) -> SampleResult:
    """`generate --engine` for one prompt. The output's form is checked before anything is made.

    Raises:
        InputError, EngineError: as `engines.generate.generate`.
    """
    from ...engines.generate import generate
    from ...engines.servers import look

    check_options(args)
    if args.output.suffix == LATENT:
        raise InputError("output", str(args.output), NO_LATENT, "use .png or .mp4")
    request, settings = sample_request(args, decode=True), optimization_settings(args)
    served = look(engine, callbacks)
    video = _makes_video(args.output, request, served)
    check_output(args.output, video)
    return generate(_for(engine, video), request, settings, callbacks, served)


class ServedMaker(Maker):
    """Makes items on a server."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine
        self._served: dict[str, Served] = {}

    def check(self, item: Item) -> None:
        """Find out before anything is made what cannot be done; the first item asks the server what it is.

        Raises:
            InputError, EngineError: as `engines.generate.generate`.
        """
        from ...engines.requests import check

        check_options(item.args)
        if item.name.endswith(LATENT):
            raise InputError("output", item.name, NO_LATENT, "use .png or .mp4")
        optimization_settings(item.args)
        request = sample_request(item.args, decode=True, read=shape_of_picture)
        video = _makes_video(Path(item.name), request, self._look(item, SILENT))
        target_of(item, Path("."), video, "the server")
        check(request, video)

    def make(
        self, item: Item, folder: Path, callbacks: Callbacks = SILENT, facts: dict[str, Any] | None = None
    ) -> Made:
        """Have the server make an item, and write it with its report into a folder of its own."""
        from ...engines.generate import generate

        request, settings = sample_request(item.args, decode=True), optimization_settings(item.args)
        served = self._look(item, callbacks)
        video = _makes_video(Path(item.name), request, served)
        target = target_of(item, folder, video, "the server")
        result = generate(_for(self._engine_of(item), video), request, settings, callbacks, served)
        return written(item, result, target, folder, facts)

    def _engine_of(self, item: Item) -> Engine:
        return replace(self._engine, model=item.args.model or "")

    def _look(self, item: Item, callbacks: Callbacks) -> Served:
        from ...engines.servers import look

        engine = self._engine_of(item)
        if engine.model not in self._served:
            self._served[engine.model] = look(engine, callbacks)
        return self._served[engine.model]


def _makes_video(output: Path, request: SampleRequest, served: Served) -> bool:
    """What the server says of its model, else what the output's name asks for, else what the frames do."""
    asked = {".png": False, ".mp4": True}.get(output.suffix.lower(), (request.num_frames or 1) > 1)
    return asked if served.video is None else served.video


def _for(engine: Engine, video: bool) -> Engine:
    return replace(engine, makes=VIDEO if video else IMAGES)

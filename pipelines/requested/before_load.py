"""What a request asks for that only another model could do, as far as the files of this one tell before it loads."""

from __future__ import annotations

from collections.abc import Sequence

from ..arguments import form_class
from ..conditions.arguments.schedules import schedule_of, with_steps
from ..conditions.check import deciding_inputs
from ..conditions.control import control_models
from ..conditions.controlnets import check_controls_fit
from ..conditions.image_prompts.files import check_image_prompt_fits
from ..conditions.image_prompts.keys import check_form_takes, image_prompts_of
from ..conditions.keyframes import check_keyframe_scheduler
from ..conditions.rates import check_sound_length
from ..conditions.references import DENOISER, SOUND_VAE, check_reference_parts, references_of, refuse_loras
from ..embeddings.check import check_widths
from ..latents import refuse_own_layout
from ..loading import loader
from ..loading.described import denoiser_of_key, part_configurations, sounds_of_key
from ..lora import names
from ..requests import SCHEDULER_DEFAULT, ReadyRequest
from ..schedulers import TRIAL_STEPS, fitting_scheduler
from ..types import LoadKey, LoraSpec
from .absent import check_absent


def check_before_load(key: LoadKey, request: ReadyRequest, loras: Sequence[LoraSpec] = ()) -> None:
    """Refuse what only another model could do, as far as its configuration files tell.

    Args:
        loras: what the model is to run with.

    Raises:
        InputError: a latent alone of a family whose latents nothing decodes; a scheduler, control model or image
            prompt's model that does not fit, another number of steps than a scheduler makes of a schedule, encoded
            texts of another family, or what a component that was left out would have to do; LoRAs beside references.
        MissingDependencyError: a reference's sound needs a package that is not installed.
    """
    if not key.holds("vae"):
        cure = "choose the model's own VAE where it is loaded (--vae)"
        refuse_own_layout(request.family, "vae", "none", cure)
    elif not request.decode:
        refuse_own_layout(request.family, "decode", "off", "switch decode on, and use the picture")
    check_absent(key, request)
    if references_of(request):
        check_reference_parts(request.family, request, part_configurations(key, (DENOISER, SOUND_VAE)))
        refuse_loras(request.family, request, names(loras))
    prompts = image_prompts_of(request)
    asks = request.positive is not None or control_models(request) or prompts
    denoiser = denoiser_of_key(key) if asks else None
    if denoiser is not None:
        if request.positive is not None:
            check_widths(request.family, request, *denoiser)
        check_controls_fit(request, denoiser[1], request.family.name)
        for prompt in prompts:
            check_image_prompt_fits(prompt.model, *denoiser, request.family.name)
    if request.family.sound and request.frame_rate != request.family.frame_rate:
        check_sound_length(request.family, request, sounds_of_key(key))
    form = form_class(request)
    check_form_takes(request, name := form.__name__ if form else "")
    check_keyframe_scheduler(name, request, lambda: loader.scheduler_of_key(key))
    led = request.scheduler != SCHEDULER_DEFAULT or request.steps == 1 or schedule_of(request) is not None
    original = loader.scheduler_of_key(key) if led else None
    if original is not None:
        steps, given = request.steps or TRIAL_STEPS, deciding_inputs(request.family, request)
        with_steps(request, fitting_scheduler(original, request.family, request.scheduler, steps, form, given))

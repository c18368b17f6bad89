"""AddSR as a pipeline in diffusers' manner: SeeSR's networks in one to four steps."""

from __future__ import annotations

from torch import Tensor

from addsr.diffusion.addsr import PSR_WEIGHT, RELEASED_PSR_WEIGHT, Cue, few_step_levels
from addsr.errors import OptionError

from .config import check_share
from .options import Options
from .seesr import RefineDecoder, SeeSRPipeline
from .seesr_stages import Refinement
from .stages import StepEnded
from .walk import NoiseSource


class AddSRPipeline(SeeSRPipeline):
    """AddSR (arXiv 2404.01717): SeeSR's networks distilled to 1 to 4 steps without guidance."""

    steps = 4
    guidance = 1.0

    def _check(self, options: Options, psr_weight: float | None, released_quirks: bool) -> float:
        few_step_levels(options.steps)
        if options.guidance != 1.0:
            raise OptionError(
                f"guidance_scale: {options.guidance:g} is not possible: AddSR was distilled "
                "without guidance; leave it out, or use SeeSR"
            )
        if psr_weight is None:
            return RELEASED_PSR_WEIGHT if released_quirks else PSR_WEIGHT
        check_share("psr_weight", psr_weight)
        return psr_weight

    def _check_decoder(self, refine_decoder: RefineDecoder) -> None:
        if refine_decoder == "tiny" and self.tiny_decoder is None:
            raise OptionError(
                "refine_decoder: this pipeline has no tiny decoder; give tiny_decoder= (the "
                "imported one: addsr.pipelines.tiny.find_tiny), or use 'full'"
            )

    def _run(
        self,
        z_lr: Tensor,
        cue: Cue,
        options: Options,
        control_scale: float,
        refined: Refinement,
        generator: NoiseSource,
        ended: StepEnded,
    ) -> Tensor:
        return self._stages.sample_few(z_lr, cue, options, control_scale, refined, generator, ended)

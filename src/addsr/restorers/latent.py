"""Pipelines at work on whole pictures: dtype and device, offload, memory plan, second tries."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from addsr.engines.device import (
    choose_device,
    choose_dtype,
    choose_latent_dtype,
    free_host_memory,
    free_memory,
    has_bf16,
)
from addsr.errors import MemoryLimitError, ModelError, OptionError
from addsr.models.hub import PipelineFolder
from addsr.models.pipeline_files import find_variant, find_weights
from addsr.models.registry import ModelInfo
from addsr.models.store import find_tagger, recorded_hash
from addsr.pipelines import AddSRPipeline, SeeSRPipeline, StableSRPipeline
from addsr.pipelines.finite import NotFiniteError
from addsr.pipelines.tagger import Tagger
from addsr.pipelines.tiny import PART as TINY
from addsr.pipelines.tiny import find_tiny
from addsr.plan import Plan

from .base import Counter, RefineDecoder, Restorer, Room, Wish
from .latent_plan import CONTROLLED_UNET, UNET, LatentFacts, count_tiles, make_latent_plan

log = logging.getLogger(__name__)

Pipeline: TypeAlias = StableSRPipeline | SeeSRPipeline
_P = TypeVar("_P", bound=Pipeline)
WORDED = ("seesr", "addsr")
"""Kinds of models that hear words and see tags."""
_SEEDS = (1 << 64) - 1
_WORKING_BYTES = 2 << 30
"""Of a device, what must be left beside all weights, or networks are moved in and out."""


@dataclass(frozen=True)
class PipelineModel:
    """A pipeline with its weights, and the facts about it."""

    pipe: Pipeline
    info: ModelInfo
    metadata: dict[str, Any]
    """Its `model_index.json`."""
    weights: str | None = None
    """sha256 over the imported files, as `recorded_hash` gives it."""


def choose_pipeline(
    found: PipelineFolder, device: torch.device | None, dtype: str
) -> tuple[ModelInfo, Callable[[], Restorer]]:
    """The facts about a pipeline's folder, and what puts it on `device`."""
    where = choose_device() if device is None else device
    number = choose_latent_dtype(dtype, where)

    def load() -> Restorer:
        model = load_pipeline(found, torch.device("cpu"), number)
        restorer = LatentRestorer(_placed(model.pipe, where), found.info, is_own=True)
        restorer.weights = model.weights
        return restorer

    return found.info, load


def handed_in(
    model: Any, device: torch.device | None, dtype: str
) -> tuple[ModelInfo, Callable[[], Restorer]]:
    """The same for a model that is loaded already; it stays where and as it is.

    Raises:
        OptionError: it is no model, or is asked for elsewhere or in another type.
    """
    if not isinstance(model, PipelineModel):
        raise OptionError(
            f"model: {type(model).__name__} cannot be used; give a name, a path, or what "
            "addsr.load_model gave"
        )
    pipe = model.pipe
    if device is not None and not _is_same(device, pipe.device):
        raise OptionError(
            f"device: the pipeline handed in is on {pipe.device}; move it with "
            f"pipe.to({str(device)!r}), or give the model's name"
        )
    if dtype != "auto" and choose_dtype(dtype, pipe.device) != pipe.dtype:
        raise OptionError(
            f"dtype: the pipeline handed in is in {_short(pipe.dtype)}; change it with pipe.to(), "
            "or give the model's name"
        )

    def load() -> Restorer:
        restorer = LatentRestorer(pipe, model.info, is_own=False)
        restorer.weights = model.weights
        return restorer

    return model.info, load


def load_pipeline(
    found: PipelineFolder, device: torch.device, dtype: torch.dtype | None
) -> PipelineModel:
    """The pipeline in its folder, with all networks on `device`.

    Raises:
        MemoryLimitError: its weights are larger than the main memory that is free.
        ModelError: a file is missing or damaged.
        DependencyError: diffusers is not installed.
    """
    variant = find_variant(found.folder)
    needed, free = _weights_bytes(found.folder, dtype), free_host_memory()
    if needed > free:
        raise MemoryLimitError(
            f"model: the weights of {found.info.name} take {needed / 2**30:.2f} GiB of main memory"
            f"{'' if dtype is None else f' in {_short(dtype)}'}, {free / 2**30:.2f} GiB are free; "
            f"free memory{', or use --dtype bf16' if dtype in (None, torch.float32) else ''}"
        )
    log.info("loading %s (%.1f GB) from %s", found.info.name, needed / 1e9, found.folder)
    kind = found.info.kind
    pipe: Pipeline
    if kind in WORDED:
        has_own = kind != "addsr" or TINY in found.index
        made = AddSRPipeline if kind == "addsr" else SeeSRPipeline
        pipe = made.from_pretrained(
            found.folder,
            tagger=_load_tagger(dtype),
            tiny_decoder=None if has_own else find_tiny(dtype),
            torch_dtype=dtype,
            variant=variant,
        )
    else:
        pipe = StableSRPipeline.from_pretrained(found.folder, torch_dtype=dtype, variant=variant)
    # what the import stored about the model may be more than its folder says
    pipe.config = replace(pipe.config, steps=found.info.default_steps)
    if found.info.kind == "stablesr-turbo":
        pipe.config = replace(pipe.config, spacing="trailing")
    weights = recorded_hash(found.folder)
    return PipelineModel(_moved(pipe, device), found.info, found.index, weights)


def _load_tagger(dtype: torch.dtype | None) -> Tagger | None:
    """The imported prompt extractor. The pipeline tells where there is none."""
    installed = find_tagger()
    if installed is None:
        return None
    # a score is compared with a threshold, and bf16 has three digits
    numbers = torch.float32 if dtype == torch.bfloat16 else dtype
    return Tagger.from_pretrained(installed.folder, torch_dtype=numbers)


def _moved(pipe: _P, device: torch.device) -> _P:
    """`pipe` on `device`, with what looks at pictures and hears words."""
    for net in _helper_nets(pipe):
        net.to(device)
    return pipe.to(device)


def _placed(pipe: Pipeline, device: torch.device) -> Pipeline:
    """`pipe` on its device, or, where not all of it fits, with networks that come and go.

    Text encoder and prompt extractor run once or a few times for a picture: they stay in main
    memory then.
    """
    if device.type not in ("cuda", "xpu"):
        return _moved(pipe, device)
    weights = sum(_net_bytes(pipe).values()) + sum(map(_bytes, _helper_nets(pipe)))
    free = free_memory(device)
    if weights + _WORKING_BYTES <= free:
        return _moved(pipe, device)
    log.warning(
        "the weights take %.2f GiB and %s has %.2f GiB free; networks wait in main memory",
        weights / 2**30, device, free / 2**30,
    )  # fmt: skip
    pipe.enable_model_cpu_offload(device)
    return pipe


class LatentRestorer:
    """A pipeline that restores whole pictures; its tiles are of its latent."""

    def __init__(self, pipe: Pipeline, info: ModelInfo, *, is_own: bool) -> None:
        self.pipe = pipe
        self.info = info
        self.weights: str | None = None
        self._is_own = is_own  # or it serves others too, and its type is theirs
        self._room: Room | None = None  # when the last plan was made
        self._tags: tuple[str, ...] | None = None

    @property
    def device(self) -> torch.device:
        return self.pipe.device

    @property
    def dtype(self) -> torch.dtype:
        return self.pipe.dtype

    @property
    def tags(self) -> tuple[str, ...] | None:
        """What the prompt extractor saw in the last picture; None: there is none."""
        return self._tags

    def check_tile(self, tile: int) -> None:
        """OptionError where `tile` result pixels do not fit the networks' grid."""
        self.pipe.parts.check_tile(tile)

    def check_decoder(self, refine_decoder: RefineDecoder) -> None:
        """OptionError where there is no such decoder, or nothing that it could show."""
        self.info.check_decoder(refine_decoder)
        if refine_decoder == "tiny" and TINY not in self.pipe.networks:
            raise OptionError(
                "refine_decoder: no tiny decoder is imported; get taesd_decoder.safetensors and "
                "import it with `addsr models import`, or leave --refine-decoder out"
            )

    def plan(self, source: tuple[int, int], wish: Wish, room: Room) -> Plan:
        """One pass with as many tiles at once and as wide strips as memory allows."""
        self._room = room
        return make_latent_plan(source, wish, self._facts(), room)

    def count(self, plan: Plan, wish: Wish) -> tuple[int, int]:
        """Tiles of the latent; a step of the sampler runs over all of them."""
        return count_tiles(plan.source, wish.scale, plan.tile, self._facts()), wish.steps

    def bands(self, rgb: Tensor, plan: Plan, wish: Wish, counter: Counter) -> Iterator[Tensor]:
        """The whole picture as one band."""
        yield self._restore(rgb, plan, wish, counter)

    def _restore(self, rgb: Tensor, plan: Plan, wish: Wish, counter: Counter) -> Tensor:
        """One picture; numbers that overflow bring another try in a wider type."""
        before, planned = counter.done, counter.total

        def progress(done: int, total: int) -> None:
            # some schedulers make more steps than they are asked for
            counter.done, counter.total = before + done, planned + total - wish.steps
            counter.tell()

        while True:
            try:
                call: Any = self.pipe
                output: Any = call(
                    rgb,
                    wish.steps,
                    **self._own_options(wish),
                    generator=torch.Generator().manual_seed(wish.seed & _SEEDS),
                    upscale=wish.scale,
                    tile=plan.tile,
                    tile_batch=plan.tile_batch,
                    vae_tile=None if plan.strip_pixels is None else math.isqrt(plan.strip_pixels),
                    color_fix=wish.color,
                    progress=progress,
                    output_type="pt",
                )
                if output.tags is not None:
                    self._tags = tuple(output.tags[0])
                result: Tensor = output.images
                return result
            except NotFiniteError as error:
                wider = self._wider()
                if wider is None:
                    raise self._explain(error) from error
            counter.done, counter.total = before, planned
            log.warning(
                "values overflowed in %s; this picture is done again in %s, as all after it",
                _short(self.dtype), _short(wider),
            )  # fmt: skip
            plan = self._widen(wider, plan, wish)

    def _own_options(self, wish: Wish) -> dict[str, Any]:
        """What each kind of pipeline is told in its own words."""
        if self.info.kind not in WORDED:
            return {"fidelity": wish.fidelity}
        words = wish.words
        options: dict[str, Any] = {"prompt": words.prompt}
        if words.negative_prompt is not None:
            options["negative_prompt"] = words.negative_prompt
        if self.info.kind == "addsr":
            # the share of the prediction in what the next step looks at; the rest is the input
            options["psr_weight"] = 1.0 - wish.fidelity if wish.steps > 1 else 0.0
            options["refine_decoder"] = wish.refine_decoder
        return options

    def _widen(self, wider: torch.dtype, plan: Plan, wish: Wish) -> Plan:
        """Has the networks in `wider`, with what is then the plan.

        Raises:
            MemoryLimitError: the weights or the picture would not fit; all stays as it was.
        """
        held = sum(_net_bytes(self.pipe).values())
        more = held * torch.finfo(wider).bits // torch.finfo(self.dtype).bits - held
        own = None if self.device.type not in ("cuda", "xpu") else free_memory(self.device)
        is_moved = own is not None and not self.pipe.is_offloading and own < more + _WORKING_BYTES
        needed = more + held if is_moved else more
        if own is None or self.pipe.is_offloading or is_moved:
            free = free_host_memory()
            if needed > free:
                raise MemoryLimitError(
                    f"model: values overflowed in {_short(self.dtype)}, and the weights of "
                    f"{self.info.name} take {needed / 2**30:.2f} GiB of main memory more in "
                    f"{_short(wider)}, {free / 2**30:.2f} GiB are free; free memory"
                )
        if is_moved:
            log.warning("in %s the weights wait in main memory", _short(wider))
            self.pipe.enable_model_cpu_offload(self.device)
        self.pipe.to(wider)
        for net in _helper_nets(self.pipe):
            net.to(wider)
        if not more or self._room is None:
            return plan
        room = replace(
            self._room,
            host=min(self._room.host, free_host_memory()),
            device=None if own is None else free_memory(self.device),
        )
        return make_latent_plan(plan.source, wish, self._facts(), room)

    def _wider(self) -> torch.dtype | None:
        """The next type to try, None at the end."""
        if not self._is_own or self.dtype == torch.float32:
            return None
        is_half = self.dtype == torch.float16
        return torch.bfloat16 if is_half and has_bf16(self.device) else torch.float32

    def _explain(self, error: NotFiniteError) -> ModelError:
        if self.dtype != torch.float32:
            return error  # the owner of the pipeline is told how to change its type
        return ModelError(
            f"model: {self.info.name} gave NaN or infinity even in fp32, its files must be "
            "damaged; check them with `addsr models verify`, or import the model again"
        )

    def _facts(self) -> LatentFacts:
        pipe: Any = self.pipe
        nets = _net_bytes(pipe)
        decoding = sum(nets.pop(name, 0) for name in ("vae", "cfw", TINY))
        sampling = sum(nets.values())
        unet_width = int(pipe.networks["unet"].config["block_out_channels"][0])
        factor = pipe.parts.factor
        if self.info.kind in WORDED:
            widths, per_step = (), CONTROLLED_UNET * (2 if self.info.takes_negative_prompt else 1)
            kept = unet_width / factor**2  # the ControlNet's map of the picture
        else:
            widths, per_step, kept = _wrapping_widths(pipe), UNET, 0.0
        return LatentFacts(
            tile=pipe.config.tile,
            factor=factor,
            multiple=pipe.parts.multiple,
            unet_width=unet_width,
            vae_width=int(pipe.networks["vae"].config["block_out_channels"][0]),
            kept_numbers=kept,
            sampling_numbers=per_step,
            tap_numbers=sum(width / 4 ** (k + 1) for k, width in enumerate(widths)),
            bytes_per_number=torch.finfo(self.dtype).bits // 8,
            moved_bytes=max(sampling, decoding) if pipe.is_offloading else 0,
        )


def _wrapping_widths(pipe: StableSRPipeline) -> tuple[int, ...]:
    return () if pipe.cfw is None else pipe.cfw.config.widths


def _helper_nets(pipe: Pipeline) -> list[nn.Module]:
    """Those of the prompt extractor and the text encoder."""
    nets = (
        getattr(getattr(pipe, "tagger", None), "net", None),
        getattr(getattr(pipe, "text_encoder", None), "encoder", None),
    )
    return [net for net in nets if isinstance(net, nn.Module)]


def _net_bytes(pipe: Pipeline) -> dict[str, int]:
    """Bytes of the weights of each network."""
    return {name: _bytes(net) for name, net in pipe.networks.items()}


def _bytes(net: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in net.parameters())


def _weights_bytes(folder: Path, dtype: torch.dtype | None) -> int:
    """Bytes of the weights in `folder` once they are in `dtype`; None: as they are."""
    total = 0
    for path in find_weights(folder):
        if dtype is None:
            total += path.stat().st_size
            continue
        try:
            with safe_open(path, framework="pt") as file:
                shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{path}: not a readable safetensors file ({error}); import the model again"
            ) from error
        total += sum(math.prod(shape) for shape in shapes) * torch.finfo(dtype).bits // 8
    return total


def _is_same(wanted: torch.device, device: torch.device) -> bool:
    """Whether `device` is the one that is wanted; any of its kind, if no number is."""
    numbered = ":" in str(wanted)
    return wanted.type == device.type and (not numbered or wanted.index == (device.index or 0))


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

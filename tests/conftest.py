"""What every test may rely on: no network, no user files, fixed seeds, few threads."""

from __future__ import annotations

import atexit
import json
import logging
import os
import random
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# The variables below are read when libraries are first imported and are inherited by the
# processes that tests start, so they are set before any test module is.
_home = tempfile.mkdtemp(prefix="addsr-tests-")
atexit.register(shutil.rmtree, _home, ignore_errors=True)
os.environ |= {
    "HF_HOME": f"{_home}/huggingface",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "XDG_CACHE_HOME": f"{_home}/cache",
    "XDG_CONFIG_HOME": f"{_home}/config",
    "NO_COLOR": "1",
    "COLUMNS": "120",
}
# One thread: the tests' pictures are too small to gain from a second one, and beside other busy
# processes threads that spin while they wait made the suite ten times slower (622 s, not 50).
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
for name in ("ADDSR_MODEL", "ADDSR_MODELS", "ADDSR_DEVICE", "ADDSR_DTYPE", "ADDSR_MEMORY"):
    os.environ.pop(name, None)

# Without a deadline (shared machines stall) and the same examples in every run.
hypothesis.settings.register_profile("addsr", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("addsr")

_LOOPBACK = {"127.0.0.1", "::1", "localhost", "0.0.0.0", "::", "", None, socket.gethostname()}


class NetworkBlockedError(RuntimeError):
    """A test reached for the network."""


def _refuse_remote(host: object) -> None:
    if isinstance(host, bytes):
        host = host.decode()
    if host not in _LOOPBACK:
        raise NetworkBlockedError(f"tests have no network, yet one asked for {host!r}")


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Let sockets reach this machine alone (torch.distributed's gloo needs that much)."""
    connect, connect_ex, look_up = (
        socket.socket.connect,
        socket.socket.connect_ex,
        socket.getaddrinfo,
    )

    def guarded_connect(self: socket.socket, address: Any) -> None:
        if self.family != getattr(socket, "AF_UNIX", None):
            _refuse_remote(address[0])
        connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> int:
        if self.family != getattr(socket, "AF_UNIX", None):
            _refuse_remote(address[0])
        return connect_ex(self, address)

    def guarded_look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
        _refuse_remote(host)
        return look_up(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded_connect)
        patch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
        patch.setattr(socket, "getaddrinfo", guarded_look_up)
        yield


@pytest.fixture(autouse=True, scope="session")
def few_threads() -> None:
    """As many threads as the environment says, in this process as in those that tests start."""
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start every test from the same global random state, whatever ran before it."""
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def usual_log() -> Iterator[None]:
    """Undo what a command made of the log: `--quiet` would silence the tests that come after it."""
    log = logging.getLogger("addsr")
    level, handlers = log.level, list(log.handlers)
    yield
    log.setLevel(level)
    log.handlers[:] = handlers


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of stored reference results."""
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A compact network of random weights; a small picture takes it a hundredth of a second."""
    import torch

    from addsr.models.files import save_weights
    from addsr.nets import CompactConfig, CompactNet

    config = CompactConfig(
        widths=(32, 32, 32), depths=(1, 1, 1), decoder_widths=(32, 16, 16), decoder_depth=1,
        time_channels=32, lr_channels=8,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = CompactNet(config)
    save_weights(path, net.state_dict(), {"kind": "compact", "config": config.to_dict()})
    return str(path)


def _weights(golden: Path, name: str, prefix: str = "") -> dict[str, Any]:
    from safetensors.torch import load_file

    stored = load_file(golden / f"{name}.safetensors")
    return {prefix + k[7:]: v.float() for k, v in stored.items() if k.startswith("weight/")}


@pytest.fixture(scope="session")
def published(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of StableSR's files as published, in small; read them and do not change them.

    The checkpoint is whole, with a text tower; `adapter.safetensors` has its 376 tensors alone.
    """
    import torch
    from safetensors.torch import save_file

    width, make = 48, torch.Generator().manual_seed(0)
    text = {
        "positional_embedding": (5, width),
        "token_embedding.weight": (4, width),
        "ln_final.weight": (width,),
        "ln_final.bias": (width,),
    }
    for k in range(2):
        block = f"transformer.resblocks.{k}."
        for name, rows, columns in (
            ("attn.in_proj_", 3 * width, width),
            ("attn.out_proj.", width, width),
            ("mlp.c_fc.", 32, width),
            ("mlp.c_proj.", width, 32),
        ):
            text |= {f"{block}{name}weight": (rows, columns), f"{block}{name}bias": (rows,)}
        for name in ("ln_1", "ln_2"):
            text |= {f"{block}{name}.weight": (width,), f"{block}{name}.bias": (width,)}
    cfw = _weights(golden, "stablesr_cfw")
    unet = _weights(golden, "stablesr_unet", "model.diffusion_model.")
    encoder = _weights(golden, "stablesr_encoder", "structcond_stage_model.")
    state = {
        **unet,
        **encoder,
        **{f"first_stage_model.{k}": v for k, v in cfw.items() if "fusion_layer" not in k},
        **{
            f"cond_stage_model.model.{name}": torch.randn(shape, generator=make) * 0.1
            for name, shape in text.items()
        },
        "betas": torch.zeros(1000),
    }
    folder = tmp_path_factory.mktemp("published")
    torch.save({"epoch": 117, "state_dict": state}, folder / "stablesr_000117.ckpt")
    torch.save(
        {"state_dict": {**cfw, "loss.logvar": torch.zeros(())}}, folder / "vqgan_cfw_00011.ckpt"
    )
    spade = {k: v for k, v in unet.items() if ".spade." in k}
    save_file({**spade, **encoder}, folder / "adapter.safetensors")
    return folder


def _make_tiny_stablesr(**more: Any) -> Any:
    """Tiles of 32 px and a grid of 8 px: its VAE has 4 picture pixels to one of the latent."""
    import torch

    from addsr.nets import stablesr as nets
    from addsr.pipelines import StableSRPipeline
    from addsr.pipelines.config import PipelineConfig

    shape: dict[str, Any] = {"widths": (32, 64), "blocks": 1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts: dict[str, Any] = {
            "unet": nets.build_unet(
                nets.UnetConfig(**shape, attention=(True, False), head_channels=16, context=24)
            ),
            "encoder": nets.TimeAwareEncoder(
                nets.EncoderConfig(**shape, attention=(True, False), time_channels=32, features=32)
            ),
            "sft": nets.SftLayers(nets.SftConfig(**shape, features=32, hidden=16)),
            "vae": nets.build_vae(nets.VaeConfig(widths=(32, 32, 32), blocks=1)),
            "cfw": nets.FeatureWrapping(nets.CfwConfig(widths=(32,), growth=8)),
            "prompt_embeds": torch.randn(1, 5, 24),
            "config": PipelineConfig(tile=32, steps=2),
        }
    return StableSRPipeline(**{**parts, **more})


def _write_facts(folder: Path, kind: str) -> None:
    facts = {
        "format": 1, "kind": kind, "base": "a/base", "imported": "2026-11-25",
        "licence": "S-Lab License 1.0 (non-commercial); base: CreativeML OpenRAIL++-M",
        "sources": [{"name": "a.ckpt", "bytes": 3, "sha256": "0" * 64, "what": "adapter"}],
        "variant": kind, "prediction": "eps", "tile": 32, "dtype": "fp32", "files": {},
    }  # fmt: skip
    (folder / "addsr.json").write_text(json.dumps(facts))


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """stablesr and stablesr-turbo as `addsr models import` leaves them; read, do not change."""
    root = tmp_path_factory.mktemp("store")
    for name in ("stablesr", "stablesr-turbo"):
        _make_tiny_stablesr().save_pretrained(root / name)
        _write_facts(root / name, name)
    return root


@pytest.fixture()
def installed(store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store, where `--model stablesr` looks."""
    monkeypatch.setenv("ADDSR_MODELS", str(store))
    return store


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `save_pretrained` writes alone, without feature wrapping."""
    folder = tmp_path_factory.mktemp("elsewhere") / "bare"
    _make_tiny_stablesr(cfw=None).save_pretrained(folder)
    return folder


@pytest.fixture()
def facts_writer() -> Callable[[Path, str], None]:
    """Writes `addsr.json` into a folder, for tests that make a model of their own."""
    return _write_facts


@pytest.fixture(scope="session")
def ram_state() -> dict[str, Any]:
    """RAM in small under its published names, 32 px and 6 tags, text modules and tables included.

    Windows of 4 on grids of 8 and 4: with shifted windows, and with one window for all.
    """
    import torch

    made = torch.Generator().manual_seed(5)
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, outputs: int, *inputs: int) -> None:
        shapes[f"{name}.weight"] = (outputs, *inputs)
        shapes[f"{name}.bias"] = (outputs,)

    layer("visual_encoder.patch_embed.proj", 8, 3, 4, 4)
    layer("visual_encoder.patch_embed.norm", 8)
    for stage, (width, heads) in enumerate(((8, 2), (16, 4))):
        for block in range(2):
            name = f"visual_encoder.layers.{stage}.blocks.{block}"
            layer(f"{name}.norm1", width)
            layer(f"{name}.attn.qkv", 3 * width, width)
            shapes[f"{name}.attn.relative_position_bias_table"] = (49, heads)
            layer(f"{name}.attn.proj", width, width)
            layer(f"{name}.norm2", width)
            layer(f"{name}.mlp.fc1", 4 * width, width)
            layer(f"{name}.mlp.fc2", width, 4 * width)
            shapes[f"{name}.attn.relative_position_index"] = (16, 16)
    shapes["visual_encoder.layers.0.blocks.1.attn_mask"] = (4, 16, 16)
    layer("visual_encoder.layers.0.downsample.norm", 32)
    shapes["visual_encoder.layers.0.downsample.reduction.weight"] = (16, 32)
    layer("visual_encoder.norm", 16)
    layer("image_proj", 12, 16)
    shapes["label_embed"] = (6, 10)
    layer("wordvec_proj", 8, 10)
    for k in range(2):
        for module in ("tagging_head", "tag_encoder"):
            name = f"{module}.encoder.layer.{k}"
            layer(f"{name}.crossattention.self.query", 8, 8)
            layer(f"{name}.crossattention.self.key", 8, 12)
            layer(f"{name}.crossattention.self.value", 8, 12)
            layer(f"{name}.crossattention.output.dense", 8, 8)
            layer(f"{name}.crossattention.output.LayerNorm", 8)
            layer(f"{name}.intermediate.dense", 16, 8)
            layer(f"{name}.output.dense", 8, 16)
            layer(f"{name}.output.LayerNorm", 8)
    layer("fc", 1, 8)
    layer("text_decoder.cls.predictions.transform.dense", 8, 8)
    return {k: torch.randn(shape, generator=made) * 0.4 for k, shape in shapes.items()}


@pytest.fixture(scope="session")
def dape_state(ram_state: dict[str, Any]) -> dict[str, Any]:
    """DAPE's updates for `ram_state`; those of the tag encoder are zero, as after no training."""
    import torch

    made = torch.Generator().manual_seed(6)
    state: dict[str, Any] = {}
    for name, weight in ram_state.items():
        name, _, part = name.rpartition(".")
        is_qkv = name.endswith("attn.qkv")
        if part != "weight" or not (is_qkv or name.endswith(("self.query", "self.key"))):
            continue
        outputs, inputs = weight.shape
        rows, rank = (outputs // 3 * 2, 16) if is_qkv else (outputs, 8)
        state[f"{name}.lora_A"] = torch.randn(rank, inputs, generator=made)
        up = torch.randn(rows, 8, generator=made)
        state[f"{name}.lora_B"] = up * (not name.startswith("tag_encoder."))
    return state


@pytest.fixture()
def ram_files(ram_state: dict[str, Any], dape_state: dict[str, Any], tmp_path: Path) -> Path:
    """A folder with RAM's and DAPE's files as published, in small, and the lists of tags."""
    import torch

    folder = tmp_path / "published-ram"
    folder.mkdir()
    torch.save({"model": ram_state, "epoch": 3}, folder / "ram_swin_large_14m.pth")
    torch.save(dape_state, folder / "DAPE.pth")
    names = ["river", "dog", "brick wall", "kitten", "tower", "forest"]
    # no newline behind the last line, as in the published list
    (folder / "ram_tag_list.txt").write_text("\n".join(names))
    (folder / "ram_tag_list_threshold.txt").write_text("0.3\n0.4\n0.5\n0.6\n0.45\n0.55\n")
    return folder

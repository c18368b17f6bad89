"""`addsr models` as a user meets it, with a stand-in for the hub."""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from addsr import models_commands
from addsr.cli import main
from addsr.models import download, registry
from addsr.models.published import STABLESR
from addsr.models.store import FACTS, Installed, Part, Source, write_facts

NAMES = [
    "stablesr",
    "stablesr-768",
    "stablesr-turbo",
    "stablesr-face",
    "seesr",
    "addsr",
    "seesr-turbo",
]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADDSR_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr(sys, "stdin", io.StringIO())  # no terminal
    return tmp_path / "models"


@pytest.fixture()
def model(home: Path) -> Path:
    """The folder of an imported model of one file."""
    folder = home / "mine"
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    part = Part(2, hashlib.sha256(b"{}").hexdigest())
    write_facts(
        Installed(
            name="mine", folder=folder, kind="stablesr", licence="S-Lab License 1.0",
            sources=(Source("stablesr_000117.ckpt", 3, "0" * 64, "adapter (376 tensors)"),),
            base="the checkpoint", imported="2026-02-03", variant="stablesr",
            files={"model_index.json": part},
        )
    )  # fmt: skip
    return folder


def answers(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """A terminal where this is typed."""
    terminal = io.StringIO(text)
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)


@pytest.fixture()
def hub(monkeypatch: pytest.MonkeyPatch, published: Path, tmp_path: Path) -> list[str]:
    """Gives the small files under every published name, as the cache does: by their sha256."""
    asked: list[str] = []

    def give(repository: str, name: str) -> str:
        asked.append(f"{repository}/{name}")
        kind = "vqgan_cfw_00011.ckpt" if "cfw" in name else "stablesr_000117.ckpt"
        content = (published / kind).read_bytes()
        blob = tmp_path / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        link = tmp_path / name
        if not link.is_symlink():
            link.symlink_to(blob)
        return str(link)

    monkeypatch.setattr(download, "hf_hub_download", give)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: type("U", (), {"free": 10**12})())
    return asked


def test_what_can_be_had_is_listed(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    assert main(["models", "list"]) == 0
    shown = capsys.readouterr().out
    assert [line.split()[:2] for line in shown.splitlines()[1:] if line[0] != " "] == [
        ["compact", "embedded"],
        ["mine", "imported"],
        *([name, "available"] for name in NAMES),
    ]
    assert main(["models", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == ["compact", "mine", *NAMES]
    assert rows[1]["bytes"] == 2 and "non-commercial" in rows[2]["licence"]
    (model / FACTS).write_text("{")
    assert main(["models", "list"]) == 0
    assert "damaged" in capsys.readouterr().out


def test_facts_of_strangers_are_shown_as_text(
    capsys: pytest.CaptureFixture[str], model: Path
) -> None:
    facts = json.loads((model / FACTS).read_text())
    odd = {"licence": "a [/b] [red]c :smile:", "base": "b\x1b]0;title\x07", "variant": ""}
    (model / FACTS).write_text(json.dumps({**facts, **odd}))
    assert main(["models", "list"]) == 0
    shown = capsys.readouterr().out
    assert "[/b] [red]c" in shown and ":smile:" in shown
    assert main(["models", "info", "mine"]) == 0
    shown = capsys.readouterr().out
    assert "b\\x1b]0;title\\x07" in shown and "\x1b" not in shown
    (model / FACTS).write_text(json.dumps({**facts, "sources": "\x1b[2J"}))
    for words in (["info", "mine"], ["verify", "mine"]):
        assert main(["models", *words]) == 1
        assert "\x1b" not in capsys.readouterr().err


def test_names_in_a_strangers_checkpoint_do_not_steer_the_terminal(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    torch.save({"a\x1b[2Jb": torch.ones(1)}, tmp_path / "a.ckpt")
    assert main(["models", "import", str(tmp_path / "a.ckpt")]) == 1
    told = capsys.readouterr().err
    assert "a\\x1b[2Jb" in told and "\x1b" not in told


def test_a_download_that_has_no_room_is_not_begun(
    hub: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def usage(folder: Path) -> object:
        return type("U", (), {"free": 10**12 if "models" in str(folder) else 10**9})()

    monkeypatch.setattr(download.constants, "HF_HUB_CACHE", "/nowhere/hub")
    monkeypatch.setattr(download.shutil, "disk_usage", usage)
    assert main(["models", "pull", "stablesr", "--accept-licence"]) == 1
    assert "takes about 6.2 GB and 1.00 GB are free" in capsys.readouterr().err
    assert hub == []
    monkeypatch.setattr(download, "try_to_load_from_cache", lambda *_: "/nowhere/hub/a")
    download.check_room(STABLESR)  # it lies there already


def test_listing_loads_no_torch(capsys: pytest.CaptureFixture[str]) -> None:
    import os
    import subprocess

    code = "import sys; from addsr.cli import main; main(['models', 'list']); "
    code += "main(['models', 'info', 'stablesr']); assert 'torch' not in sys.modules"
    source = str(Path(models_commands.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": source},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_information_on_every_kind_of_model(
    capsys: pytest.CaptureFixture[str], model: Path
) -> None:
    assert main(["models", "info", "stablesr-face"]) == 0
    shown = capsys.readouterr().out
    address = "https://huggingface.co/Iceclear/StableSR/resolve/main/face_stablesr_000050.ckpt"
    assert address in shown and "--prediction v" in shown and "recorded at the first" in shown
    assert main(["models", "info", "mine", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["state"] == "imported" and facts["folder"] == str(model)
    assert facts["sources"][0]["what"] == "adapter (376 tensors)" and facts["steps"] == 200
    assert facts["licence"] == "S-Lab License 1.0"  # as stored, for its base may be another one
    assert main(["models", "info", "compact"]) == 0
    assert "Apache-2.0" in capsys.readouterr().out
    assert main(["models", "info", "nothing"]) == 1
    assert "neither embedded, imported nor published" in capsys.readouterr().err


def test_a_model_is_pulled_checked_used_and_removed(
    hub: list[str], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "pull", "stablesr-turbo", "--accept-licence"]) == 0
    told = capsys.readouterr()
    assert "S-Lab License 1.0 (non-commercial)" in told.err and "no commercial use" in told.err
    assert "addsr upscale --model stablesr-turbo" in told.out
    assert "adapter (376 tensors)" in told.out
    assert hub == [
        "Iceclear/StableSR/stablesr_turbo.ckpt",
        "Iceclear/StableSR/vqgan_cfw_00011.ckpt",
    ]
    assert main(["models", "verify"]) == 0
    assert capsys.readouterr().out.splitlines() == ["compact: whole", "stablesr-turbo: whole"]
    assert main(["models", "pull", "stablesr-turbo", "--accept-licence"]) == 1
    assert "is imported already" in capsys.readouterr().err
    weights = home / "stablesr-turbo" / "sft" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert main(["models", "verify", "stablesr-turbo", "--json"]) == 1
    told = capsys.readouterr()
    assert str(weights) in json.loads(told.out)["stablesr-turbo"][0]
    assert f"error: stablesr-turbo: {weights}: has changed" in told.err
    assert main(["models", "remove", "stablesr-turbo", "--yes"]) == 0
    assert not (home / "stablesr-turbo").exists()
    assert json.loads((home / ".sources.json").read_text()).keys() == {
        "stablesr_turbo.ckpt",
        "vqgan_cfw_00011.ckpt",
    }


def test_a_download_that_was_damaged_is_refused(
    hub: list[str], home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    give: Callable[[str, str], str] = download.hf_hub_download

    def damaged(repository: str, name: str) -> str:
        link = Path(give(repository, name))
        state = torch.load(link, weights_only=True)["state_dict"]
        torch.save({"state_dict": state, "one": "more"}, link.resolve())
        return str(link)

    monkeypatch.setattr(download, "hf_hub_download", damaged)
    assert main(["models", "pull", "stablesr", "--accept-licence"]) == 1
    assert "is damaged (sha256 " in capsys.readouterr().err
    assert not (home / "stablesr").exists()


def test_nothing_is_downloaded_before_the_licence_is_accepted(
    hub: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "pull", "stablesr"]) == 2
    assert "give --accept-licence" in capsys.readouterr().err
    answers(monkeypatch, "no\n")
    assert main(["models", "pull", "stablesr"]) == 1
    assert "The answer was no; nothing was done" in capsys.readouterr().err
    assert hub == []
    answers(monkeypatch, "yes\n")
    monkeypatch.setattr(download, "download", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(["models", "pull", "stablesr"]) == 130


def test_names_that_are_not_published_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "pull", "supir"]) == 2
    assert "use one of stablesr, stablesr-768" in capsys.readouterr().err


def test_local_files_are_imported_with_their_licence_told(
    published: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(published / n) for n in ("vqgan_cfw_00011.ckpt", "stablesr_000117.ckpt")]
    assert main(["models", "import", *files, "--name", "mine", "--json", "-q"]) == 0
    told = capsys.readouterr()
    (facts,) = json.loads(told.out)
    assert facts["name"] == "mine" and facts["variant"] == "stablesr"
    assert "stablesr: S-Lab License 1.0 (non-commercial)" in told.err
    assert (home / "mine" / FACTS).is_file() and (home / "mine" / "cfw").is_dir()


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ([], 2, "FILE: none is given"),
        (["gone.ckpt"], 1, "no file there"),
        (["a.ckpt", "--as", "sdxl"], 2, "'sdxl' is no published model"),
        (["a.ckpt", "--name", "A/B"], 2, "cannot be a model's name"),
        (["a.ckpt", "--dtype", "int8"], 2, "dtype"),
    ],
)
def test_imports_that_cannot_be_are_told(
    words: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "import", *words]) == status
    assert message in capsys.readouterr().err


def test_importing_without_diffusers_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    for words in (["import", "a.ckpt"], ["pull", "stablesr", "--accept-licence"]):
        assert main(["models", *words]) == 1
        assert "pip install 'addsr[diffusion]'" in capsys.readouterr().err


def test_removal_asks_first(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "remove", "mine"]) == 2
    assert "give --yes" in capsys.readouterr().err
    answers(monkeypatch, "\n")
    assert main(["models", "remove", "mine"]) == 1
    assert model.is_dir()
    (model / "notes.txt").write_text("keep")
    answers(monkeypatch, "y\n")
    assert main(["models", "remove", "mine"]) == 0
    assert f"files of others stay: {model / 'notes.txt'}" in capsys.readouterr().err
    assert [f.name for f in model.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(("name", "status"), [("compact", 2), ("gone", 1), ("../models", 1)])
def test_what_was_not_imported_is_not_removed(
    name: str, status: int, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "remove", name, "--yes"]) == status
    assert "error: " in capsys.readouterr().err
    assert model.is_dir()


def test_damaged_facts_and_unknown_names_fail_the_check(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (model / "model_index.json").write_text("[]")
    assert main(["models", "verify", "mine"]) == 1
    assert "model_index.json: has changed" in capsys.readouterr().err
    (model / FACTS).write_text("{")
    assert main(["models", "verify", "mine", "-q"]) == 1
    assert "import the model again with --force" in capsys.readouterr().err
    assert main(["models", "verify", "gone"]) == 1
    assert "no imported model is called that" in capsys.readouterr().err


def test_a_published_model_that_the_registry_knows_is_not_embedded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = {**registry.MODELS, "stablesr": registry.COMPACT}
    monkeypatch.setattr("addsr.models.inventory.MODELS", facts)
    assert main(["models", "list", "--json"]) == 0
    rows = {row["name"]: row["state"] for row in json.loads(capsys.readouterr().out)}
    assert rows["compact"] == "embedded" and rows["stablesr"] == "available"
    assert main(["models", "import", "gone.ckpt", "--name", "stablesr"]) == 1
    assert "no file there" in capsys.readouterr().err


def test_nobody_is_asked_where_standard_input_is_closed(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["models", "remove", "mine"]) == 2
    assert "Nobody is there to answer; give --yes to say yes" in capsys.readouterr().err
    assert model.is_dir()

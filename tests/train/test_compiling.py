"""What a recipe says about torch.compile: which functions, which mode, which file of made code."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from addsr.errors import ConfigError, OutputError
from addsr.train import compiling
from addsr.train.compiling import Compiler, load_cache, save_cache
from addsr.train.config import RunConfig, load_recipe
from addsr.train.run import make_task

RECIPES = Path(__file__).parents[2] / "recipes"
Compiled = list[tuple[str, dict[str, Any]]]


def _forward(x: int) -> int:
    return x + 1


def loss(x: int) -> int:
    return x


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Compiled:
    """What torch.compile was asked for; it gives a function of its own."""
    calls: Compiled = []

    def compile_(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        calls.append((function.__name__, options))
        return lambda *arguments: function(*arguments)

    monkeypatch.setattr(torch, "compile", compile_)
    return calls


def test_all_functions_are_compiled_with_static_shapes_or_none_is(asked: Compiled) -> None:
    compiler = Compiler(RunConfig(compile=True))
    assert compiler(_forward) is not _forward and compiler(_forward)(1) == 2
    assert asked[0] == ("_forward", {"dynamic": False, "mode": "default"})
    asked.clear()
    assert Compiler(RunConfig(compile=False))(_forward) is _forward and not asked


def test_named_functions_alone_are_compiled_and_underscores_do_not_count(asked: Compiled) -> None:
    compiler = Compiler(RunConfig(compile_only=("forward",)))
    assert compiler(loss) is loss
    assert compiler(_forward) is not _forward
    assert [name for name, _ in asked] == ["_forward"]
    assert compiler.names == ["loss", "forward"]


@pytest.mark.parametrize(
    ("mode", "other"),
    [("reduce-overhead", "default"), ("max-autotune", "max-autotune-no-cudagraphs")],
)
def test_functions_without_graphs_have_the_same_mode_but_for_these(mode: str, other: str) -> None:
    compiler = Compiler(RunConfig(compile_mode=mode, compile_graphs=("loss",)))
    assert (compiler.mode("loss"), compiler.mode("forward")) == (mode, other)
    everywhere = Compiler(RunConfig(compile_mode=mode))
    assert everywhere.mode("loss") == everywhere.mode("forward") == mode


@pytest.mark.parametrize("field", ["compile_only", "compile_graphs"])
def test_functions_that_are_not_there_are_named_beside_those_that_are(field: str) -> None:
    run = RunConfig(compile=False, compile_mode="max-autotune")
    run = dataclasses.replace(run, **{field: ("loss", "los")})
    compiler = Compiler(run)
    with pytest.raises(ConfigError, match=rf"run\.{field}: 'loss' is unknown.*compiles nothing"):
        compiler.check()
    compiler(_forward)
    compiler(loss)
    with pytest.raises(ConfigError, match=rf"run\.{field}: 'los' is unknown; .* forward, loss$"):
        compiler.check()


def test_a_recipe_with_a_wrong_name_is_refused_before_training() -> None:
    smoke = RECIPES / "features-smoke.toml"
    recipe = load_recipe("features", smoke, {"run": {"compile_only": ["los"]}})
    with pytest.raises(ConfigError, match=r"run\.compile_only: 'los' is unknown; functions are"):
        make_task(recipe, torch.device("cpu"))
    right = load_recipe("features", smoke, {"run": {"compile_only": ["loss"]}})
    assert make_task(right, torch.device("cpu")).compiled.names == ["loss"]
    with pytest.raises(ConfigError, match=r"run\.compile_graphs .*none, or run\.compile_mode"):
        load_recipe("features", smoke, {"run": {"compile_graphs": ["loss"]}})


def test_passes_are_marked_for_modes_with_graphs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    marks: list[int] = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append(1))
    for run in (RunConfig(), RunConfig(compile=False, compile_mode="max-autotune")):
        Compiler(run).begin_pass()
    assert not marks
    for mode in ("reduce-overhead", "max-autotune"):
        Compiler(RunConfig(compile_mode=mode)).begin_pass()
    assert len(marks) == 2


def test_graphs_that_are_still_recorded_are_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    counts = iter([4, 4, 9])
    monkeypatch.setattr(compiling, "_recorded_graphs", lambda device: next(counts))
    compiler, card = Compiler(RunConfig(compile_mode="reduce-overhead")), torch.device("cuda", 0)
    with caplog.at_level(logging.WARNING, "addsr"):
        assert [compiler.count_graphs(card) for _ in range(2)] == [4, 4]
        assert not caplog.text
        assert compiler.count_graphs(card) == 9
    assert "5 CUDA graphs have been recorded since the last report (9 in all)" in caplog.text
    assert compiler.count_graphs(torch.device("cpu")) == 0
    assert Compiler(RunConfig()).count_graphs(card) == 0


# --- the file of compiled code ------------------------------------------------------------------


@pytest.fixture
def code(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Stands for torch: what it has compiled, and what it was given."""
    given: list[bytes] = []

    def take(content: bytes) -> Any:
        given.append(content)
        return SimpleNamespace() if content == b"code" else None

    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (b"code", None))
    monkeypatch.setattr(torch.compiler, "load_cache_artifacts", take)
    return given


def test_code_is_written_whole_and_given_back(tmp_path: Path, code: list[bytes]) -> None:
    run = RunConfig(compile_cache=str(tmp_path / "new" / "code"))
    load_cache(run)  # not there yet
    assert code == []
    save_cache(run)
    save_cache(run)  # in place of the older
    load_cache(run)
    assert code == [b"code"]
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["code"]


def test_nothing_is_written_without_a_file_or_without_code(
    tmp_path: Path, code: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "code"
    for run in (RunConfig(), RunConfig(compile=False, compile_cache=str(path))):
        save_cache(run)
        load_cache(run)
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: None)
    save_cache(RunConfig(compile_cache=str(path)))
    assert not path.exists() and code == []


def test_each_process_has_a_file_of_its_own(
    tmp_path: Path, code: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunConfig(compile_cache=str(tmp_path / "code"))
    for rank in (0, 1):
        monkeypatch.setattr(compiling, "process_rank", lambda rank=rank: rank)
        save_cache(run)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["code", "code.1"]


def test_code_of_others_is_left_unused_with_a_warning(
    tmp_path: Path, code: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "code").write_bytes(b"of another version")
    load_cache(RunConfig(compile_cache=str(tmp_path / "code")))
    assert "holds nothing that can be used; compiling anew" in caplog.text


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x00" * 4096, b"\xff" * 100])
def test_a_damaged_file_of_code_is_warned_of_and_ignored(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "code").write_bytes(content)
    load_cache(RunConfig(compile_cache=str(tmp_path / "code")))
    assert "compiling anew" in caplog.text


def test_a_file_of_code_that_cannot_be_written_is_told_and_leaves_nothing(
    tmp_path: Path, code: list[bytes]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"run\.compile_cache = .* cannot be written .*another"):
        save_cache(RunConfig(compile_cache=str(tmp_path / "file" / "code")))
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match=r"run\.compile_cache = .*folder.* cannot be written"):
        save_cache(RunConfig(compile_cache=str(tmp_path / "folder")))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]

"""Standard input and output at the command line: pictures, words, and what stops either."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

import addsr
from addsr.cli import main

SOURCE = str(Path(addsr.__file__).parents[1])
FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="this system has no full device")


@pytest.fixture(autouse=True)
def model(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADDSR_MODEL", weights)


@pytest.fixture()
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    monkeypatch.chdir(tmp_path)
    Image.linear_gradient("L").resize((24, 16)).convert("RGB").save("a.jpg")
    return Path("a.jpg").read_bytes()


def lines(text: str | bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def give(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """Standard input that holds `content`."""
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))


@contextmanager
def stdout_to(stream: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A real file or pipe as standard output; closing it raises where something is kept back."""
    with stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        yield


def run(words: list[str], redirection: str = "", content: bytes = b"") -> Any:
    """A process of its own whose streams a shell has redirected."""
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-m", "addsr", *words],
        input=content, capture_output=True, timeout=120,
        env={**os.environ, "PYTHONPATH": SOURCE},
    )  # fmt: skip


def test_what_goes_to_standard_output_says_what_is_wrong_with_a_file(
    photo: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["upscale", "none.png", "-o", "-"]) == 1
    assert "none.png: no such file" in capsys.readouterr().err


@pytest.mark.slow
def test_a_picture_goes_through_pipes(photo: bytes) -> None:
    done = run(["upscale", "-", "-o", "-"], content=photo)
    assert (done.returncode, done.stderr) == (0, b"")
    with Image.open(io.BytesIO(done.stdout)) as image:
        assert (image.format, image.size) == ("JPEG", (96, 64))


def test_streams_are_read_and_written(
    photo: bytes, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    Image.open("a.jpg").save("b.png")
    give(monkeypatch, Path("b.png").read_bytes())
    assert main(["upscale", "-", "-o", "-", "--scale", "2"]) == 0
    told = capsysbinary.readouterr()
    with Image.open(io.BytesIO(told.out)) as image:
        assert (image.format, image.size) == ("PNG", (48, 32))
    assert told.err == b"" and not Path("-").exists()


def test_what_is_no_picture_in_a_pipe_is_told(
    photo: bytes, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    for content, more, message in (
        (b"words", [], b"error: standard input: is no picture"),
        (b"", [], b"error: standard input: "),
        (photo[:-90], [], b"error: standard input: "),
        (photo, ["--size", "9000x"], b"error: standard input: 24x16 to 9000x"),
        (photo, ["--format", "bmp", "--bit-depth", "16"], b"error: standard output.bmp: "),
    ):
        give(monkeypatch, content)
        assert main(["upscale", "-", "-o", "-", *more]) in (1, 2)
        told = capsysbinary.readouterr()
        assert told.out == b"" and told.err.startswith(message), told.err
        assert tempfile.gettempdir().encode() not in told.err


def test_the_line_about_a_picture_in_a_pipe_names_no_file_of_ours(
    photo: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    give(monkeypatch, photo)
    assert main(["upscale", "-", "-o", "b.png", "--json", "-q"]) == 0
    line, summary = lines(capsys.readouterr().out)
    assert (line["event"], line["source"], line["output"]) == ("done", "-", "b.png")
    assert (summary["event"], summary["total"], summary["done"]) == ("summary", 1, 1)


def test_json_goes_where_the_picture_does_not(
    photo: bytes, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    for words in (["-", "-o", "-"], ["a.jpg", "-o", "-"]):
        give(monkeypatch, photo)
        assert main(["upscale", *words, "--json"]) == 0
        told = capsysbinary.readouterr()
        with Image.open(io.BytesIO(told.out)) as image:
            assert (image.format, image.size) == ("JPEG", (96, 64))
        done, summary = lines(told.err)
        assert (done["event"], done["source"], done["output"]) == ("done", words[0], "-")
        assert (summary["event"], summary["done"]) == ("summary", 1)


@pytest.mark.parametrize("output", ["-", "b.png"])
def test_a_failure_in_a_pipe_is_a_line_of_json_too(
    photo: bytes,
    output: str,
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    give(monkeypatch, photo[:-90])
    assert main(["upscale", "-", "-o", output, "--json"]) == 1
    told = capsysbinary.readouterr()
    failed, summary = lines(told.err if output == "-" else told.out)
    assert (failed["event"], failed["source"], failed["output"]) == ("failed", "-", output)
    assert failed["kind"] == "InputError" and failed["error"].startswith("standard input: ")
    assert (summary["failed"], summary["done"], summary["left"]) == (1, 0, 0)
    if output == "-":
        assert told.out == b""
    else:
        assert told.err.startswith(b"error: standard input: ") and not Path(output).exists()


def test_warnings_about_a_picture_in_a_pipe_name_no_file_of_ours(
    photo: bytes, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    frames = [Image.new("L", (8, 8), k) for k in (0, 99)]
    held = io.BytesIO()
    frames[0].save(held, "GIF", save_all=True, append_images=frames[1:])
    give(monkeypatch, held.getvalue())
    assert main(["upscale", "-", "-o", "b.png", "--json"]) == 0
    told = capsysbinary.readouterr()
    message = "standard input: has several pictures; only the first one is used"
    assert lines(told.out)[0]["warnings"] == [message]
    assert told.err.decode() == f"WARNING: {message}\n"


def test_a_reader_that_goes_away_before_the_picture_is_whole_is_told(
    photo: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with stdout_to(os.fdopen(writer, "w"), monkeypatch):
        assert main(["upscale", "a.jpg", "-o", "-"]) == 1
    assert capsys.readouterr().err == (
        "error: standard output: its reader went away before the picture was whole; let it read "
        "to the end, or give a file with -o\n"
    )


def test_words_that_nobody_reads_are_no_failure() -> None:
    # not in this process: rich would be silent for all tests that follow
    script = "import sys; from addsr.cli import main; sys.exit(main(['doctor']) + main(['--help']))"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", script], stdout=writer, stderr=subprocess.PIPE, timeout=120,
        env={**os.environ, "PYTHONPATH": SOURCE},
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


@needs_full
def test_a_full_disk_behind_standard_output_is_told(
    photo: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    message = (
        "standard output: cannot be written (No space left on device); send it elsewhere, or free "
        "space"
    )
    for words in (
        ["upscale", "a.jpg", "-o", "-"],
        ["upscale", "a.jpg", "-o", "b.png", "--json"],
        ["upscale", "a.jpg", "-o", "b.png", "--dry-run"],
        ["models", "list"],
        ["doctor"],
        ["--version"],
    ):
        with stdout_to(FULL.open("w"), monkeypatch):
            assert main(words) == 1, words
        assert capsys.readouterr().err == f"error: {message}\n", words


@needs_full
def test_words_that_find_no_room_cost_no_picture(
    photo: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (8, 8)).save("b.png")
    with stdout_to(FULL.open("w"), monkeypatch):
        assert main(["upscale", "a.jpg", "b.png", "-o", "out"]) == 1
    assert capsys.readouterr().err.count("error: ") == 1
    assert {"a.jpg", "b.png"} <= {path.name for path in Path("out").iterdir()}


@pytest.mark.skipif(os.name == "nt", reason="no such shell")
@pytest.mark.parametrize(
    ("words", "redirection", "message"),
    [
        (["-", "-o", "b.png"], "<&-", "input: - is standard input, which is closed; give a file"),
        (["a.jpg", "-o", "-"], ">&-", "output: - is standard output, which is closed; give a file"),
    ],
)
def test_a_closed_stream_is_told(
    photo: bytes, words: list[str], redirection: str, message: str
) -> None:
    done = run(["upscale", *words], redirection)
    assert done.returncode == 2 and done.stdout == b""
    assert done.stderr.decode().startswith(f"error: {message}")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="no such shell")
def test_messages_go_nowhere_else_where_standard_error_is_closed(photo: bytes) -> None:
    done = run(["upscale", "a.jpg", "--scale", "9", "-o", "-"], "2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (2, b"", b"")


def test_a_terminal_gets_no_picture_and_is_not_waited_for(
    photo: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = SimpleNamespace(buffer=SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(sys, "stdin", terminal)
    assert main(["upscale", "-", "-o", "b.png"]) == 2
    assert "would wait for the terminal" in capsys.readouterr().err
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert main(["upscale", "a.jpg", "-o", "-"]) == 2
    assert "would print a picture on the terminal" in capsys.readouterr().err


def test_a_stream_that_cannot_be_read_or_kept_is_told(
    photo: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=Broken()))
    assert main(["upscale", "-", "-o", "b.png"]) == 1
    assert capsys.readouterr().err == (
        "error: standard input: cannot be read (Input/output error); give a file\n"
    )
    if not FULL.exists():
        return
    usual = Path.open
    monkeypatch.setattr(
        Path, "open",
        lambda path, *mode: usual(FULL if path.name == "standard input" else path, *mode),
    )  # fmt: skip
    give(monkeypatch, photo)
    assert main(["upscale", "-", "-o", "b.png"]) == 1
    told = capsys.readouterr().err
    assert "standard input cannot be kept there (No space left on device)" in told
    assert "set TMPDIR" in told


def test_a_place_for_temporary_files_that_is_missing_is_told(
    photo: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "gone")
    assert main(["upscale", "a.jpg", "-o", "-"]) == 1
    told = capsys.readouterr()
    assert told.err.startswith("error: temporary folder: cannot be made (No such file") and (
        "set TMPDIR to a folder that can be written" in told.err and told.out == ""
    )


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no such shell")
def test_real_pipes_and_disks_that_fail_end_in_a_sentence(photo: bytes) -> None:
    big = ["upscale", "-", "-o", "-", "--scale", "8", "--format", "bmp"]
    gone = run(big, "| { head -c 10 >/dev/null; } 2>&1", photo)
    full = run(["upscale", "-", "-o", "-"], ">/dev/full", photo)
    empty = run(["upscale", "-", "-o", "-"], "</dev/null")
    for done, message in (
        (gone, b"its reader went away before the picture was whole"),
        (full, b"cannot be written (No space left on device)"),
        (empty, b"standard input: is empty"),
    ):
        assert message in done.stderr and done.stdout == b"", done.stderr
        assert done.stderr.count(b"\n") == 1
    assert full.returncode == empty.returncode == 1

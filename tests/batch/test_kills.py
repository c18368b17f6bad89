"""Kill -9 at any moment: no half file under a final name, and the next run completes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import addsr

# Imports once, then forks: every child kills itself in one stage at its n-th time, a second child
# goes on from there, and what is found in between and at the end is printed.
HARNESS = """
import json, os, shutil, signal, sys
from pathlib import Path
from PIL import Image
from addsr import upscaler
from addsr.batch import manifest, run
from addsr.cli import main
from addsr.image import placing

def arm(owner, name, moment, after):
    usual, left = getattr(owner, name), [moment]
    def deadly(*args, **options):
        left[0] -= 1
        if not left[0] and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = usual(*args, **options)
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(owner, name, deadly)

def half(path, moment):
    usual, left = Image.Image.save, [moment]
    def deadly(self, path, **options):
        left[0] -= 1
        usual(self, path, **options)
        if not left[0]:
            data = Path(path).read_bytes()
            Path(path).write_bytes(data[:len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
    Image.Image.save = deadly

STAGES = {
    "hashing": (run, "hash_file"), "reading": (upscaler.Upscaler, "open"),
    "computing": (upscaler.Upscaler, "restore"), "syncing": (placing.os, "fsync"),
    "renaming": (placing.os, "replace"), "folder": (placing, "sync_folder"),
    "recording": (manifest.Manifest, "record"),
}

def child(words, kill=None):
    pid = os.fork()
    if not pid:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if kill is not None:
            stage, moment, after = kill
            half(None, moment) if stage == "writing" else arm(*STAGES[stage], moment, after)
        os._exit(main(words))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

source, out, weights, moments = sys.argv[1:]
for kill in json.loads(moments):
    shutil.rmtree(out, ignore_errors=True)
    words = ["upscale", source, "-o", out, "--model", weights, "-q", "--device", "cpu"]
    killed = child(words, kill)
    def look():
        files = {p.name: p.read_bytes().hex() for p in Path(out).glob("[!.]*.png")}
        parts = len(list(Path(out).glob(".*.part")))
        return files, parts
    between, _ = look()
    completed = child(words)
    files, parts = look()
    print(json.dumps([kill, killed, between, completed, files, parts]), flush=True)
"""

DEFAULT = [("computing", 2, False), ("writing", 2, False), ("renaming", 2, True)]
ALL = [
    *((stage, moment, False) for moment in (1, 3) for stage in ("reading", "computing", "writing")),
    *(
        (stage, moment, after)
        for stage in ("renaming", "recording")
        for moment in (1, 2)
        for after in (False, True)
    ),
    ("hashing", 2, True), ("syncing", 1, False), ("syncing", 4, True), ("folder", 2, False),
    ("folder", 3, True), ("reading", 4, True),
]  # fmt: skip


def check(folder: Path, weights: str, moments: list[tuple[str, int, bool]]) -> None:
    source, out = folder / "in", folder / "out"
    source.mkdir()
    for k in range(4):
        Image.linear_gradient("L").resize((8 + k, 9)).convert("RGB").save(source / f"{k}.png")
    done = subprocess.run(
        [sys.executable, "-c", HARNESS, str(source), str(out), weights, json.dumps(moments)],
        capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(Path(addsr.__file__).parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(moments)
    whole = found[0][4]
    assert sorted(whole) == ["0.png", "1.png", "2.png", "3.png"]
    for kill, killed, between, completed, files, parts in found:
        assert killed == -9, f"{kill}: was not reached"
        assert all(whole[name] == data for name, data in between.items()), f"{kill}: a half file"
        assert len(between) < 4 or kill[0] in ("renaming", "recording", "folder", "syncing")
        assert completed == 0 and files == whole, f"{kill}: the next run did not complete"
        assert parts == 0, f"{kill}: leftovers"


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


@needs_fork
def test_a_kill_leaves_whole_files_and_the_next_run_completes(tmp_path: Path, weights: str) -> None:
    check(tmp_path, weights, DEFAULT)


@needs_fork
@pytest.mark.slow
def test_kills_at_twenty_moments_leave_whole_files(tmp_path: Path, weights: str) -> None:
    assert len(ALL) == 20
    check(tmp_path, weights, ALL)

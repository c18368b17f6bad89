"""The project's files agree with each other, and the test environment is what it claims to be."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import addsr

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands(text: str) -> dict[str, str]:
    """The commands that follow `<!-- ci: NAME -->` comments, by name."""
    return dict(re.findall(r"<!-- ci: (\w+) -->\n+```bash\n(.*?)\n```", text, flags=re.DOTALL))


def test_readme_opens_with_two_commands_of_one_line() -> None:
    shown = commands(README)
    assert list(shown) == ["first", "tests"]
    assert not any("\n" in command for command in shown.values())
    assert README.index("<!-- ci: tests -->") < README.index("\n## ")


def test_readme_upscales_the_example_that_is_there() -> None:
    source = re.search(r" upscale (\S+) -o \S+\.png$", commands(README)["first"])
    assert source
    with Image.open(ROOT / source[1]) as photo:
        photo.load()
        assert photo.format == "JPEG"
        assert 160 <= max(photo.size) <= 256
    assert Path(source[1]).name in (ROOT / "examples" / "README.md").read_text(encoding="utf-8")


def test_readme_says_whether_the_weights_are_there() -> None:
    weights = ROOT / "src" / "addsr" / "models" / "embedded" / "compact.safetensors"
    assert ("**Status.**" in README) is not weights.exists()


@pytest.mark.parametrize(
    "page",
    [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")), *ROOT.glob("examples/*.md")],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_links_between_pages_lead_to_files(page: Path) -> None:
    text = re.sub(r"```.*?```|<!--.*?-->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    local = [target for target in targets if "://" not in target and "mailto:" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_the_version_is_the_same_everywhere() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    declared = re.search(r'^version = "(.+)"$', project, flags=re.MULTILINE)
    cited = re.search(r"^version: (.+)$", citation, flags=re.MULTILINE)
    assert declared and cited
    assert declared[1] == cited[1]
    # a source tree that is not installed cannot know its version
    assert addsr.__version__ in {declared[1], "0+uninstalled"}


def test_the_ci_script_is_executable_and_parses() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)


def test_the_network_is_blocked() -> None:
    with pytest.raises(RuntimeError, match="no network"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with pytest.raises(RuntimeError, match=r"example\.org"):
        socket.getaddrinfo("example.org", 80)


def test_this_machine_can_talk_to_itself() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        client.sendall(b"x")
        accepted, _ = server.accept()
        with accepted:
            assert accepted.recv(1) == b"x"


def test_processes_started_by_tests_know_there_is_no_hub() -> None:
    code = "import huggingface_hub.constants as c; print(c.HF_HUB_OFFLINE, c.HF_HOME)"
    out = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert out[0] == "True"
    assert not out[1].startswith(str(Path.home() / ".cache"))

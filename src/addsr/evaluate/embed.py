"""Pages of one file: template, style, script and data put together so that they need nothing else.

Values reach a page in two ways only: as text, escaped for HTML, or as JSON inside a data block,
escaped so that no value can end the block. The scripts build the page from text nodes and never
from markup, and the page's Content-Security-Policy lets in the packaged style and script by their
hashes, pictures from data URIs, and nothing else: no network, no inline handler.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from addsr.errors import InputError, OptionError, OutputError
from addsr.replacing import replacing

PAGE_SUFFIXES = (".html", ".htm")


@cache
def asset(name: str) -> str:
    """The text of a packaged file of the pages."""
    folder = resources.files("addsr.evaluate") / "assets"
    return (folder / name).read_text(encoding="utf-8")


def to_json(value: Any, name: str = "result") -> str:
    """`value` as strict JSON in ASCII that may stand inside an HTML script element.

    The text is JSON that says the same as `value`: what could end the element is written as an
    escape within strings. Lone surrogates, as file names of other encodings hold, survive.

    Raises:
        InputError: `value` holds NaN, infinity or what JSON has no word for.
    """
    try:
        text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(
            f"{name}: is not strict JSON ({error}); write null for NaN and 'inf' for infinity"
        ) from error
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def data_block(name: str, text: str) -> str:
    """A data block that the page's script reads; `text` comes from `to_json`."""
    return f'<script type="application/json" id="{html.escape(name)}">{text}</script>\n'


def assemble(
    template: str,
    *,
    styles: Iterable[str],
    scripts: Iterable[str],
    texts: Mapping[str, str],
    blocks: Iterable[str] = (),
) -> str:
    """A whole page from packaged files, texts (escaped here) and data blocks (`data_block`)."""
    style = "\n".join(asset(name).strip() for name in styles)
    script = "\n".join(asset(name).strip() for name in scripts)
    script = f'"use strict";\n(() => {{\n{script}\n}})();\n'
    policy = (
        "default-src 'none'; img-src data:; "
        f"style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {name: html.escape(_printable(text)) for name, text in texts.items()}
    parts |= {"policy": policy, "style": style, "script": script, "blocks": "".join(blocks)}
    # one pass, so that a value that looks like a placeholder stays what it is
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], asset(template))


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _printable(text: str) -> str:
    """`text` with lone surrogates, which no encoding can write, as question marks."""
    return text.encode("utf-8", "replace").decode()


def check_page(path: Path) -> None:
    """Refuses what is no page's name before any work: a slip would replace a photo by a page.

    Raises:
        OptionError: the suffix is another one.
    """
    if path.suffix.lower() not in PAGE_SUFFIXES:
        raise OptionError(f"output: {path} is no name for a page; give NAME.html")


def write_whole(path: str | Path, text: str) -> None:
    """Writes `text` in UTF-8 to `path`; the file appears whole or not at all.

    Raises:
        OutputError: a folder stands there, or the folder is missing, unwritable or full.
    """
    path = Path(path)
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; give the name of a file")
    try:
        # file names of other encodings hold what UTF-8 cannot write
        content = text.encode("utf-8", "backslashreplace")
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror}); check the folder {path.parent}"
        ) from error

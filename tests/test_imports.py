"""The import graph: layers point downwards, heavy and forbidden packages stay out."""

from __future__ import annotations

import ast
import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "addsr"

PURE = {"errors", "replacing"}
NETWORKS = {"nets", "diffusion", *PURE}
# layer -> the layers it may import besides itself; a layer is the first name below `addsr`
LAYERS: dict[str, set[str]] = {
    "errors": set(),
    "replacing": set(),
    "nets": PURE,
    "image": PURE,
    "data": PURE,
    "metrics": PURE,
    "plan": PURE,
    "target": {"plan", *PURE},
    "settings": PURE,
    "report": set(),
    "terminal": PURE,
    "diffusion": {"nets", *PURE},
    "models": {"nets", *PURE},
    "engines": NETWORKS,
    "pipelines": {"plan", "image", "engines", "models", *NETWORKS},
    "restorers": {"plan", "image", "engines", "models", "pipelines", *NETWORKS},
    "upscaler": {
        "plan", "target", "report", "image", "engines", "models", "restorers", "settings", *PURE,
    },
    "batch": {"upscaler", "restorers", "target", "plan", "image", "models", *PURE},
    "upscale_command": {
        "upscale_stream", "upscale_telling", "batch", "upscaler", "evaluate", "target", "image",
        "models", "settings", "terminal", *PURE,
    },
    "upscale_stream": {"upscale_telling", "batch", "upscaler", "image", "terminal", *PURE},
    "upscale_telling": {"batch", "terminal", *PURE},
    "doctor": {"engines", "models", "settings", *PURE},
    "models_commands": {"models_importing", "pipelines", "models", "terminal", *PURE},
    "models_importing": {"pipelines", "models", "terminal", *PURE},
    "tag_command": {
        "pipelines", "image", "engines", "models", "settings", "terminal", *PURE,
    },
    "train": {"data", "metrics", "models", "pipelines", *NETWORKS},
    "inspection": {
        "pipelines", "plan", "image", "engines", "models", "restorers", "settings", "terminal",
        *NETWORKS,
    },
    "evaluate": {
        "upscaler", "metrics", "models", "image", "data", "engines", "settings", "terminal", *PURE,
    },
}  # fmt: skip
SHELLS = {"__init__", "__main__", "cli"}  # thin, and allowed to reach any layer

CORE = {"torch", "numpy", "PIL", "safetensors", "huggingface_hub", "cyclopts", "rich"}
ARRAYS = {"torch", "numpy", "PIL"}
# layer -> packages from outside it may import; every other layer may use CORE
PACKAGES: dict[str, set[str]] = {
    "errors": set(),
    "replacing": set(),
    "plan": set(),
    "nets": ARRAYS | {"diffusers"},
    "image": ARRAYS | {"pyvips", "pillow_heif"},
    "data": ARRAYS,
    "metrics": ARRAYS | {"safetensors", "torchmetrics"},
    "diffusion": ARRAYS,
    "models": CORE | {"spandrel"},
    "pipelines": CORE | {"transformers"},
    "train": CORE | {"accelerate", "tensorboard", "tomli"},
    "evaluate": CORE | {"spandrel", "diffusers", "tomli"},
}
FORBIDDEN = {
    "torchvision",
    "lpips",
    "piq",
    "pyiqa",
    "timm",
    "open_clip",
    "basicsr",
    "realesrgan",
    "facexlib",
    "xformers",
    "torch_fidelity",
}


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the package as (layer, file)."""
    for file in sorted(SOURCE.rglob("*.py")):
        first = file.relative_to(SOURCE).parts[0]
        yield first.removesuffix(".py"), file


def dotted(file: Path) -> str:
    parts = file.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def imports(file: Path) -> list[tuple[str, int]]:
    """Absolute names of what a file imports, wherever it does so, with the line.

    `from package import name` gives `package.name`, since `name` may be a module.
    """
    found: list[tuple[str, int]] = []
    package = dotted(file).split(".") if file.is_relative_to(SOURCE) else []
    if file.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found.append((alias.name, node.lineno))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                found.append((f"{origin}.{alias.name}", node.lineno))
        elif (
            isinstance(node, ast.Call)
            and _called(node.func) in {"import_module", "__import__"}
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            found.append((str(node.args[0].value), node.lineno))
    return found


def _called(function: ast.expr) -> str | None:
    """The last name of what is called."""
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else None


def run_python(code: str, *paths: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that finds the package where this one does."""
    path = os.pathsep.join(map(str, [*paths, SOURCE.parent]))
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, **variables},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=120,
    )


def test_every_module_belongs_to_a_known_layer() -> None:
    unknown = {layer for layer, _ in modules()} - set(LAYERS) - SHELLS
    assert not unknown, f"add to LAYERS what these may import: {sorted(unknown)}"


def test_layers_import_only_downwards() -> None:
    wrong = []
    for layer, file in modules():
        if layer in SHELLS:
            continue
        for name, line in imports(file):
            top, *rest = name.split(".")
            if top != "addsr":
                continue
            target = rest[0] if rest else "__init__"
            # `from addsr import __version__` is a constant of the package, not a layer
            if target not in LAYERS[layer] | {layer, "__version__"}:
                wrong.append(f"{file.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_samplers_import_nothing_of_ours() -> None:
    ours = [name for name, _ in imports(SOURCE / "diffusion/samplers.py") if name[:5] == "addsr"]
    assert not ours


def test_layers_use_only_the_packages_they_may() -> None:
    wrong = []
    for layer, file in modules():
        for name, line in imports(file):
            top = name.split(".")[0]
            if top == "addsr" or top in sys.stdlib_module_names:
                continue
            if top not in PACKAGES.get(layer, CORE):
                wrong.append(f"{file.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_forbidden_packages_are_imported_nowhere() -> None:
    files = [file for folder in ("src", "tests", "benchmarks", "examples", "docs")
             for file in (ROOT / folder).rglob("*.py")]  # fmt: skip
    wrong = [
        f"{file.relative_to(ROOT)}:{line} imports {name}"
        for file in files
        for name, line in imports(file)
        if name.split(".")[0] in FORBIDDEN
    ]
    assert files and not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("package", "places"),
    [
        ("spandrel", {"evaluate/foreign.py"}),
        ("diffusers", {"evaluate/foreign.py", "nets/stablesr/backbones.py"}),
        ("transformers", {"pipelines/text.py"}),
        ("torchmetrics", {"metrics/adapters.py"}),
        ("pyvips", {"image/deep.py"}),
        ("pillow_heif", {"image/formats.py"}),
    ],
)
def test_what_extras_bring_is_imported_in_known_files(package: str, places: set[str]) -> None:
    files = {
        str(file.relative_to(SOURCE))
        for _, file in modules()
        for name, _ in imports(file)
        if name.split(".")[0] == package
    }
    assert files == places


def test_the_walk_sees_relative_lazy_and_dynamic_imports(tmp_path: Path) -> None:
    file = tmp_path / "sample.py"
    file.write_text(
        "import a.b\n"
        "def late():\n"
        "    from c import d\n"
        "    import_module('e.f')\n"
        "if TYPE_CHECKING:\n"
        "    import g as h\n"
    )
    assert {name for name, _ in imports(file)} == {"a.b", "c.d", "e.f", "g"}
    inside = {name for name, _ in imports(SOURCE / "nets" / "compact.py")}
    assert any(name.startswith("addsr.nets.blocks.") for name in inside)


@pytest.mark.parametrize(
    "code",
    [
        "import addsr",
        "import addsr; assert addsr.__version__; dir(addsr)",
        "import sys; sys.argv[1:] = ['--help']\nfrom addsr.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code",
        "import sys; sys.argv[1:] = ['upscale', '--help']\nfrom addsr.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code",
        "import sys; sys.argv[1:] = ['evaluate', '--help']\nfrom addsr.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code",
        "import sys; sys.argv[1:] = ['compare', '--help']\nfrom addsr.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code",
        "import sys; sys.argv[1:] = ['ab', '--help']\nfrom addsr.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code",
        "import sys; sys.argv[1:] = ['models', '--help']\nfrom addsr.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code",
        "import sys; sys.argv[1:] = ['inspect', '--help']\nfrom addsr.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code",
        "import sys; sys.argv[1:] = ['tag', '--help']\nfrom addsr.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code",
        "import sys; sys.argv[1:] = ['--version']\nfrom addsr.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code",
    ],
    ids=[
        "import",
        "version",
        "help",
        "upscale-help",
        "evaluate-help",
        "compare-help",
        "ab-help",
        "models-help",
        "inspect-help",
        "tag-help",
        "version-flag",
    ],
)
def test_cheap_entry_points_load_no_torch(code: str) -> None:
    done = run_python(f"{code}\nimport sys\nprint('torch' in sys.modules)")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize(
    "code",
    [
        "import addsr, addsr.cli, addsr.models.convert_stablesr, addsr.nets.stablesr, "
        "addsr.diffusion.ddpm, addsr.diffusion.aggregate, addsr.pipelines.importing, "
        "addsr.pipelines.folder; addsr.StableSRPipeline",
        "import torch\nfrom addsr import Upscaler\n"
        "with Upscaler('compact', device='cpu') as up: up(torch.rand(1, 3, 8, 8))\n"
        "import sys; assert 'addsr.pipelines' not in sys.modules",
    ],
    ids=["import", "upscale"],
)
def test_the_compact_model_needs_no_diffusers(code: str) -> None:
    done = run_python(
        f"{code}\nimport sys\nprint({{'diffusers', 'transformers'}} & set(sys.modules))"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "set()"


def test_a_broken_torchvision_disturbs_nothing(tmp_path: Path) -> None:
    stub = tmp_path / "torchvision"
    stub.mkdir()
    (stub / "__init__.py").write_text(
        "print('torchvision was imported')\n"
        "raise RuntimeError('operator torchvision::nms does not exist')\n"
    )
    assert run_python("import torchvision", tmp_path).returncode, "the stub is not found"
    names = sorted(
        {dotted(file) for layer, file in modules() if layer not in {"train", "__main__"}}
    )
    assert "addsr.upscaler" in names
    done = run_python("\n".join(f"import {name}" for name in names), tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""

from __future__ import annotations

from pathlib import Path

import pytest

from addsr.errors import AddsrError, ConfigError, InputError, OptionError
from addsr.evaluate.protocol import load_protocol, packaged_protocols, protocol_of_folders
from addsr.metrics.catalog import choose_metrics

FOLDERS = {
    "div2k-val": ("DIV2K_V2_val/gt", "DIV2K_V2_val/lq"),
    "realsr": ("RealSRVal_crop128/test_HR", "RealSRVal_crop128/test_LR"),
    "drealsr": ("DrealSRVal_crop128/test_HR", "DrealSRVal_crop128/test_LR"),
    "reallr200": (None, "RealLR200"),
}
COUNTS = {"div2k-val": 3000, "realsr": 100, "drealsr": 93, "reallr200": 200}


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return str(path)


def test_the_papers_protocols_are_packaged() -> None:
    assert packaged_protocols() == sorted(FOLDERS)


@pytest.mark.parametrize("name", FOLDERS)
def test_packaged_protocols_find_the_published_folders(tmp_path: Path, name: str) -> None:
    hr, lr = FOLDERS[name]
    for folder in filter(None, (hr, lr)):
        (tmp_path / folder).mkdir(parents=True)
    protocol = load_protocol(name, tmp_path)
    (dataset,) = protocol.datasets
    assert dataset.lr == tmp_path / str(lr)
    assert dataset.hr == (None if hr is None else tmp_path / hr)
    assert dataset.count == COUNTS[name] and dataset.crop == (512 if hr else None)
    assert (protocol.scale, protocol.border, protocol.luma) == (4, 0, "bt601")
    assert "differs between papers" in protocol.source and "arXiv" in protocol.source
    metrics = choose_metrics(protocol.metrics)
    assert hr is not None or not any("hr" in metric.needs for metric in metrics)


def test_packaged_protocols_need_the_data_and_say_where_they_looked(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"give the folder .* as --data"):
        load_protocol("realsr")
    with pytest.raises(InputError, match="RealSRVal_crop128/test_HR nor"):
        load_protocol("realsr", tmp_path)


def test_a_protocol_of_ones_own_names_sets_results_and_scores(tmp_path: Path) -> None:
    for folder in ("a/lr", "a/hr", "b"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "names.txt").write_text("one\n\n two.png \n")
    path = write(
        tmp_path,
        """
        title = "Mine"
        border = 2
        luma = "yiq"
        metrics = ["psnr-y", "default"]
        [[dataset]]
        name = "a"
        hr = "a/hr"
        lr = ["nowhere", "a/lr"]
        images = "names.txt"
        [dataset.results]
        x4plus = "results/a"
        [dataset.scores]
        other = "figures.json#a/other"
        [[dataset]]
        name = "b"
        lr = "b"
        images = ["c.webp"]
        """,
    )
    protocol = load_protocol(path)
    first, second = protocol.datasets
    assert (protocol.name, protocol.title, protocol.border, protocol.luma) == (
        "mine", "Mine", 2, "yiq",
    )  # fmt: skip
    assert first.lr == tmp_path / "a/lr" and first.images == ("one", "two.png")
    assert first.results == {"x4plus": str(tmp_path / "results/a")}
    assert first.scores == {"other": str(tmp_path / "figures.json#a/other")}
    assert second.hr is None and second.images == ("c.webp",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[dataset]", "not a readable TOML file"),
        ("", "dataset: there is none"),
        ("bordr = 4", "field 'bordr' is unknown"),
        ("border = 4.5\n[[dataset]]\nname='a'\nlr='.'", "border = 4.5 must be a whole number"),
        ("border = true\n[[dataset]]\nname='a'\nlr='.'", "border = True must be a whole number"),
        ("border = -1\n[[dataset]]\nname='a'\nlr='.'", "border: -1 is outside of 0 to 256"),
        ("luma = 'rgb'\n[[dataset]]\nname='a'\nlr='.'", "luma: 'rgb' is unknown"),
        ("metrics = ['psnr']", "'psnr' is unknown"),
        ("metrics = 'psnr-y'", "metrics = 'psnr-y' must be a list"),
        ("dataset = 3", "dataset must be tables"),
        ("[[dataset]]\nlr='.'", "dataset.name is missing"),
        ("[[dataset]]\nname='a'", "has neither hr nor lr"),
        ("[[dataset]]\nname='a'\nlr='.'\n[[dataset]]\nname='a'\nlr='.'", "two are called 'a'"),
        ("[[dataset]]\nname='a'\nlr='.'\ncrop=130", "crop = 130 is no multiple of 4"),
        ("[[dataset]]\nname='a'\nlr='.'\nimages='gone.txt'", "images = .*cannot be read"),
        ("[[dataset]]\nname='a'\nlr='.'\nresults='x'", "results = 'x' must be a table"),
        ("[[dataset]]\nname='a'\nlr=3", "a.lr = 3 must be a list"),
    ],
)
def test_a_wrong_field_is_named_with_the_file(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as told:
        load_protocol(path)
    assert "mine.toml" in str(told.value)


def test_missing_folders_and_unknown_names_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no folder .*gone"):
        load_protocol(write(tmp_path, "[[dataset]]\nname='a'\nlr='gone'"))
    with pytest.raises(OptionError, match=r"neither packaged .*div2k-val"):
        load_protocol("div2k")
    with pytest.raises(OptionError, match="give --lr and --hr"):
        protocol_of_folders(None, None)
    with pytest.raises(InputError, match="is no folder"):
        protocol_of_folders(None, tmp_path / "gone")
    with pytest.raises(AddsrError):
        load_protocol(str(tmp_path))


def test_two_folders_are_a_protocol_named_after_them(tmp_path: Path) -> None:
    for name in ("photos/lr", "photos/hr", "web"):
        (tmp_path / name).mkdir(parents=True)
    protocol = protocol_of_folders(tmp_path / "photos/hr", tmp_path / "photos/lr")
    assert protocol.datasets[0].name == "photos" and protocol.border == 4
    assert protocol_of_folders(None, tmp_path / "web").datasets[0].name == "web"
    assert protocol_of_folders(None, tmp_path / "web").title == "web: photos without a reference"
    alone = protocol_of_folders(tmp_path / "photos/hr", None)
    assert protocol.title == "photos: pairs" and alone.title.endswith("results against references")

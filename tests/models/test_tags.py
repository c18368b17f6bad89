"""Tags: which are said, how they are written down, and where the lists come from."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from addsr.errors import ModelError, OutputError
from addsr.models.tags import (
    FALLBACK_THRESHOLD,
    QUALITY,
    Tag,
    TagList,
    build_prompt,
    read_tags,
    write_tags,
)

LIST = TagList(("river", "dog", "brick wall"), (0.5, 0.25, 0.75))
FOUND = [Tag("river", 0.9), Tag("dog", 0.6), Tag("brick wall", 0.8)]


def test_a_tag_is_said_above_its_threshold_and_not_at_it() -> None:
    logits = torch.tensor([[0.0, 0.0, 5.0], [0.1, -5.0, 1.0], [-9.0, -9.0, -9.0]])
    assert LIST.targets(logits).tolist() == [
        [False, True, True],
        [True, False, False],
        [False, False, False],
    ]
    first, second, third = LIST.decode(logits)
    assert [tag.name for tag in first] == ["dog", "brick wall"]
    assert first[0].score == pytest.approx(0.5)
    assert [LIST.join(one) for one in (first, second, third)] == ["dog, brick wall", "river", ""]


def test_half_precision_is_compared_in_single() -> None:
    logits = torch.tensor([[0.0, -1.0, 1.1]], dtype=torch.bfloat16)
    assert logits.sigmoid()[0, 2] == 0.75  # as rounded; it is 0.7505
    assert LIST.targets(logits).tolist() == [[False, True, True]]


def test_words_that_are_left_out_are_never_said() -> None:
    quiet = TagList(LIST.tags, LIST.thresholds, frozenset({0, 2}))
    assert quiet.join(quiet.decode(torch.full((1, 3), 9.0))[0]) == "dog"


def test_lists_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ModelError, match="1 for 2 tags"):
        TagList(("a", "b"), (0.5,))
    with pytest.raises(ModelError, match=r"1\.5 is no probability"):
        TagList(("a",), (1.5,))
    with pytest.raises(ModelError, match=r"\[3\] is not within 1"):
        TagList(("a",), (0.5,), frozenset({3}))
    with pytest.raises(ModelError, match=r"\(1, 4\) for 3 tags"):
        LIST.decode(torch.zeros(1, 4))


def test_prompt_is_joined_without_stray_commas() -> None:
    assert build_prompt(FOUND, "a postcard", "sharp") == "river, dog, brick wall, a postcard, sharp"
    assert build_prompt(FOUND[:1], "", "sharp") == "river, sharp"
    assert build_prompt([], "", "") == ""
    assert build_prompt([]) == QUALITY
    assert build_prompt([], " a, ", ", b") == "a, b"


def test_released_prompt_has_them() -> None:
    quirky = build_prompt(FOUND[:2], "", "sharp", released_quirks=True)
    assert quirky == "river, dog, ,sharp"


def test_a_prompt_that_is_too_long_loses_its_least_certain_tags() -> None:
    asked: list[str] = []

    def fits(text: str) -> bool:
        asked.append(text)
        return len(text) < 20

    assert build_prompt(FOUND, "", "sharp", fits=fits) == "river, sharp"
    assert asked[1] == "river, brick wall, sharp"
    # words that the user gave are not ours to drop
    assert build_prompt(FOUND, "x" * 30, "sharp", fits=fits) == f"{'x' * 30}, sharp"


def test_lists_survive_a_round_trip(tmp_path: Path) -> None:
    write_tags(LIST, tmp_path)
    assert read_tags(tmp_path, 3) == LIST
    with pytest.raises(OutputError, match="cannot be written"):
        write_tags(LIST, tmp_path / "absent")


def test_lists_are_read_as_published_and_by_windows_editors(tmp_path: Path) -> None:
    (tmp_path / "ram_tag_list.txt").write_bytes(b"\xef\xbb\xbfriver\r\ndog\r\nbrick wall")
    (tmp_path / "ram_tag_list_threshold.txt").write_text("0.5\n0.25\n0.75\n\n")
    assert read_tags(tmp_path) == LIST


def test_without_thresholds_the_published_fallback_is_taken_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "ram_tag_list.txt").write_text("river\ndog\n")
    with caplog.at_level(logging.WARNING, "addsr"):
        tags = read_tags(tmp_path)
    assert tags.thresholds == (FALLBACK_THRESHOLD,) * 2
    assert "0.68 is the threshold of all tags" in caplog.text


def test_lists_that_are_missing_or_damaged_are_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="put it beside the weights"):
        read_tags(tmp_path)
    (tmp_path / "ram_tag_list.txt").write_text("river\ndog\n")
    with pytest.raises(ModelError, match="has 2 tags and the network 6"):
        read_tags(tmp_path, 6)
    thresholds = tmp_path / "ram_tag_list_threshold.txt"
    for text, message in (
        ("0.5\n", "1 for 2 tags"),
        ("0.5\nhalf\n", "half"),
        ("0.5\n2\n", "2.0 is no"),
        ("0.5\nnan\n", "nan is no"),
    ):
        thresholds.write_text(text)
        with pytest.raises(ModelError, match=message):
            read_tags(tmp_path)
    (tmp_path / "ram_tag_list.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelError, match="cannot be read"):
        read_tags(tmp_path)

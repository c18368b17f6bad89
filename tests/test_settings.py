"""Defaults from the environment."""

from __future__ import annotations

import pytest

from addsr.errors import OptionError
from addsr.settings import Settings, parse_size, read_settings


def test_an_empty_environment_gives_the_defaults() -> None:
    assert (
        read_settings({}) == read_settings({"ADDSR_MODEL": "", "ADDSR_MEMORY": " "}) == Settings()
    )


def test_each_variable_is_read() -> None:
    found = read_settings(
        {"ADDSR_MODEL": "a.st", "ADDSR_DEVICE": "cpu", "ADDSR_DTYPE": "fp32", "ADDSR_MEMORY": "3G"}
    )
    assert found == Settings("a.st", "cpu", "fp32", 3 * 2**30)


@pytest.mark.parametrize(
    ("text", "size"),
    [("1024", 1024), ("2.5GiB", 5 * 2**29), ("512 MB", 2**29), ("1k", 1024), ("1T", 2**40)],
)
def test_sizes_may_carry_a_unit(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["much", "-3G", "0", "3X", "inf", "G"])
def test_what_is_no_size_is_told(text: str) -> None:
    with pytest.raises(OptionError, match=r"ADDSR_MEMORY: .* is no size; write for example 3G"):
        parse_size(text)

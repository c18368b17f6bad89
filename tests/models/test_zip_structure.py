"""Archives in which two readers would see different files are refused."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import pytest
import torch

from addsr.errors import ModelError
from addsr.models.pickles import read_state
from addsr.models.zip_structure import entries_of

STATE = {"a": torch.arange(6.0)}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "a.pt"
    torch.save(STATE, path)
    return path


def edit(path: Path, place: int, new: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[place : place + len(new)] = new
    path.write_bytes(content)


def header_of(path: Path, name: str) -> int:
    with zipfile.ZipFile(path) as archive:
        return archive.getinfo(name).header_offset


def zipped(path: Path, compression: int = zipfile.ZIP_STORED) -> Path:
    """The same file as Python's own zipfile writes it."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def refused(path: Path, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        read_state(path)


def test_what_torch_and_zipfile_write_is_taken_with_the_places_of_its_bytes(saved: Path) -> None:
    for path in (saved, zipped(saved)):
        assert torch.equal(read_state(path)["a"], STATE["a"])
        content = path.read_bytes()
        found = {e.name: content[e.start : e.start + e.bytes] for e in entries_of(path)}
        with zipfile.ZipFile(path) as archive:
            assert found == {name: archive.read(name) for name in archive.namelist()}


def test_two_names_of_one_file_are_refused(saved: Path) -> None:
    edit(saved, header_of(saved, "a/data.pkl") + 30, b"a/Xata.pkl")
    refused(saved, r"gives two names of 'a/data\.pkl'")


def test_two_sizes_of_one_file_are_refused(saved: Path) -> None:
    edit(saved, header_of(saved, "a/data/0") + 22, struct.pack("<I", 20))
    refused(saved, r"gives two sizes of 'a/data/0'")


def test_another_method_in_front_of_the_bytes_is_refused(saved: Path) -> None:
    edit(saved, header_of(saved, "a/data.pkl") + 8, struct.pack("<H", 8))
    refused(saved, "is compressed, which torch.save never does")


def test_an_encrypted_entry_is_refused(saved: Path) -> None:
    edit(saved, header_of(saved, "a/data.pkl") + 6, struct.pack("<H", 2056 | 1))
    refused(saved, "is encrypted, which torch.save never does")


def test_an_entry_that_is_not_where_the_list_has_it_is_refused(saved: Path) -> None:
    edit(saved, header_of(saved, "a/version"), b"PKxx")
    refused(saved, r"without 'a/version' where its list has it")


def test_a_list_that_names_one_place_twice_is_refused(saved: Path) -> None:
    content, first = saved.read_bytes(), header_of(saved, "a/data.pkl")
    listed = content.index(b"PK\x01\x02", header_of(saved, "a/version"))
    for _ in range(2):  # the third of the list
        listed = content.index(b"PK\x01\x02", listed + 1)
    edit(saved, listed + 42, struct.pack("<I", first))
    refused(saved, "whose entries overlap|two names")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["a/data.pkl", "a/DATA.pkl"])
def test_a_second_structure_under_the_same_name_is_refused(saved: Path, name: str) -> None:
    with zipfile.ZipFile(zipped(saved), "a") as archive:
        archive.writestr(name, b"\x80\x02}.")
    refused(saved, "has a name twice")


def test_a_list_that_is_found_by_searching_alone_is_refused(saved: Path) -> None:
    # Python mends the places of an archive with something before it; torch takes them as stated
    harmless = zipped(saved).read_bytes()
    saved.write_bytes(harmless + harmless)
    refused(saved, "whose end does not tell where its list of entries is")


def test_a_comment_behind_the_list_is_refused(saved: Path) -> None:
    with zipfile.ZipFile(zipped(saved), "a") as archive:
        archive.comment = b"PK\x05\x06" + bytes(18)
    refused(saved, "cannot be read as tensors alone")


def test_wide_fields_that_contradict_the_narrow_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save(STATE, path)
    content = path.read_bytes()
    place = content.rindex(b"PK\x06\x06")
    start = struct.unpack("<Q", content[place + 48 : place + 56])[0]
    edit(path, place + 48, struct.pack("<Q", start - 1))
    refused(path, "cannot be read as tensors alone")
    path.write_bytes(content)
    edit(path, content.rindex(b"PK\x06\x07") + 8, struct.pack("<Q", 4))
    refused(path, "cannot be read as tensors alone")


def test_a_compressed_checkpoint_and_an_archive_of_others_are_told_apart(saved: Path) -> None:
    refused(zipped(saved, zipfile.ZIP_DEFLATED), "is compressed, which torch.save never does")
    with zipfile.ZipFile(saved, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.ckpt", "x" * 100)
    refused(saved, r"an archive of other files: model\.ckpt; unpack it")

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from addsr.errors import InputError
from addsr.evaluate.pairs import Problem, find_pairs, match_results
from addsr.evaluate.pictures import copy_beside, read_picture, to_image
from addsr.evaluate.protocol import Dataset, Protocol


def save(path: Path, width: int, height: int, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.effect_noise((width, height), 60).convert("RGB")
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def find(
    root: Path, limit: int | None = None, **facts: object
) -> tuple[list[str], dict[str, Problem]]:
    dataset = Dataset("d", root / "hr", root / "lr", **facts)  # type: ignore[arg-type]
    pairs, problems = find_pairs(dataset, Protocol("p", "P", (dataset,)), limit)
    return [pair.name for pair in pairs], {one.image: one for one in problems}


def test_everything_that_does_not_fit_is_named_and_the_rest_is_used(tmp_path: Path) -> None:
    for name in ("good", "also"):
        save(tmp_path / f"hr/{name}.png", 16, 24)
        save(tmp_path / f"lr/{name}.webp", 4, 6)
    save(tmp_path / "hr/small.png", 15, 24)
    save(tmp_path / "lr/small.png", 4, 6)
    save(tmp_path / "hr/alone.png", 16, 24)
    save(tmp_path / "lr/lonely.png", 4, 6)
    save(tmp_path / "hr/twice.png", 16, 24)
    save(tmp_path / "hr/twice.jpg", 16, 24)
    save(tmp_path / "lr/twice.png", 4, 6)
    save(tmp_path / "hr/torn.png", 16, 24)
    (tmp_path / "lr/torn.png").write_text("no picture")
    (tmp_path / "hr/notes.txt").write_text("ignored")
    (tmp_path / "hr/.hidden.png").write_text("ignored")
    names, problems = find(tmp_path)
    assert names == ["also", "good"]
    assert sorted(problems) == ["alone", "lonely", "small", "torn", "twice"]
    assert "15x24 is not 4 times the input 4x6" in problems["small"].problem
    assert problems["small"].remedy == "give a reference of 16x24"
    assert "has no input" in problems["alone"].problem
    assert "has no reference" in problems["lonely"].problem
    assert "twice.jpg and twice.png" in problems["twice"].problem
    assert "is no picture" in problems["torn"].problem
    assert all(one.remedy and one.method is None for one in problems.values())


def test_names_of_published_sets_belong_together(tmp_path: Path) -> None:
    for hr, lr in (("0801", "0801x4"), ("Canon_001_HR", "Canon_001_LR4"), ("a_1", "a_1")):
        save(tmp_path / f"hr/{hr}.png", 8, 8)
        save(tmp_path / f"lr/{lr}.png", 2, 2)
    names, problems = find(tmp_path)
    assert names == ["0801", "Canon_001_HR", "a_1"] and not problems


def test_a_list_a_limit_and_a_count_are_obeyed(tmp_path: Path) -> None:
    for name in ("a", "b", "c.d"):
        save(tmp_path / f"hr/{name}.png", 8, 8)
        save(tmp_path / f"lr/{name}.png", 2, 2)
    assert find(tmp_path, limit=2)[0] == ["a", "b"]
    names, problems = find(tmp_path, images=("c.d", "b.png", "e"))
    assert names == ["b", "c.d"] and list(problems) == ["e"]
    assert "not in the folder" in problems["e"].problem
    _, problems = find(tmp_path, count=5)
    assert "3 pictures where the papers use 5" in problems[""].problem
    assert not find(tmp_path, limit=2, count=5)[1]


def test_a_set_without_any_usable_picture_is_an_error(tmp_path: Path) -> None:
    save(tmp_path / "hr/a.png", 8, 8)
    (tmp_path / "lr").mkdir()
    with pytest.raises(InputError, match="holds no pictures"):
        find(tmp_path)
    save(tmp_path / "lr/a.png", 4, 4)
    with pytest.raises(InputError, match=r"no picture can be used .*8x8 is not 4 times"):
        find(tmp_path)


def test_a_turned_photo_counts_as_it_is_shown(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "lr/a.jpg", 6, 4, exif=exif)  # shown as 4x6
    save(tmp_path / "hr/a.png", 16, 24)
    save(tmp_path / "lr/b.png", 4, 6)
    save(tmp_path / "hr/b.jpg", 24, 16, exif=exif)
    assert find(tmp_path)[0] == ["a", "b"]


@pytest.mark.parametrize("added", ["_x4", "-x4plus", "_out", "x4", ".sr", " (upscaled)", "_a_b"])
def test_results_may_have_something_behind_their_names(added: str) -> None:
    found, missing = match_results(["img", "img_1"], [f"img{added}", f"img_1{added}"])
    assert found == {"img": f"img{added}", "img_1": f"img_1{added}"} and not missing


def test_a_number_behind_a_name_is_another_name() -> None:
    found, missing = match_results(["img"], ["img_2", "img2", "imga"])
    assert not found and missing["img"] == ("has no result", "add img.png")


def test_what_could_be_either_is_named_and_an_exact_name_wins() -> None:
    found, missing = match_results(["a", "b"], ["a_x4", "a_out", "b", "b_out"])
    assert found == {"b": "b"}
    assert "a_out and a_x4 could all be its result" in missing["a"][0]


@given(st.sets(st.text("ab_1", min_size=1, max_size=4), min_size=1, max_size=6))
def test_exact_names_are_always_found(names: set[str]) -> None:
    found, missing = match_results(sorted(names), sorted(names))
    assert found == {name: name for name in names} and not missing


def test_a_crop_takes_the_same_part_of_input_reference_and_result(tmp_path: Path) -> None:
    lr = Image.new("RGB", (9, 7))
    for x in range(9):
        for y in range(7):
            lr.putpixel((x, y), (x * 28, y * 36, 0))
    for folder in ("lr", "hr"):
        (tmp_path / folder).mkdir()
    lr.save(tmp_path / "lr/a.png")
    lr.resize((36, 28), Image.Resampling.NEAREST).save(tmp_path / "hr/a.png")
    dataset = Dataset("d", tmp_path / "hr", tmp_path / "lr", crop=16)
    ((pair,), problems) = find_pairs(dataset, Protocol("p", "P", (dataset,)))
    assert not problems and pair.size == (16, 16) and pair.full == (28, 36)
    assert pair.lr is not None and pair.hr is not None
    small, large = read_picture(pair.lr, pair, is_input=True), read_picture(pair.hr, pair)
    assert small.shape == (1, 3, 4, 4) and large.shape == (1, 3, 16, 16)
    assert (large[..., ::4, ::4] == small).all()
    # a result that was made of the cropped input is taken as it is
    to_image(large).save(tmp_path / "cut.png")
    assert (read_picture(tmp_path / "cut.png", pair) == large).all()
    save(tmp_path / "wrong.png", 20, 20)
    with pytest.raises(InputError, match="is 20x20 and not 36x28 or, cut already, 16x16"):
        read_picture(tmp_path / "wrong.png", pair)
    shown = copy_beside(pair.lr, pair, tmp_path / "beside" / "lr", is_input=True)
    with Image.open(shown) as image:
        assert image.size == (4, 4)


def test_pictures_too_small_for_the_crop_are_named(tmp_path: Path) -> None:
    for name, side in (("a", 64), ("b", 32)):
        save(tmp_path / f"hr/{name}.png", side, side)
        save(tmp_path / f"lr/{name}.png", side // 4, side // 4)
    names, problems = find(tmp_path, crop=48)
    assert names == ["a"] and "32x32 is smaller than the crop of 48" in problems["b"].problem


def test_pictures_that_are_left_out_keep_their_results() -> None:
    found, missing = match_results(["a"], ["a_b_x4", "a_x4"], others=["a", "a_b"])
    assert found == {"a": "a_x4"} and not missing
    found, missing = match_results(["a"], ["a_b_x4"], others=["a", "a_b"])
    assert not found and list(missing) == ["a"]

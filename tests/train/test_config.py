"""Recipes: what is right is parsed, what is wrong is named with its field, value and remedy."""

from __future__ import annotations

import typing
from pathlib import Path

import pytest

from addsr.errors import ConfigError
from addsr.train.config import TASKS, StudentConfig, load_recipe, parse_override

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize("name", list(TASKS))
@pytest.mark.parametrize("suffix", ["", "-smoke"])
def test_every_recipe_in_the_repository_parses(name: str, suffix: str) -> None:
    recipe = load_recipe(name, RECIPES / f"{name}{suffix}.toml")
    assert recipe.task_name == name
    assert recipe.data.train


def test_both_commands_offer_every_training(capsys: pytest.CaptureFixture[str]) -> None:
    from addsr.cli import train
    from addsr.train.__main__ import main

    assert set(typing.get_args(typing.get_type_hints(train)["task"])) == set(TASKS)
    with pytest.raises(SystemExit):
        main(["none", "--config", "recipe.toml"])
    told = capsys.readouterr().err
    assert all(name in told.partition("choose from")[2] for name in TASKS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[run]\nbatch = 1", r"run\.batch = 1 .*from 2"),
        ("[run]\nbatch = 'many'", r"run\.batch = 'many' .*give a whole number"),
        ("[run]\nbatch = true", r"run\.batch = True"),
        ("[run]\nprecision = 'fp8'", r"run\.precision = 'fp8' .*bf16 or fp32"),
        ("[run]\nbatches = 3", r"run\.batches is unknown.*batch"),
        ("[running]\nbatch = 3", r"unknown table \[running\].*known are run"),
        ("[optim]\nlearning_rate = -1.0", r"optim\.learning_rate = -1\.0"),
        ("[optim]\nbetas = [0.9]", r"optim\.betas = \[0\.9\].*list of 2"),
        ("[optim]\nbetas = [1.9, 5]", r"optim\.betas = \(1\.9, 5\.0\)"),
        ("[optim]\nweight_decay = -5", r"optim\.weight_decay = -5\.0"),
        ("[data]\ntrain = ['x']\nmixture = 'foo'", r"data\.mixture = 'foo' .*mild, strong"),
        ("[data]\ntrain = ['x']\ncrop_px = 100", r"data\.crop_px = 100 .*multiple of 64"),
        ("[task]\none_step_share = 2.0", r"task\.one_step_share = 2\.0"),
        ("[run", r"not a readable TOML"),
    ],
)
def test_a_wrong_recipe_names_field_value_and_remedy(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "r.toml"
    if "[data]" not in text:
        text += "\n[data]\ntrain = ['x']\n"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_recipe("teacher", path)


def test_a_missing_recipe_and_an_unknown_task_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such recipe"):
        load_recipe("teacher", tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="one of teacher, student, features"):
        load_recipe("distill", tmp_path / "none.toml")


def test_whole_numbers_are_taken_where_a_float_is_meant(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text("[optim]\nclip = 2\n[data]\ntrain = 'folder'\n")
    recipe = load_recipe("teacher", path)
    assert recipe.optim.clip == 2.0
    assert recipe.data.train == ("folder",)


def test_overrides_go_through_the_same_checks(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text("[data]\ntrain = ['x']\n")
    table, name, value = parse_override("run.batch=32")
    assert load_recipe("teacher", path, {table: {name: value}}).run.batch == 32
    assert parse_override("run.output=some/where") == ("run", "output", "some/where")
    with pytest.raises(ConfigError, match=r"run\.batch = 0"):
        load_recipe("teacher", path, {"run": {"batch": 0}})
    with pytest.raises(ConfigError, match=r"TABLE\.FIELD=VALUE"):
        parse_override("batch=3")


def test_student_shares_must_feed_each_other() -> None:
    with pytest.raises(ConfigError, match="each step feeds the next"):
        StudentConfig(shares=(0.2, 0.4, 0.2, 0.2))
    with pytest.raises(ConfigError, match="sum 1"):
        StudentConfig(shares=(0.5, 0.2, 0.2, 0.2))


@pytest.mark.parametrize(
    ("task", "text", "message"),
    [
        ("stablesr", "[run]\nbatch = 0", r"run\.batch = 0 .*from 1"),
        ("stablesr", "[run]\naccumulate = 0", r"run\.accumulate = 0 .*from 1"),
        ("stablesr", "[task]\nprediction = 'x0'", r"task\.prediction = 'x0' .*eps or v"),
        ("stablesr", "[task]\nclean_share = 2.0", r"task\.clean_share = 2\.0 .*0 to 1"),
        ("stablesr", "[task]\nlr_dropout = -0.1", r"task\.lr_dropout = -0\.1"),
        ("stablesr", "[task]\nsft_init = 'zero'", r"task\.sft_init = 'zero' .*identity"),
        ("stablesr", "[task]\nlatent_reuse = 0", r"task\.latent_reuse = 0 .*from 1"),
        ("stablesr", "[task]\nlpips = 'x'", r"task\.lpips is unknown; \[task\] has base"),
        ("stablesr", "[data]\ntrain = ['x']\nsharpen = -1.0", r"data\.sharpen = -1\.0"),
        ("stablesr", "[data]\ntrain = ['x']\ntextured = 3.0", r"data\.textured = 3\.0"),
        ("stablesr", "[data]\ntrain = ['x']\nturned = 1", r"data\.turned = 1 .*true or false"),
        ("cfw", "[task]\nadversarial = 'off'", r"task\.adversarial = 'off' .*adaptive"),
        ("cfw", "[task]\nheld_out = 0", r"task\.held_out = 0 .*from 1"),
        ("cfw", "[task]\nadversarial_weight = -1.0", r"task\.adversarial_weight = -1\.0"),
    ],
)
def test_wrong_fields_of_latent_trainings_are_named_too(
    tmp_path: Path, task: str, text: str, message: str
) -> None:
    path = tmp_path / "r.toml"
    if "[data]" not in text:
        text += "\n[data]\ntrain = ['x']\n"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_recipe(task, path)


def test_a_gradient_that_is_never_clipped_is_written_inf(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text("[data]\ntrain = ['x']\n[optim]\nclip = inf\n")
    assert load_recipe("stablesr", path).optim.clip == float("inf")

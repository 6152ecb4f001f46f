"""A recipe at the door: any file, any text and any override is a recipe or one clear message."""

import os
import time

import pytest
import tomli_w

from kdscale.config import load_recipe
from kdscale.errors import ConfigError


@pytest.fixture
def text(recipe_table):
    """A whole recipe as TOML, with `[student]` last."""
    table = recipe_table()
    table["student"].pop("train")
    table["student"].pop("options")
    return tomli_w.dumps(table)


def problem(path, *overrides):
    """What is said of a recipe, within a second and a few lines."""
    began = time.monotonic()
    with pytest.raises(ConfigError) as refused:
        load_recipe(str(path), overrides)
    assert time.monotonic() - began < 5  # on a loaded machine
    said = str(refused.value)
    assert max(map(len, said.splitlines())) < 2000
    return said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("options = {a = " + "[" * 10_000 + "]" * 10_000 + "}", "nested too deeply"),
        ("options = {a = " + "[" * 200 + "]" * 200 + "}", "nested more than 50 deep"),
        (".".join(["a"] * 20_000) + " = 1", "a key has more than 200 parts"),
        (".".join(['"a"'] * 150) + " = 1", "nested more than 50 deep"),
        ("a.b = 1\na.b.c = 2", "not valid TOML"),
        ("x = " + "9" * 100_000, "4300 digits"),
        ("options = {a = inf}", "wanted a finite number"),
        ("options = {a = [{b = nan}]}", "wanted a finite number"),
        ("options = {a = 1979-05-27}", "a date cannot be written"),
        ("options = {a = 07:32:00}", "a time cannot be written"),
        ("weights = 'a\\u0000b'", "is not"),
        ('weights = "a\\u0000b.safetensors"', "no zero byte"),
        (f"weights = '{'w' * 300}.safetensors'", "at most 255 bytes"),
        (f"model2 = '{'m' * 3_000_000}'", "unknown key 'student.model2'"),
        (f"rename = '{'m' * 3_000_000}'", "3,000,006 characters"),
        (f"{'k' * 1_000_000} = 1", "unknown key"),
        ("memory_format = true", "unknown key"),
        ("train = {epochs = true}", "epochs is True"),
        ("train = {epochs = inf}", "epochs is inf"),
        ("train = {epochs = 99999999999999999999}", "less than 2147483648"),
        ("train = {epochs = 1, learning_rate = nan}", "finite"),
        ("train = {epochs = 1.0}", "valid integer"),
        ("#" * (5 << 20), "wanted at most"),
    ],
    ids=lambda value: value[:40],
)
def test_text_that_is_no_recipe_is_refused(tmp_path, text, line, said):
    (tmp_path / "r.toml").write_text(f"{text}{line}\n")
    if line == "weights = 'a\\u0000b'":  # between single quotes it is text: six letters
        assert load_recipe(str(tmp_path / "r.toml")).student.weights
        return
    assert said in problem(tmp_path / "r.toml")


@pytest.mark.parametrize(
    "override",
    ["", "=1", "x", "..=1", "data.source.x=1", "data=5", "a" + ".a" * 5_000 + "=1",
     "student.options.a=" + "[" * 30 + "]" * 30 + "]", "student.train.epochs=inf",
     "student.options.a=" + "9" * 100, "views.count=0", "name=" + "n" * 300, "name=../x"],
    ids=lambda value: value[:30],
)  # fmt: skip
def test_any_override_is_one_or_is_refused(tmp_path, text, override):
    (tmp_path / "r.toml").write_text(text)
    try:
        load_recipe(str(tmp_path / "r.toml"), [override])
    except ConfigError as refused:
        assert max(map(len, str(refused).splitlines())) < 2000  # noqa: PT017
    else:
        assert override.startswith("student.options.a")


def test_byte_order_mark_of_an_editor_is_no_part_of_a_recipe(tmp_path, text):
    (tmp_path / "r.toml").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert load_recipe(str(tmp_path / "r.toml")).name == "tiny"


def test_what_is_no_file_of_text_is_reported(tmp_path, text):
    os.mkfifo(tmp_path / "pipe.toml")
    assert "a pipe" in problem(tmp_path / "pipe.toml")
    (tmp_path / "folder.toml").mkdir()
    assert "is a folder" in problem(tmp_path / "folder.toml")
    assert "is a folder" in problem(tmp_path)
    (tmp_path / "endless.toml").symlink_to("/dev/zero")
    assert "a device" in problem(tmp_path / "endless.toml")
    assert "a device" in problem("/dev/zero")
    (tmp_path / "wide.toml").write_bytes(text.encode("utf-16"))
    assert "is not UTF-8" in problem(tmp_path / "wide.toml")
    (tmp_path / "lost.toml").symlink_to(tmp_path / "nowhere")
    assert "no recipe file" in problem(tmp_path / "lost.toml")
    assert "no recipe" in problem("n" * 300)
    assert "too long" in problem("n" * 300 + ".toml")


def test_link_to_a_recipe_is_followed(tmp_path, text):
    (tmp_path / "r.toml").write_text(text)
    (tmp_path / "link.toml").symlink_to("r.toml")
    assert load_recipe(str(tmp_path / "link.toml")).name == "tiny"


def test_name_is_one_that_a_folder_can_have(tmp_path, text):
    (tmp_path / "r.toml").write_text(text)
    assert "at most 200 characters" in problem(tmp_path / "r.toml", f"name={'n' * 201}")
    assert len(load_recipe(str(tmp_path / "r.toml"), [f"name={'n' * 200}"]).name) == 200


# --------------------------------------------------------------------------- the home folder


def test_every_path_of_a_recipe_knows_the_home_folder(tmp_path, text, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "r.toml").write_text(text)
    recipe = load_recipe(
        "~/r.toml",
        ["data.source=~/d", "teacher.weights=~/w.safetensors", "ensemble.caches=['~/c.zarr']",
         "teacher.train.pretrained=~/p.pth"],
    )  # fmt: skip
    assert recipe.data.source == str(tmp_path / "d")
    assert recipe.teacher.weights == str(tmp_path / "w.safetensors")
    assert recipe.ensemble.caches == [str(tmp_path / "c.zarr")]
    assert recipe.teacher.train.pretrained == str(tmp_path / "p.pth")


def test_every_path_of_a_command_knows_the_home_folder(
    kdscale, text, tiny_teacher, cache_copy, tmp_path, monkeypatch
):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    (home / "r.toml").write_text(text)
    cache_copy.rename(home / "copy.zarr")
    (home / "data").symlink_to(load_recipe(str(home / "r.toml")).data.source)

    def done(*words):
        result = kdscale(*words)
        assert result.exit_code == 0, result.stderr

    done("train", "~/r.toml", "--model", "teacher", "--set", "teacher.train.epochs=1",
         "--run=~/run", "--cache-root=~/root", "--data=~/data")  # fmt: skip
    done("evaluate", "~/run", "--seconds=0", "--cache-root=~/root")
    done("export", "~/run", "--format=safetensors", "--out=~/t.safetensors", "--cache-root=~/root")
    done("report", "~/run", "--html=~/r.html", "--markdown=~/r.md", "--csv=~/r.csv")
    done("views", "~/r.toml", "--out=~/v.png", "--cache-root=~/root")
    done("cache", "info", "~/copy.zarr")
    done("cache", "verify", "~/copy.zarr")
    done("cache", "push", "~/copy.zarr", "~/pushed.zarr")
    done("recipes", "~/r.toml")
    names = {"run", "root", "t.safetensors", "r.html", "r.md", "r.csv", "v.png", "pushed.zarr"}
    assert names <= {path.name for path in home.iterdir()}
    assert not list(tmp_path.glob("~*"))


@pytest.mark.parametrize("words", [("train", "r.toml", "--run"), ("cache", "info"), ("evaluate",)])
def test_name_that_no_file_can_have_is_refused_before_anything(kdscale, tmp_path, text, words):
    (tmp_path / "r.toml").write_text(text)
    done = kdscale(*words, "n" * 300)
    assert done.exit_code == 2
    assert "more than 255 bytes" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["r.toml"]


def test_folder_with_two_colons_in_its_name_is_a_folder(kdscale, tmp_path, text):
    place = tmp_path / "a::b"
    place.mkdir()
    (place / "r.toml").write_text(text)
    words = ("--run", place / "run", "--cache-root", place / "root")
    done = kdscale("train", place / "r.toml", "--model", "teacher", *words)
    assert done.exit_code == 0, done.stderr
    done = kdscale("cache", "build", place / "r.toml", "--cache-root", place / "root",
                   "--set", f"teacher.weights={place / 'run' / 'weights.safetensors'}")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    done = kdscale("cache", "verify", place / "root" / "tiny.zarr")
    assert done.exit_code == 0, done.stderr

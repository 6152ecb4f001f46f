"""Previews: their content, what they refuse, and that files are whole or absent."""

import io
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from kdscale import experiment
from kdscale.cache.manifest import read_manifest, write_manifest
from kdscale.cache.reader import CacheReader
from kdscale.commands import preview
from kdscale.data.loader import DeviceImages
from kdscale.data.views.pipeline import Pipeline
from kdscale.errors import ConfigError
from kdscale.models.registry import create_model
from kdscale.models.weights import save_weights
from kdscale.preview import sheet_drawing
from kdscale.preview.sheet_drawing import (
    ClassShare,
    Prediction,
    PreviewSheet,
    SampleRow,
    ViewTile,
    draw,
    fitted,
    width_of,
    wrapped,
)
from kdscale.preview.view_samples import ClassNames, ViewSamples, balanced_samples, drawable

CPU = torch.device("cpu")


@pytest.fixture
def drawn(monkeypatch):
    """The sheets that were drawn."""
    sheets = []

    def remember(sheet):
        sheets.append(sheet)
        return draw(sheet)

    monkeypatch.setattr(preview, "draw", remember)
    return sheets


@pytest.fixture
def show_tiny(kdscale, tiny_cache, shared_root):
    """`kdscale cache show` of the tiny cache."""
    return lambda *args: kdscale("cache", "show", tiny_cache, "--cache-root", shared_root, *args)


def refused(done, exit_code, *parts):
    assert done.exit_code == exit_code, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("Error: ") == 1
    for part in parts:
        assert part in done.stderr


def noise(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (channels, height, width), np.uint8)


def sheet_of(*pictures, name="cat", title="title"):
    columns = tuple(f"view {number}" for number in range(len(pictures)))
    return PreviewSheet(title, ("words",), columns, (SampleRow(name, "image 1", pictures),))


# --------------------------------------------------------------------------- of a cache


def test_preview_of_a_cache_has_the_stored_predictions(
    show_tiny, drawn, tiny_cache, tmp_path, load_table, shared_root
):
    done = show_tiny("--out", "sheet.png", "--samples", "8", "--views", "2")
    assert (done.exit_code, done.stdout) == (0, "sheet.png\n")
    (sheet,) = drawn
    assert sheet.columns == ("clean", "view 0", "view 1")
    assert [row.name for row in sheet.rows] == [
        name for name in ("centre", "north", "sides", "south") for _ in range(2)
    ]
    images = experiment.training_images(load_table(), shared_root, labelled=True)
    logits = CacheReader(tiny_cache).read_view(1)["logits"]
    for row in sheet.rows:
        index = int(row.note.removeprefix("image "))
        assert row.name == images.classes[images.labels[index]]
        np.testing.assert_array_equal(row.tiles[0].pixels, images.pixels[index])
        probabilities = torch.from_numpy(logits[index]).softmax(0)
        best = probabilities.argsort(descending=True)[:3].tolist()
        answers = row.tiles[2].predictions
        assert [answer.name for answer in answers] == [images.classes[label] for label in best]
        assert [answer.probability for answer in answers] == pytest.approx(
            probabilities[best].tolist()
        )
        assert [answer.right for answer in answers] == [
            label == images.labels[index] for label in best
        ]


def test_views_are_those_of_the_pipeline_and_differ(show_tiny, drawn, load_table, shared_root):
    show_tiny("--out", "sheet.png")
    (sheet,) = drawn
    assert len(sheet.rows) == 10
    assert sheet.columns == ("clean", "view 0", "view 1", "view 2")  # all that there are
    recipe = load_table()
    images = experiment.training_images(recipe, shared_root, labelled=True)
    index = torch.tensor([int(row.note.removeprefix("image ")) for row in sheet.rows])
    for view in range(3):
        batch = DeviceImages(images, CPU).render_views(
            experiment.pipeline(recipe, len(index)), view, index
        )
        for row, pixels in zip(sheet.rows, batch.pixels, strict=True):
            np.testing.assert_array_equal(row.tiles[view + 1].pixels, pixels)
    seen = {row.tiles[view].pixels.tobytes() for row in sheet.rows for view in range(4)}
    assert len(seen) > 30


@pytest.mark.parametrize(
    ("ending", "kind"), [("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP"), ("PNG", "PNG")]
)
def test_ending_says_what_kind_of_picture_is_written(show_tiny, tmp_path, ending, kind):
    done = show_tiny("--out", f"new/sheet.{ending}", "--samples", "2")
    assert done.exit_code == 0, done.stderr
    with Image.open(tmp_path / "new" / f"sheet.{ending}") as image:
        assert image.format == kind
        assert image.mode == "RGB"
        image.load()
    assert [path.name for path in (tmp_path / "new").iterdir()] == [f"sheet.{ending}"]


def test_seed_chooses_other_samples(show_tiny, drawn):
    for seed in (0, 0, 1):
        show_tiny("--out", "sheet.png", "--samples", "4", "--seed", seed)
    first, again, other = ([row.note for row in sheet.rows] for sheet in drawn)
    assert first == again
    assert first != other


def test_data_may_lie_elsewhere(show_tiny, dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / "moved")
    done = show_tiny("--out", "sheet.png", "--samples", "2", "--data", "moved")
    assert done.exit_code == 0, done.stderr


def test_other_data_is_refused_and_both_fingerprints_are_named(
    show_tiny, make_dataset, tiny_cache, tmp_path
):
    make_dataset(tmp_path / "other", seed=7)
    done = show_tiny("--out", "sheet.png", "--data", "other")
    expected = read_manifest(tiny_cache).dataset["fingerprint"][:12]
    refused(done, 1, expected, "those of other have", "--data")
    assert not (tmp_path / "sheet.png").exists()


def test_data_with_other_classes_is_refused_alike(show_tiny, tmp_path):
    for label in ("a", "b"):
        folder = tmp_path / "other" / "train" / label
        folder.mkdir(parents=True)
        buffer = io.BytesIO()
        Image.fromarray(noise(8, 8).transpose(1, 2, 0)).save(buffer, "PNG")
        (folder / "1.png").write_bytes(buffer.getvalue())
    refused(show_tiny("--out", "sheet.png", "--data", "other"), 1, "fingerprint", "--data")


def test_pixels_that_the_teacher_did_not_see_are_refused(
    kdscale, cache_copy, shared_root, monkeypatch, tmp_path
):
    replayed = Pipeline.from_description
    monkeypatch.setattr(
        Pipeline,
        "from_description",
        lambda description: replace(replayed(description), seed=description["seed"] + 1),
    )
    done = kdscale("cache", "show", cache_copy, "--cache-root", shared_root, "--out", "sheet.png")
    refused(done, 1, "in view 0", "are not the pixels the teacher saw")
    assert not (tmp_path / "sheet.png").exists()


def test_chosen_classes_are_chosen_again(kdscale, write_recipe, drawn):
    recipe = write_recipe(data={"classes": ["south", "north"]}, teacher={"train": {"epochs": 1}})
    assert kdscale("train", recipe, "--model", "teacher", "--run", "teacher").exit_code == 0
    weights = ("--set", "teacher.weights=teacher/weights.safetensors")
    built = kdscale("cache", "build", recipe, *weights)
    done = kdscale("cache", "show", built.stdout.strip(), "--out", "sheet.png")
    assert done.exit_code == 0, done.stderr
    assert {row.name for row in drawn[0].rows} == {"south", "north"}


def test_embedded_data_is_found_again(kdscale, write_recipe, drawn, tmp_path):
    model = create_model("mnist-mlp", num_classes=10, in_channels=1)
    save_weights(tmp_path / "weights.safetensors", model, metadata={})
    teacher = {
        "model": "mnist-mlp",
        "options": {},
        "weights": str(tmp_path / "weights.safetensors"),
    }
    recipe = write_recipe(
        data={"source": "embedded:mnist-small"}, views={"count": 1}, teacher=teacher
    )
    built = kdscale("cache", "build", recipe, "--set", "cache.shard_samples=5000")
    assert built.exit_code == 0, built.stderr
    done = kdscale("cache", "show", built.stdout.strip(), "--out", "sheet.png")
    assert done.exit_code == 0, done.stderr
    assert [row.name for row in drawn[0].rows] == list("0123456789")


def test_preview_of_an_unlabelled_cache_has_no_verdicts(
    kdscale, write_recipe, make_dataset, tiny_teacher, drawn, tmp_path
):
    make_dataset(tmp_path / "bare", unlabelled=True)
    recipe = write_recipe(
        data={"source": str(tmp_path / "bare")},
        teacher={"weights": tiny_teacher},
        loss={"hard_weight": 0.0, "soft_weight": 1.0},
    )
    built = kdscale("cache", "build", recipe)
    assert built.exit_code == 0, built.stderr
    done = kdscale("cache", "show", built.stdout.strip(), "--out", "sheet.png")
    assert done.exit_code == 0, done.stderr
    (sheet,) = drawn
    assert {row.name for row in sheet.rows} == {"unlabelled"}
    assert {answer.right for row in sheet.rows for answer in row.tiles[1].predictions} == {None}


# --------------------------------------------------------------------------- mixed views


@pytest.fixture
def mixed_recipe(write_recipe, tiny_teacher):
    return write_recipe(
        views={"operations": [{"name": "mixup", "p": 0.7}]}, teacher={"weights": tiny_teacher}
    )


def test_mixed_views_name_the_partner_and_the_shares(kdscale, mixed_recipe, drawn):
    built = kdscale("cache", "build", mixed_recipe)
    done = kdscale("cache", "show", built.stdout.strip(), "--out", "sheet.png")
    assert done.exit_code == 0, done.stderr
    (sheet,) = drawn
    pictures = [(row.name, picture) for row in sheet.rows for picture in row.tiles[1:]]
    assert {len(picture.shares) for _, picture in pictures} == {1, 2}  # p is 0.7
    for own, picture in pictures:
        assert picture.shares[0].name == own
        assert sum(share.share for share in picture.shares) == 1
        largest = max(share.share for share in picture.shares)
        heavy = {share.name for share in picture.shares if share.share == largest}
        if len(picture.shares) == 2 and picture.shares[1].name == own:
            heavy = {own}
        assert [answer.right for answer in picture.predictions] == [
            answer.name in heavy for answer in picture.predictions
        ]


def test_preview_of_a_recipe_needs_no_cache(kdscale, mixed_recipe, drawn, tmp_path):
    done = kdscale("views", mixed_recipe, "--out", "sheet.png", "--samples", "3", "--views", "2")
    assert (done.exit_code, done.stdout) == (0, "sheet.png\n"), done.stderr
    (sheet,) = drawn
    assert sheet.columns == ("clean", "view 0", "view 1")
    assert not any(picture.predictions for row in sheet.rows for picture in row.tiles)
    assert all(picture.shares for row in sheet.rows for picture in row.tiles[1:])
    assert "mixup (p 0.7)" in " ".join(sheet.lines)
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.toml", "sheet.png", "cache"}
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"images"}


def test_recipe_without_operations_shows_its_images_once(kdscale, write_recipe, drawn):
    recipe = write_recipe(views={"operations": [], "count": 1})
    assert kdscale("views", recipe, "--out", "sheet.png").exit_code == 0
    assert drawn[0].columns == ("view 0",)
    assert "unchanged images" in " ".join(drawn[0].lines)


def test_preview_of_fixed_mode_has_the_students_views(kdscale, write_recipe, drawn):
    recipe = write_recipe(views={"mode": "fixed", "count": 1})
    assert kdscale("views", recipe, "--out", "sheet.png").exit_code == 0
    assert len(drawn[0].columns) == 1 + 6


def test_images_of_several_sizes_are_drawn_whole(kdscale, write_recipe, drawn, tmp_path):
    for split in ("train", "test"):
        for number in range(6):
            folder = tmp_path / "photos" / split / "ab"[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = noise(20 + number, 40, seed=number).transpose(1, 2, 0)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    crop = {"name": "random_resized_crop", "size": 16}
    recipe = write_recipe(
        data={"source": str(tmp_path / "photos"), "clean": [{"name": "resize", "size": [16, 16]}]},
        views={"operations": [crop]},
    )
    done = kdscale("views", recipe, "--out", "sheet.png")
    assert done.exit_code == 0, done.stderr
    clean = {row.tiles[0].pixels.shape for row in drawn[0].rows}
    assert clean == {(3, 20 + number, 40) for number in range(6)}
    assert {row.tiles[1].pixels.shape for row in drawn[0].rows} == {(3, 16, 16)}


# --------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "exit_code", "parts"),
    [
        (["--out", "sheet.gif"], 2, ["sheet.gif", ".png, .jpg, .webp"]),
        (["--out", "sheet"], 2, ["the ending names"]),
        (["--out", "."], 2, ["is a directory"]),
        ([], 2, ["--out"]),
        (["--out", "sheet.png", "--views", "4"], 2, ["--views 4", "has 3 views"]),
        (["--out", "sheet.png", "--samples", "129"], 2, ["--samples 129", "has 128 samples"]),
        (["--out", "sheet.png", "--samples", "0"], 2, ["--samples"]),
        (["--out", "sheet.png", "--seed", "-1"], 2, ["--seed"]),
        (["--out", "file/sheet.png"], 1, ["cannot write file/sheet.png"]),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else None,
)
def test_what_cannot_be_drawn_is_one_message(show_tiny, tmp_path, arguments, exit_code, parts):
    (tmp_path / "file").write_text("")
    refused(show_tiny(*arguments), exit_code, *parts)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_more_views_than_the_recipe_has_are_refused_with_how_to_get_them(kdscale, write_recipe):
    done = kdscale("views", write_recipe(), "--out", "sheet.png", "--views", "9")
    refused(done, 2, "recipe 'tiny' has 3", "--set views.count=9")


def test_cache_that_is_unfinished_damaged_or_not_there_is_refused(
    kdscale, cache_copy, shared_root, tmp_path
):
    def shown(path=cache_copy):
        return kdscale("cache", "show", path, "--cache-root", shared_root, "--out", "sheet.png")

    refused(shown("nowhere"), 1, "no cache at nowhere")
    manifest = read_manifest(cache_copy)
    write_manifest(cache_copy, replace(manifest, complete=False))
    refused(shown(), 1, "is not complete")
    write_manifest(cache_copy, manifest)
    (cache_copy / "logits" / "c" / "1" / "2" / "0").unlink()
    refused(kdscale("cache", "show", cache_copy, "--cache-root", shared_root, "--samples", "128",
                    "--out", "sheet.png"), 1, "view-00001/shard-00002", "cache verify")  # fmt: skip
    assert not (tmp_path / "sheet.png").exists()


# --------------------------------------------------------------------------- which samples


def test_samples_are_spread_over_the_classes():
    labels = np.repeat([0, 1, 2, 3], [100, 5, 1, 40])
    chosen = balanced_samples(labels, 9, 0)
    assert np.bincount(labels[chosen])[2] == 1  # all that there is
    assert sorted(np.bincount(labels[chosen])) == [1, 2, 3, 3]
    assert len(set(chosen.tolist())) == 9
    assert (np.diff(labels[chosen]) >= 0).all()
    assert len(set(labels[balanced_samples(labels, 4, 1)])) == 4


def test_samples_are_a_function_of_the_seed():
    labels = np.arange(1000) % 200
    assert torch.equal(balanced_samples(labels, 10, 3), balanced_samples(labels, 10, 3))
    assert not torch.equal(balanced_samples(labels, 10, 3), balanced_samples(labels, 10, 4))
    assert len(set(labels[balanced_samples(labels, 10, 3)])) == 10
    assert balanced_samples(np.full(7, -1), 7, 0).tolist() == list(range(7))


# --------------------------------------------------------------------------- drawing


def test_small_pictures_are_enlarged_by_a_whole_factor():
    pixels = noise(32, 28)
    sheet = np.asarray(draw(sheet_of(ViewTile(pixels))))
    enlarged = pixels.transpose(1, 2, 0).repeat(4, 0).repeat(4, 1)
    windows = np.lib.stride_tricks.sliding_window_view(sheet[..., 0], enlarged.shape[:2])
    found = (windows[:, :, ::31, ::31] == enlarged[::31, ::31, 0]).all((2, 3))
    ((top, left),) = np.argwhere(found)
    np.testing.assert_array_equal(sheet[top : top + 128, left : left + 112], enlarged)


@pytest.mark.parametrize(("height", "width"), [(300, 500), (500, 300), (1, 9000)])
def test_large_pictures_are_reduced_in_their_shape(height, width):
    small = draw(sheet_of(ViewTile(noise(144, 144))))
    assert draw(sheet_of(ViewTile(noise(height, width)))).height <= small.height


def test_sheet_grows_with_rows_columns_and_words():
    picture = ViewTile(noise(32, 32))
    answers = tuple(Prediction(name, 0.3, name == "a") for name in "abc")
    one = draw(sheet_of(*[picture] * 5))
    assert draw(sheet_of(*[picture] * 6)).width == one.width + 128 + 18
    row = SampleRow("a", "image 0", (picture,) * 5)
    assert (
        draw(PreviewSheet("t", ("words",), ("v",) * 5, (row,) * 3)).height == one.height + 2 * 154
    )
    told = draw(sheet_of(*[replace(picture, predictions=answers)] * 5))
    assert told.height > one.height + 3 * 18


def test_few_narrow_rows_stand_side_by_side():
    rows = tuple(
        SampleRow(str(label), "image 0", (ViewTile(noise(28, 28)),)) for label in range(10)
    )
    sheet = draw(PreviewSheet("t", ("words",), ("view 0",), rows))
    assert 1000 < sheet.width < 1500
    assert sheet.height < 600


def test_grey_pictures_are_drawn_like_coloured_ones():
    grey = noise(16, 16, channels=1)
    assert draw(sheet_of(ViewTile(grey))) == draw(sheet_of(ViewTile(np.repeat(grey, 3, 0))))


def test_right_and_wrong_answers_differ_without_colour():
    def dark(right):
        picture = ViewTile(noise(32, 32), predictions=(Prediction("cat", 0.9, right),))
        return np.asarray(draw(sheet_of(picture)).convert("L"))[:290] < 150  # above the legend

    assert (dark(True) != dark(None)).sum() > 15  # a tick
    assert (dark(False) != dark(None)).sum() > 300  # a cross, and the frame
    assert (dark(False) != dark(True)).sum() > 300


def test_long_and_odd_names_do_not_leave_their_place():
    long = "a name that goes on and on " * 20
    shares = (ClassShare(long, 0.5), ClassShare(long, 0.5))
    picture = ViewTile(noise(32, 32), shares, (Prediction(long, 0.999, True),))
    sheet = np.asarray(draw(sheet_of(*[picture] * 3, name=long, title=long)))
    short = replace(
        picture, shares=(ClassShare("a", 0.5),) * 2, predictions=(Prediction("a", 0.999, True),)
    )
    assert sheet.shape[1] - draw(sheet_of(*[short] * 3)).width < 120
    assert (sheet[:, :20] == 255).all()
    assert (sheet[:, -20:] == 255).all()


def test_sheet_beyond_what_files_hold_is_refused():
    row = SampleRow("a", "image 0", (ViewTile(noise(8, 8)),) * 200)
    with pytest.raises(ConfigError, match="fewer --samples or --views"):
        draw(PreviewSheet("t", (), ("v",) * 200, (row,)))


# --------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("cat", "cat"),
        ("n01443537", "n01443537"),
        ("café señor Žižka", "café señor Žižka"),
        ("Straße", "Straße"),
        ("two\nlines\tand more", "two lines and more"),
        ("猫", "class 3"),
        ("кошка", "кошка"),
        ("\x00\uffff", "class 3"),
        ("", "class 3"),
    ],
)
def test_names_are_drawn_in_letters_that_the_font_has(name, shown):
    assert ClassNames(["", "", "", name])[3] == shown


def test_classes_without_names_are_numbered():
    assert ClassNames(())[5] == "class 5"
    assert ClassNames(("a",))[-1] == "unlabelled"
    assert drawable("…", "?") == "…"


@pytest.mark.parametrize("width", [40, 60, 200])
def test_text_is_cut_or_wrapped_to_its_width(width):
    text = "automobile and truck, an unpronounceablylongwordindeed, ship"
    assert width_of(fitted(text, 13, width), 13) <= width
    lines = wrapped(text, 13, width)
    assert max(width_of(line, 13) for line in lines) <= width
    assert fitted("ship", 13, 200) == "ship"
    assert wrapped("", 13, width) == []


@pytest.mark.parametrize("columns", [1, 5])
def test_legend_is_whole_at_any_width(columns, monkeypatch):
    written = []
    monkeypatch.setattr(
        sheet_drawing, "_write", lambda _axes, _x, _y, text, *_, **__: written.append(text)
    )
    tile = ViewTile(noise(32, 32), predictions=(Prediction("cat", 0.9, False),))
    draw(sheet_of(*[tile] * columns))
    assert " ".join(written).count("✗ and dashed frame: the most probable class is another") == 1


def test_views_without_a_teacher_have_no_predictions(load_table, shared_root):
    images = experiment.training_images(load_table(), shared_root, labelled=True)
    shown = ViewSamples(
        images,
        DeviceImages(images, CPU),
        Pipeline(()),
        torch.tensor([3]),
        1,
        ClassNames(images.classes),
    )
    (row,) = shown.sheet("t", ()).rows
    assert row.tiles[0].predictions == ()

"""Run folders that are damaged: what can be read is reported, the rest is named."""

import copy
import json
import os
import random
import re

import html5lib
import pytest
import tomli_w
from synthetic_runs import recipe, write_json, write_run, write_sweep, write_whole_recipe

from kdscale.errors import RunError
from kdscale.report.collect import collect
from kdscale.report.csv_export import render_csv
from kdscale.report.markdown import render_markdown
from kdscale.report.page import render_page
from kdscale.report.suggestions import missing

NESTED = "[" * 100_000


@pytest.fixture(autouse=True)
def equal_charts_are_drawn_once(reuse_charts):
    """Draws a chart only where its text or values are new: most tests leave one run as it was."""
    reuse_charts(lambda chart: (chart.title, chart.summary, chart.note, repr(chart.table)))


FILES = ("run.json", "content.json", "result.json", "evaluation.json", "metrics.jsonl")


def render(*folders, root, strict=False):
    """All three kinds of report, which must not fail; returns the Markdown."""
    studies = collect(folders, root)
    text = render_page(studies, [None] * len(studies), "c", "0")
    if strict:
        html5lib.HTMLParser(strict=True).parse(text)
    markdown = render_markdown(studies, "c")
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    for text in (*rows, *render_csv(studies).splitlines()):
        assert not re.search(r"\b(nan|inf|none)\b", text.lower()), text
    return markdown


def notes(*folders, root):
    found = collect(folders, root)
    return [note.text for study in found for note in missing(study, has_sheet=True)]


# --------------------------------------------------------------------------- whole files


@pytest.mark.parametrize("text", ["", "{", "[]", "\0" * 40, "\xff\xfe", NESTED])
@pytest.mark.parametrize("file", [*FILES, "recipe.toml"])
def test_damaged_file_costs_its_run_alone_and_is_named(tmp_path, file, text):
    whole, bad = write_run(tmp_path / "whole"), write_run(tmp_path / "bad", seed=1)
    (bad / file).write_bytes(text.encode("latin-1"))
    if (file, text) not in {("recipe.toml", ""), ("metrics.jsonl", "")}:
        assert any(str(bad / file) in note for note in notes(bad, whole, root=tmp_path))
    assert str(whole) in render(bad, whole, root=tmp_path)


@pytest.mark.parametrize("file", ["content.json", "result.json", "evaluation.json", "recipe.toml"])
@pytest.mark.parametrize("kind", ["pipe", "device", "link"])
def test_what_is_no_regular_file_is_not_read(tmp_path, file, kind):
    whole, bad = write_run(tmp_path / "whole"), write_run(tmp_path / "bad", seed=1)
    secret = tmp_path / "secret"
    (bad / file).rename(secret)
    if kind == "pipe":
        os.mkfifo(bad / file)
    else:
        (bad / file).symlink_to("/dev/zero" if kind == "device" else secret)
    assert any(str(bad / file) in note for note in notes(bad, whole, root=tmp_path))
    render(bad, whole, root=tmp_path)


@pytest.mark.parametrize("file", ["run.json", "recipe.toml"])
def test_folder_whose_only_run_cannot_be_read_is_refused_in_one_line(tmp_path, file):
    run = write_run(tmp_path / "run")
    (run / file).write_text("{")
    with pytest.raises(RunError, match=file) as caught:
        collect([run], tmp_path)
    assert "\n" not in str(caught.value)


def test_damaged_run_of_a_whole_recipe_leaves_the_others(tmp_path):
    folder = write_whole_recipe(tmp_path / "whole", seeds=2)
    (folder / "cache-seed1" / "run.json").write_text("{")
    (study,) = collect([folder], tmp_path)
    assert [len(entry.finished) for entry in study.of_kind("cache")] == [1]
    said = notes(folder, root=tmp_path)
    assert any("cache-seed1 is left out" in note for note in said)


def test_damaged_trial_of_a_sweep_leaves_the_others(tmp_path):
    folder = write_sweep(tmp_path / "sweep", trials=4)
    (folder / "trials" / "00001" / "recipe.toml").write_text("=")
    (study,) = collect([folder], tmp_path)
    assert len(study.sweeps[0].trials) == 3
    assert "00001 is left out" in render(folder, root=tmp_path, strict=True)


def test_damaged_files_are_reported_on_the_command_line(kdscale, tmp_path):
    whole, bad = write_run(tmp_path / "whole"), write_run(tmp_path / "bad", seed=1)
    (bad / "run.json").write_text("{}")
    (whole / "result.json").write_text('{"top1_accuracy": 7}')
    done = kdscale("report", whole, bad, "--csv", "-")
    assert done.exit_code == 0
    assert f"{bad / 'run.json'} is damaged" in done.stderr
    assert "Traceback" not in done.stderr
    assert kdscale("report", bad, "--csv", "-").exit_code == 1


# --------------------------------------------------------------------------- values

STRANGE = (
    None, True, -1, 7, 1e300, 10**400, float("nan"), float("inf"), "", "text", [], {}, [1], {"a": 1}
)  # fmt: skip


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, 1.5, "0.9", True, [], 10**400])
def test_share_that_cannot_be_meant_is_left_out_and_named(tmp_path, value):
    run = write_run(tmp_path / "run", evaluated=False, top1_accuracy=value)
    (study,) = collect([run], tmp_path)
    assert study.entries[0].values("top1_accuracy") == []
    (said,) = [note for note in notes(run, root=tmp_path) if "top1_accuracy" in note]
    assert str(run / "result.json") in said
    assert "wanted a number in 0..1" in said
    render(run, root=tmp_path)


@pytest.mark.parametrize("seed", [None, "0", 1.0, True, -1])
def test_run_of_an_unknown_seed_is_left_out(tmp_path, seed):
    run, bad = write_run(tmp_path / "run"), write_run(tmp_path / "bad")
    write_json(bad / "run.json", {"model": "student", "targets": "cache", "seed": seed})
    assert len(collect([run, bad], tmp_path)[0].runs) == 1
    assert any("run.json is damaged (seed is " in note for note in notes(run, bad, root=tmp_path))


def changed(value, draw):
    """A copy with one part, somewhere, replaced or removed."""
    value = copy.deepcopy(value)
    place = value
    while True:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        if not keys:
            return draw.choice(STRANGE)
        key = draw.choice(list(keys))
        inner = place[key]
        if isinstance(inner, dict | list) and inner and draw.random() < 0.6:
            place = inner
        elif isinstance(place, dict) and draw.random() < 0.2:
            del place[key]
            return value
        else:
            place[key] = draw.choice(STRANGE)
            return value


@pytest.mark.parametrize("seed", range(24))
def test_no_value_anywhere_makes_a_report_fail(tmp_path, seed):
    draw = random.Random(seed)
    names = list("abc")
    runs = [
        write_run(tmp_path / "cache", names=names),
        write_run(tmp_path / "alone", "alone", names=names),
        write_run(tmp_path / "online", "online", names=names, finished=seed % 2 == 0),
    ]
    write_json(runs[0] / "bench.json", {
        "online_over_cached_time": 5.0, "online_images_per_second": 1.0,
        "cached_images_per_second": 5.0,
    })  # fmt: skip
    for _ in range(5):
        path = draw.choice(runs) / draw.choice([*FILES[1:], "bench.json"])
        if not path.is_file():
            continue
        lines = path.read_text().splitlines()
        number = draw.randrange(len(lines))
        lines[number] = json.dumps(changed(json.loads(lines[number]), draw))
        path.write_text("\n".join(lines) + "\n")
    render(*runs, root=tmp_path)


@pytest.mark.parametrize("section", ["data", "views", "student", "loss", "sweep"])
def test_recipe_whose_section_is_no_table_is_named(tmp_path, section):
    run, bad = write_run(tmp_path / "run"), write_run(tmp_path / "bad", table={section: "text"})
    assert any(f"{section} is 'text'" in note for note in notes(run, bad, root=tmp_path))


@pytest.mark.parametrize("space", ["text", [1], {"": 1}, {"loss.kind": None}])
def test_sweep_of_a_strange_space_is_reported(tmp_path, space):
    folder = write_sweep(tmp_path / "sweep", trials=3)
    table = recipe() | {"sweep": {"space": space if space != {"loss.kind": None} else {"x": []}}}
    (folder / "recipe.toml").write_text(tomli_w.dumps(table))
    render(folder, root=tmp_path)

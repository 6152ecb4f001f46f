"""The page as text: valid, self-contained, escaped, with distinguishable colours."""

import csv
import io
import json
import re
from dataclasses import replace
from itertools import combinations
from operator import mul
from pathlib import Path

import html5lib
import pytest
from synthetic_runs import CIFAR, evaluation, recipe, write_run, write_sweep, write_whole_recipe

import kdscale.report
from kdscale.formatting import NOTHING
from kdscale.report.collect import collect
from kdscale.report.comparison_tables import classes_table
from kdscale.report.csv_export import render_csv
from kdscale.report.figures.class_charts import per_class_charts
from kdscale.report.figures.style import COLOURS
from kdscale.report.markdown import render_markdown
from kdscale.report.page import render_page
from kdscale.report.page_sections import ViewsImage

EVIL = "<img src=x onerror=alert(1)> & \"name\" 'quoted' | `code` *bold*"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One of each kind; tests read them only."""
    tmp_path = tmp_path_factory.mktemp("folders")
    return [
        write_whole_recipe(tmp_path / "whole", names=CIFAR),
        write_sweep(tmp_path / "sweep"),
        write_run(tmp_path / "begun", finished=False, table=recipe("begun")),
    ]


# --------------------------------------------------------------------------- validity


@pytest.fixture(scope="module")
def text_of_all(folders, tmp_path_factory):
    """The page of all of them."""
    studies = collect(folders, tmp_path_factory.mktemp("cache"))
    return render_page(studies, [None] * len(studies), "kdscale report", "0")


def test_page_is_valid_html(text_of_all):
    html5lib.HTMLParser(strict=True).parse(text_of_all)


def test_parser_finds_what_is_not_valid(text_of_all):
    text = text_of_all.replace("</section>", "</sektion>", 1)
    with pytest.raises(html5lib.html5parser.ParseError):
        html5lib.HTMLParser(strict=True).parse(text)


def test_identifiers_are_unique_and_those_referred_to_are_there(page, tmp_path, folders):
    other = write_run(tmp_path / "other")
    (other / "content.json").write_text('{"test": "other images"}')
    text = page(*folders, other)
    identifiers = re.findall(r'\sid="([^"]+)"', text)
    assert len(identifiers) == len(set(identifiers)) > 20
    named = {
        one for names in re.findall(r'aria-labelledby="([^"]+)"', text) for one in names.split()
    }
    assert named <= set(identifiers)


def test_page_has_no_script_and_asks_for_nothing(page, folders):
    sheet = ViewsImage(b"RIFF", b"RIFF", "views", ((10, 10), (5, 5)))
    text = page(*folders, sheets=[sheet])
    assert "<script" not in text
    assert "@import" not in text
    addresses = re.findall(r'(?:src|srcset|href)="([^"]*)"|url\(([^)]*)\)', text)
    assert addresses
    assert all((one or other).startswith(("data:", "#")) for one, other in addresses)


def test_same_folders_make_the_same_page(page, folders, text_of_all):
    assert page(*folders) == text_of_all


def test_every_drawing_has_a_title_a_description_and_a_way_to_its_values(page, folders):
    document = html5lib.parse(page(folders[0]), namespaceHTMLElements=False)
    figures = list(document.iter("figure"))
    assert len(figures) >= 9
    for figure in figures:
        assert figure.find("figcaption").text
        assert figure.find("details") is not None
        drawings = [svg for svg in figure.iter() if svg.tag.endswith("svg") and svg.get("role")]
        assert len(drawings) in (1, 2)
        for svg in drawings:
            parts = {child.tag.rpartition("}")[2]: child.text for child in svg}
            assert len(parts["desc"]) > 20
            assert parts["title"]


# --------------------------------------------------------------------------- letters


def test_names_are_text_and_never_markup(page, tmp_path):
    names = [EVIL, "日本語のクラス", *[f"class {n}" for n in range(8)]]
    run = write_run(tmp_path / "run <b>", names=names, table=recipe(student__model=EVIL))
    text = page(run)
    assert "<img src=x" not in text
    assert "<b>" not in text
    document = html5lib.HTMLParser(strict=True).parse(text)
    texts = "".join(document.itertext())
    assert EVIL in texts
    assert "日本語のクラス" in texts


def test_markdown_tables_hold_any_name(tmp_path):
    run = write_run(tmp_path / "run", names=[EVIL, *"abcdefghi"])
    text = render_markdown(collect([run], tmp_path), "kdscale report")
    (row,) = [line for line in text.splitlines() if "onerror" in line and line.startswith("| ")][:1]
    assert len(re.findall(r"(?<!\\)\|", row)) == 5  # four cells
    assert "<img" not in text.replace("\\<img", "")


HOSTILE = (
    "x" * 10_000,
    "a\0b\x1b[31m",
    "two\nlines\u2028more",
    "\ud800",
    "]]></svg><script>",
    "`",
    "",
)


def test_names_of_any_length_and_letters_leave_the_page_whole(page, tmp_path):
    names = [*HOSTILE, *"abc"]
    table = recipe(name=HOSTILE[0] + EVIL, student__model=HOSTILE[4], data__source=HOSTILE[2])
    runs = [
        write_run(tmp_path / f"a `{kind}` <b>\n", kind, names=names, table=table)
        for kind in ("cache", "alone")
    ]
    text = page(*runs)
    html5lib.HTMLParser(strict=True).parse(text)
    assert "<script" not in text
    assert len(text) < 400_000
    assert not re.search(r"[\0\x1b\ud800]", text)
    markdown = render_markdown(collect(runs, tmp_path), "kdscale report `a`")
    assert "x" * 200 not in markdown.partition("## Recipe of")[0]
    assert markdown.endswith("Made by `` kdscale report `a` ``.\n")
    render_csv(collect(runs, tmp_path)).encode()


def test_text_that_a_spreadsheet_would_run_is_quoted(tmp_path):
    run = write_run(tmp_path / "run", table=recipe(name="=1+1"), model="@SUM(A1)")
    (row,) = csv.DictReader(io.StringIO(render_csv(collect([run], tmp_path))))
    assert (row["recipe"], row["model"]) == ("'=1+1", "'@SUM(A1)")


def many_classes(number):
    """An evaluation of many classes, as `kdscale evaluate` writes it: without a matrix."""
    found = evaluation(list("ab"), 0.9) | {"confusion": None, "num_classes": number}
    row = {"precision": 0.5, "recall": 0.5, "samples": 2, "correct": 1, "predicted": 2}
    found |= {"class_names": [f"class number {n}" for n in range(number)]}
    found["per_class"] = [row | {"correct": int(label % 3 > 0)} for label in range(number)]
    found["most_confused"] = [
        {"label": 3, "predicted": label, "samples": 1} for label in range(100, 200)
    ]
    return found


def test_page_of_21841_classes_is_small_and_says_what_it_shows(page, tmp_path):
    run = write_run(tmp_path / "run", evaluated=False)
    (run / "evaluation.json").write_text(json.dumps(many_classes(21_841)))
    text = page(run)
    assert len(text) < 1_000_000
    assert "The 1,000 of 21,841 classes with the lowest recall" in text
    assert "class number 3</" in text
    assert "class number 101" in text, "the most frequent mistakes"
    assert "Confusion matrix" not in text
    assert len(render_markdown(collect([run], tmp_path), "")) < 200_000


def test_matrix_of_many_classes_that_an_older_kdscale_wrote_is_counted(page, tmp_path):
    names = [f"n{number}" for number in range(1_001)]
    run = write_run(tmp_path / "run", names=names)
    (study,) = collect([run], tmp_path)
    (entry,) = study.entries
    assert entry.confusion == []
    assert sum(entry.classes.samples) == 2000
    assert entry.mistakes[0][2] >= entry.mistakes[-1][2] > 0
    page(run)


# --------------------------------------------------------------------------- numbers


def test_page_markdown_and_csv_tell_the_same_numbers(page, folders, tmp_path):
    studies = collect(folders[:1], tmp_path)
    rows = list(csv.DictReader(io.StringIO(render_csv(studies))))
    assert len(rows) == 10
    (teacher,) = [row for row in rows if row["kind"] == "teacher"]
    shown = f"{100 * float(teacher['top1_accuracy']):.2f}"
    cell = f'data-title="top-1 %">{shown}</td>'
    assert cell in page(folders[0])
    markdown = render_markdown(studies, "kdscale report")
    assert re.search(rf"\| teacher +\| +1 \| +{shown} \|", markdown)


def test_csv_has_a_column_for_each_parameter_of_a_sweep(folders, tmp_path):
    rows = list(csv.DictReader(io.StringIO(render_csv(collect(folders[1:2], tmp_path)))))
    assert {row["loss.temperature"] for row in rows} == {"1.0", "2.0", "4.0", "8.0"}
    assert [row["finished"] for row in rows].count("False") == 1


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ('=HYPERLINK("http://x")', '\'=HYPERLINK("http://x")'),
        ("+1+1", "'+1+1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("-cmd", "'-cmd"),
        ("\t=1", "' =1"),
        ("\r\n=1", "'  =1"),
        ("-1.5", "-1.5"),
        ("+3e-4", "+3e-4"),
        (-1.5, "-1.5"),
        ("resnet=1", "resnet=1"),
    ],
)
def test_cell_is_no_formula_and_a_negative_number_stays_one(folders, tmp_path, value, cell):
    (study,) = collect(folders[1:2], tmp_path)
    (sweep,) = study.sweeps
    trial = replace(sweep.trials[0], parameters={"student.model": value, f"{value}": 1})
    changed = replace(study, sweeps=[replace(sweep, trials=[trial])])
    rows = list(csv.DictReader(io.StringIO(render_csv([changed]), newline="")))
    assert rows[-1]["student.model"] == cell
    assert cell in rows[-1]


# --------------------------------------------------------------------------- colours

STYLE = (Path(kdscale.report.__file__).parent / "templates" / "page.css").read_text()


def colours(dark):
    on_screen = STYLE.partition("@media print")[0]
    light_part, _, dark_part = on_screen.partition("prefers-color-scheme: dark")
    found = dict(re.findall(r"--([\w-]+): (#\w{6})", dark_part if dark else light_part))
    return found | {name: pair[dark] for name, pair in COLOURS.items()}


def test_charts_draw_each_variable_in_a_colour_of_its_own():
    lights = [light for light, _ in COLOURS.values()]
    assert len(set(lights)) == len(lights)


def linear(colour):
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    return [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]


def contrast(one, other):
    """Of WCAG 2.2."""
    weights = (0.2126, 0.7152, 0.0722)
    light = [sum(w * p for w, p in zip(weights, linear(c), strict=True)) for c in (one, other)]
    return (max(light) + 0.05) / (min(light) + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_words_and_lines_stand_out(dark):
    found = colours(dark)
    for words in ("ink", "soft", "accent"):
        for ground in ("paper", "code"):
            assert contrast(found[words], found[ground]) >= 4.5, (words, ground)
    for step in range(1, 8):
        ink = found["ink" if step < 5 else "ink-high"]
        assert contrast(ink, found[f"step-{step}"]) >= 4.5, step
    lines = [name for name in found if name.startswith("many-")]
    assert len(lines) == 4
    for line in ("cache", "online", "alone", "teacher", "base", *lines):
        assert contrast(found[line], found["paper"]) >= 3, line


_BLIND = {  # in linear light; Viénot, Brettel and Mollon 1999
    "protan": ((0.11238, 0.88762, 0.0), (0.11238, 0.88762, 0.0), (0.00401, -0.00401, 1.0)),
    "deutan": ((0.29275, 0.70725, 0.0), (0.29275, 0.70725, 0.0), (-0.02234, 0.02234, 1.0)),
}


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("kind", _BLIND)
def test_kinds_are_distinguishable_with_colour_blindness(kind, dark):
    found = colours(dark)
    seen = {
        name: [max(sum(map(mul, row, linear(found[name]))), 0) ** 0.45 for row in _BLIND[kind]]
        for name in ("cache", "online", "alone", "teacher")
    }
    for one, other in combinations(seen, 2):
        apart = max(abs(a - b) for a, b in zip(seen[one], seen[other], strict=True))
        assert apart > 0.12, (one, other)


def test_no_two_series_look_alike():
    from kdscale.report.figures.style import style_of_kind, style_of_number

    many = [style_of_number(number) for number in range(42)]
    assert len({(style.colour, style.marker) for style in many}) == 42
    kinds = [style_of_kind(kind) for kind in ("teacher", "alone", "online", "cache")]
    for wanted in ("colour", "marker", "dashes"):
        assert len({getattr(style, wanted) for style in kinds}) == 4


def test_class_without_test_samples_has_no_recall(tmp_path):
    run = write_run(tmp_path / "run", names=CIFAR)
    found = json.loads((run / "evaluation.json").read_text())
    found["confusion"][3] = [0] * 10  # no cat was shown
    (run / "evaluation.json").write_text(json.dumps(found))
    (study,) = collect([run], tmp_path)
    cells = next(row for row in classes_table(study.examined).rows if row[0] == CIFAR[3])
    assert cells[2:] == [NOTHING, "0"]
    for drawn in per_class_charts(study, ""):
        assert CIFAR[3] not in [row[0] for row in drawn.table.rows]
        assert "Classes without test samples are left out: 1." in drawn.note

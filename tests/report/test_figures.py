"""Charts: drawn where there is something to see, deterministic, readable in all sizes."""

import io
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image
from synthetic_runs import CIFAR, recipe, write_json, write_run, write_sweep, write_whole_recipe

from kdscale.report.collect import collect
from kdscale.report.figures.chart import Chart, image_of, set_scale, svg_of
from kdscale.report.figures.class_charts import confusion_chart, step_of
from kdscale.report.figures.style import COLOURS, compact_number, shortened_label
from kdscale.report.figures.training_charts import at_most, mean_curve
from kdscale.report.page_sections import sections_of


@pytest.fixture
def charts(tmp_path):
    """All charts of the report of folders, by title."""

    def of(*folders):
        (study,) = collect(folders, tmp_path / "cache")
        found = [chart for section in sections_of(study, None, "") for chart in section.charts]
        assert len({chart.name for chart in found}) == len(found)
        return {chart.title: chart for chart in found}

    return of


def axes_of(chart):
    """The axes with the chart's data on them."""
    axes = Figure().add_subplot()
    chart.draw(axes)
    return axes


def change(path, **fields):
    write_json(path, json.loads(path.read_text()) | fields)


# --------------------------------------------------------------------------- what is drawn


def test_whole_recipe_has_the_standard_charts(charts, tmp_path):
    found = charts(write_whole_recipe(tmp_path / "whole", names=CIFAR))
    assert list(found) == [
        "Accuracy vs. parameters", "Accuracy vs. latency",
        "Training time of one student", "Break-even of the cache",
        "Training loss", "Test accuracy",
        "Confusion matrix", "Calibration", "Recall by class", "Precision by class",
    ]  # fmt: skip


def test_latency_that_differs_by_noise_is_not_drawn(charts, tmp_path):
    folder = write_whole_recipe(tmp_path / "whole", seeds=1)
    for number, path in enumerate(sorted(folder.glob("*/evaluation.json"))):
        seconds = 0.00324 + 0.00001 * number
        latency = {"1": {"median_seconds": seconds, "p95_seconds": seconds, "rounds": 9}}
        change(path, latency=latency)
    assert "Accuracy vs. latency" not in charts(folder)


def test_curve_of_two_points_is_not_drawn(charts, tmp_path):
    found = charts(write_run(tmp_path / "run", epochs=2))
    assert not {"Training loss", "Test accuracy"} & found.keys()


def test_calibration_without_enough_samples_is_not_drawn(charts, tmp_path):
    run = write_run(tmp_path / "run")
    bins = {"confidence": [0.5] * 15, "accuracy": [0.5] * 15, "samples": [1] * 15, "bins": 15}
    change(run / "evaluation.json", calibration=bins)
    assert "Calibration" not in charts(run)


def test_parts_of_the_loss_and_other_quantities_of_the_log_are_drawn(charts, tmp_path):
    run = write_run(tmp_path / "run")
    log = run / "metrics.jsonl"
    records = [json.loads(line) for line in log.read_text().splitlines()]
    for number, record in enumerate(records):
        if "loss" in record:
            record |= {"soft_loss": 0.1**number, "hard_loss": 1.0 / (1 + number),
                       "gradient_norm": 3.0 - number / 10, "images_per_second": 900.0 + number,
                       "learning_rate": 0.1 / (1 + number)}  # fmt: skip
    log.write_text("".join(json.dumps(record) + "\n" for record in records))
    found = charts(run)
    assert {"Parts of the loss", "Gradient norm", "Throughput", "Learning rate"} <= found.keys()
    parts = axes_of(found["Parts of the loss"])
    assert parts.get_legend_handles_labels()[1] == ["soft loss", "hard loss"]
    assert parts.get_yscale() == "log"


def test_accuracy_is_drawn_against_flops_where_they_are_known(charts, tmp_path):
    folder = write_whole_recipe(tmp_path / "whole", seeds=1)
    for path in folder.glob("*/evaluation.json"):
        change(path, flops=4e9 if path.parent.name == "teacher" else 8e7)
    assert charts(folder)["Accuracy vs. FLOPs"].table.rows[0][1] == "4G"


def test_charts_of_a_sweep_hold_the_teacher_and_the_baseline(charts, tmp_path):
    folder = write_sweep(tmp_path / "sweep")
    write_run(folder / "teacher", "teacher", validation=0.95, evaluated=False)
    write_run(folder / "alone", "alone", validation=0.88, evaluated=False)
    chart = charts(folder)["Validation accuracy by loss.temperature"]
    labels = axes_of(chart).get_legend_handles_labels()[1]
    assert labels == ["teacher", "student alone", "trial", "best trial"]


# --------------------------------------------------------------------------- confusion matrix


def chart_of(matrix, tmp_path):
    names = [f"class {label}" for label in range(len(matrix))]
    run = write_run(tmp_path / "run", names=names)
    change(run / "evaluation.json", confusion=matrix)
    (study,) = collect([run], tmp_path)
    return confusion_chart(study.examined, "")


def test_confusion_matrix_holds_per_cent_of_each_row(tmp_path):
    svg = svg_of(chart_of([[30, 10], [0, 20]], tmp_path), 540)
    assert re.findall(r">(\d+)</text>", svg)[-3:] == ["75", "25", "100"]


def test_class_without_samples_is_an_empty_row(tmp_path):
    axes = axes_of(chart_of([[0, 0], [1, 3]], tmp_path))
    assert [text.get_text() for text in axes.texts] == ["25", "75"]


def test_thousand_classes_are_drawn_in_blocks_that_lose_no_rare_mistake(tmp_path):
    matrix = [[0] * 1000 for _ in range(1000)]
    for label in range(1000):
        matrix[label][label] = 50
    matrix[3][997] = 50
    chart = chart_of(matrix, tmp_path)
    assert len(svg_of(chart)) < 60_000
    (image,) = axes_of(chart).images
    opacity = image.get_array()[..., 3]
    assert opacity.shape == (250, 250)
    assert opacity[0, 249] > 0.5
    assert (opacity.diagonal() > 0.5).all()


def test_steps_of_colour_grow_with_the_share():
    shares = [0, 0.005, 0.02, 0.05, 0.2, 0.5, 0.8, 0.95]
    assert [step_of(share) for share in shares] == list(range(8))


# --------------------------------------------------------------------------- files


def plain_chart(name="plain", title="A title"):
    return Chart(
        name=name, title=title, summary="What it shows.",
        draw=lambda axes: axes.plot([1, 2, 3], [1, 4, 9], color=COLOURS["cache"][0], label="a"),
    )  # fmt: skip


def test_colours_are_variables_of_the_page_and_text_is_text():
    svg = svg_of(plain_chart())
    assert "stroke: var(--cache)" in svg
    assert not re.search(r"#[0-9a-f]{6}", svg)
    assert ">a</text>" in svg
    assert "<style" not in svg
    assert "<script" not in svg


def test_names_that_look_like_markup_or_colours_are_drawn_as_they_are():
    chart = plain_chart(title='<b> id="x" #0067b1 $x^2$')

    def draw(axes):
        axes.set_xlabel('<b> id="x" #0067b1; $x^2$')

    svg = svg_of(Chart(name="n", title=chart.title, summary="", draw=draw))
    assert '>&lt;b&gt; id="x" #0067b1; $x^2$</text>' in svg


def test_drawings_of_one_page_share_no_identifier():
    each = [set(re.findall(r' id="([^"]+)"', svg_of(plain_chart(name)))) for name in ("a", "b")]
    assert all(each)
    assert not each[0] & each[1]


@pytest.mark.parametrize("kind", ["png", "pdf"])
def test_figure_for_papers_is_the_same_each_time(kind):
    one, other = image_of(plain_chart(), kind), image_of(plain_chart(), kind)
    assert one == other
    if kind == "png":
        assert Image.open(io.BytesIO(one)).width > 1000
    else:
        assert one.startswith(b"%PDF")


# --------------------------------------------------------------------------- numbers and labels


@pytest.mark.parametrize(
    ("value", "text"),
    [(421_642, "422k"), (1_200_000, "1.2M"), (12, "12"), (25.6e6, "25.6M"), (0.002, "0.002"),
     (1e-5, "1e-05"), (4.09e9, "4.09G"), (0.0, "0")],
)  # fmt: skip
def test_numbers_are_short(value, text):
    assert compact_number(value) == text


def test_axis_is_logarithmic_where_values_span_a_factor_of_20():
    for values, scale in (([1, 30], "log"), ([1, 10], "linear"), ([0, 1000], "linear")):
        axes = Figure().add_subplot()
        set_scale(axes, "x", values)
        assert axes.get_xscale() == scale


def test_long_log_is_thinned():
    points = [(place / 1000, 1.0) for place in range(500_000)]
    few = at_most(points, 500)
    assert len(few) <= 501
    assert (few[0], few[-1]) == (points[0], points[-1])


def test_mean_of_curves_with_few_shared_points_is_the_longest():
    assert mean_curve([[(1, 2.0), (2, 4.0)], [(1, 4.0), (2, 6.0)]]) == [(1, 3.0), (2, 5.0)]
    long = [(1.5, 1.0), (2.5, 1.0), (3.5, 1.0)]
    assert mean_curve([[(1, 2.0)], long]) == long


@given(st.text(max_size=60), st.integers(1, 40))
def test_labels_are_cut_to_their_width(text, width):
    cut = shortened_label(text, width)
    assert cut == text or (cut.endswith("…") and len(cut) <= width + 1)


def test_figures_are_written_beside_the_report(kdscale, tmp_path):
    run = write_run(tmp_path / "run", table=recipe())
    done = kdscale("report", run, "--figures", "new/figures")
    assert done.exit_code == 0, done.stderr
    assert done.stdout == "figures: new/figures\n"
    names = {path.name for path in (tmp_path / "new/figures").iterdir()}
    assert {"confusion.png", "confusion.pdf", "curve-loss.png"} <= names

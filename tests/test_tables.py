"""Tables that people read: what their notes say."""

from kdscale.tables.evaluation_table import evaluation_tables
from kdscale.tables.results_table import ResultsRow, results_table

SHARES = ("top1_accuracy", "top5_accuracy", "macro_precision", "macro_recall")
RESULT = dict.fromkeys(SHARES, 0.5) | {"num_parameters": 10, "train_seconds": 1.0}


def test_comparison_says_of_which_images_a_model_says_nothing():
    rows = [
        ResultsRow("teacher", [RESULT]),
        ResultsRow("alone", [RESULT | {"non_finite_samples": n} for n in (0, 3)]),
        ResultsRow("cache", [RESULT | {"non_finite_samples": 1}]),
    ]
    _, *notes = results_table(rows).split("\n\n")
    assert notes == [
        "Student alone: 3 test images with NaN or infinite logits, counted as wrong.",
        "Student, cached teacher: 1 test image with NaN or infinite logits, counted as wrong.",
    ]


def evaluation(run, fingerprint, **changes):
    names = (*SHARES, "calibration_error", "agreement")
    return {
        "run": run, "test_fingerprint": fingerprint, "num_samples": 1, "agreement_note": None,
        "num_parameters": 1, "weight_bytes": 4, "peak_activation_bytes": {}, "latency": {},
        "num_threads": 1, "device_name": "cpu", "precision": "float32", "memory_format": "any",
        **dict.fromkeys(names, 0.5), **changes,
    }  # fmt: skip


def test_evaluations_on_different_images_are_never_in_one_table():
    found = [evaluation("a", "f" * 64), evaluation("b", "e" * 64), evaluation("c", "f" * 64)]
    found[1] |= {"test_source": "data", "test_split": "test", "own_test_set": False}
    parts = evaluation_tables(found).split("On ")[1:3]
    assert [part.splitlines()[0] for part in parts] == [
        "1 image (ffffffffffff):",
        "1 image of data, split test (eeeeeeeeeeee, not the run's own test split):",
    ]
    runs = [[line[2] for line in part.splitlines() if "50.00" in line] for part in parts]
    assert runs == [["a", "c"], ["b"]]


def test_flops_have_a_column_where_they_are_known():
    assert "FLOPs" not in evaluation_tables([evaluation("a", "f" * 64)])
    text = evaluation_tables([evaluation("a", "f" * 64, flops=4.09e9), evaluation("b", "f" * 64)])
    assert "FLOPs" in text
    assert "4.09 G" in text


def test_comparison_states_the_accuracy_of_the_moving_average():
    rows = [
        ResultsRow("alone", [RESULT]),
        ResultsRow("cache", [RESULT | {"ema_top1_accuracy": 0.6213}]),
    ]
    _, *notes = results_table(rows).split("\n\n")
    assert notes == [
        "Student, cached teacher: top-1 % of the moving average of its weights (ema_decay): 62.13."
    ]

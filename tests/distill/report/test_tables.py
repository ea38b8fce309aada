"""Tables of text: what stands in them beside the columns that every report has."""

from distill.report.tables import evaluation_table


def test_models_without_a_recipe_show_their_accuracy_by_task():
    asked = {"tasks": {"sums": {"accuracy": 0.25, "accuracy_interval": [0.1, 0.4]}}}
    silent = {"tasks": {"sums": {"accuracy": None, "reason": "only scores"}}}
    found = {"teacher": {}, "models": {"teacher": asked, "b.onnx": silent}}
    assert evaluation_table(found, {}) == [
        ["", "sums"], ["teacher", ""], ["teacher", "0.250"], ["b.onnx", ""]
    ]  # fmt: skip

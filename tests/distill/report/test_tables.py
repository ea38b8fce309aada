"""Tables of text: what stands in them beside the columns that every report has."""

from distill.report.tables import evaluation_table, model_table


def test_models_without_a_recipe_show_their_accuracy_by_task():
    asked = {"tasks": {"sums": {"accuracy": 0.25, "accuracy_interval": [0.1, 0.4]}}}
    silent = {"tasks": {"sums": {"accuracy": None, "reason": "only scores"}}}
    found = {"teacher": {}, "models": {"teacher": asked, "b.onnx": silent}}
    assert evaluation_table(found, {}) == [
        ["", "sums"], ["teacher", ""], ["teacher", "0.250"], ["b.onnx", ""]
    ]  # fmt: skip


def test_teacher_and_arms_show_their_accuracy_by_task():
    def asked(share):
        return {"tasks": {"sums": {"accuracy": share, "accuracy_interval": [0.1, 0.4]}}}

    report = {"teacher": asked(0.3), "arms": {"init": asked(0.2), "distill": {}}}
    assert model_table(report, {}, intervals=True) == [
        ["", "sums"], ["teacher", "0.300 (0.100 to 0.400)"],
        ["arm init", "0.200 (0.100 to 0.400)"], ["arm distill", ""],
    ]  # fmt: skip
    assert model_table({"teacher": {}, "arms": {}}, {}) == [[""], ["teacher"]]

"""Tables of text: what stands in them beside the columns that every report has."""

from distill.report.columns import MODEL_COLUMNS
from distill.report.tables import evaluation_table, model_table


def test_models_without_a_recipe_show_their_accuracy_by_task():
    asked = {"tasks": {"sums": {"accuracy": 0.25, "accuracy_interval": [0.1, 0.4]}}}
    silent = {"tasks": {"sums": {"accuracy": None, "reason": "only scores"}}}
    found = {"teacher": {}, "models": {"teacher": asked, "b.onnx": silent}}
    assert evaluation_table(found, {}) == [
        ["", "sums"], ["teacher", ""], ["teacher", "0.250"], ["b.onnx", ""]
    ]  # fmt: skip


def test_the_column_of_own_answers_is_there_where_a_model_has_them():
    columns = {title: MODEL_COLUMNS[title] for title in ("KL", "own KL")}
    report = {"teacher": {}, "arms": {"init": {"kl_to_teacher": 0.5}, "distill": {}}}
    assert model_table(report, columns)[0] == ["", "KL"]
    report["arms"]["distill"] = {"own_answers": {"reason": "its process died."}}
    assert model_table(report, columns)[0] == ["", "KL"]
    report["arms"]["distill"] = {
        "own_answers": {"reverse_kl": 0.25, "reverse_kl_interval": [0.1, 0.4]}
    }
    report["teacher"] = {"own_answers": {"teacher_nll": 3.0}}
    assert model_table(report, columns, intervals=True) == [
        ["", "KL", "own KL"],
        ["teacher", "", ""],
        ["arm init", "0.500", ""],
        ["arm distill", "", "0.250 (0.100 to 0.400)"],
    ]


def test_teacher_and_arms_show_their_accuracy_by_task():
    def asked(share):
        return {"tasks": {"sums": {"accuracy": share, "accuracy_interval": [0.1, 0.4]}}}

    report = {"teacher": asked(0.3), "arms": {"init": asked(0.2), "distill": {}}}
    assert model_table(report, {}, intervals=True) == [
        ["", "sums"], ["teacher", "0.300 (0.100 to 0.400)"],
        ["arm init", "0.200 (0.100 to 0.400)"], ["arm distill", ""],
    ]  # fmt: skip
    assert model_table({"teacher": {}, "arms": {}}, {}) == [[""], ["teacher"]]

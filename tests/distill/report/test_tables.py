"""Tables of text: what stands in them beside the columns that every report has."""

from distill.report.columns import ARTIFACT_COLUMNS, MODEL_COLUMNS
from distill.report.tables import (
    artifact_table,
    evaluation_notes,
    evaluation_table,
    model_table,
    tokenizer_notes,
)


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


SHOWN = {
    title: MODEL_COLUMNS[title]
    for title in ("nll", "ppl", "nats/byte", "bytes/token", "KL", "top-1", "greedy text")
}


def of_tokenizer(name, nats, kl=None, same=None):
    """A model's numbers where models of several tokenizers were measured."""
    more = {} if kl is None else {"kl_to_teacher": kl, "top1_agreement": 0.5}
    more |= {} if same is None else {"greedy_text": {"same": same}}
    return {
        "tokenizer": name, "nll": 4 * nats, "perplexity": 9.0, "nats_per_byte": nats,
        "text_bytes": 40, "tokens": 10, **more,
    }  # fmt: skip


def test_numbers_a_token_of_several_tokenizers_never_stand_side_by_side():
    found = {
        "teacher": of_tokenizer("big", 0.5),
        "models": {"a": of_tokenizer("big", 0.6, 0.1, 1.0), "b": of_tokenizer("b", 0.7, same=0.25)},
    }
    assert evaluation_table(found, SHOWN) == [
        ["", "nats/byte", "bytes/token", "KL", "top-1", "greedy text"],
        ["teacher", "0.5000", "4.00", "", "", ""],
        ["a", "0.6000", "4.00", "0.100", "0.500", "1.000"],
        ["b", "0.7000", "4.00", "-", "-", "0.250"],
    ]
    (note,) = evaluation_notes(found)
    assert note.startswith("b reads the same text as other tokens than the teacher: ")
    assert "are marked `-`" in note


def test_what_no_model_can_have_is_left_out_with_a_sentence():
    found = {"models": {"a": of_tokenizer("a", 0.6), "b": of_tokenizer("b", 0.7)}}
    assert evaluation_table(found, SHOWN)[0] == ["", "nats/byte", "bytes/token"]
    (note,) = evaluation_notes(found)
    assert note.startswith("b reads the same text as other tokens than a: ")
    assert "KL" not in note, "there is no teacher"
    same = {"models": {"a": {"nll": 2.0, "perplexity": 7.4, "nats_per_byte": 0.5}}}
    assert evaluation_table(same, SHOWN)[0] == ["", "nll", "ppl", "nats/byte", "KL", "top-1"]
    assert evaluation_notes(same) == []


def test_a_report_whose_teacher_has_another_tokenizer():
    student = of_tokenizer("the student", 0.7, same=0.5)
    fit = {"ships": True, "perplexity_change": 0.0}
    artifact = {**student, "runtime": "transformers", "fit": fit, "pareto": {}}
    report = {
        "teacher": of_tokenizer("teacher", 0.5), "arms": {"init": student, "distill": student},
        "artifacts": {"bf16": artifact, "nf4": {"failed": "no memory"}},
    }  # fmt: skip
    lines = model_table(report, SHOWN)
    assert lines[0] == ["", "nats/byte", "bytes/token", "greedy text"]
    assert lines[1] == ["teacher", "0.5000", "4.00", ""]
    titles = artifact_table(report, ARTIFACT_COLUMNS)[0]
    assert "ppl" in titles, "artifacts are compared with a student of their own tokenizer"
    assert not {"KL", "top-1"} & set(titles)
    assert (
        "KL and top-1, which need the teacher's tokens, are left out" in tokenizer_notes(report)[0]
    )
    report["teacher"] = student
    assert tokenizer_notes(report) == []

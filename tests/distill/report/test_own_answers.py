"""What the report says of the models' own answers."""

from dataclasses import replace
from html import unescape

import numpy as np
import pytest

from distill.evaluation.own_answers import answers_file, summary
from distill.report.measurements import Measurements
from distill.report.own_answers import add_differences, own_answers_section, own_answers_verdict
from distill.report.selection import Tolerance
from distill.tasks.causal_lm.report import CausalLMReport

ANSWERS = 20
DICE = np.random.default_rng(0)
TOKENS = DICE.integers(5, 40, ANSWERS)
HARD = DICE.uniform(0.1, 2.0, ANSWERS)


def arrays_of(above):
    kl = HARD + above + DICE.uniform(-0.02, 0.02, ANSWERS)
    return {
        "kl": kl * TOKENS, "nll": (kl + 3) * TOKENS, "agree": TOKENS // 2, "tokens": TOKENS,
        "ended": TOKENS < 20, "repeated": TOKENS // 10, "sequences": TOKENS - 3,
        "document": np.arange(ANSWERS),
    }  # fmt: skip


def write_held_out(folder, model, above):
    """The KL of a model on held-out text, token by token."""
    noise = np.random.default_rng(len(model)).uniform(-0.02, 0.02, 10 * ANSWERS)
    kl = np.repeat(HARD, 10) * (1 + noise) + above
    np.savez(folder / f"{model}.npz", kl=kl, document=np.arange(10 * ANSWERS) // 10)


@pytest.fixture
def measured(tmp_path):
    """Three students, of which the distilled one is the closest to the teacher on its answers."""
    models = {"teacher": {"nll": 2.0, "own_answers": {"answers": ANSWERS, "teacher_nll": 2.5}}}
    for name, above in (("init", 0.9), ("finetune", 0.3), ("distill", 0.0)):
        arrays = arrays_of(above)
        np.savez(answers_file(tmp_path, name), **arrays)
        write_held_out(tmp_path, name, above)
        models[name] = {"nll": 3.0, "own_answers": summary(arrays, 200)}
    return Measurements(models, tmp_path, 200, ["finetune"], {}, Tolerance())


def test_students_are_compared_with_the_distilled_one_by_prompt(measured):
    add_differences(measured)
    found = {name: one["own_answers"].get("difference") for name, one in measured.models.items()}
    assert found["teacher"] is None
    assert found["distill"] is None
    for name, above in (("init", 0.9), ("finetune", 0.3)):
        assert found[name]["difference"] == pytest.approx(above, abs=0.02)
        low, high = found[name]["interval"]
        assert above - 0.03 < low < high < above + 0.03
    verdict = own_answers_verdict(measured, "finetune", "plain fine-tuning")
    assert verdict["difference"] == -found["finetune"]["difference"]
    assert verdict["sentence"].startswith(" On the answers that each wrote itself, KL(student || ")
    assert verdict["sentence"].endswith("), so there it is closer to the teacher.")


def test_without_a_fine_tuned_arm_the_verdict_compares_with_the_untrained_student(measured):
    add_differences(measured)
    bare = Measurements(measured.models, measured.folder, 200, [], {}, Tolerance())
    verdict = CausalLMReport().verdict(bare)
    assert "of the untrained student (-0.9" in verdict["sentence"]
    assert verdict["own_answers"].keys() == {"difference", "interval", "documents", "disagrees"}


def test_columns_that_disagree_are_both_named(measured):
    add_differences(measured)
    verdict = own_answers_verdict(measured, "finetune", "plain fine-tuning")
    assert not verdict["disagrees"]
    write_held_out(measured.folder, "distill", 0.5)  # finetune's is 0.3 above
    verdict = own_answers_verdict(measured, "finetune", "plain fine-tuning")
    assert verdict["disagrees"]
    said = verdict["sentence"]
    assert "so there it is closer to the teacher. The columns `KL` and `own KL` disagree: " in said
    assert "KL(teacher || student) is higher than that of plain fine-tuning (+0." in said
    assert "better in its own text and worse in text that others wrote" in said


def test_a_verdict_on_preferences_says_what_own_answers_do(measured):
    add_differences(measured)
    learned = replace(measured, preferences=["distill"])
    verdict = CausalLMReport().verdict(learned)
    assert verdict["sentence"].startswith("The held-out part has no pairs of answers")
    assert " On the answers that each wrote itself" in verdict["sentence"]
    assert verdict["own_answers"]["difference"] == pytest.approx(-0.3, abs=0.02)


@pytest.mark.parametrize("missing", ["distill", "finetune"])
def test_what_was_not_measured_is_not_compared(measured, missing):
    measured.models[missing]["own_answers"] = {"reason": "LstmForCausalLM cannot write answers."}
    add_differences(measured)
    assert own_answers_verdict(measured, "finetune", "plain fine-tuning") == {}
    arms = {name: measured.models[name] for name in ("init", "finetune", "distill")}
    section = own_answers_section({"teacher": measured.models["teacher"], "arms": arms})
    assert section is not None
    said = f"Of arm {missing} there are none: LstmForCausalLM cannot write answers."
    assert said in section.markup


def test_a_section_has_the_numbers_of_every_model_with_intervals(measured):
    add_differences(measured)
    arms = {name: measured.models[name] for name in ("init", "finetune", "distill")}
    report = {"teacher": measured.models["teacher"], "arms": arms}
    section = own_answers_section(report)
    assert section is not None
    assert section.title == "On the models' own answers"
    page = unescape(section.markup)
    for title in ("own KL", "teacher's nll", "top-1", "length", "ended", "repeated"):
        assert f"<th>{title}</th>" in page
        assert f"<li>{title}: " in page
    assert page.count("<small>(") >= 3 * 3 + 2
    assert own_answers_section({"teacher": {}, "arms": {"init": {}}}) is None

"""What the models write: prompts, where they end, and characters that a page must not obey."""

from html import unescape

from distill.report.samples import samples_section, visible


def sample(written, ended, prompt="[user] Who?\n[assistant] ", is_answer=True):
    return {
        "prompt": prompt, "written": written, "ended": ended, "held_out": "Nobody.",
        "is_answer": is_answer,
    }  # fmt: skip


def report(teacher, **more):
    return {"teacher": teacher, "arms": {}, "artifacts": {}, **more}


def test_a_prompt_is_marked_apart_from_what_each_model_wrote():
    found = samples_section(
        report(
            {"samples": [sample("Me <b>.", True)]},
            arms={"distill": {"samples": [sample("You and", False)]}},
            artifacts={"onnx": {}, "nf4": {"failed": "no room"}},
        )
    )
    page = unescape(found.markup)
    assert '<p class="prompt">[user] Who?↵\n[assistant] </p>' in page
    assert "where the answer begins" in page
    assert '<th>teacher</th><td class="written">Me &lt;b&gt;. ■</td>' in found.markup
    assert '<th>distill</th><td class="written">You and…</td>' in page
    assert '<th>the data</th><td class="data">Nobody.</td>' in page
    assert "onnx" not in page
    assert "nf4" not in page


def test_texts_are_said_to_be_texts():
    found = samples_section(report({"samples": [sample("x", False, is_answer=False)]}))
    assert "the beginning of a held-out text" in found.markup


def test_there_is_no_section_where_nothing_writes():
    assert samples_section(report({})) is None
    assert samples_section(report({"samples": []})) is None


def test_control_characters_are_visible():
    assert visible("a\nb\tc\x1b[2J\r\u202ed") == "a↵\nb⇥c\\x1b[2J\\x0d\\u202ed"

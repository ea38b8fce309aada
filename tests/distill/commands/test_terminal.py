"""What a model, its data or a file says reaches the terminal as text."""

import logging
from pathlib import Path

import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from distill.commands.main import main
from distill.console import print_table, set_up_logging

TITLE = "\x1b]0;owned\x07"


def test_an_answer_is_shown_and_not_obeyed(saved_models, make_model, tmp_path):
    """The model says its first token for ever, which holds an escape sequence."""
    model = make_model(0, vocabulary=3)
    model.model.norm.weight.data.zero_()
    model.save_pretrained(tmp_path)
    words = Tokenizer(WordLevel({TITLE: 0, "light": 1, "<e>": 2}, unk_token="light"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<e>").save_pretrained(tmp_path)
    result = CliRunner().invoke(main, ["chat", str(tmp_path), "--prompt", "x", "--max-tokens", "2"])
    assert result.exit_code == 0, result.output
    assert r"\x1b]0;owned\x07" in result.output
    assert "\x1b" not in result.output


def test_errors_are_shown_and_not_obeyed(tmp_path):
    (tmp_path / "r.yaml").write_text('data: "\\e]0;owned\\a"\n')
    result = CliRunner().invoke(main, ["plan", str(tmp_path / "r.yaml")])
    assert result.exit_code == 1
    assert "owned" in result.output
    assert "\x1b" not in result.output


def test_log_lines_are_shown_and_not_obeyed(capsys):
    set_up_logging()
    logging.getLogger("distill").warning("class %s", TITLE)
    assert capsys.readouterr().err == "class \\x1b]0;owned\\x07\n"


@pytest.mark.parametrize("name", ["[/bold]", "[red]", ":smile:", "a[b]c"])
def test_tables_show_names_as_they_are(capsys, name):
    print_table([["class", "n"], [name, TITLE]])
    found = capsys.readouterr().out
    assert name in found
    assert "\x1b" not in found


def test_commands_print_through_one_function():
    folder = Path(main.__module__.replace(".", "/")).parent
    root = Path(__file__).resolve().parents[3]
    for file in (root / folder).glob("*.py"):
        if file.name != "say.py":
            text = file.read_text(encoding="utf8")
            assert "click.echo" not in text, file
            assert " print(" not in text, file

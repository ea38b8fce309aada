"""`distill chat`: who answers, whose answer is whose, on which base, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM

import students.artifacts  # noqa: F401  (importing enrols)
from attar.errors import ModelError
from distill.chat.models import open_conversation
from distill.chat.session import chat as start_chat
from distill.chat.speaker import Speaker, find_adapters, quantization_for
from distill.commands.main import main
from students.artifacts.artifact import ArtifactInputs, export_artifact, write_failure
from students.tuning.adapters import load_adapter, load_base, save_adapter
from students.tuning.bottleneck_module import BottleneckConfig, add_bottleneck
from tests.helpers.command_line import invoke

pytestmark = pytest.mark.usefixtures("saved_models")

TASK = {"task_type": "CAUSAL_LM"}
KINDS = {
    "lora": lambda model: get_peft_model(
        model, LoraConfig(r=4, target_modules="all-linear", **TASK)
    ),
    "prefix": lambda model: get_peft_model(model, PrefixTuningConfig(num_virtual_tokens=4, **TASK)),
    "adapter": lambda model: add_bottleneck(model, BottleneckConfig(size=8)),
}


def save(kind, folder, student, quantization="none"):
    """An adapter that has learned something, as the specialise stage leaves it."""
    torch.manual_seed(len(kind))
    model = KINDS[kind](load_base(student, quantization))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    save_adapter(model, folder, student, quantization)


@pytest.fixture
def run(make_model, tokenizer, tmp_path, monkeypatch):
    """A run folder `out` with a distilled student and a specialised adapter; gives the student."""
    monkeypatch.chdir(tmp_path)
    student = Path("out/arms/distill/student")
    make_model(1, width=64, vocabulary=320).save_pretrained(student)
    tokenizer.save_pretrained(student)
    Path("out/recipe.yaml").write_text("seed: 0")
    save("lora", Path("out/specialized/adapter"), student)
    return student


def chat(*arguments):
    return invoke("chat", *arguments, "--max-tokens", "6")


def answered(*arguments):
    result = chat(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(says, *arguments):
    result = chat(*arguments, "--prompt", "light")
    assert result.exit_code == 1
    assert says in result.output
    assert result.output.count("Error: ") == 1
    assert result.output.strip().splitlines()[-1].startswith("Error: ")


def greedy(tokenizer, messages, student, folder):
    """What transformers itself generates with one adapter."""
    model = load_adapter(AutoModelForCausalLM.from_pretrained(student), Path(folder))
    return generated(model, tokenizer, messages)


def generated(model, tokenizer, messages):
    """What transformers itself generates after messages."""
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    ids = model.generate(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"],
        max_new_tokens=6, do_sample=False, pad_token_id=0,
    )  # fmt: skip
    return tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_the_runs_adapter_answers_by_its_name(run, tokenizer):
    said = answered("out", "--adapter", "specialized", "--prompt", "light falls")
    messages = [{"role": "user", "content": "light falls"}]
    assert said == greedy(tokenizer, messages, run, "out/specialized/adapter") + "\n"
    assert said != answered("out", "--arm", "distill", "--prompt", "light falls")


def test_several_adapters_answer_each_in_its_own_conversation(run, tokenizer):
    save("adapter", Path("elsewhere/behind"), run)
    save("prefix", Path("elsewhere/before"), run)
    said = answered(
        "out", "--adapter", "specialized", "--adapter", "elsewhere/behind",
        "--adapter", "first=elsewhere/before", "--prompt", "light", "--prompt", "on water",
    )  # fmt: skip
    folders = {
        "specialized": "out/specialized/adapter",
        "behind": "elsewhere/behind",
        "first": "elsewhere/before",
    }
    talks = {name: [] for name in folders}
    expected = ""
    for text in ("light", "on water"):
        for name, folder in folders.items():
            talks[name].append({"role": "user", "content": text})
            answer = greedy(tokenizer, talks[name], run, folder)
            talks[name].append({"role": "assistant", "content": answer})
            expected += f"{name}: {answer}\n"
    assert said == expected


def test_a_plain_model_takes_an_adapter_too(run):
    shutil.copytree(run, "model")
    of_run = answered("out", "--adapter", "specialized", "--prompt", "light")
    of_model = answered("model", "--adapter", "out/specialized/adapter", "--prompt", "light")
    assert of_model == of_run


def test_the_base_is_quantised_as_it_was_in_training(run):
    save("lora", Path("four-bit"), run, "nf4")
    assert quantization_for({"a": Path("four-bit")}) == "nf4"
    assert answered("out", "--adapter", "four-bit", "--prompt", "light")
    says = "`specialized` none, `four-bit` nf4"
    refused(says, "out", "--adapter", "specialized", "--adapter", "four-bit")


def test_a_run_with_one_adapter_finds_its_student(run):
    base, found = find_adapters("out", ["specialized"])
    assert Path(base) == run
    assert found == {"specialized": Path("out/specialized/adapter")}


@pytest.mark.parametrize(
    ("adapters", "says"),
    [
        (["specialised"], "Did you mean `specialized`?"),
        (["nothing"], "out has specialized; give another as NAME=FOLDER"),
        (["mine=nowhere"], "There is no adapter `mine=nowhere`"),
        (["specialized", "specialized"], "Two adapters are called `specialized`"),
    ],
)
def test_a_name_that_means_nothing_is_one_clear_sentence(run, adapters, says):
    refused(says, "out", *[word for name in adapters for word in ("--adapter", name)])


def test_an_adapter_for_another_base_is_refused_by_both_names(run, make_model, tokenizer):
    make_model(7, width=64, vocabulary=320).save_pretrained("other")
    tokenizer.save_pretrained("other")
    refused(
        "was made for out/arms/distill/student", "other", "--adapter", "out/specialized/adapter"
    )


def test_an_adapter_that_changed_its_base_is_refused(run):
    file = Path("out/specialized/adapter/adapter_config.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "init_lora_weights": "pissa"}))
    refused("cannot share a base", "out", "--adapter", "specialized")


def test_an_artifact_and_an_adapter_at_once_are_refused(run):
    refused("either --artifact or --adapter", "out", "--artifact", "x", "--adapter", "specialized")


def test_a_run_without_a_student_says_what_to_run(tmp_path):
    (tmp_path / "recipe.yaml").write_text("seed: 0")
    refused("run `distill run` on it first", tmp_path, "--adapter", "specialized")


# Artifacts ---------------------------------------------------------------------------------------


@pytest.fixture
def artifacts(run):
    """The run's artifacts of every runtime: one that transformers loads comes first."""
    pytest.importorskip("gguf")
    pytest.importorskip("xllamacpp")
    given = ArtifactInputs(run, run, Path("out/specialized/adapter"))
    for name in ("bf16", "adapter", "gguf-f16"):
        export_artifact(name, given, Path("out/artifacts", name), "a card")
    write_failure(Path("out/artifacts/nf4"), "nf4", "its rows are too short")
    graph = Path("out/artifacts/onnx")
    graph.mkdir()
    (graph / "manifest.json").write_text('{"runtime": "onnxruntime"}')
    return run


def test_a_gguf_artifact_answers_as_the_student_does(artifacts):
    said = [
        answered("out", *who, "--prompt", "light", "--prompt", "falls")
        for who in (("--arm", "distill"), ("--artifact", "gguf-f16"))
    ]
    assert said[0][:2] == said[1][:2]
    assert len(said[1].splitlines()) >= 2


def test_an_adapter_artifact_answers_with_its_adapter(artifacts, tokenizer):
    mine = answered("out", "--artifact", "adapter", "--prompt", "light")
    other = answered("out", "--adapter", "specialized", "--prompt", "light")
    assert mine != answered("out", "--arm", "distill", "--prompt", "light")
    assert mine[:4] == other[:4]


def test_artifacts_that_cannot_talk_say_why(artifacts):
    refused("an ONNX graph without a cache of keys and values", "out", "--artifact", "onnx")
    refused("could not be made: its rows are too short", "out", "--artifact", "nf4")


# Who answers -------------------------------------------------------------------------------------


def test_where_nothing_was_measured_the_specialised_student_answers_and_says_so(artifacts):
    result = chat("out", "--prompt", "light")
    assert result.stdout == answered("out", "--adapter", "specialized", "--prompt", "light")
    assert result.stderr == (
        "The specialised student speaks: nothing was measured yet (`distill evaluate` does it). "
        "Others: --artifact adapter|bf16|gguf-f16, --arm distill.\n"
    )


def test_a_line_says_who_speaks_where_the_user_named_it_too(artifacts):
    def line(*arguments):
        return chat(*arguments, "--prompt", "light").stderr

    others = "--artifact adapter|bf16|gguf-f16"
    assert line("out", "--arm", "distill") == (
        f"The distilled student speaks. Others: {others}, --arm specialized.\n"
    )
    assert line("out", "--artifact", "bf16") == (
        "`bf16` speaks. Others: --artifact adapter|gguf-f16, --arm specialized|distill.\n"
    )
    adapters = ("--adapter", "specialized", "--adapter", "b=out/specialized/adapter")
    assert line("out", *adapters[:2]) == f"The adapter `specialized` speaks on {artifacts}.\n"
    assert line("out", *adapters) == f"The adapters `specialized`, `b` speak on {artifacts}.\n"
    assert line(artifacts) == f"{artifacts} speaks.\n"


def test_without_specialising_the_distilled_student_answers(run):
    shutil.rmtree("out/specialized")
    shutil.copytree("out/arms/distill", "out/arms/finetune")
    result = chat("out", "--prompt", "light")
    assert result.stderr.startswith("The distilled student speaks: nothing was measured yet")
    assert result.stderr.endswith(" Others: --arm finetune.\n")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--artifact", "distill"], "`distill` is an arm: --arm distill."),
        (["--arm", "bf16"], "`bf16` is an artifact: --artifact bf16."),
        (["--arm", "distil"], "Did you mean `distill`?"),
        (["--arm", "distill", "--artifact", "bf16"], "either --artifact or --arm"),
        (["--arm", "distill", "--arm", "specialized"], "--arm is given 2 times (distill, spec"),
        (["--artifact", "bf16", "--artifact", "bf16"], "--artifact is given 2 times"),
    ],
)
def test_arms_and_artifacts_are_not_mixed_up(run, options, says):
    Path("out/artifacts/bf16").mkdir(parents=True)
    Path("out/artifacts/bf16/config.json").write_text("{}")
    refused(says, "out", *options)


@pytest.mark.parametrize("options", [[], ["--artifact", "bf16"], ["--adapter", "specialized"]])
def test_a_run_of_another_task_is_refused_before_anything_is_said(run, options):
    Path("out/recipe.yaml").write_text("task: sequence-classification")
    Path("out/artifacts/bf16").mkdir(parents=True)
    Path("out/artifacts/bf16/config.json").write_text("{}")
    refused(
        "out/artifacts/bf16/README.md says how to use one, and `distill evaluate", "out", *options
    )


# Conversations -----------------------------------------------------------------------------------


def test_a_system_message_is_heard_and_kept(run, tokenizer):
    said = answered(run, "--system", "says water", "--prompt", "light", "--prompt", "falls")
    model = AutoModelForCausalLM.from_pretrained(run)
    messages, expected = [{"role": "system", "content": "says water"}], ""
    for text in ("light", "falls"):
        messages.append({"role": "user", "content": text})
        answer = generated(model, tokenizer, messages)
        messages.append({"role": "assistant", "content": answer})
        expected += answer + "\n"
    assert said == expected
    assert said != answered(run, "--prompt", "light", "--prompt", "falls")


def test_without_a_template_the_system_text_stands_before_the_prompt(run, bare_tokenizer):
    for file in (run / "chat_template.jinja", run / "tokenizer_config.json"):
        file.unlink()
    bare_tokenizer.save_pretrained(run)
    mine = answered(run, "--system", "says", "--prompt", "water light")
    assert mine == answered(run, "--prompt", "says\n\nwater light")


def test_a_template_without_system_messages_says_so(run, tokenizer):
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    tokenizer.save_pretrained(run)
    refused("template refuses the messages: System role not supported", run, "--system", "x")


def test_the_system_message_of_the_training_data_is_taken(run):
    turns = [("system", "Be  kind."), ("user", "light"), ("assistant", "water")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    Path("rows.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n")
    recipe = "data: {train: rows.jsonl}\nteacher: {model: t}\nstudent: {layers: {keep: 1}}\n"
    Path("out/recipe.yaml").write_text(recipe)
    result = chat("out", "--prompt", "light")
    assert 'System message of the training data: "Be kind."' in result.stderr
    assert result.stdout == answered("out", "--system", "Be  kind.", "--prompt", "light")
    plain = answered("out", "--system", "", "--prompt", "light")
    assert plain != result.stdout
    row["messages"][0]["content"] = "Be brief."
    Path("rows.jsonl").write_text(Path("rows.jsonl").read_text() + json.dumps(row) + "\n")
    assert answered("out", "--prompt", "light") == plain, "they differ"


def test_what_is_piped_is_one_prompt(run):
    arguments = ["chat", str(run), "--max-tokens", "6"]
    piped = CliRunner().invoke(main, arguments, input="light falls\non water\n")
    assert piped.exit_code == 0, piped.output
    assert piped.stdout == answered(run, "--prompt", "light falls\non water")
    empty = CliRunner().invoke(main, arguments, input="")
    assert empty.exit_code == 1
    assert "standard input is empty; give --prompt TEXT" in empty.output


def test_each_kind_of_speaker_keeps_to_the_models_positions(artifacts, tokenizer):
    prefixed = {"a": Path("before"), "b": Path("before")}
    save("prefix", Path("before"), artifacts)
    for speaker in (
        Speaker(str(artifacts)),
        Speaker("out/artifacts/gguf-f16"),
        Speaker(str(artifacts), prefixed),
    ):
        remarks = []
        one = open_conversation(speaker, False, remarks.append)
        one.begin("says water")
        for _ in range(8):
            one.answer("light falls on water many times", 6, lambda text: None)
        assert remarks, speaker
        with pytest.raises(ModelError, match=r"128 positions|124 positions"):
            one.answer("light " * 200, 6, lambda text: None)


def talk(model, *typed, system=None):
    """What a session writes for lines that a user types."""
    lines, written = iter(typed), []
    start_chat(
        Speaker(str(model)), system=system, prompts=(), max_tokens=6, trust_remote_code=False,
        ask=lambda: next(lines, None), write=written.append, remark=written.append,
    )  # fmt: skip
    return "".join(written)


def test_commands_of_a_session(run):
    alone = answered(run, "--prompt", "light")
    new = "(A new conversation.)\n"
    assert talk(run, "light", "/reset", "light", "/clear", "light") == new.join([alone] * 3)
    with_system = answered(run, "--system", "says water", "--prompt", "light")
    assert talk(run, "/system says water", "light", "/reset", "light") == (
        "(A new conversation, with this system message.)\n" + with_system + new + with_system
    )
    assert talk(run, '/system ""', "light", system="says water") == (
        f"(A new conversation, without a system message.)\n{alone}"
    )
    assert talk(run, "/system", "light", system="says water") == (
        f"(The system message is: says water)\n{with_system}"
    )
    assert talk(run, "/system", "light") == f"(No system message.)\n{alone}"
    assert talk(run, "/exit", "light") == ""
    assert "/system TEXT" in talk(run, "/help")
    assert "Did you mean `/reset`?" in talk(run, "/reste")
    assert talk(run, "/etc/hosts") == answered(run, "--prompt", "/etc/hosts")


def test_a_turn_that_fails_does_not_end_the_session(run, tokenizer):
    alone = answered(run, "--prompt", "light")
    tokenizer.chat_template = (
        "{% if messages[-1].content == 'bad' %}{{ raise_exception('no') }}{% endif %}"
        + tokenizer.chat_template
    )
    tokenizer.save_pretrained(run)
    said = talk(run, "bad", "light")
    assert said == "Error: The model's chat template refuses the messages: no\n" + alone

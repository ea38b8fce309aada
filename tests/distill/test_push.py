"""`distill push`: what is sent, what is refused, and what the hub's refusals become.

The client is huggingface_hub's own; the hub is a server on this machine.
"""

import json
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest

import students.artifacts  # noqa: F401  (importing enrols)
from distill.evaluation.job import Numbers
from distill.stages import shipping
from students.artifacts.artifact import ArtifactInputs, check_whole, export_artifact
from students.artifacts.model_card import NOT_MEASURED, model_card
from tests.helpers.command_line import invoke
from tests.helpers.fake_hub import TOKEN, served_hub

pytestmark = pytest.mark.usefixtures("local_server", "saved_models")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub on this machine that the client talks to, with a token that it takes."""
    with served_hub() as (made, address):
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield made


@pytest.fixture(scope="module")
def exported(make_model, bytes_bpe, tmp_path_factory):
    """An artifact as it was exported."""
    from tests.conftest import chat_tokenizer

    folder = tmp_path_factory.mktemp("exported")
    make_model(1, width=64, vocabulary=320).save_pretrained(folder / "student")
    chat_tokenizer(bytes_bpe).save_pretrained(folder / "student")
    given = ArtifactInputs(folder / "student", folder / "student")
    card = model_card(
        name="bf16", given=given, recipe="seed: 0", teacher="org/teacher", data=["org/texts"],
        license="apache-2.0", measured=NOT_MEASURED, base_models=["org/teacher"],
        datasets=["org/texts"],
    )  # fmt: skip
    export_artifact("bf16", given, folder / "bf16", card)
    return folder / "bf16"


@pytest.fixture
def artifact(exported, tmp_path, monkeypatch):
    """A copy of the artifact in the run folder `out`, which says that it is fit."""
    monkeypatch.chdir(tmp_path)
    folder = Path("out/artifacts/bf16")
    shutil.copytree(exported, folder)
    Path("out/records").mkdir()
    Path("out/recipe.yaml").write_text("seed: 0")
    measured(monkeypatch, bf16=fit(True))
    return folder


def fit(ships: bool, reference="distill") -> Numbers:
    reason = "within the tolerance" if ships else "its perplexity is 9.0% higher than distill's"
    return {
        "fit": {"ships": ships, "reason": reason, "reference": reference}, "bytes": 1,
        "perplexity": 2.0, "runtime": "transformers",
        "tokens_per_second": {"generate": 1.0},
    }  # fmt: skip


def measured(monkeypatch, **artifacts):
    """Let the run in `out` have measured these artifacts; none: nothing was."""
    from distill.tasks.registry import TASKS

    found = shipping.Shipping(artifacts, TASKS["causal-lm"].report, False) if artifacts else None
    monkeypatch.setattr("distill.push.read_shipping", lambda folder: found)


def push(*arguments):
    result = invoke("push", *arguments)
    assert TOKEN not in result.output
    return result


def pushed(*arguments):
    result = push(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def refused(says, *arguments):
    result = push(*arguments)
    assert result.exit_code == 1
    assert says in result.output
    assert len(result.stderr.strip().splitlines()) == 1


def test_what_is_fit_goes_to_a_new_private_repository(hub, artifact, tmp_path):
    said = pushed("out", "me/small")
    assert hub.repositories["me/small"]["private"]
    sent = hub.files("me/small")
    manifest = json.loads((artifact / "manifest.json").read_text())
    assert set(sent) == {*manifest["files"], "manifest.json"}
    assert all(content == (artifact / name).read_bytes() for name, content in sent.items())
    assert all(TOKEN.encode() not in content for content in sent.values())
    assert said.endswith("/me/small\n")
    assert f"Pushed bf16, {len(sent)} files" in said
    assert hub.messages == ["Add the artifact bf16"]


def test_a_name_alone_is_the_users_own_and_options_are_heard(hub, artifact):
    said = pushed(artifact, "small", "--public", "--revision", "v/1", "--message", "First.")
    assert not hub.repositories["me/small"]["private"]
    assert hub.files("me/small") == {}
    assert "model.safetensors" in hub.files("me/small", "v/1")
    assert hub.messages == ["First."]
    assert said.endswith("/me/small/tree/v/1\n")


def test_a_dry_run_shows_everything_and_asks_nobody(hub, artifact, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    said = pushed("out", "me/small", "--dry-run")
    assert hub.repositories == {}
    assert "would go to me/small (private)" in said
    size = (artifact / "model.safetensors").stat().st_size
    assert f"{size:,}" in said
    assert "base_model:" in said
    assert "# A student of org/teacher, artifact `bf16`" in said


def test_an_edited_card_goes_with_a_manifest_that_fits_it(hub, artifact, tmp_path):
    (artifact / "README.md").write_text("My own words.")
    before = (artifact / "manifest.json").read_bytes()
    (artifact / "notes.txt").write_text("not a part of the artifact")
    pushed("out", "me/small")
    for name, content in hub.files("me/small").items():
        file = tmp_path / "downloaded" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    assert check_whole(tmp_path / "downloaded")
    assert (tmp_path / "downloaded/README.md").read_text() == "My own words."
    assert not (tmp_path / "downloaded/notes.txt").exists()
    assert (artifact / "manifest.json").read_bytes() == before


def test_what_is_unfit_or_not_measured_or_damaged_needs_force(hub, artifact, monkeypatch):
    measured(monkeypatch, bf16=fit(False))
    refused("No artifact of out is fit to ship: bf16 (its perplexity is 9.0%", "out", "me/small")
    refused(
        "`bf16` is not pushed: it is not fit to ship, since its perplexity is 9.0% higher than "
        "distill's. --force pushes it all the same.",
        artifact, "me/small",
    )  # fmt: skip
    measured(monkeypatch)
    refused("Nothing of out was measured as it is now: run `distill evaluate out`", "out", "me/a")
    refused("it was not measured as it is now", "out", "me/small", "--artifact", "bf16")
    shutil.copytree(artifact, "elsewhere")
    refused("it is outside its run", "elsewhere", "me/small")
    measured(monkeypatch, bf16=fit(True))
    data = bytearray((artifact / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (artifact / "model.safetensors").write_bytes(data)
    refused("it is damaged", "out", "me/small")
    assert hub.repositories == {}
    said = pushed("out", "me/small", "--artifact", "bf16", "--force")
    assert "Warning: `bf16`: it is damaged" in said
    assert hub.files("me/small")["model.safetensors"] == bytes(data)


def test_names_that_mean_nothing(hub, artifact):
    for name in ("me/small/large", "https://huggingface.co/me/small", "a b", "a..b"):
        refused("is not the name of a repository", "out", name)
    refused("Did you mean `bf16`?", "out", "me/small", "--artifact", "bf61")
    refused("neither a run folder nor an artifact", "out/records", "me/small")
    refused("is not a run folder", artifact, "me/small", "--artifact", "bf16")


def test_a_manifest_cannot_name_other_files(hub, artifact):
    manifest = json.loads((artifact / "manifest.json").read_text())
    manifest["files"]["../../recipe.yaml"] = {"bytes": 7, "sha256": "0"}
    (artifact / "manifest.json").write_text(json.dumps(manifest))
    refused("which is outside the artifact", artifact, "me/small", "--force")
    assert hub.repositories == {}


def test_nothing_is_published_by_accident(hub, artifact):
    hub.add("me/small", private=False)
    refused("me/small exists and is public: give --public", "out", "me/small")
    assert hub.files("me/small") == {}
    pushed("out", "me/small", "--public")
    hub.add("me/secret", private=True)
    refused("exists and is private: give --private", "out", "me/secret", "--public")


@pytest.mark.parametrize(
    ("start", "status", "says"),
    [
        ("/api/whoami", 401, "The hub does not accept the token"),
        ("/api/repos/create", 403, "The token may not write to me/small"),
        ("/api/models/me/small/commit", 403, "The token may not write to me/small"),
        ("/api/models/me/small/commit", 500, "The hub has a fault of its own (status 500)"),
        ("/api/models/me/small/commit", 409, "(status 409): because ..."),
        ("/api/validate-yaml", 400, "The hub refuses me/small"),
    ],
)
def test_refusals_of_the_hub_are_one_sentence(hub, artifact, start, status, says):
    hub.refuse[start] = (status, f"because {TOKEN}")
    refused(says, "out", "me/small")


def test_without_a_token_or_a_network(hub, artifact, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    refused("The hub does not accept the token", "out", "me/small")
    monkeypatch.delenv("HF_TOKEN")
    refused("There is no token for the hub: `hf auth login`, or set HF_TOKEN.", "out", "me/small")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    refused("The hub cannot be reached", "out", "me/small")


def test_the_front_matter_is_what_the_hubs_own_tools_read(exported):
    from huggingface_hub import ModelCard

    data = ModelCard.load(exported / "README.md").data
    assert data.license == "apache-2.0"
    assert data.base_model == ["org/teacher"]
    assert data.datasets == ["org/texts"]
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "text-generation"
    assert data.tags == ["distillation", "attar"]

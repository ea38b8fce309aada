"""Who answers: what would be shipped of a run, another of its models, or any model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from attar.errors import RecipeError, RunError, nearest
from attar.files import read_json_object
from attar.models.loading import Quantization
from attar.models.task_heads import CAUSAL
from distill.recipe.parse import read_values
from distill.run.folder import RunFolder, is_run
from distill.runtimes.runtime import runtime_of
from distill.stages.shipping import Shipping, named_artifact, read_shipping
from distill.tasks.registry import TASKS
from students.artifacts.artifact import CARD_FILE, MANIFEST_FILE

SPECIALIZED = "specialized"  # the name of the specialised student among the arms
NOT_MEASURED = "nothing was measured yet (`distill evaluate` does it)"


@dataclass(frozen=True)
class Speaker:
    """A model that answers.

    model: its folder, file or id. adapters: folders of the adapters that answer on it, by name.
    why: one line on who speaks, and how to hear another.
    """

    model: str
    adapters: dict[str, Path] = field(default_factory=dict)
    why: str = ""


def find_speaker(run_or_model: str, artifact: str | None = None, arm: str | None = None) -> Speaker:
    """The artifact or arm that is named, of a run; what would be shipped where none is.

    A model's id or folder is returned unchanged. arm: also `specialized`, the specialised student.
    Raises `RunError` for a name that the run does not have, and for a run whose task is not to
    predict the next token.
    """
    if not is_run(Path(run_or_model)):
        if artifact is not None or arm is not None:
            what, name = ("artifact", artifact) if artifact is not None else ("arm", arm)
            raise RunError(f"{run_or_model} is not a run folder, so it has no {what} `{name}`.")
        return Speaker(run_or_model, why=f"{run_or_model} speaks.")
    folder = Path(run_or_model)
    artifacts, arms = _artifacts(folder), _arms(folder)
    _check_talks(folder, artifacts)
    talking = {name: path for name, path in artifacts.items() if _can_talk(path)}
    if not artifacts and not arms:
        raise RunError(f"{folder} has no student yet; run `distill run` on it first.")
    if artifact is not None:
        hint = f" `{artifact}` is an arm: --arm {artifact}." if artifact in arms else ""
        found = str(named_artifact(folder, artifact, artifacts, hint))
        return Speaker(found, why=_line(f"`{artifact}`", "", talking, arms, artifact))
    if arm is not None:
        if arm not in arms:
            more = f" `{arm}` is an artifact: --artifact {arm}." if arm in artifacts else ""
            known = ", ".join(arms) or "none"
            raise RunError(
                f"{folder} has no arm `{arm}`; it has {known}.{more or nearest(arm, arms)}"
            )
        return replace(arms[arm], why=_line(_arm_name(arm), "", talking, arms, arm))
    return _shipped(folder, artifacts, arms)


def _check_talks(folder: Path, artifacts: dict[str, Path]) -> None:
    """Raise `RunError` where the run's task leaves models that cannot generate."""
    try:
        task = read_values(str(folder / "recipe.yaml")).get("task", "causal-lm")
    except RecipeError:
        return  # what cannot be read says nothing of the models
    if task not in TASKS or TASKS[task].auto == CAUSAL:
        return
    card = next((path / CARD_FILE for path in artifacts.values()), None)
    use = f"{card} says how to use one" if card else "an artifact's card says how to use it"
    raise RunError(
        f"The models of {folder} are of `task: {task}`: they do not predict the next token, so "
        f"they cannot chat; {use}, and `distill evaluate MODEL --data FILE` measures one."
    )


def _artifacts(folder: Path) -> dict[str, Path]:
    """The finished artifacts of a run, by name."""
    return {
        path.name: path
        for path in sorted((folder / "artifacts").glob("*"))
        if path.suffix not in (".partial", ".old")
        and any((path / name).is_file() for name in ("config.json", MANIFEST_FILE))
    }


def _arms(folder: Path) -> dict[str, Speaker]:
    """The trained students of a run by name, the specialised one and the distilled one first."""
    run = RunFolder(folder)
    found: dict[str, Speaker] = {}
    if (run.merged / "config.json").is_file():
        found[SPECIALIZED] = Speaker(str(run.merged))
    elif holds_adapter(run.adapter):  # of a method that cannot be merged
        found[SPECIALIZED] = Speaker(str(run.arm_student()), {SPECIALIZED: run.adapter})
    students = {path.parent.name: path for path in sorted((folder / "arms").glob("*/student"))}
    if "distill" in students:
        students["distill"] = run.arm_student()  # the best of its candidates
    for name in sorted(students, key=lambda name: name != "distill"):
        found[name] = Speaker(str(students[name]))
    return found


def _shipped(folder: Path, artifacts: dict[str, Path], arms: dict[str, Speaker]) -> Speaker:
    """What is fit to ship; else the specialised student, the distilled one, or any artifact."""
    shipping = read_shipping(folder)
    talking = {name: path for name, path in artifacts.items() if _can_talk(path)}
    chosen = None
    if shipping is not None:
        chosen = shipping.choose(lambda numbers: numbers["runtime"] != "onnxruntime")
    if chosen is not None and chosen[0] in talking:
        name, purpose = chosen
        why = f"it is fit to ship, and advised for {purpose}"
        return Speaker(str(talking[name]), why=_line(f"`{name}`", why, talking, arms, name))
    why = _why_no_artifact(shipping)
    if arms:
        name = next(iter(arms))
        return replace(arms[name], why=_line(_arm_name(name), why, talking, arms, name))
    name = next(iter(talking or artifacts))
    return Speaker(str(artifacts[name]), why=_line(f"`{name}`", why, talking, arms, name))


def _can_talk(artifact: Path) -> bool:
    return runtime_of(str(artifact)) != "onnxruntime"


def _why_no_artifact(shipping: Shipping | None) -> str:
    if shipping is None:
        return NOT_MEASURED
    if shipping.choose() is not None:
        return "what is fit to ship cannot generate"
    return "no artifact is fit to ship" if shipping.artifacts else "there is no artifact"


def _arm_name(arm: str) -> str:
    names = {SPECIALIZED: "The specialised student", "distill": "The distilled student"}
    return names.get(arm, f"The arm `{arm}`")


def _line(
    who: str, why: str, artifacts: dict[str, Path], arms: dict[str, Speaker], chosen: str
) -> str:
    """One line: who speaks, why (empty: the user named it), and how to hear another."""
    others = {"--artifact": list(artifacts), "--arm": list(arms)}
    ways = [
        f"{option} {'|'.join(names)}"
        for option, known in others.items()
        if (names := [name for name in known if name != chosen])
    ]
    return f"{who} speaks{f': {why}' if why else ''}." + (
        f" Others: {', '.join(ways)}." if ways else ""
    )


# Adapters ----------------------------------------------------------------------------------------


def find_adapters(run_or_model: str, wanted: Sequence[str]) -> tuple[str, dict[str, Path]]:
    """The base, and the folder of each adapter by name.

    wanted: for each adapter `NAME=FOLDER`, a folder, or the name of an adapter of the run. The base
    is the run's distilled student, or the model itself. Raises `RunError` for an adapter that does
    not exist, and for a name that is given twice.
    """
    base, known = run_or_model, {}
    if is_run(Path(run_or_model)):
        base = find_speaker(run_or_model, arm="distill").model
        own = RunFolder(Path(run_or_model)).adapter
        known = {SPECIALIZED: own} if holds_adapter(own) else {}
    found: dict[str, Path] = {}
    for word in wanted:
        name, equals, folder = word.partition("=")
        if not equals:
            name, folder = (word, str(known[word])) if word in known else (Path(word).name, word)
        if not holds_adapter(Path(folder)):
            has = f"{run_or_model} has {', '.join(known) or 'no adapter'}"
            raise RunError(
                f"There is no adapter `{word}`: {has}; give another as NAME=FOLDER, or as a "
                f"folder with an adapter_config.json.{nearest(word, known)}"
            )
        if name in found:
            raise RunError(
                f"Two adapters are called `{name}`: {found[name]} and {folder}; give one of them "
                "another name as NAME=FOLDER."
            )
        found[name] = Path(folder)
    return base, found


def adapters_line(base: str, adapters: dict[str, Path]) -> str:
    """One line: which adapters speak, on which base."""
    names = ", ".join(f"`{name}`" for name in adapters)
    one = len(adapters) == 1
    return (
        f"The {'adapter' if one else 'adapters'} {names} {'speaks' if one else 'speak'} on {base}."
    )


def holds_adapter(folder: Path) -> bool:
    """Whether a folder is an adapter's."""
    return (folder / "adapter_config.json").is_file()


def quantization_for(adapters: dict[str, Path]) -> Quantization:
    """How the base that these adapters share was quantised.

    Adapters that were made by other tools do not say it. Raises `RunError` where two differ.
    """
    files = {name: folder / "base.json" for name, folder in adapters.items()}
    said = {
        name: read_json_object(f, "quantization")["quantization"]
        for name, f in files.items()
        if f.is_file()
    }
    if len(set(said.values())) > 1:
        each = ", ".join(f"`{name}` {quantization}" for name, quantization in said.items())
        raise RunError(
            f"These adapters were trained on bases quantised differently ({each}), so they cannot "
            "share one; chat with adapters of the same base at a time."
        )
    only: Quantization = next(iter(said.values()), "none")
    return only

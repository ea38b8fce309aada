"""`distill push`: an artifact with its card to a repository of the Hugging Face hub.

Only the files that the artifact's manifest lists are sent. The token is the one that
`hf auth login` keeps, or HF_TOKEN; this package neither reads it from anywhere else nor writes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attar.errors import HubError, ModelError, RunError
from attar.files import read_json_object, sha256_of
from attar.models.locations import is_hub_id
from distill.run.folder import is_run
from distill.stages.made_files import check_against_records, run_of
from distill.stages.shipping import Shipping, named_artifact, read_shipping
from students.artifacts.artifact import CARD_FILE, MANIFEST_FILE, check_whole


@dataclass(frozen=True)
class Package:
    """An artifact as it would be sent.

    files: bytes by path in the folder. objections: why it should not be sent, as clauses.
    """

    name: str
    folder: Path
    files: dict[str, int]
    objections: list[str]

    @property
    def card(self) -> str:
        """The model card; empty where it is missing."""
        file = self.folder / CARD_FILE
        return file.read_text(encoding="utf8", errors="replace") if file.is_file() else ""

    def content(self, file: str) -> Path | bytes:
        """What is sent as a file: itself, but for a manifest whose card was edited since."""
        card = self.folder / CARD_FILE
        if file != MANIFEST_FILE or not card.is_file():
            return self.folder / file
        manifest = read_json_object(self.folder / MANIFEST_FILE, "files")
        entry = {"bytes": card.stat().st_size, "sha256": sha256_of(card)}
        if manifest["files"].get(CARD_FILE) == entry:
            return self.folder / file
        manifest["files"][CARD_FILE] = entry
        return json.dumps(manifest, indent=2).encode()


def check_repository(name: str) -> None:
    """Raise `HubError` for what cannot be the name of a repository."""
    if not is_hub_id(name):
        raise HubError(
            f"`{name}` is not the name of a repository: write NAME or OWNER/NAME, each of letters, "
            "digits, `-`, `_` and `.`."
        )


def prepare_package(run_or_artifact: str, artifact: str | None) -> Package:
    """The artifact that is named, or the one of a run that is fit to ship, and what is against it.

    Raises `RunError` for a name that the run does not have, a folder that is neither, and a run
    none of whose artifacts is fit to ship where none is named.
    """
    folder = Path(run_or_artifact).expanduser()
    if is_run(folder):
        shipping = read_shipping(folder)
        name = artifact or _chosen(folder, shipping)
        path = named_artifact(folder, name, _artifacts(folder))
        return _package(path, _fitness(shipping, name))
    if artifact is not None:
        raise RunError(
            f"{run_or_artifact} is not a run folder, so it has no artifact `{artifact}`."
        )
    if not (folder / MANIFEST_FILE).is_file():
        raise RunError(f"{run_or_artifact} is neither a run folder nor an artifact of one.")
    run = run_of(folder)
    if run is None or folder.resolve().parent != run / "artifacts":
        return _package(folder, ["it is outside its run, so whether it is fit to ship is unknown"])
    return _package(folder, _fitness(read_shipping(run), folder.resolve().name))


def check_allowed(package: Package) -> None:
    """Raise `RunError` where something is against sending an artifact."""
    if package.objections:
        raise RunError(
            f"`{package.name}` is not pushed: {'; '.join(package.objections)}. --force pushes it "
            "all the same."
        )


def _chosen(folder: Path, shipping: Shipping | None) -> str:
    if shipping is None:
        raise RunError(
            f"Nothing of {folder} was measured as it is now: run `distill evaluate {folder}`, or "
            "name what to push with --artifact NAME --force."
        )
    chosen = shipping.choose()
    if chosen is None:
        reasons = [f"{name} ({shipping.reason_against(name)})" for name in shipping.artifacts]
        raise RunError(
            f"No artifact of {folder} is fit to ship: {', '.join(reasons) or 'it has none'}. Name "
            "what to push with --artifact NAME --force."
        )
    return chosen[0]


def _artifacts(run: Path) -> dict[str, Path]:
    """The finished artifacts of a run, by name."""
    found = sorted((run / "artifacts").glob(f"*/{MANIFEST_FILE}"))
    return {path.parent.name: path.parent for path in found}


def _fitness(shipping: Shipping | None, name: str) -> list[str]:
    if shipping is None or name not in shipping.artifacts:
        return ["it was not measured as it is now (`distill evaluate` does it)"]
    reason = shipping.reason_against(name)
    return [f"it is not fit to ship, since {reason}"] if reason is not None else []


def _package(folder: Path, objections: list[str]) -> Package:
    """Raises `RunError` for a manifest that names files outside the artifact."""
    manifest = read_json_object(folder / MANIFEST_FILE, "artifact", "files")
    listed, files = [*manifest["files"], MANIFEST_FILE], {}
    for name in listed:
        file = folder / name
        if not file.resolve().is_relative_to(folder.resolve()):
            raise RunError(f"{folder / MANIFEST_FILE} lists {name}, which is outside the artifact.")
        if file.is_file():
            files[name] = file.stat().st_size
    try:
        check_against_records(folder)
        check_whole(folder, card_may_differ=True)
    except (ModelError, RunError) as error:
        objections = [*objections, f"it is damaged: {str(error).rstrip('.')}"]
    return Package(str(manifest["artifact"]), folder, files, objections)


# The hub -----------------------------------------------------------------------------------------


def push(
    package: Package, repository: str, *, private: bool, revision: str | None, message: str
) -> str:
    """Send an artifact in one commit; returns the address of the repository.

    The repository, and the branch `revision`, are made where they are missing. Files there that the
    artifact does not have stay. Raises `HubError` for what the hub refuses, and for a repository
    that others can read although `private`, or the other way round.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    with hub_errors(repository):
        owner = str(api.whoami()["name"])
        name = repository if "/" in repository else f"{owner}/{repository}"
        _make_repository(api, name, private)
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        api.create_commit(
            name,
            [CommitOperationAdd(file, package.content(file)) for file in package.files],
            commit_message=message,
            revision=revision,
        )
    address = f"{api.endpoint}/{name}"
    return f"{address}/tree/{revision}" if revision is not None else address


def _make_repository(api: Any, name: str, private: bool) -> None:
    """Make a repository, unless it is there and seen by those who are meant to see it."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        found = api.model_info(name)
    except RepositoryNotFoundError:
        api.create_repo(name, private=private, exist_ok=True)
        return
    if bool(found.private) != private:
        is_now, option = ("private", "--private") if found.private else ("public", "--public")
        raise HubError(f"{name} exists and is {is_now}: give {option} to push into it as it is.")


REFUSALS = {
    401: "The hub does not accept the token: `hf auth login` again, or correct HF_TOKEN.",
    403: "The token may not write to {name}: `hf auth login` with one that may.",
    404: "The hub has no {name}, or the token may not see it.",
    429: "The hub has had too many requests from here; try again later.",
}


@contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Turn what the hub, the network or its client raise into a `HubError` of one sentence."""
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        HfHubHTTPError,
        HTTPError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        yield
    except LocalTokenNotFoundError:
        raise HubError("There is no token for the hub: `hf auth login`, or set HF_TOKEN.") from None
    except OfflineModeIsEnabled:
        raise HubError("HF_HUB_OFFLINE is set, so nothing is sent; unset it.") from None
    except HfHubHTTPError as error:
        raise HubError(_refusal(error, name)) from None
    except (HTTPError, ConnectionError) as error:
        raise HubError(f"The hub cannot be reached ({type(error).__name__}).") from None
    except ValueError as error:  # of the client, about the card's front matter among others
        raise HubError(f"The hub refuses {name}: {_without_token(error)}.") from None


def _refusal(error: Any, name: str) -> str:
    """One sentence about an answer of the hub that is an error."""
    status = int(error.response.status_code)
    if status in REFUSALS:
        return REFUSALS[status].format(name=name)
    if status >= 500:
        return f"The hub has a fault of its own (status {status}); try again later."
    return f"The hub refuses {name} (status {status}): {_without_token(error.server_message)}."


def _without_token(reason: object) -> str:
    """What was said, on one line, without the token."""
    from huggingface_hub import get_token

    text = " ".join(str(reason or "it gives no reason").split()).rstrip(".")[:300]
    token = get_token()
    return text.replace(token, "...") if token else text

"""Record what other toolkits' distillation losses give on the tensors of inputs.py.

    pip install trl==1.16.0
    pip install --no-deps torchtune==0.6.1 nvidia-modelopt==0.47.0
    git clone https://github.com/arcee-ai/DistillKit
    python -m tests.references.record --distillkit DistillKit

It writes peers.json beside this file. The toolkits' code runs as it is; torchtune's and ModelOpt's
files are loaded by their place in the installed package, because importing the packages asks for
torchao, omegaconf and megatron, which these losses do not use. Each entry has the function, its
parameters, its value (a number, or one a token) and, for some, the gradient of the value's sum
with respect to the student's logits. tests/distill/objective/test_references.py explains them.

Legend: B rows, T tokens, N tokens, K entries, V vocabulary.
"""

from __future__ import annotations

import argparse
import ast
import datetime
import importlib.util
import json
import math
import subprocess
import sys
from abc import ABCMeta
from collections.abc import Callable, Iterator
from importlib.metadata import distribution, version
from itertools import product
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.references.inputs import (
    IGNORED,
    TOKENS,
    TOP,
    VOCABULARY,
    labels,
    student_logits,
    teacher_logits,
)

HERE = Path(__file__).parent
LABELS = labels()
COUNTED = LABELS != IGNORED
Entry = dict[str, Any]
Run = Callable[[Tensor, Tensor], Tensor]


def measured(function: str, parameters: Entry, run: Run, *, gradient: bool = False) -> Entry:
    """One entry: `run(student_NV, teacher_NV)` on the recorded tensors, or the error it raises."""
    student_NV, teacher_NV = student_logits().requires_grad_(), teacher_logits()
    entry: Entry = {"function": function, "parameters": parameters}
    try:
        value = run(student_NV, teacher_NV)
    except RuntimeError as error:
        return entry | {"raises": type(error).__name__}
    entry["value"] = plain(value)
    if gradient:
        (slope_NV,) = torch.autograd.grad(value.sum(), student_NV)
        entry["gradient"] = plain(slope_NV)
    return entry


def plain(values: Tensor) -> Any:
    """Nested lists of nine significant digits."""
    if values.dim() == 0:
        number = values.item()
        return float(f"{number:.9g}") if math.isfinite(number) else str(number)
    return [plain(part) for part in values.detach()]


def _packaged(package: str, path: str) -> Path:
    """A file of an installed package, which is not imported."""
    return Path(str(distribution(package).locate_file(path)))


def _module(path: Path) -> ModuleType:
    """A Python file as a module of its own."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# TRL ---------------------------------------------------------------------------------------------


def trl_dense() -> Iterator[Entry]:
    """The full-vocabulary losses of the GKD trainer and of the distillation trainer."""
    from trl.experimental.gkd.gkd_trainer import GKDTrainer
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    name = "trl.experimental.gkd.gkd_trainer.GKDTrainer.generalized_jsd_loss"
    settings: list[Entry] = [
        {"beta": beta, "temperature": temperature}
        for beta, temperature in product((0, 0.1, 0.5, 0.9, 1), (1.0, 2.0))
    ]
    extra: list[Entry] = [{"reduction": "sum"}, {"reduction": "mean"}, {"num_items_in_batch": 10}]
    for given in settings + extra:
        yield measured(
            name,
            given,
            lambda s, t, given=given: GKDTrainer.generalized_jsd_loss(
                s[None], t[None], labels=LABELS[None], **given
            ),
            gradient="temperature" in given,
        )
    yield measured(
        name, {"labels": None}, lambda s, t: GKDTrainer.generalized_jsd_loss(s[None], t[None])
    )
    head = torch.eye(VOCABULARY)  # so that hidden states are logits
    for given in settings:
        yield measured(
            "trl.trainer.distillation_trainer._chunked_divergence_loss",
            given,
            lambda s, t, given=given: _chunked_divergence_loss(
                s[None], t[None], head, head, COUNTED[None].int(), **given
            )[0],
            gradient=given["temperature"] == 2,
        )


def trl_sparse() -> Iterator[Entry]:
    """The losses on k entries, with and without one more outcome for the rest."""
    from trl.experimental.iw_opd.iw_opd_trainer import IWOPDTrainer
    from trl.experimental.sdpo.loss_utils import compute_topk_self_distillation_loss
    from trl.experimental.server_distillation.server_distillation_trainer import (
        ServerDistillationTrainer as Server,
    )

    for beta, tail, temperature in product((0, 0.5, 1), (True, False), (1.0, 2.0)):
        given = {"beta": beta, "temperature": temperature, "top_k": TOP, "add_tail": tail}
        yield measured(
            "trl.experimental.iw_opd.iw_opd_trainer.IWOPDTrainer.generalized_jsd_loss",
            given,
            lambda s, t, given=given: IWOPDTrainer.generalized_jsd_loss(
                s[None], t[None], labels=LABELS[None], **given
            ),
            gradient=temperature == 2 and beta == 0,
        )
    for alpha, tail in product((0.0, 0.5, 1.0), (True, False)):
        given = {
            "distillation_topk": TOP,
            "distillation_alpha": alpha,
            "distillation_add_tail": tail,
        }
        yield measured(
            "trl.experimental.sdpo.loss_utils.compute_topk_self_distillation_loss",
            given,
            lambda s, t, given=given: compute_topk_self_distillation_loss(s, t, **given),
        )
    for tail in (True, False):
        trainer = SimpleNamespace(
            loss_add_tail=tail, _reduce_divergence_loss=Server._reduce_divergence_loss
        )

        def run(s: Tensor, t: Tensor, trainer: Any = trainer) -> Tensor:
            top = t.log_softmax(-1).topk(TOP)
            signal = {"topk_logprobs": top.values[None], "topk_token_ids": top.indices[None]}
            logprobs = s.log_softmax(-1)[None]
            return Server._compute_server_forward_kl_loss(trainer, signal, logprobs, LABELS[None])

        name = f"{Server.__module__}.{Server.__name__}._compute_server_forward_kl_loss"
        yield measured(name, {"loss_add_tail": tail, "k": TOP}, run)


# torchtune ---------------------------------------------------------------------------------------


def torchtune() -> Iterator[Entry]:
    """Its three losses on logits, and their chunked forms."""
    losses = _module(_packaged("torchtune", "torchtune/modules/loss/kd_losses.py"))
    settings: list[tuple[str, Entry]] = [
        ("ForwardKL", {}),
        ("ReverseKL", {}),
        ("SymmetricKL", {"sym_kd_ratio": 0.5}),
        ("SymmetricKL", {"sym_kd_ratio": 0.3}),
    ]
    for (name, given), normalize in product(settings, (True, False)):
        loss = getattr(losses, f"{name}Loss")(**given)
        yield measured(
            f"torchtune.modules.loss.{name}Loss",
            given | {"normalize": normalize},
            lambda s, t, loss=loss, normalize=normalize: loss(s, t, LABELS, normalize),
            gradient=normalize,
        )
    for (name, given), cut in product(settings[:3], ("chunk", "tensor_split")):
        loss = getattr(losses, f"{name}WithChunkedOutputLoss")(num_output_chunks=3, **given)

        def run(s: Tensor, t: Tensor, loss: Any = loss, cut: str = cut) -> Tensor:
            pieces = [list(getattr(torch, cut)(x[None], 3, dim=1)) for x in (s, t)]
            return loss(*pieces, LABELS[None])

        named = given | {"num_output_chunks": 3, "logits_cut_by": cut}
        yield measured(f"torchtune.modules.loss.{name}WithChunkedOutputLoss", named, run)


# ModelOpt ----------------------------------------------------------------------------------------


def modelopt() -> Iterator[Entry]:
    """Its loss on logits, and those of its Megatron plugin."""
    path = _packaged("nvidia-modelopt", "modelopt/torch/distill/objective/losses.py")
    loss_of = _module(path).LogitsDistillationLoss
    reductions = ("mean", "batchmean", "sum", "none")
    for temperature, reduction, layout in product((1.0, 2.0), reductions, ("NV", "BTV")):
        given = {"temperature": temperature, "reduction": reduction}
        loss = loss_of(**given)

        def run(s: Tensor, t: Tensor, loss: Any = loss, layout: str = layout) -> Tensor:
            value = loss(s, t) if layout == "NV" else loss(s[None], t[None])
            return value.squeeze(0)

        yield measured(
            "modelopt.torch.distill.losses.LogitsDistillationLoss",
            given | {"layout": layout},
            run,
            gradient=temperature == 2 and reduction == "mean",
        )
    yield from _modelopt_megatron(path.parent / "plugins" / "megatron.py")


def _modelopt_megatron(path: Path) -> Iterator[Entry]:
    """The plugin's classes, run without Megatron: on one device they do not call it."""
    wanted = ("BaseLoss", "LogitsKLLoss", "TopKLogitsKLLoss")
    tree = ast.parse(path.read_text(encoding="utf8"))
    tree.body = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name in wanted]
    names: Entry = {"torch": torch, "F": F, "nn": nn, "Tensor": Tensor, "ABCMeta": ABCMeta}
    names["_Loss"] = nn.modules.loss._Loss
    exec(compile(tree, str(path), "exec"), names)
    config = SimpleNamespace(tensor_model_parallel_size=1)
    for name, reverse, temperature in product(wanted[1:], (False, True), (1.0, 2.0)):
        given = {"temperature": temperature, "reverse": reverse}
        given |= {"top_k": TOP} if name.startswith("TopK") else {}
        loss = names[name](config, **given)
        yield measured(
            f"modelopt.torch.distill.plugins.megatron.{name}",
            given,
            lambda s, t, loss=loss: loss(s[:, None], t[:, None])[0][0],
            gradient=temperature == 2 and not reverse,
        )


# DistillKit --------------------------------------------------------------------------------------


def distillkit() -> Iterator[Entry]:
    """Its losses through the classes a recipe names, masked as its trainer masks (B, T, 1)."""
    from distillkit import lossfuncs

    handlings = lossfuncs.MissingProbabilityHandling
    for name, temperature in product(("KLD", "JSD", "TVD"), (1.0, 2.0)):
        for handling in (None, *handlings):
            given: Entry = {"temperature": temperature}
            if handling is not None:
                given["missing_probability_handling"] = handling
            loss = getattr(lossfuncs, f"{name}Loss")(**given)
            shown = {"temperature": temperature}
            if handling is not None:
                shown |= {"missing_probability_handling": handling.value, "k": TOP}
            yield measured(
                f"distillkit.lossfuncs.{name}Loss",
                shown,
                _distillkit_run(loss, k=handling and TOP),
                gradient=temperature == 2,
            )
    for handling in handlings:
        shown = {"missing_probability_handling": handling.value, "k": VOCABULARY}
        loss = lossfuncs.KLDLoss(1.0, handling)
        yield measured(
            "distillkit.lossfuncs.KLDLoss",
            {"temperature": 1.0} | shown,
            _distillkit_run(loss, k=VOCABULARY),
        )
    yield from _distillkit_ranking()


def _distillkit_ranking() -> Iterator[Entry]:
    """Its ranking losses, masked (B, T) and as its trainer does, in one row and in more."""
    from distillkit import lossfuncs

    ranking: list[tuple[str, Entry]] = [
        ("HingeLoss", {"margin": None}),
        ("HingeLoss", {"margin": 0.1}),
        ("LogisticRankingLoss", {}),
    ]
    for (name, given), (rows, mask_dim) in product(ranking, ((1, 2), (1, 3), (7, 3), (2, 3))):
        yield measured(
            f"distillkit.lossfuncs.{name}",
            given | {"k": TOP, "rows": rows, "mask_dim": mask_dim},
            _distillkit_run(getattr(lossfuncs, name)(**given), k=TOP, rows=rows, mask_dim=mask_dim),
            gradient=(rows, mask_dim) == (1, 2),
        )


def _distillkit_run(loss: Any, *, k: int | None, rows: int = 1, mask_dim: int = 3) -> Run:
    """The loss with k entries, or all logits, on so many rows; two rows hold the first six tokens.

    The trainer's mask has three dimensions: (B, T, 1).
    """
    from distillkit.signals import DenseSignal, SparseSignal

    def run(s: Tensor, t: Tensor) -> Tensor:
        used = TOKENS // rows * rows
        student, teacher = (x[:used].view(rows, -1, VOCABULARY) for x in (s, t))
        mask = COUNTED[:used].view(rows, -1, *([1] * (mask_dim - 2)))
        shared: Entry = {"generation_temperature": 1.0, "hidden_states": None}
        shared["vocab_size"] = VOCABULARY
        if k:
            top = teacher.log_softmax(-1).topk(k)
            signal: Any = SparseSignal(
                sparse_ids=top.indices, sparse_values=top.values, log_values=True, **shared
            )
        else:
            signal = DenseSignal(logits=teacher, **shared)
        return loss(SimpleNamespace(logits=student), signal, mask=mask)

    return run


def main() -> None:
    """Run all and write peers.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--distillkit", type=Path, required=True, help="a clone of DistillKit")
    parser.add_argument("--out", type=Path, default=HERE / "peers.json")
    options = parser.parse_args()
    sys.path.insert(0, str(options.distillkit))
    git = ["git", "-C", str(options.distillkit), "rev-parse", "HEAD"]
    commit = subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()
    groups: list[tuple[str, str, Iterator[Entry]]] = [
        ("TRL", version("trl"), trl_dense()),
        ("TRL", version("trl"), trl_sparse()),
        ("torchtune", version("torchtune"), torchtune()),
        ("ModelOpt", version("nvidia-modelopt"), modelopt()),
        ("DistillKit", commit, distillkit()),
    ]
    entries = [
        {"toolkit": toolkit, "version": number, **entry}
        for toolkit, number, group in groups
        for entry in group
    ]
    head = {
        "date": datetime.date.today().isoformat(),
        "command": "python -m tests.references.record --distillkit DistillKit",
        "torch": torch.__version__,
    }
    lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in entries)
    text = json.dumps(head, indent=0)[:-2] + f',\n"entries": [\n{lines}\n]\n}}\n'
    options.out.write_text(text, encoding="utf8")
    print(f"{len(entries)} entries, {len(text) / 1000:.0f} kB: {options.out}")


if __name__ == "__main__":
    main()

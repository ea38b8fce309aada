"""Several adapters on one base at inference: each row of a batch uses its own, in one forward.

The base's weights are read once for all rows where an adapter only adds to the base's outputs:

- low-rank adapters (LoRA, rsLoRA): by peft's own mixed batches;
- prefixes: keys and values before a row's own, shorter ones padded on the left and masked;
- prompts (prompt tuning, p-tuning): embeddings before a row's tokens, padded and masked likewise;
- bottleneck adapters: applied to their rows of a layer's outputs;
- other adapters that peft adds layer by layer and cannot mix (DoRA, IA3, LoHa, ...): that layer
  runs again on the adapter's rows, while everything between these layers stays one batch.

Legend: B rows, T tokens of the longest row, P prefix slots, E prompt slots, H width, V vocabulary.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attar.errors import DataError, ModelError, nearest
from students.tuning.adapters import load_adapter
from students.tuning.bottleneck_module import PEFT_TYPE as BOTTLENECK
from students.tuning.bottleneck_module import Bottleneck
from students.tuning.peft_wrapper import silence_peft_warnings

PREFIX_KINDS = {"PREFIX_TUNING"}
PROMPT_KINDS = {"PROMPT_TUNING", "P_TUNING"}
PER_LAYER_KINDS = {
    "LORA",
    "IA3",
    "LOHA",
    "LOKR",
    "OFT",
    BOTTLENECK,
}  # added to the model layer by layer
BASE_ROW = "__base__"  # peft's word for a row without an adapter
# Initialisations of LoRA that leave the base's weights unchanged; others (PiSSA) change them.
STARTS_KEEPING_BASE = (True, False, None, "gaussian", "eva", "orthogonal")

Blocks = list[tuple[Tensor, Tensor]]  # keys and values of each block, (1, heads, P, D)


class MixedBatch(NamedTuple):
    """The inputs of one forward besides the adapters; masks are 1 where a token counts."""

    input_ids: Tensor  # (B, E + T), any ids in the prompt slots
    mask: Tensor  # (B, P + E + T)
    position_ids: Tensor  # (B, E + T)
    prompts_BEH: Tensor | None = None  # embeddings for the prompt slots
    cache: Any = None  # holds the prefix slots


class RowSwitch(nn.Module):
    """One layer of the model that computes the rows of some adapters separately."""

    def __init__(
        self, shared: nn.Module, own: dict[str, nn.Module], names: list[str | None]
    ) -> None:
        super().__init__()
        self.shared = shared  # the base's layer, with the adapters that peft mixes
        self.own = own  # a dict hides them from peft, which would take them for its mixed layers
        self.names = names  # adapters of the current batch; one list shared by all layers

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the shared outputs (B, ...) with the rows of these adapters replaced."""
        if len(x) != len(self.names):
            raise ModelError(
                "This model mixes the rows of a batch before its linear layers (experts do), so "
                "its adapters cannot share a batch; use one adapter at a time."
            )
        y: Tensor = self.shared(x, *args, **kwargs)
        for name, module in self.own.items():
            rows = [i for i, wanted in enumerate(self.names) if wanted == name]
            if rows and isinstance(module, Bottleneck):
                y[rows] = module.adapt(y[rows])
            elif rows:
                y[rows] = module(x[rows], *args, **kwargs)
        return y


class MixedAdapters:
    """A base with several adapters by name; use the base only through this object."""

    def __init__(self, base: Any, folders: dict[str, Path]) -> None:
        """Load every adapter onto a base that has not run a forward yet.

        Raises `ModelError` for an adapter that does not fit, or cannot share a base.
        """
        self.names = list(folders)
        self._base, self._model = base.eval(), base
        self._blocks: dict[str, Blocks] = {}
        self._embeddings: dict[str, Tensor] = {}
        self._in_peft: dict[str, str] = {}
        self._rows: list[str | None] = []
        takes = inspect.signature(base.forward).parameters
        self._takes_positions = "position_ids" in takes
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        configs = {name: _config_to_mix(name, folder) for name, folder in folders.items()}
        own: dict[str, dict[str, nn.Module]] = {}
        for name, folder in folders.items():
            if configs[name]["peft_type"] in PREFIX_KINDS | PROMPT_KINDS:
                self._read_prompt(name, folder, configs[name]["peft_type"])
            elif not _mixes_in_peft(configs[name]):
                for place, module in _own_modules(base, folder).items():
                    own.setdefault(place, {})[name] = module
        for name, folder in folders.items():  # last, since they stay in the model
            if _mixes_in_peft(configs[name]):
                self._add_low_rank(name, folder)
        for place, modules in own.items():
            base.set_submodule(place, RowSwitch(base.get_submodule(place), modules, self._rows))
        self._model.eval()

    def _read_prompt(self, name: str, folder: Path, kind: str) -> None:
        loaded: Any = load_adapter(self._base, folder)
        with torch.no_grad():
            prompt = loaded.get_prompt(1)
        if kind in PREFIX_KINDS:
            self._blocks[name] = [(layer.keys, layer.values) for layer in prompt.layers]
        else:
            self._embeddings[name] = prompt[0]

    def _add_low_rank(self, name: str, folder: Path) -> None:
        from peft import PeftModel

        inner = str(len(self._in_peft))  # peft forbids some names
        try:
            with silence_peft_warnings():
                if self._in_peft:
                    self._model.load_adapter(str(folder), adapter_name=inner)
                else:
                    self._model = PeftModel.from_pretrained(
                        self._base, str(folder), adapter_name=inner
                    )
        except (ValueError, RuntimeError, KeyError, OSError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ModelError(f"The adapter {folder} does not fit the model: {reason}") from None
        self._in_peft[name] = inner

    def positions_before(self, name: str) -> int:
        """Positions that an adapter puts before the text: its learned keys, or embeddings."""
        if name in self._blocks:
            return int(self._blocks[name][0][0].shape[2])
        return len(self._embeddings[name]) if name in self._embeddings else 0

    # Running ---------------------------------------------------------------------------------

    @torch.inference_mode()
    def logits(
        self, input_ids_BT: Tensor, attention_mask_BT: Tensor, names: Sequence[str | None]
    ) -> Tensor:
        """Return logits (B, T, V), each row by its own adapter; None is the base alone.

        Padding may be on either side; outputs at padded positions are undefined.
        """
        self._check(names, len(input_ids_BT))
        mask_BT = attention_mask_BT.long()
        if self._would_leave_gaps(mask_BT, names, 0):
            return self._logits_one_by_one(input_ids_BT, mask_BT.bool(), names)
        output = self._forward(self._batch(input_ids_BT, mask_BT, names), names)
        return output.logits[:, -input_ids_BT.shape[1] :]  # type: ignore[no-any-return]

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        names: Sequence[str | None],
        max_new_tokens: int,
        stop_ids: set[int],
    ) -> list[list[int]]:
        """Return greedy continuations, each row by its own adapter, without the first stop id.

        Raises `DataError` for a prompt without tokens.
        """
        self._check(names, len(prompts))
        if not all(prompts):
            raise DataError("A prompt has no tokens; there is nothing to continue.")
        device = self._base.get_input_embeddings().weight.device
        longest = max(len(prompt) for prompt in prompts)
        ids_BT = torch.zeros(len(prompts), longest, dtype=torch.long, device=device)
        mask_BT = torch.zeros_like(ids_BT)
        for row, prompt in enumerate(prompts):
            ids_BT[row, longest - len(prompt) :] = torch.tensor(prompt, device=device)
            mask_BT[row, longest - len(prompt) :] = 1
        if self._would_leave_gaps(mask_BT, names, max_new_tokens):
            pairs = zip(prompts, names, strict=True)
            return [self.generate([p], [n], max_new_tokens, stop_ids)[0] for p, n in pairs]
        return self._continue(self._batch(ids_BT, mask_BT, names), names, max_new_tokens, stop_ids)

    def _continue(
        self,
        batch: MixedBatch,
        names: Sequence[str | None],
        max_new_tokens: int,
        stop_ids: set[int],
    ) -> list[list[int]]:
        answers: list[list[int]] = [[] for _ in names]
        running = set(range(len(names)))
        for _ in range(max_new_tokens):
            output = self._forward(batch, names, use_cache=True, **self._last_only)
            next_B = output.logits[:, -1].argmax(-1)
            for row, token in enumerate(next_B.tolist()):
                if row in running and token in stop_ids:
                    running.remove(row)
                elif row in running:
                    answers[row].append(token)
            if not running:
                break
            batch = MixedBatch(
                next_B[:, None],
                torch.cat([batch.mask, torch.ones_like(batch.mask[:, :1])], dim=1),
                batch.position_ids[:, -1:] + 1,
                cache=output.past_key_values,
            )
        return answers

    def _forward(self, batch: MixedBatch, names: Sequence[str | None], **more: Any) -> Any:
        self._rows[:] = names
        if self._in_peft:
            more["adapter_names"] = [
                self._in_peft.get(name or BASE_ROW, BASE_ROW) for name in names
            ]
        if self._takes_positions:
            more["position_ids"] = batch.position_ids
        if batch.cache is not None:
            more["past_key_values"] = batch.cache
        with _prompts_embedded(self._base.get_input_embeddings(), batch.prompts_BEH):
            return self._model(input_ids=batch.input_ids, attention_mask=batch.mask, **more)

    def _logits_one_by_one(
        self, input_ids_BT: Tensor, mask_BT: Tensor, names: Sequence[str | None]
    ) -> Tensor:
        rows = []
        for ids_T, mask_T, name in zip(input_ids_BT, mask_BT, names, strict=True):
            ids_1T = ids_T[mask_T][None]
            alone_TV = self.logits(ids_1T, torch.ones_like(ids_1T), [name])[0]
            row_TV = alone_TV.new_zeros(len(ids_T), alone_TV.shape[-1])
            row_TV[mask_T] = alone_TV
            rows.append(row_TV)
        return torch.stack(rows)

    # Making a batch -----------------------------------------------------------------------------

    def _batch(self, ids_BT: Tensor, mask_BT: Tensor, names: Sequence[str | None]) -> MixedBatch:
        blocks = [self._blocks.get(name or BASE_ROW) for name in names]
        prompts = [self._embeddings.get(name or BASE_ROW) for name in names]
        prefix_BP = _slots([0 if b is None else b[0][0].shape[2] for b in blocks], mask_BT)
        prompt_BE = _slots([0 if p is None else len(p) for p in prompts], mask_BT)
        mask = torch.cat([prefix_BP, prompt_BE, mask_BT], dim=1)
        return MixedBatch(
            torch.cat([torch.zeros_like(prompt_BE), ids_BT], dim=1),
            mask,
            (mask.cumsum(1) - 1).clamp(min=0)[:, prefix_BP.shape[1] :],
            self._prompts(prompts, prompt_BE.shape[1]),
            self._cache(blocks, prefix_BP.shape[1]),
        )

    def _prompts(self, prompts: list[Tensor | None], slots: int) -> Tensor | None:
        known = [prompt for prompt in prompts if prompt is not None]
        if not known:
            return None
        prompts_BEH = known[0].new_zeros(len(prompts), slots, known[0].shape[1])
        for row, prompt_EH in enumerate(prompts):
            if prompt_EH is not None:
                prompts_BEH[row, slots - len(prompt_EH) :] = prompt_EH
        return prompts_BEH

    def _cache(self, blocks: list[Blocks | None], slots: int) -> Any:
        from transformers import DynamicCache

        known = [own for own in blocks if own is not None]
        if not known:
            return None
        cache = DynamicCache(config=self._base.config)
        for layer, like in enumerate(known[0]):
            filled = []
            for part in (0, 1):  # keys, values
                whole = like[part].new_zeros(len(blocks), like[part].shape[1], slots,
                                             like[part].shape[3])  # fmt: skip
                for row, own in enumerate(blocks):
                    if own is not None:
                        whole[row, :, slots - own[layer][part].shape[2] :] = own[layer][part][0]
                filled.append(whole)
            cache.update(filled[0], filled[1], layer)
        return cache

    def _would_leave_gaps(
        self, mask_BT: Tensor, names: Sequence[str | None], more_tokens: int
    ) -> bool:
        """Return whether padding inside a row would move tokens out of a sliding window."""
        window = getattr(self._base.config.get_text_config(), "sliding_window", None)
        if window is None or (len(names) == 1 and bool(mask_BT.all())):
            return False
        slots = [0, 0]
        for name in names:
            if name in self._blocks:
                slots[0] = max(slots[0], self._blocks[name][0][0].shape[2])
            if name in self._embeddings:
                slots[1] = max(slots[1], len(self._embeddings[name]))
        return bool(sum(slots) + mask_BT.shape[1] + more_tokens > window)

    def _check(self, names: Sequence[str | None], rows: int) -> None:
        assert len(names) == rows, "one name, or None, for every row"
        for name in names:
            if name is not None and name not in self.names:
                known = ", ".join(self.names)
                raise ModelError(
                    f"There is no adapter `{name}`; loaded are {known}." + nearest(name, self.names)
                )


def _config_to_mix(name: str, folder: Path) -> dict[str, Any]:
    """Read the adapter_config.json of a folder; raise `ModelError` if it cannot share a base."""
    try:
        config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text("utf8"))
        kind = str(config["peft_type"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelError(
            f"{folder} holds no adapter: its adapter_config.json is missing."
        ) from None
    reason = None
    if kind not in PREFIX_KINDS | PROMPT_KINDS | PER_LAYER_KINDS:
        known = ", ".join(sorted(PREFIX_KINDS | PROMPT_KINDS | PER_LAYER_KINDS))
        reason = f"its kind, {kind}, is not one of {known}"
    elif config.get("init_lora_weights") not in STARTS_KEEPING_BASE:
        reason = (
            f"it was saved against weights that `{config['init_lora_weights']}` had changed; save "
            "it again as plain LoRA (peft's path_initial_model_for_weight_conversion)"
        )
    elif config.get("bias", "none") != "none":
        reason = f"it changes the base's biases (`bias: {config['bias']}`)"
    elif found := [key for key in ("alora_invocation_tokens", "layer_replication", "arrow_config")
                   if config.get(key)]:  # fmt: skip
        reason = f"its `{found[0]}` changes how the base runs"
    if reason is not None:
        raise ModelError(f"The adapter `{name}` ({folder}) cannot share a base: {reason}.")
    return config


def _mixes_in_peft(config: dict[str, Any]) -> bool:
    alone = ("use_dora", "modules_to_save", "trainable_token_indices")
    return config["peft_type"] == "LORA" and not any(config.get(key) for key in alone)


def _own_modules(base: nn.Module, folder: Path) -> dict[str, nn.Module]:
    """Return the layers that an adapter replaces in the base, by name; the base is restored."""
    before = dict(base.named_modules())
    load_adapter(base, folder)
    after = dict(base.named_modules())
    own = {place: after[place] for place in before if after.get(place) is not before[place]}
    for place in own:
        base.set_submodule(place, before[place])
    base.__dict__.pop("peft_config", None)  # peft marks the model with it
    return own


@contextmanager
def _prompts_embedded(embedding: nn.Module, prompts_BEH: Tensor | None) -> Iterator[None]:
    """Put the prompts into the first slots of every row, in place of embeddings of ids."""
    if prompts_BEH is None:
        yield
        return

    def put(_module: nn.Module, _args: Any, embedded: Tensor) -> None:
        embedded[:, : prompts_BEH.shape[1]] = prompts_BEH

    handle = embedding.register_forward_hook(put)
    try:
        yield
    finally:
        handle.remove()


def _slots(used: list[int], like: Tensor) -> Tensor:
    """Return a mask (B, most used) of slots filled from the right."""
    most = max(used)
    rows = [[0] * (most - count) + [1] * count for count in used]
    return torch.tensor(rows, dtype=like.dtype, device=like.device).reshape(len(used), most)

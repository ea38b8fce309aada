"""Codecs of chosen layers' hidden states: bits a channel on disk against what is left of the state.

    python benchmarks/layer_codecs.py --json benchmarks/results/layer_codecs.json

Layers 10, 20 and 30 (the last, before the final norm) of SmolLM2-135M-Instruct on the held-out
text of cache_codecs.py, half WikiText-2 and half Jane Austen. Bits are those of the shard that the
store writes, scales included; what a codec learned once is reported apart. `cosine` is the mean
over tokens of the cosine between state and decoded state, `worst 1%` what 99% of the tokens exceed,
`error` |h' - h| / |h| as a root mean square over tokens, `centred` the mean cosine after the mean
state of the sample is taken off both: a few channels that are large at every token flatter the
plain cosine.

Legend: N tokens, H width.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import arguments, record
from held_out import WINDOW, Text, read_texts, say, states
from torch import Tensor

from attar.models.loading import load_causal_lm
from attar.models.tokenizers import load_tokenizer
from teachers.cache.store import SignalStore
from teachers.codecs.codec import LAYER_CODECS, SignalColumns
from teachers.runners.build_cache import LEARN_TOKENS

LAYERS = [10, 20, 30]
TRIED: list[dict[str, Any]] = [
    {"name": "bf16"},
    {"name": "int8"},
    *({"name": "basis", "step": step} for step in (0.05, 0.1, 0.2, 0.4, 0.5, 0.8)),
]


def measure(
    codec: Any, layer: int, text_of: list[Text], hidden: list[Tensor], sample_NH: Tensor
) -> dict[str, Any]:
    """One codec on one layer; `hidden` holds (B, N, H) a text."""
    assets = codec.learn(sample_NH)
    rows: list[SignalColumns] = []
    keys, decoded = [], []
    for text, hidden_BNH in zip(text_of, hidden, strict=True):
        for window, hidden_NH in enumerate(hidden_BNH):
            columns = codec.encode(hidden_NH, assets)
            flat = {name: column.reshape(-1) for name, column in columns.items()}
            decoded.append(codec.decode(flat, WINDOW, assets))
            rows.append({f"layer_{layer}{name}": column for name, column in columns.items()})
            keys.append(text.key(window))
    with tempfile.TemporaryDirectory() as folder:
        store = SignalStore(folder)
        entry = store.write_shard(0, keys, [WINDOW] * len(rows), rows, {})
        store.write_assets({f"layer_{layer}": assets}, {})
        asset_bytes = Path(folder, "assets.safetensors").stat().st_size
    was_NH, is_NH = torch.cat(hidden).flatten(0, 1), torch.cat(decoded)
    cosine_N = torch.cosine_similarity(was_NH, is_NH, dim=-1)
    error_N = (is_NH - was_NH).norm(dim=-1) / was_NH.norm(dim=-1)
    mean_H = sample_NH.mean(0)
    values = codec.model_dump(exclude={"name"})
    return {
        "codec": " ".join([codec.name, *(f"{key}={value:g}" for key, value in values.items())]),
        "layer": layer,
        "bits/channel": round(8 * entry["bytes"] / entry["tokens"] / was_NH.shape[1], 3),
        "cosine": round(float(cosine_N.mean()), 6),
        "worst 1%": round(float(np.quantile(cosine_N.numpy(), 0.01)), 6),
        "centred": round(
            float(torch.cosine_similarity(was_NH - mean_H, is_NH - mean_H, dim=-1).mean()), 6
        ),
        "error": round(float(error_N.square().mean().sqrt()), 5),
        "asset bytes": asset_bytes,
    }


def comparisons(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was to be reached, on the mean over the layers: the best codec within so many bits."""
    found = []
    for most, limit in ((8.1, 0.999), (2.0, 0.99)):  # 8 bits a channel and the scale
        means = []
        for codec in dict.fromkeys(row["codec"] for row in rows):
            mine = [row for row in rows if row["codec"] == codec]
            bits = sum(row["bits/channel"] for row in mine) / len(mine)
            means.append((sum(row["cosine"] for row in mine) / len(mine), bits, codec))
        able = [one for one in means if one[1] <= most]
        cosine, bits, codec = max(able, default=(None, None, None))
        found.append(
            {
                "bits at most": most,
                "cosine to reach": limit,
                "codec": codec,
                "bits/channel": bits,
                "cosine": cosine,
                "reached": cosine is not None and cosine >= limit,
            }
        )
    return found


def main() -> None:
    """Run the teacher once, then every codec on every layer."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--model", default=".demo/teacher")
    parser.add_argument("--data", default="../shared/data", type=Path)
    parser.add_argument("--tokens", type=int, default=16384, help="measured, of both texts")
    options = parser.parse_args()
    windows = 2 if options.quick else max(1, options.tokens // (2 * WINDOW))
    texts = read_texts(
        options.data, load_tokenizer(options.model), windows, LEARN_TOKENS // (2 * WINDOW)
    )
    model = load_causal_lm(options.model, dtype=torch.float32)
    measured = [states(model, text.measured_BT, LAYERS) for text in texts]
    samples = [states(model, text.sample_BT, LAYERS) for text in texts]
    say("the teacher has run")
    rows = []
    for values in TRIED:
        codec = LAYER_CODECS[values["name"]].model_validate(values)
        for layer in LAYERS:
            hidden = [found[layer].cpu() for found in measured]
            sample_NH = torch.cat([found[layer].cpu().flatten(0, 1) for found in samples])
            rows.append(measure(codec, layer, texts, hidden, sample_NH))
    record(rows, options.json)
    aims = comparisons(rows)
    for aim in aims:
        say(", ".join(f"{key}: {value}" for key, value in aim.items()))
    if options.json:
        found = json.loads(Path(options.json).read_text())
        found = {**found, "tokens": 2 * windows * WINDOW, "targets": aims}
        Path(options.json).write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

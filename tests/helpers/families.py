"""Tiny random models of the causal families of transformers, and what differs within a family.

`SIZES` holds one value a key; each family takes the keys that its config knows.
"""

from functools import cache

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCABULARY = 320
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "head_dim": 8, "sliding_window": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "is_decoder": True, "initializer_range": 0.08, "init_std": 0.08, "rotary_dim": 4,
    "query_pre_attn_scalar": 8, "embedding_size": 16, "output_embedding_size": 16,
    "input_embedding_size": 16,
    # feed-forwards and encoders under their other names
    "ffn_hidden_size": 48, "ffn_dim": 48, "d_ff": 48, "n_inner": 48, "decoder_layers": 4,
    "decoder_ffn_dim": 48, "decoder_attention_heads": 4, "encoder_layers": 1,
    "encoder_ffn_dim": 48, "encoder_attention_heads": 4,
    # experts
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "n_shared_experts": 1,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "moe_num_experts": 4, "moe_k": 2,
    "moe_num_shared_experts": 1, "intermediate_size_mlp": 48,
    # compressed and linear attention
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "mamba_n_heads": 8, "mamba_d_state": 8,
    "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_expand": 2,
}  # fmt: skip
COMPRESSED = {"num_key_value_heads": 4}
WIDE = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "query_pre_attn_scalar": 16}
PLAIN = (
    "afmoe", "apertus", "arcee", "aria_text", "bart", "beam", "bert", "bert-generation",
    "big_bird", "bigbird_pegasus", "biogpt", "bitnet", "blenderbot", "bloom", "camembert",
    "codegen", "cohere", "cohere2", "cohere2_moe", "cwm", "data2vec-text", "deepseek_v4",
    "diffllama", "doge", "dots1", "electra", "ernie", "ernie4_5", "ernie4_5_moe", "exaone4",
    "exaone_moe", "falcon", "falcon_mamba", "flex_olmo", "flint", "gemma", "glm", "glm4",
    "glm4_moe", "gpt2", "gpt_bigcode", "gpt_neox", "gpt_neox_japanese", "gpt_oss", "gptj",
    "granite", "granite_swa", "granitemoe", "granitemoeshared", "helium", "hrm_text",
    "hunyuan_v1_dense", "hunyuan_v1_moe", "hyperclovax", "jais2", "jetmoe", "laguna", "lfm2",
    "lfm3", "llama4_text", "mamba", "marian", "mbart", "megatron-bert", "mellum", "mimo_v2_flash",
    "minimax", "minimax_m2", "ministral", "ministral3", "mixtral", "modernbert-decoder", "mpt",
    "nanochat", "nemotron", "olmo", "olmo2", "olmo3", "olmo_hybrid", "olmoe", "openai-gpt", "opt",
    "pegasus", "persimmon", "phi", "phi3", "phimoe", "prophetnet", "qwen2_moe",
    "qwen3_5_text", "qwen3_moe", "qwen3_next", "recurrent_gemma", "rembert", "roberta",
    "roberta-prelayernorm", "roformer", "rwkv", "seed_oss", "smollm3", "solar_open", "stablelm",
    "starcoder2", "trocr", "vaultgemma", "whisper", "xglm", "xlm", "xlm-roberta",
)  # fmt: skip
VARIANTS = {
    # families whose width is cut and that are written as GGUF
    "llama": ("llama", WIDE),
    "llama, tied": ("llama", {**WIDE, "tie_word_embeddings": True}),
    "llama, biases": ("llama", {**WIDE, "attention_bias": True, "mlp_bias": True}),
    "llama, one key-value head": ("llama", {**WIDE, "num_key_value_heads": 1}),
    "mistral": ("mistral", {**WIDE, "sliding_window": None}),
    "mistral, a window": ("mistral", WIDE),
    "qwen2": ("qwen2", WIDE),
    "qwen2, a window from block 2 on": (
        "qwen2", {**WIDE, "use_sliding_window": True, "max_window_layers": 2}),
    "qwen3": ("qwen3", WIDE),
    "qwen3, tied": ("qwen3", {**WIDE, "tie_word_embeddings": True}),
    "gemma2": ("gemma2", WIDE),
    "gemma2, no caps": ("gemma2", {
        **WIDE, "final_logit_softcapping": None, "attn_logit_softcapping": None}),
    "gemma2, untied": ("gemma2", {**WIDE, "tie_word_embeddings": False}),
    "gemma3_text, untied": ("gemma3_text", {**WIDE, "tie_word_embeddings": False}),
    "gemma3_text": ("gemma3_text", {**WIDE, "sliding_window_pattern": 2}),
    "gemma3_text, a cap": ("gemma3_text", {**WIDE, "final_logit_softcapping": 2.0}),
    # heads that do more than a map
    "cohere, a scale": ("cohere", {"logit_scale": 0.3}),
    "granite, scaled": ("granite", {"logits_scaling": 4.0}),
    "hyperclovax, scaled": ("hyperclovax", {"logits_scaling": 0.25}),
    "minicpm3, scaled": ("minicpm3", {**COMPRESSED, "dim_model_base": 8}),
    "mpt, a scale that transformers ignores": ("mpt", {"logit_scale": 0.5}),
    "mpt, a scale in words": ("mpt", {"logit_scale": "inv_sqrt_d_model"}),
    "nanochat, no cap": ("nanochat", {"final_logit_softcapping": None}),
    "bert, not a decoder": ("bert", {"is_decoder": False}),
    "electra, not a decoder": ("electra", {"is_decoder": False}),
    # attention and experts that depend on a block's number
    "gpt2, scaled by number": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "gpt2, tied": ("gpt2", {"tie_word_embeddings": True}),
    "gpt_neo, windows in turn": ("gpt_neo", {
        "attention_types": [[["global", "local"], 2]], "window_size": 4}),
    "falcon, alibi": ("falcon", {"alibi": True, "new_decoder_architecture": False}),
    "falcon, one key-value head": ("falcon", {"multi_query": True, "parallel_attn": True}),
    "falcon, new": ("falcon", {"new_decoder_architecture": True}),
    "cohere2, one in two": ("cohere2", {
        "layer_types": ["sliding_attention", "full_attention"] * 2}),
    "smollm3, positions in turn": ("smollm3", {"no_rope_layers": [1, 0, 1, 0]}),
    "qwen2_moe, experts in turn": ("qwen2_moe", {"decoder_sparse_step": 2}),
    "qwen3_moe, one dense": ("qwen3_moe", {"mlp_only_layers": [2]}),
    "deepseek_v2": ("deepseek_v2", COMPRESSED),
    "deepseek_v3": ("deepseek_v3", COMPRESSED),
    "deepseek_v3, two dense": ("deepseek_v3", {**COMPRESSED, "first_k_dense_replace": 2}),
    "glm4_moe_lite": ("glm4_moe_lite", COMPRESSED),
    "mamba2": ("mamba2", {"head_dim": 8, "num_heads": 8, "n_groups": 1, "state_size": 8}),
    "bamba": ("bamba", {"attn_layer_indices": [1, 3]}),
    "jamba": ("jamba", {
        "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False}),
    "xlnet": ("xlnet", {"d_head": 8}),
    "starcoder2, no bias": ("starcoder2", {"use_bias": False}),
    "stablelm, norms of heads": ("stablelm", {"qk_layernorm": True, "use_qkv_bias": True}),
    "phi3, a window": ("phi3", {"sliding_window": 3}),
    "olmo, clipped": ("olmo", {"clip_qkv": 0.5}),
}  # fmt: skip
FAMILIES = {**{kind: (kind, {}) for kind in PLAIN}, **VARIANTS}


@cache
def _known_keys(kind):
    return frozenset(CONFIG_MAPPING[kind]().to_dict())


def tiny_config(name):
    """The config of a row of `FAMILIES`."""
    kind, changes = FAMILIES[name]
    made, names = CONFIG_MAPPING[kind], _known_keys(kind)
    aliases = made.attribute_map or {}
    known = {key: value for key, value in SIZES.items() if aliases.get(key, key) in names}
    return made(**{**known, **changes})


def tiny_family_model(config, seed=0):
    """A random model, with norms and biases changed so that losing one shows."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(torch.randn_like(weight) * 0.2)
    return model

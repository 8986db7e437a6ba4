"""Tiny random-weight models of the families people distil. Nothing is downloaded.

Every model is 421 tokens or more wide at its ends and far narrower inside, so that a mixed-up
dimension fails. Weights are drawn ten times larger than usual: at the usual size attention
hardly changes a logit, and a wrong position or mask would go unseen.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tiny import CHATML, VOCAB_SIZE, tiny_tokenizer

PHI = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


class Template(NamedTuple):
    """A chat template and the tokens it writes."""

    text: str
    tokens: tuple[str, ...]
    end_of_turn: str
    bos: str | None
    eos: str


TEMPLATES = {
    "chatml": Template(CHATML, ("<|im_start|>",), "<|im_end|>", None, "<|im_end|>"),
    "phi": Template(
        PHI,
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"),
        "<|end|>",
        None,
        "<|endoftext|>",
    ),
    "gemma": Template(
        GEMMA,
        ("<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>"),
        "<end_of_turn>",
        "<bos>",
        "<eos>",
    ),
}

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 52,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "initializer_range": 0.2,
}


def _longrope(pairs: int, **more: Any) -> dict[str, Any]:
    """Each pair of dimensions has a factor of its own; the long ones apply after 256 tokens."""
    return {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "short_factor": [1.0 + 0.25 * n for n in range(pairs)],
        "long_factor": [2.0 + 1.5 * n for n in range(pairs)],
        "original_max_position_embeddings": 256,
        **more,
    }


class Family(NamedTuple):
    """How a tiny model of one family is made."""

    model: str
    """Class of transformers, and of its config without `ForCausalLM`."""

    template: str
    settings: Callable[[], dict[str, Any]]
    padded_rows: int = 0
    """Rows of the embedding beyond the tokenizer."""


FAMILIES = {
    "phi3": Family("Phi3ForCausalLM", "phi", lambda: {"sliding_window": 9}),
    "phi3.5": Family(
        "Phi3ForCausalLM",
        "phi",
        lambda: {"rope_parameters": _longrope(4), "original_max_position_embeddings": 256},
    ),
    "phi4-mini": Family(
        "Phi3ForCausalLM",
        "phi",
        lambda: {
            "rope_parameters": _longrope(3, partial_rotary_factor=0.75),
            "original_max_position_embeddings": 256,
            "tie_word_embeddings": True,
        },
        padded_rows=9,
    ),
    "llama3": Family(
        "LlamaForCausalLM",
        "chatml",
        lambda: {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "smollm2": Family(
        "LlamaForCausalLM",
        "chatml",
        lambda: {
            "tie_word_embeddings": True,
            "hidden_size": 36,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
        },
    ),
    "deepseek-v3": Family(
        "DeepseekV3ForCausalLM",
        "chatml",
        lambda: {
            "num_hidden_layers": 3,
            "first_k_dense_replace": 1,
            "num_key_value_heads": 4,
            "n_routed_experts": 8,
            "num_experts_per_tok": 3,
            "n_group": 4,
            "topk_group": 2,
            "n_shared_experts": 1,
            "moe_intermediate_size": 20,
            "q_lora_rank": 12,
            "kv_lora_rank": 10,
            "qk_nope_head_dim": 6,
            "qk_rope_head_dim": 4,
            "v_head_dim": 7,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10_000.0,
                "factor": 4.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "beta_fast": 32,
                "beta_slow": 1,
                "original_max_position_embeddings": 128,
            },
        },
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM", "chatml", lambda: {"tie_word_embeddings": True}, padded_rows=11
    ),
    "qwen3": Family("Qwen3ForCausalLM", "chatml", lambda: {"head_dim": 10}, padded_rows=11),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        "gemma",
        lambda: {
            "tie_word_embeddings": True,
            "num_hidden_layers": 4,
            "head_dim": 10,
            "query_pre_attn_scalar": 10,
            "sliding_window": 9,
            "final_logit_softcapping": 6.0,
            "attn_logit_softcapping": 2.0,
        },
    ),
    "gemma3": Family(
        "Gemma3ForCausalLM",
        "gemma",
        lambda: {
            "tie_word_embeddings": True,
            "num_hidden_layers": 3,
            "head_dim": 10,
            "query_pre_attn_scalar": 10,
            "sliding_window": 9,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        },
    ),
    "mistral": Family("MistralForCausalLM", "chatml", lambda: {"sliding_window": 9, "head_dim": 8}),
}
FAMILY_CONFIGS = {"Gemma3ForCausalLM": "Gemma3TextConfig"}


def templated_tokenizer(template: str) -> Any:
    """The tiny tokenizer with a family's template and control tokens added to its 421."""
    kind = TEMPLATES[template]
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens(
        {"additional_special_tokens": list(kind.tokens), "eos_token": kind.eos}
        | ({"bos_token": kind.bos} if kind.bos else {})
    )
    tokenizer.chat_template = kind.text
    if kind.bos:
        # As Gemma's own: it puts <bos> before every text, and its template writes one as well.
        from tokenizers.processors import TemplateProcessing

        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{kind.bos} $A", special_tokens=[(kind.bos, tokenizer.bos_token_id)]
        )
    return tokenizer


def tiny_family(path: Path, name: str, *, seed: int = 0, **changes: Any) -> Path:
    """Saves a tiny random model of a family and its tokenizer as a Hugging Face folder."""
    import torch
    import transformers

    family = FAMILIES[name]
    tokenizer = templated_tokenizer(family.template)
    assert len(tokenizer) >= VOCAB_SIZE
    of_config = FAMILY_CONFIGS.get(family.model, family.model.replace("ForCausalLM", "Config"))
    config = getattr(transformers, of_config)(
        **{
            **SMALL,
            **family.settings(),
            "vocab_size": len(tokenizer) + family.padded_rows,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **changes,
        }
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, family.model)(config)
        # Gemma begins with norms at 1 + 0 and biases of Qwen at 0: make each of them count.
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def tiny_gemma_with_eyes(path: Path) -> Path:
    """Saves a Gemma 3 that reads pictures as well, as those from 4B upwards do."""
    import torch
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    tokenizer = templated_tokenizer("gemma")
    text = {
        **SMALL,
        **FAMILIES["gemma3"].settings(),
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 20,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    tokens = {"image_token_index": 5, "boi_token_index": 6, "eoi_token_index": 7}
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, **tokens)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Gemma3ForConditionalGeneration(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path

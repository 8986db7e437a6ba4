"""GGUF: one file that llama.cpp, Ollama and their relatives run."""

from __future__ import annotations

import importlib.util
import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AutoConfig

from potstill.data.render import end_token_ids
from potstill.errors import ExportError, MissingExtra
from potstill.export.gguf_tokenizer import read_tokenizer
from potstill.export.manifest import write_manifest
from potstill.export.ollama import modelfile
from potstill.models.weights import load_tokenizer, load_weights, quiet
from potstill.rundir import whole_folder

if TYPE_CHECKING:
    from gguf import GGUFWriter

QUANTS = ("f16", "q8_0", "q4_0", "q4_1", "f32")
BLOCKS = ("q8_0", "q4_0", "q4_1")
"""Those that share a scale among the weights of a block; q4_1 a least value too."""

BLOCK = 32
"""Weights of a row that are one block."""

ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""transformers' model_type -> GGUF's architecture. Tensors have the same names in all."""

ROPES = ("default", "linear", "llama3")

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def export_gguf(model_dir: Path, out_dir: Path, *, quant: str | None = None) -> Path:
    """Writes `model-QUANT.gguf`, an Ollama Modelfile and manifest.json; returns the first.

    The folder appears whole or not at all. It has not been compared with its source yet:
    `parity.check_gguf` does that, and must pass before anybody gets the file.

    Args:
        quant: f16 (the default), q8_0, q4_0, q4_1 or f32. Norms and biases stay in f32, and
            where there are 4 bits the output matrix in q8_0.

    Raises:
        ExportError: If the architecture, its rope scaling or the tokenizer is not known
            here; never a file that might be wrong.
    """
    quant = quant or "f16"
    _refuse_quant(quant)
    _refuse_without("gguf", "exporting to GGUF")
    import gguf

    model, tokenizer = load_weights(model_dir, dtype="float32")
    architecture = _architecture(model.config)
    name = f"model-{quant}.gguf"
    with whole_folder(out_dir) as folder:
        writer = gguf.GGUFWriter(folder / name, architecture)
        _add_sizes(writer, model.config, quant)
        _add_tokenizer(writer, model, tokenizer)
        formats = _add_tensors(writer, model, architecture, quant)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        (folder / "Modelfile").write_text(
            modelfile(name, tokenizer, end_token_ids(tokenizer, model.generation_config)),
            encoding="utf-8",
        )
        write_manifest(
            folder,
            format="gguf",
            quant=quant,
            main=name,
            source=model_dir,
            notes=_notes(formats, quant),
        )
    return out_dir / name


def refuse(model_dir: Path, quant: str | None) -> None:
    """Refuses what `export_gguf` would refuse, without reading weights.

    Raises:
        MissingExtra: If the writer, or the engine that proves the file, is not installed.
        ExportError: As `export_gguf`.
    """
    _refuse_quant(quant or "f16")
    _refuse_without("gguf", "exporting to GGUF")
    _refuse_without("xllamacpp", "checking a GGUF file with llama.cpp")
    with quiet():
        config = AutoConfig.from_pretrained(model_dir)
    _architecture(config)
    read_tokenizer(load_tokenizer(model_dir), config.vocab_size)


def _refuse_quant(quant: str) -> None:
    if quant not in QUANTS:
        raise ExportError(f"GGUF is written as {', '.join(QUANTS)}, got {quant!r}")


def _refuse_without(package: str, what: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise MissingExtra(f'{what} needs an extra: pip install "potstill[export]"')


def _notes(formats: Counter[str], quant: str) -> tuple[str, ...]:
    """What the name of the number format does not say."""
    told = ", ".join(f"{count} in {name}" for name, count in sorted(formats.items()))
    notes = [f"tensors: {told}"]
    if quant in ("q4_0", "q4_1"):
        notes.append("the output matrix is q8_0: llama.cpp keeps it above 4 bits too (q6_K there)")
    if quant in BLOCKS and formats["f16"]:
        notes.append(f"f16: matrices whose rows are no multiple of {BLOCK} weights")
    return tuple(notes)


def _architecture(config: Any) -> str:
    problem = None
    if config.model_type not in ARCHITECTURES:
        problem = f"the architecture {config.model_type!r} is not"
    elif getattr(config, "hidden_act", "silu") != "silu":
        problem = f"{config.model_type} with the activation {config.hidden_act!r} is not"
    elif getattr(config, "use_sliding_window", False):
        problem = f"{config.model_type} with sliding-window attention is not"
    elif config.rope_parameters["rope_type"] not in ROPES:
        problem = f"the rope scaling {config.rope_parameters['rope_type']!r} is not"
    if problem:
        raise ExportError(
            f"{problem} among those that GGUF export writes ({', '.join(ARCHITECTURES)}); convert "
            f"the model folder with llama.cpp's convert_hf_to_gguf.py, or export huggingface"
        )
    return ARCHITECTURES[config.model_type]


def _add_sizes(writer: GGUFWriter, config: Any, quant: str) -> None:
    import gguf

    head = _head_width(config)
    writer.add_name(config.model_type)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    rope = config.rope_parameters
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    file_types = {
        "f32": gguf.LlamaFileType.ALL_F32,
        "f16": gguf.LlamaFileType.MOSTLY_F16,
        "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
        "q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
        "q4_1": gguf.LlamaFileType.MOSTLY_Q4_1,
    }
    writer.add_file_type(file_types[quant])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _add_tokenizer(writer: GGUFWriter, model: Any, tokenizer: Any) -> None:
    parts = read_tokenizer(tokenizer, model.config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(parts.pre)
    writer.add_token_list(parts.tokens)
    writer.add_token_types(parts.types)
    writer.add_token_merges(parts.merges)
    # Rendered prompts hold every token they need: llama.cpp must not put one more in front.
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    turn, *others = end_token_ids(tokenizer, model.generation_config)
    writer.add_eos_token_id(others[0] if others else turn)
    writer.add_eot_token_id(turn)
    if len(others) > 1:
        writer.add_eom_token_id(others[1])
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _add_tensors(writer: GGUFWriter, model: Any, architecture: str, quant: str) -> Counter[str]:
    """Writes all tensors; returns how many there are in each number format."""
    config, formats = model.config, Counter()
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    head = "token_embd.weight" if tied else "output.weight"
    if config.rope_parameters["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", rope_factors(config))
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and tied:
            continue  # llama.cpp takes the embedding where there is no output matrix
        values = tensor.to(torch.float32).numpy()
        if architecture == "llama" and ".self_attn.q_proj." in name:
            values = _interleaved(values, config.num_attention_heads)
        elif architecture == "llama" and ".self_attn.k_proj." in name:
            values = _interleaved(values, config.num_key_value_heads)
        own_name = gguf_name(name)
        is_kept = quant in ("q4_0", "q4_1") and own_name == head
        kind = number_format(values, "q8_0" if is_kept else quant)
        _add_tensor(writer, own_name, values, kind)
        formats[kind] += 1
    return formats


def number_format(values: np.ndarray, quant: str) -> str:
    """What a tensor is written in: vectors in f32, rows that blocks do not fill in f16."""
    if values.ndim == 1:
        return "f32"
    return "f16" if quant in BLOCKS and values.shape[-1] % BLOCK else quant


def gguf_name(name: str) -> str:
    """GGUF's name of one of transformers' tensors.

    Raises:
        ExportError: If there is none: leaving it out would make another model.
    """
    stem, _, kind = name.rpartition(".")
    if stem in TOP:
        return f"{TOP[stem]}.{kind}"
    parts = stem.split(".", 3)
    if parts[:2] == ["model", "layers"] and parts[-1] in NAMES:
        return f"blk.{parts[2]}.{NAMES[parts[-1]]}.{kind}"
    raise ExportError(f"GGUF export does not know what the tensor {name} is")


def rope_factors(config: Any) -> np.ndarray:
    """Llama 3's rope scaling as one divisor for each frequency, [head / 2] float32.

    Short waves stay, waves longer than the original context are stretched by `factor`, and
    those between are blended.

    Source:
        rope_type "llama3" in transformers' modeling_rope_utils.
    """
    rope = config.rope_parameters
    head = _head_width(config)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    context = rope["original_max_position_embeddings"]
    factors = []
    for place in range(0, head, 2):
        wave = 2 * math.pi * rope["rope_theta"] ** (place / head)
        share = min(1.0, max(0.0, (context / wave - low) / (high - low)))
        factors.append(1.0 / ((1.0 - share) / rope["factor"] + share))
    return np.array(factors, dtype=np.float32)


def _interleaved(values: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows reordered from (first halves, second halves) to pairs, within each head.

    transformers rotates dimension i with i + head / 2, llama.cpp's Llama 2 i with 2 i + 1.
    """
    rest = values.shape[1:]
    half = values.shape[0] // num_heads // 2
    return values.reshape(num_heads, 2, half, *rest).swapaxes(1, 2).reshape(values.shape)


def _add_tensor(writer: GGUFWriter, name: str, values: np.ndarray, kind: str) -> None:
    import gguf

    if not np.isfinite(values).all():
        raise ExportError(f"{name} holds values that are not finite; train the model again")
    values = np.ascontiguousarray(values, dtype=np.float32)
    if kind in BLOCKS:
        packed_as = gguf.GGMLQuantizationType[kind.upper()]
        writer.add_tensor(name, gguf.quantize(values, packed_as), raw_dtype=packed_as)
    elif kind == "f32":
        writer.add_tensor(name, values)
    else:
        if np.abs(values).max() > np.finfo(np.float16).max:
            raise ExportError(f"{name} holds values beyond float16; export gguf:f32")
        writer.add_tensor(name, values.astype(np.float16))


def _head_width(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

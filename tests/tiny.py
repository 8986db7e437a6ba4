"""A tokenizer and a model small enough to be made inside a test. Nothing is downloaded."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

VOCAB_SIZE = 421
"""Different from every layer size below, so that a mixed-up dimension fails."""

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|pad|>")
LINES = (
    "The quick brown fox jumps over the lazy dog while the old man reads the news.",
    "Answer the question with one of: entailment, neutral, contradiction.",
    "Which of these is right? The answer is that a refund takes thirty days.",
    "Where is my order? It will arrive on Monday between ten and twelve.",
    "Please summarise the article in one sentence and translate it into Hindi.",
    "How many apples are left when three of twelve were eaten? 12 - 3 = 9, so 9 are left.",
    "क्या मैं उपहार वापस कर सकता हूँ? हाँ, तीस दिनों के भीतर।",
    "मेरा ऑर्डर कहाँ है? यह सोमवार को पहुँचेगा।",
    "എനിക്ക് സമ്മാനം തിരികെ നൽകാമോ? അതെ, മുപ്പത് ദിവസത്തിനുള്ളിൽ.",
    "എന്റെ ഓർഡർ എവിടെയാണ്? അത് തിങ്കളാഴ്ച എത്തും.",
)


def tiny_tokenizer(folder: Path | None = None) -> Any:
    """A byte-level BPE tokenizer of 421 tokens with a ChatML template.

    `<|im_end|>` is the end token, `<|pad|>` is a token of its own. Every text can be written
    with it and comes back unchanged. With `folder` it is saved there as well.
    """
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_backend(),
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|im_start|>"],
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )
    tokenizer.chat_template = CHATML
    if folder is not None:
        tokenizer.save_pretrained(folder)
    return tokenizer


def tiny_llama(path: Path, *, layers: int = 2, hidden: int = 32, seed: int = 0) -> Path:
    """Saves a Llama with random weights and its tokenizer as a Hugging Face folder.

    421 tokens, `hidden` wide, feed-forward 3 * hidden, 4 heads on 2 key-value heads, float32,
    at most 512 positions. Two calls with one seed write the same weights.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer(path)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(path)
    return path


@functools.cache
def _trained() -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES * 3, trainer)
    return tokenizer.to_str()


def _backend() -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(_trained())

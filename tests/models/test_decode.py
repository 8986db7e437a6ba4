"""A start that all prompts share is computed once, and the answers are the same."""

import pytest
import torch
import transformers
from tiny import VOCAB_SIZE, tiny_llama

from potstill.models.decode import Row, decode
from potstill.models.logprobs import Capture
from potstill.types import Sampling

START = list(range(20, 120))
PROMPTS = {
    "ends of different lengths": (100, [[*START, *end] for end in ([5], [5, 6, 7], [9] * 30, [8])]),
    "the same prompt": (99, [START] * 4),
    "prompts that are the common start itself": (100, [START, START, [*START, 7], START * 2]),
    "one that is far shorter": (90, [START[:90], [*START, *START], [*START, 4], START]),
}
"""How many tokens are computed once, and token ids; enough are common that it pays."""

FAMILIES = {
    "rotary": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCAB_SIZE, hidden_size=32, intermediate_size=96, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        )
    ),
    "learned positions": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=VOCAB_SIZE, n_embd=32, n_layer=2, n_head=4, n_positions=256,
            initializer_range=0.5,
        )
    ),
    "slopes instead of positions": lambda: transformers.BloomForCausalLM(
        transformers.BloomConfig(
            vocab_size=VOCAB_SIZE, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.5
        )
    ),
    "a sliding window": lambda: transformers.MistralForCausalLM(
        transformers.MistralConfig(
            vocab_size=VOCAB_SIZE, hidden_size=32, intermediate_size=96, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, sliding_window=6,
        )
    ),
    "factors that depend on length": lambda: transformers.Phi3ForCausalLM(
        transformers.Phi3Config(
            vocab_size=VOCAB_SIZE, hidden_size=32, intermediate_size=96, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, pad_token_id=2,
            max_position_embeddings=512, original_max_position_embeddings=110,
            rope_parameters={
                "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4,
                "long_factor": [4.0] * 4, "original_max_position_embeddings": 110,
            },
        )
    ),
}  # fmt: skip
SHARES = {"rotary", "learned positions", "slopes instead of positions"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    torch.set_num_threads(1)
    return transformers.AutoTokenizer.from_pretrained(tiny_llama(tmp_path_factory.mktemp("tiny")))


def answered(model, tokenizer, prompts, **sampling):
    """The rows, and how many tokens of their prompts the model had to compute."""
    computed, num_new = [], 6
    hook = model.register_forward_pre_hook(
        lambda module, args, given: computed.append(given["input_ids"].numel()), with_kwargs=True
    )
    rows = [
        Row(prompt, Sampling(max_new_tokens=num_new, seed=seed, **sampling))
        for seed, prompt in enumerate(prompts)
    ]
    decode(model, tokenizer, rows, end_ids=(), pad_id=2, capture=Capture(k=4))
    hook.remove()
    return rows, sum(computed) - len(prompts) * (num_new - 1)


@pytest.mark.parametrize(("common", "prompts"), PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_with_a_common_start_answer_as_each_alone(family, common, prompts, tokenizer):
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    together, num_computed = answered(model, tokenizer, prompts)
    for row, prompt in zip(together, prompts, strict=True):
        ((alone,), _) = answered(model, tokenizer, [prompt])
        assert row.ids == alone.ids
        for ours, its in zip(row.positions, alone.positions, strict=True):
            assert ours.logprobs_K == pytest.approx(its.logprobs_K, abs=5e-3)
    if family in SHARES:
        width = max(map(len, prompts))
        assert num_computed == common + len(prompts) * (width - common)
    else:
        assert num_computed >= sum(map(len, prompts))


def test_samples_of_one_prompt_are_those_of_each_alone(tokenizer):
    torch.manual_seed(0)
    model = FAMILIES["rotary"]().eval()
    together, num_computed = answered(model, tokenizer, [START] * 5, temperature=1.0)
    assert num_computed == 99 + 5
    assert len({tuple(row.ids) for row in together}) == 5
    for seed, row in enumerate(together):
        alone = Row(START, Sampling(max_new_tokens=6, seed=seed, temperature=1.0))
        decode(model, tokenizer, [alone], end_ids=(), pad_id=2)
        assert row.ids == alone.ids


def test_a_short_common_start_is_not_worth_a_pass(tokenizer):
    model = FAMILIES["rotary"]().eval()
    _, num_computed = answered(model, tokenizer, [[5, 6, 7, 8], [5, 6, 9]])
    assert num_computed == 8

"""Local weights answer the same alone and in company, and tell exact logits."""

import asyncio

import pytest
import torch
from tiny import VOCAB_SIZE, tiny_llama

from potstill.errors import TeacherError
from potstill.models.local import LocalModel
from potstill.types import Message, Record, Sampling

PROMPTS = ["Hi", "Where is my order?", "The old man reads the news. " * 4, "12 - 3 = ?", "?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "model")


def records(texts=PROMPTS):
    return [
        Record(id=str(n), messages=(Message(role="user", content=text),))
        for n, text in enumerate(texts)
    ]


def ask(folder, sampling, *, batch_size, texts=PROMPTS, **settings):
    async def main():
        model = LocalModel(folder, dtype="float32", batch_size=batch_size, **settings)
        try:
            return await asyncio.gather(
                *(
                    model.respond(record, sampling(n) if callable(sampling) else sampling)
                    for n, record in enumerate(records(texts))
                )
            )
        finally:
            await model.close()

    return asyncio.run(main())


def test_greedy_answers_do_not_depend_on_the_batch(folder):
    together = ask(folder, Sampling(max_new_tokens=12), batch_size=5)
    alone = ask(folder, Sampling(max_new_tokens=12), batch_size=1)
    assert [r.text for r in together] == [r.text for r in alone]
    assert [r.record_id for r in together] == ["0", "1", "2", "3", "4"]


def test_a_batch_goes_through_the_weights_together(folder, monkeypatch):
    from transformers import LlamaForCausalLM

    passes, forward = [], LlamaForCausalLM.forward

    def counted(self, *args, **more):
        passes.append(1)
        return forward(self, *args, **more)

    monkeypatch.setattr(LlamaForCausalLM, "forward", counted)
    needed = []
    for size in (5, 1):
        ask(folder, Sampling(max_new_tokens=12), batch_size=size)
        needed.append(len(passes))
        passes.clear()
    assert 5 * needed[0] <= 2 * needed[1], needed


def test_greedy_answers_are_those_of_transformers(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    for response, text in zip(
        ask(folder, Sampling(max_new_tokens=9), batch_size=5), PROMPTS, strict=True
    ):
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_tensors="pt"
        )["input_ids"]
        out = model.generate(ids, max_new_tokens=9, do_sample=False)[0, ids.shape[1] :]
        assert response.text == tokenizer.decode(out, skip_special_tokens=True)
        assert response.num_prompt_tokens == ids.shape[1]
        assert response.num_new_tokens == len(out)


def test_samples_follow_their_own_seed_whatever_the_batch(folder):
    def sampling(n):
        return Sampling(temperature=1.5, top_p=0.95, seed=n, max_new_tokens=8)

    together = ask(folder, sampling, batch_size=5, texts=["Hi"] * 5)
    alone = ask(folder, sampling, batch_size=1, texts=["Hi"] * 5)
    assert [r.text for r in together] == [r.text for r in alone]
    assert len({r.text for r in together}) > 1


def test_samples_have_the_models_own_frequencies():
    from potstill.models.decode import _sample

    probs = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    draws = [_sample(probs, 1.0, (u + 0.5) / 1000) for u in range(1000)]
    assert [draws.count(token) for token in range(4)] == [500, 300, 150, 50]
    nucleus = [_sample(probs, 0.75, (u + 0.5) / 1000) for u in range(1000)]
    assert [nucleus.count(token) for token in range(4)] == [625, 375, 0, 0]


def test_an_answer_ends_at_an_end_token_a_stop_text_or_its_length(folder):
    (free,) = ask(folder, Sampling(max_new_tokens=6), batch_size=1, texts=["Hi"])
    assert (free.finish_reason, free.num_new_tokens) == ("length", 6)
    stop = free.text[3:5]
    (stopped,) = ask(folder, Sampling(max_new_tokens=6, stop=(stop,)), batch_size=1, texts=["Hi"])
    assert (stopped.finish_reason, stopped.text) == ("stop", free.text[: free.text.find(stop)])


def test_an_end_token_ends_its_row_only(tmp_path):
    from transformers import LlamaForCausalLM

    folder = tiny_llama(tmp_path / "model")
    model = LlamaForCausalLM.from_pretrained(folder)
    # The end token is made likely enough that some samples meet it early and others late.
    with torch.no_grad():
        model.lm_head.weight[1] *= 30
    model.save_pretrained(folder)

    def sampling(n):
        return Sampling(temperature=1.0, seed=n, max_new_tokens=24)

    responses = ask(folder, sampling, batch_size=8, texts=["Hi", "Who?"] * 4)
    alone = ask(folder, sampling, batch_size=1, texts=["Hi", "Who?"] * 4)
    assert {r.finish_reason for r in responses} >= {"stop"}
    assert len({r.num_new_tokens for r in responses}) > 1
    assert [r.text for r in responses] == [r.text for r in alone]
    assert "<|im_end|>" not in "".join(r.text for r in responses)


def test_a_prompt_that_is_too_long_is_an_error_row(folder):
    responses = ask(folder, Sampling(max_new_tokens=2), batch_size=2, texts=["Hi", "z" * 600])
    assert responses[0].finish_reason == "length"
    assert responses[1].error.startswith("too_long: the prompt has 6")


def test_logits_are_the_whole_models_at_the_wanted_positions(folder):
    from transformers import AutoModelForCausalLM

    model = LocalModel(folder, dtype="float32")
    ids = torch.randint(3, VOCAB_SIZE, (2, 7), generator=torch.Generator().manual_seed(0))
    wanted = torch.zeros(2, 7, dtype=torch.bool)
    wanted[0, 2:5] = wanted[1, 6] = True
    got = model.logits(ids, wanted)
    whole = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
    torch.testing.assert_close(got, whole[wanted])
    assert got.shape == (4, VOCAB_SIZE)
    assert not got.requires_grad
    asyncio.run(model.close())


def test_logits_of_a_soft_capped_model_are_capped(tmp_path):
    from tiny import tiny_tokenizer
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=VOCAB_SIZE, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, final_logit_softcapping=0.05,
        sliding_window=6, pad_token_id=2, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    model = Gemma2ForCausalLM(config)
    model.save_pretrained(tmp_path)
    tiny_tokenizer(tmp_path)
    local = LocalModel(tmp_path, dtype="float32")
    ids = torch.arange(3, 13).unsqueeze(0)
    got = local.logits(ids, torch.ones_like(ids, dtype=torch.bool))
    torch.testing.assert_close(got, model.eval()(ids).logits[0])
    asyncio.run(local.close())


def test_a_sliding_window_does_not_mix_up_a_batch(tmp_path):
    from tiny import tiny_tokenizer
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=VOCAB_SIZE, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        sliding_window=6, pad_token_id=2, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    tiny_tokenizer(tmp_path)
    together = ask(tmp_path, Sampling(max_new_tokens=8), batch_size=5)
    alone = ask(tmp_path, Sampling(max_new_tokens=8), batch_size=1)
    assert [r.text for r in together] == [r.text for r in alone]


def test_a_model_can_be_asked_from_one_event_loop_after_another(folder):
    model = LocalModel(folder, dtype="float32", batch_size=2)
    (record,) = records(["Hi"])
    texts = [asyncio.run(model.respond(record, Sampling(max_new_tokens=3))).text for _ in range(2)]
    assert texts[0] == texts[1]
    asyncio.run(model.close())
    with pytest.raises(TeacherError, match="was closed"):
        asyncio.run(model.respond(record, Sampling()))


def test_a_cancelled_call_does_not_stop_the_others(folder):
    async def main():
        model = LocalModel(folder, dtype="float32", batch_size=2)
        first, second = records(["Hi", "Who?"])
        long = asyncio.create_task(model.respond(first, Sampling(max_new_tokens=400)))
        short = asyncio.create_task(model.respond(second, Sampling(max_new_tokens=4)))
        await asyncio.sleep(0.02)
        long.cancel()
        response = await asyncio.wait_for(short, timeout=20)
        await model.close()
        return response.num_new_tokens

    assert asyncio.run(main()) == 4


def test_answers_depend_on_weights_and_number_format(folder, tmp_path):
    names = []
    for source, dtype in (
        (folder, "float32"),
        (folder, "bfloat16"),
        (tiny_llama(tmp_path / "other", seed=1), "float32"),
        (tiny_llama(tmp_path / "same", seed=0), "float32"),
    ):
        model = LocalModel(source, dtype=dtype)
        names.append(model.known_as)
        asyncio.run(model.close())
    assert len(set(names[:3])) == 3
    assert names[3] == names[0]
    assert torch.__version__ in names[0]


def test_other_weights_have_another_identity(folder, tmp_path):
    from potstill.models.fingerprint import weights_identity

    other = tiny_llama(tmp_path / "model", seed=1)
    same = tiny_llama(tmp_path / "same", seed=0)
    assert weights_identity(folder) == weights_identity(same) != weights_identity(other)


def test_learned_positions_are_counted_from_the_prompts_own_start(tmp_path):
    """Rotary positions forgive padding in front; learned ones do not."""
    from tiny import tiny_tokenizer
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCAB_SIZE, n_embd=32, n_layer=2, n_head=4, n_positions=256,
        eos_token_id=1, bos_token_id=None, initializer_range=0.5,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tiny_tokenizer(tmp_path)
    together = ask(tmp_path, Sampling(max_new_tokens=8), batch_size=5)
    alone = ask(tmp_path, Sampling(max_new_tokens=8), batch_size=1)
    assert [r.text for r in together] == [r.text for r in alone]

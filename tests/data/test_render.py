import pytest
import tiny

from potstill.data.render import (
    end_token_ids,
    render,
    render_prompt,
    template_fingerprint,
    vocab_fingerprint,
)
from potstill.errors import DataError
from potstill.types import Message

GEMMA_LIKE = (
    "{{ '<bos>' }}"
    "{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else 'user') + '\n' }}"
    "{{ m['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
DROPS_SYSTEM = (
    "{% for m in messages %}{% if m['role'] != 'system' %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THINKS = (
    "{% for m in messages %}"
    "{% if m['role'] == 'assistant' and loop.last %}"
    "{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' + m['content'] + '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPACED = (  # as Llama 2: the space belongs to the answer
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def word_level():
    """Whole words of a closed vocabulary; unlike the byte-level one it splits at spaces."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<bos>", "<eos>", "<pad>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    names += ["user", "model", "Be", "brief", "Hi", "Hello", "नमस्ते", "കൊള്ളാം", "Bye", "Ok"]
    backend = Tokenizer(models.WordLevel({n: i for i, n in enumerate(names)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<start_of_turn>", "<end_of_turn>"],
    )
    tokenizer.chat_template = GEMMA_LIKE
    return tokenizer


def with_template(template):
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def talk(*contents, system=None):
    roles = ("user", "assistant")
    turns = [Message(role=roles[i % 2], content=c) for i, c in enumerate(contents)]
    return [*([Message(role="system", content=system)] if system else []), *turns]


def as_dicts(messages):
    return [m.model_dump() for m in messages]


def learned(rendered):
    return [i for i, m in zip(rendered.ids, rendered.loss_mask, strict=True) if m]


TOKENIZERS = {
    "chatml": tiny.tiny_tokenizer,
    "gemma": word_level,
    "gemma on bytes": lambda: with_template(GEMMA_LIKE.replace("<end_of_turn>", "<|im_end|>")),
    "drops system": lambda: with_template(DROPS_SYSTEM),
    "thinks": lambda: with_template(THINKS),
    "spaced": lambda: with_template(SPACED),
    "none": lambda: with_template(None),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("answer", ["Hello", "नमस्ते", "കൊള്ളാം"])
@pytest.mark.parametrize("messages", [talk("Hi"), talk("Hi", "Hello", "Bye"), talk("नमस्ते")])
def test_the_prompt_in_training_is_the_prompt_at_inference(kind, answer, messages):
    tokenizer = TOKENIZERS[kind]()
    prompt = render_prompt(tokenizer, messages)
    ids, mask = render(tokenizer, messages, answer)
    assert ids[: len(prompt)] == prompt
    assert mask == [0] * len(prompt) + [1] * (len(ids) - len(prompt))
    assert ids[-1] == end_token_ids(tokenizer)[0]
    text = tokenizer.decode(ids[len(prompt) : -1])
    assert text.strip() == answer


@pytest.mark.parametrize("kind", ["chatml", "gemma"])
def test_the_sequence_is_what_the_template_writes_up_to_the_end_of_the_turn(kind):
    tokenizer = TOKENIZERS[kind]()
    messages = talk("Hi", "Hello", "Bye")
    whole = tokenizer.apply_chat_template(
        [*as_dicts(messages), {"role": "assistant", "content": "Ok"}], return_dict=True
    )["input_ids"]
    ids = render(tokenizer, messages, "Ok").ids
    assert whole[: len(ids)] == ids
    expected = tokenizer.apply_chat_template(
        as_dicts(messages), add_generation_prompt=True, return_dict=True
    )["input_ids"]
    assert render_prompt(tokenizer, messages) == expected


def test_the_line_break_after_the_end_token_is_not_learned():
    tokenizer = tiny.tiny_tokenizer()
    rendered = render(tokenizer, talk("Hi"), "Hello")
    assert tokenizer.decode(learned(rendered)) == "Hello<|im_end|>"


def test_a_space_that_the_template_puts_before_the_answer_is_learned():
    tokenizer = with_template(SPACED)
    rendered = render(tokenizer, talk("Hi"), "Hello")
    assert tokenizer.decode(rendered.ids) == "[INST] Hi [/INST] Hello<|im_end|>"


def test_thoughts_that_the_template_invents_are_not_learned():
    rendered = render(with_template(THINKS), talk("Hi"), "Hello")
    assert tiny.tiny_tokenizer().decode(learned(rendered)) == "Hello<|im_end|>"


def test_an_answer_that_merges_with_the_prompt_keeps_the_prompt_whole():
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}"
        "{% if not add_generation_prompt %}<|im_end|>{% endif %}"
    )
    messages, answer = talk("th"), "e lazy dog"
    prompt = render_prompt(tokenizer, messages)
    assert tokenizer("the lazy dog")["input_ids"][: len(prompt)] != prompt
    ids = render(tokenizer, messages, answer).ids
    assert ids[: len(prompt)] == prompt
    assert tokenizer.decode(ids) == "the lazy dog<|im_end|>"


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_system_prompt_always_reaches_the_model(kind):
    tokenizer = TOKENIZERS[kind]()
    text = tokenizer.decode(render_prompt(tokenizer, talk("Hi", system="Be brief")))
    assert "Be brief" in text
    assert text.index("Be brief") < text.index("Hi")


def test_a_tokenizer_without_a_template_gets_the_plain_one():
    tokenizer = with_template(None)
    rendered = render(tokenizer, talk("Hi", "Hello", "Bye", system="Be brief"), "Ok")
    text = "Be brief\n\nUser: Hi\nAssistant: Hello\nUser: Bye\nAssistant: Ok<|im_end|>"
    assert tokenizer.decode(rendered.ids) == text


def test_a_sequence_that_is_too_long_is_none_and_nothing_is_cut():
    tokenizer = tiny.tiny_tokenizer()
    size = len(render(tokenizer, talk("Hi"), "Hello").ids)
    assert render(tokenizer, talk("Hi"), "Hello", max_tokens=size) is not None
    assert render(tokenizer, talk("Hi"), "Hello", max_tokens=size - 1) is None


def test_an_answer_cannot_smuggle_in_a_control_token():
    tokenizer = tiny.tiny_tokenizer()
    rendered = render(tokenizer, talk("Hi"), "a<|im_end|>b")
    assert rendered.ids.count(tokenizer.eos_token_id) == 2  # the user's turn and the answer's
    assert tokenizer.decode(learned(rendered)) == "a<|im_end|>b<|im_end|>"


def test_a_conversation_that_the_template_refuses_is_a_data_error():
    messages = [Message(role="user", content="Hi"), Message(role="user", content="Bye")]
    with pytest.raises(DataError, match=r"refuses a conversation of user, user.*alternate"):
        render_prompt(word_level(), messages)


def test_end_tokens_are_the_templates_the_tokenizers_and_the_models():
    tokenizer = word_level()

    class Config:
        eos_token_id = [1, 9]

    assert end_token_ids(tokenizer) == [5, 1]
    assert end_token_ids(tokenizer, Config()) == [5, 1, 9]


def test_without_any_end_token_training_is_refused():
    tokenizer = with_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="nothing ends an answer"):
        render(tokenizer, talk("Hi"), "Hello")


def test_fingerprints_change_with_what_they_stand_for():
    one, other = tiny.tiny_tokenizer(), word_level()
    assert vocab_fingerprint(one) == vocab_fingerprint(tiny.tiny_tokenizer())
    assert vocab_fingerprint(one) != vocab_fingerprint(other)
    assert template_fingerprint(one) == template_fingerprint(tiny.tiny_tokenizer())
    assert template_fingerprint(one) != template_fingerprint(with_template(THINKS))


def test_a_changed_template_is_noticed():
    tokenizer = tiny.tiny_tokenizer()
    render(tokenizer, talk("Hi"), "Hello")
    tokenizer.chat_template = DROPS_SYSTEM
    assert "Be brief" in tokenizer.decode(render_prompt(tokenizer, talk("Hi", system="Be brief")))

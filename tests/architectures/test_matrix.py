"""Every family goes the whole way: rendered, trained, generated, saved and loaded again.

The weights are random, so these tests know nothing of quality. They know whether positions,
masks, caches, heads and file formats of a family agree with what transformers does with it.
"""

import asyncio
import json

import pytest
import torch
from families import (
    FAMILIES,
    TEMPLATES,
    templated_tokenizer,
    tiny_family,
    tiny_gemma_with_eyes,
)
from tiny import VOCAB_SIZE
from training import ANSWERS, quick, rows, run_dir

from potstill.config import LossConfig
from potstill.data.batch import collate
from potstill.data.render import (
    end_token_ids,
    render,
    render_prompt,
    template_fingerprint,
    vocab_fingerprint,
)
from potstill.errors import ConfigError
from potstill.models.decode import Row, decode
from potstill.models.local import LocalModel
from potstill.models.weights import load_weights
from potstill.targets.store import TargetStore
from potstill.teach.score import score
from potstill.train.loop import fine_tune_student
from potstill.train.objective import Objective
from potstill.train.prune import choose_layers, cut_layers, save_untouched
from potstill.train.student import prepare_student
from potstill.types import Message, Record, Sampling

LADDER = (*ANSWERS, "The old man reads the news in one sentence. " * 3)
"""Prompts of very different length: in one batch the short ones are padded a lot."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a family's tiny model, made once; nobody writes to it."""
    torch.set_num_threads(1)
    made = {}

    def make(family, *, seed=0, **changes):
        key = (family, seed, str(changes))
        if key not in made:
            path = tmp_path_factory.mktemp("family") / "model"
            made[key] = tiny_family(path, family, seed=seed, **changes)
        return made[key]

    return make


def question(text, system=None):
    user = Message(role="user", content=text)
    return (user,) if system is None else (Message(role="system", content=system), user)


def train(model, tokenizer, out, *, loss=None, targets=None, **changes):
    return fine_tune_student(
        model,
        tokenizer,
        rows(tokenizer),
        (),
        loss=loss or LossConfig(),
        train=quick(**{"max_steps": 6, **changes}),
        targets=targets,
        out=run_dir(out),
    )


def figures(out, name):
    lines = run_dir(out).metrics.read_text().splitlines()
    return [json.loads(line)[name] for line in lines]


@torch.no_grad()
def logits(model, tokenizer):
    """On a text longer than any sliding window here, without cache or mask."""
    ids = render_prompt(tokenizer, question(LADDER[-1]))
    return model(torch.tensor([ids]), use_cache=False).logits[0]


def answers_of_transformers(model, tokenizer, prompts, *, num_tokens, end_ids):
    """What `generate` says to each prompt alone, without padding, end tokens included."""
    found = []
    for prompt in prompts:
        whole = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=num_tokens,
            do_sample=False,
            eos_token_id=end_ids,
            pad_token_id=tokenizer.pad_token_id,
        )
        found.append(whole[0, len(prompt) :].tolist())
    return found


def answers_of_ours(model, tokenizer, prompts, *, num_tokens, end_ids):
    """What `decode` says to all prompts in one batch, without end tokens."""
    todo = [Row(prompt, Sampling(max_new_tokens=num_tokens)) for prompt in prompts]
    decode(model, tokenizer, todo, end_ids=end_ids, pad_id=tokenizer.pad_token_id)
    return [row.ids for row in todo]


def without_end(ids, end_ids):
    return ids[:-1] if ids and ids[-1] in end_ids else ids


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_learns_and_comes_back_from_its_folder_unchanged(family, folder, tmp_path):
    model, tokenizer = load_weights(folder(family))
    before = logits(model, tokenizer)
    result = train(model, tokenizer, tmp_path / "run")
    losses = figures(tmp_path / "run", "train/loss_nats")
    assert losses[-1] < losses[0] - 0.2, losses
    assert result.num_trainable == result.num_parameters

    again, tokenizer_again = load_weights(run_dir(tmp_path / "run").model)
    after = logits(again, tokenizer)
    assert torch.equal(after, logits(model.eval(), tokenizer))
    assert not torch.allclose(after, before, atol=0.1)
    assert type(again) is type(model)
    assert vocab_fingerprint(tokenizer_again) == vocab_fingerprint(tokenizer)
    assert template_fingerprint(tokenizer_again) == template_fingerprint(tokenizer)
    assert again.generation_config.eos_token_id == end_token_ids(tokenizer)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_in_a_batch_are_those_of_transformers_alone(family, folder):
    model, tokenizer = load_weights(folder(family))
    end_ids = end_token_ids(tokenizer)
    prompts = [render_prompt(tokenizer, question(text)) for text in LADDER]
    settings = {"num_tokens": 24, "end_ids": end_ids}
    theirs = answers_of_transformers(model, tokenizer, prompts, **settings)
    ours = answers_of_ours(model, tokenizer, prompts, **settings)
    assert ours == [without_end(ids, end_ids) for ids in theirs]
    assert len(set(map(tuple, ours))) > 1, "the prompts do not matter"

    responses = asyncio.run(respond(folder(family), LADDER, num_tokens=24))
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in ours]
    assert [response.text for response in responses] == texts
    assert [response.num_new_tokens for response in responses] == list(map(len, theirs))


async def respond(folder, texts, *, num_tokens):
    model = LocalModel(folder, dtype="float32", batch_size=len(texts))
    sampling = Sampling(max_new_tokens=num_tokens)
    try:
        asked = [Record(id=text, messages=question(text)) for text in texts]
        return await asyncio.gather(*(model.respond(record, sampling) for record in asked))
    finally:
        await model.close()


PAIRS = [
    ("phi3", "phi3"),
    ("phi3.5", "phi3.5"),
    ("phi4-mini", "phi4-mini"),
    ("llama3", "llama3"),
    ("qwen2", "qwen2"),
    ("qwen3", "qwen3"),
    ("gemma2", "gemma2"),
    ("gemma3", "gemma3"),
    ("deepseek-v3", "llama3"),
    ("mistral", "smollm2"),
]


@pytest.mark.parametrize(("teacher_family", "family"), PAIRS)
def test_a_student_learns_its_teachers_probabilities(teacher_family, family, folder, tmp_path):
    model, tokenizer = load_weights(folder(family))
    teacher = LocalModel(folder(teacher_family, seed=1), dtype="float32")
    score(
        teacher,
        rows(tokenizer),
        tmp_path / "targets",
        k=len(teacher.tokenizer),
        temperature=2.0,
        student_vocab_fingerprint=vocab_fingerprint(tokenizer),
        student_template_fingerprint=template_fingerprint(tokenizer),
    )
    targets = TargetStore(
        tmp_path / "targets",
        vocab_fingerprint=vocab_fingerprint(tokenizer),
        template_fingerprint=template_fingerprint(tokenizer),
        temperature=2.0,
    )
    loss = LossConfig(kind="forward_kl", temperature=2.0, sft_weight=0.0)
    first = divergence(folder(teacher_family, seed=1), model, tokenizer)
    train(model, tokenizer, tmp_path / "run", loss=loss, targets=targets, learning_rate=1e-2)
    told = figures(tmp_path / "run", "train/forward_kl_nats")
    assert told[0] == pytest.approx(first, rel=5e-3)
    assert told[-1] < 0.8 * told[0], told


@torch.no_grad()
def divergence(teacher_folder, student, tokenizer):
    """T^2 KL(teacher || student) per label at T = 2, from whole models, row by row."""
    teacher, _ = load_weights(teacher_folder)
    found = []
    for row in rows(tokenizer):
        ids, labels = torch.tensor([row.ids]), torch.tensor(row.loss_mask[1:]).bool()
        told, said = (
            (model.eval()(ids).logits[0, :-1][labels, : len(tokenizer)] / 2.0).log_softmax(-1)
            for model in (teacher, student)
        )
        found.append(4.0 * (told.exp() * (told - said)).sum(-1))
    return torch.cat(found).mean().item()


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_for_scoring_are_those_of_the_whole_model_on_padded_rows(family, folder):
    logits_are_those_of_rows_alone(folder(family), LADDER)


def logits_are_those_of_rows_alone(path, texts):
    local = LocalModel(path, dtype="float32")
    whole, tokenizer = load_weights(path)
    prompts = [render_prompt(tokenizer, question(text)) for text in texts]
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), tokenizer.pad_token_id)
    wanted = torch.zeros((len(prompts), width), dtype=torch.bool)
    for place, prompt in enumerate(prompts):
        ids[place, : len(prompt)] = torch.tensor(prompt)
        wanted[place, : len(prompt)] = True
    found = local.logits(ids, wanted).split(list(map(len, prompts)))
    for prompt, part in zip(prompts, found, strict=True):
        with torch.no_grad():
            alone = whole(torch.tensor([prompt]), use_cache=False).logits[0]
        torch.testing.assert_close(part, alone, atol=2e-4, rtol=1e-4)


PROJECTIONS = {
    "phi3": {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"},
    "phi4-mini": {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"},
    "qwen2": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "qwen3": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
}


@pytest.mark.parametrize("family", PROJECTIONS)
def test_lora_finds_every_projection_and_leaves_a_plain_model(family, folder, tmp_path):
    prepared, _ = load_weights(folder(family))
    student = prepare_student(prepared, quick(adapter="lora"), torch.device("cpu"))
    holders = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in student.trainable()}
    assert holders == PROJECTIONS[family]

    model, tokenizer = load_weights(folder(family))
    result = train(model, tokenizer, tmp_path / "run", adapter="lora", learning_rate=1e-2)
    losses = figures(tmp_path / "run", "train/loss_nats")
    assert losses[-1] < losses[0] - 0.2, losses
    assert result.num_trainable < result.num_parameters
    again, _ = load_weights(run_dir(tmp_path / "run").model)
    untouched, _ = load_weights(folder(family))
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in untouched.state_dict().items()
    }
    changed = {
        name.split(".")[-2]
        for name, value in again.state_dict().items()
        if not torch.equal(value, untouched.state_dict()[name])
    }
    assert changed == PROJECTIONS[family]


@pytest.mark.parametrize("family", ["phi3", "phi3.5", "qwen3", "gemma2", "gemma3", "deepseek-v3"])
def test_a_cut_student_is_a_whole_model_of_its_family(family, folder, tmp_path):
    model, tokenizer = load_weights(folder(family, num_hidden_layers=5, **layer_types(family)))
    types = getattr(model.config, "layer_types", None)
    prompts = [render_prompt(tokenizer, question(text)) for text in LADDER]
    keep, influence = choose_layers(model, tokenizer, prompts, 3)
    assert (keep[0], keep[-1], len(influence)) == (0, 4, 5)

    keep = (0, 3, 4)
    cut = cut_layers(model, keep)
    if types is not None:
        assert list(cut.config.layer_types) == [types[layer] for layer in keep]
    save_untouched(cut, tokenizer, tmp_path / "cut")
    again, _ = load_weights(tmp_path / "cut")
    assert torch.equal(logits(again, tokenizer), logits(cut, tokenizer))
    settings = {"num_tokens": 12, "end_ids": end_token_ids(tokenizer)}
    with_cache = answers_of_ours(again, tokenizer, prompts, **settings)
    assert answers_of_ours(cut, tokenizer, prompts, **settings) == with_cache
    assert with_cache == [
        answers_without_cache(again, tokenizer, prompt, **settings) for prompt in prompts
    ]
    train(again, tokenizer, tmp_path / "run")
    losses = figures(tmp_path / "run", "train/loss_nats")
    assert losses[-1] < losses[0]


def layer_types(family):
    """An uneven order, so that a cut that keeps the wrong ones is seen."""
    sliding, full = "sliding_attention", "full_attention"
    if family in ("gemma2", "gemma3"):
        return {"layer_types": [sliding, full, sliding, sliding, full]}
    return {}


@torch.no_grad()
def answers_without_cache(model, tokenizer, prompt, *, num_tokens, end_ids):
    ids = list(prompt)
    for _ in range(num_tokens):
        token = model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item()
        if token in end_ids:
            break
        ids.append(token)
    return ids[len(prompt) :]


@pytest.mark.parametrize("family", ["phi3.5", "phi4-mini"])
def test_longrope_answers_across_the_switch_are_those_of_transformers(family, folder):
    """Past the original length every position turns at another speed, and a cache is void."""
    model, tokenizer = load_weights(folder(family))
    prompts = [render_prompt(tokenizer, question(text)) for text in ACROSS]
    original = model.config.original_max_position_embeddings
    lengths = list(map(len, prompts))
    assert lengths[0] + 24 < original < lengths[1] + 24 < original + 24 < lengths[2] + 24, lengths
    settings = {"num_tokens": 24, "end_ids": []}
    theirs = answers_of_transformers(model, tokenizer, prompts, **settings)
    alone = [answers_of_ours(model, tokenizer, [prompt], **settings)[0] for prompt in prompts]
    assert alone == theirs
    assert answers_of_ours(model, tokenizer, prompts, **settings) == theirs


@pytest.mark.parametrize("family", ["phi3.5", "phi4-mini"])
def test_longrope_logits_of_a_short_row_do_not_depend_on_a_long_neighbour(family, folder):
    logits_are_those_of_rows_alone(folder(family), ACROSS)


def test_longrope_losses_of_a_short_row_do_not_depend_on_a_long_neighbour(folder):
    model, tokenizer = load_weights(folder("phi3.5"))
    objective = Objective(model, LossConfig())
    trained = [render(tokenizer, question(text), "On Monday.") for text in ACROSS]

    def loss_and_gradient(part):
        model.zero_grad()
        batch = collate(part, pad_id=tokenizer.pad_token_id)
        loss = objective(batch.ids_BT, batch.loss_mask_BT, None, None).loss
        loss.backward()
        return loss.detach(), model.model.layers[0].self_attn.qkv_proj.weight.grad.clone()

    alone = [loss_and_gradient([row]) for row in trained]
    loss, gradient = loss_and_gradient(trained)
    torch.testing.assert_close(loss, sum(part for part, _ in alone))
    torch.testing.assert_close(gradient, sum(part for _, part in alone), atol=1e-4, rtol=1e-4)


ACROSS = tuple("The old man reads the news. " * times for times in (2, 22, 24))
"""Well before, just before and just after the 256 tokens at which longrope switches."""


def test_a_family_that_also_sees_learns_from_text_and_refuses_to_be_cut(tmp_path):
    model, tokenizer = load_weights(tiny_gemma_with_eyes(tmp_path / "model"))
    with pytest.raises(ConfigError, match="name a smaller student instead"):
        cut_layers(model, [0, 2])
    train(model, tokenizer, tmp_path / "run")
    losses = figures(tmp_path / "run", "train/loss_nats")
    assert losses[-1] < losses[0] - 0.2, losses
    again, _ = load_weights(run_dir(tmp_path / "run").model)
    assert torch.equal(logits(again, tokenizer), logits(model, tokenizer))


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_answer_ends_with_the_end_of_turn_of_its_template(name):
    tokenizer, kind = templated_tokenizer(name), TEMPLATES[name]
    end = tokenizer.convert_tokens_to_ids(kind.end_of_turn)
    assert end_token_ids(tokenizer)[0] == end
    row = render(tokenizer, question("Where is my order?"), "On Monday.")
    learned = [token for token, carries in zip(row.ids, row.loss_mask, strict=True) if carries]
    assert learned[-1] == end
    assert tokenizer.decode(learned[:-1]) == "On Monday."
    assert row.ids[: -len(learned)] == render_prompt(tokenizer, question("Where is my order?"))


@pytest.mark.parametrize("name", TEMPLATES)
def test_control_tokens_of_a_template_are_single_tokens(name):
    tokenizer, kind = templated_tokenizer(name), TEMPLATES[name]
    prompt = render_prompt(tokenizer, question("Hi"))
    opening = {"chatml": "<|im_start|>", "phi": "<|user|>", "gemma": "<start_of_turn>"}[name]
    assert prompt.count(tokenizer.convert_tokens_to_ids(opening)) == (1 if name == "phi" else 2)
    assert prompt.count(tokenizer.convert_tokens_to_ids(kind.end_of_turn)) == 1
    if kind.bos:
        assert prompt.count(tokenizer.bos_token_id) == 1
        assert prompt[0] == tokenizer.bos_token_id


def test_a_system_turn_opens_the_user_turn_where_the_template_has_no_place_for_it():
    tokenizer = templated_tokenizer("gemma")
    prompt = render_prompt(tokenizer, question("Where?", system="Be brief."))
    assert tokenizer.decode(prompt) == (
        "<bos><start_of_turn>user\nBe brief.\n\nWhere?<end_of_turn>\n<start_of_turn>model\n"
    )
    for name in ("chatml", "phi"):
        other = templated_tokenizer(name)
        text = other.decode(render_prompt(other, question("Where?", system="Be brief.")))
        assert text.index("Be brief.") < text.index(TEMPLATES[name].end_of_turn)


def test_vocabularies_differ_from_every_layer_size(folder):
    for family in FAMILIES:
        model, _ = load_weights(folder(family))
        sizes = {size for name, p in model.named_parameters() for size in p.shape}
        wide = {size for size in sizes if size >= VOCAB_SIZE}
        assert wide == {model.config.vocab_size}

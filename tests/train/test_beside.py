"""A teacher beside the student: what is compared, what is learnt, and what is left behind."""

import json

import pytest
import torch
from families import tiny_family
from safetensors.torch import load_file
from training import quick, rows, run_dir, tiny_student
from transformers import AutoModelForCausalLM, AutoTokenizer

from potstill.config import LossConfig
from potstill.data.render import Rendered
from potstill.errors import ConfigError, DataError, TrainError, VocabMismatch
from potstill.train.beside import (
    MatchedObjective,
    Matching,
    attention_parts,
    build_matching,
    watched,
)
from potstill.train.checkpoint import latest_checkpoint
from potstill.train.loop import Training, fine_tune_student
from potstill.train.objective import Objective, TeacherTargets
from potstill.train.ranks import ALONE, Ranks
from potstill.train.student import decoder_layers, prepare_student
from potstill.train.targets import TeacherLogits
from potstill.train.together import fine_tune_together

BOTH = LossConfig(hidden={"weight": 0.5}, attention={"weight": 2.0})


@pytest.fixture
def pair(tmp_path):
    """A student of two layers, a wider teacher of four, and the student's tokenizer."""
    teacher, _ = tiny_student(tmp_path / "teacher", layers=4, hidden=48, seed=1)
    student, tokenizer = tiny_student(tmp_path / "student")
    return student, teacher, tokenizer


def taught(student, teacher, tokenizer, out, *, loss=BOTH, **changes):
    return fine_tune_student(
        student,
        tokenizer,
        rows(tokenizer),
        changes.pop("validation", []),
        loss=loss,
        train=quick(**changes),
        targets=None,
        out=run_dir(out),
        teacher=teacher,
        checkpoint_seconds=0.0,
    )


def figures(folder):
    return [json.loads(line) for line in run_dir(folder).metrics.read_text().splitlines()]


def gradients(student, teacher, tokenizer, loss=BOTH, ranks=ALONE, **changes):
    train, some = quick(max_grad_norm=1e9, **changes), rows(tokenizer)
    torch.manual_seed(0)
    prepared = prepare_student(student, train, torch.device("cpu"))
    matching = build_matching(prepared.model, teacher, loss, some)
    training = Training(prepared, tokenizer, some, [], loss, train, None, ranks, matching)
    assert not training.parts.packed
    found = {}
    training.optimizer.step = lambda: found.update(
        {name: p.grad.clone() for name, p in training.parameters.items() if p.grad is not None}
    )
    training.step()
    return found


@pytest.mark.parametrize("adapter", [None, "lora"])
@pytest.mark.parametrize("tokens", ["all", "answer"])
def test_the_gradient_does_not_depend_on_how_a_step_is_cut_up(tmp_path, pair, tokens, adapter):
    _, teacher, tokenizer = pair
    loss = LossConfig(hidden={"tokens": tokens}, attention={"tokens": tokens})
    found = []
    for size in (4, 1):
        student, _ = tiny_student(tmp_path / f"{size}")
        changes = {"micro_batch_size": size, "adapter": adapter}
        found.append(gradients(student, teacher, tokenizer, loss, **changes))
    assert "matching.projections.0-1.weight" in found[0]
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, atol=2e-6, rtol=1e-4)


class Apart(Ranks):
    """One of several that has nobody to talk to."""

    def add_gradients(self, parameters):
        """Its own stay its own."""

    def gather(self, value):
        return [value]


def test_the_gradients_of_all_shares_add_up_to_that_of_one_process(tmp_path, pair):
    _, teacher, tokenizer = pair
    found = []
    for ranks in (ALONE, Apart(0, 2), Apart(1, 2)):
        student, _ = tiny_student(tmp_path / "same")
        found.append(gradients(student, teacher, tokenizer, ranks=ranks))
    assert "matching.projections.0-1.weight" in found[0]
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name] + found[2][name], value, atol=2e-6, rtol=1e-4)


@pytest.mark.slow
def test_two_processes_learn_the_layers_as_one_does(tmp_path, pair):
    student, teacher, tokenizer = pair
    settings = {"max_steps": 3, "batch_size": 3}
    taught(student, teacher, tokenizer, tmp_path / "one", **settings)
    fine_tune_together(
        tmp_path / "student",
        rows(tokenizer),
        [],
        loss=BOTH,
        train=quick(processes=2, **settings),
        targets=tmp_path / "none",
        teacher=tmp_path / "teacher",
        out=run_dir(tmp_path / "two"),
    )
    for one, two in zip(figures(tmp_path / "one"), figures(tmp_path / "two"), strict=True):
        for name in ("loss_nats", "sft_nats", "hidden_cosine", "attention_nats", "grad_norm"):
            assert two[f"train/{name}"] == pytest.approx(one[f"train/{name}"], abs=2e-5), name


def test_rows_are_not_packed_where_layers_are_compared(tmp_path, pair):
    student, teacher, tokenizer = pair
    with pytest.raises(TrainError, match="packing: true, but a loss between the layers"):
        taught(student, teacher, tokenizer, tmp_path / "run", packing=True)


def test_a_moving_average_is_kept_of_the_projections_as_well(tmp_path, pair):
    student, teacher, tokenizer = pair
    result = taught(student, teacher, tokenizer, tmp_path / "run", max_steps=3, ema=0.5)
    assert result.num_trainable == result.num_parameters and not result.packed


def test_activations_computed_twice_give_the_same_gradient(tmp_path, pair):
    student, teacher, tokenizer = pair
    again, _ = tiny_student(tmp_path / "again")
    plain = gradients(student, teacher, tokenizer)
    twice = gradients(again, teacher, tokenizer, gradient_checkpointing=True)
    assert plain.keys() == twice.keys()
    for name, value in plain.items():
        torch.testing.assert_close(twice[name], value, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["sft", "forward_kl", "jsd", "total_variation"])
def test_the_terms_are_added_with_their_weights_to_any_loss(pair, kind):
    student, teacher, tokenizer = pair
    loss = LossConfig(**BOTH.model_dump() | {"kind": kind})
    matching = build_matching(student, teacher, loss, rows(tokenizer))
    row = rows(tokenizer)[0]
    ids = torch.tensor([row.ids])
    told = TeacherLogits(teacher(ids).logits[0, :-1][torch.tensor(row.loss_mask[1:]).bool()])
    targets = None if kind == "sft" else TeacherTargets(told, len(tokenizer))
    batch = (ids, torch.tensor([row.loss_mask]), None, targets)
    plain = Objective(student.train(), loss)(*batch)
    found = MatchedObjective(Objective(student, loss), matching)(*batch)
    assert (plain.divergence is None) is (kind == "sft")
    terms = found.matched
    assert terms.keys() == {"hidden_cosine", "attention_nats"} and min(terms.values()) > 0
    whole = plain.loss + 0.5 * terms["hidden_cosine"] + 2.0 * terms["attention_nats"]
    torch.testing.assert_close(found.loss, whole)


def test_the_validation_loss_is_of_what_the_student_says_alone(pair):
    student, teacher, tokenizer = pair
    matching = build_matching(student, teacher, BOTH, rows(tokenizer))
    row = rows(tokenizer)[0]
    batch = (torch.tensor([row.ids]), torch.tensor([row.loss_mask]), None, None)
    student.eval()
    found = MatchedObjective(Objective(student, BOTH), matching)(*batch)
    torch.testing.assert_close(found.loss, Objective(student, BOTH)(*batch).loss)
    assert not found.matched


def test_a_student_equal_to_its_teacher_has_nothing_to_learn_of_it(tmp_path):
    student, tokenizer = tiny_student(tmp_path / "a", layers=3)
    teacher, _ = tiny_student(tmp_path / "b", layers=3)
    matching = build_matching(student, teacher, BOTH, rows(tokenizer))
    assert not matching.trainable()
    row = rows(tokenizer)[0]
    batch = (torch.tensor([row.ids]), torch.tensor([row.loss_mask]), None, None)
    found = MatchedObjective(Objective(student.train(), BOTH), matching)(*batch)
    for value in found.matched.values():
        assert value.item() == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize(
    "family", ["llama3", "smollm2", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"]
)
def test_queries_keys_and_values_of_a_family_are_found(tmp_path, family):
    model = AutoModelForCausalLM.from_pretrained(tiny_family(tmp_path / "m", family))
    config, layer = model.config, decoder_layers(model)[0]
    parts = attention_parts(layer, config)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    groups = config.num_key_value_heads * size
    wanted = {"query": config.num_attention_heads * size, "key": groups, "value": groups}
    assert {what: part.width for what, part in parts.items()} == wanted
    with watched({(what, 0): part for what, part in parts.items()}) as found:
        model(torch.tensor([[5, 6, 7]]))
    assert {key[0]: value.shape[-1] for key, value in found.items()} == wanted
    if family == "phi3":
        fused = layer.self_attn.qkv_proj
        states = []
        handle = fused.register_forward_hook(lambda _m, _i, out: states.append(out))
        model(torch.tensor([[5, 6, 7]]))
        handle.remove()
        together = torch.cat([found[what, 0] for what in ("query", "key", "value")], dim=-1)
        torch.testing.assert_close(together, states[0])


def test_a_family_without_such_projections_is_refused(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_family(tmp_path / "m", "deepseek-v3"))
    with pytest.raises(TrainError, match=r"DeepseekV3DecoderLayer has no projections.*loss.attent"):
        Matching(model, model, LossConfig(attention="qkv"))
    Matching(model, model, LossConfig(hidden="cosine"))


def test_no_hook_is_left_behind(pair):
    student, teacher, tokenizer = pair
    gradients(student, teacher, tokenizer)
    for model in (student, teacher):
        assert not any(module._forward_hooks for module in model.modules())


def test_the_teacher_is_neither_trained_nor_saved_nor_cached(tmp_path, pair):
    student, teacher, tokenizer = pair
    before = {name: p.clone() for name, p in teacher.state_dict().items()}
    asked = []
    teacher.base_model.register_forward_pre_hook(
        lambda _m, _a, kwargs: asked.append((kwargs["use_cache"], torch.is_grad_enabled())),
        with_kwargs=True,
    )
    teacher.train()
    taught(student, teacher, tokenizer, tmp_path / "run", max_steps=3)
    assert not teacher.training and set(asked) == {(False, False)}
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name
    matching = build_matching(student, teacher, BOTH, rows(tokenizer))
    assert set(matching.state_dict()) == {f"projections.{n}.weight" for n in ("0-1", "1-3")}
    saved = load_file(run_dir(tmp_path / "run").model / "model.safetensors")
    assert not any("matching" in name or "projection" in name for name in saved)
    AutoModelForCausalLM.from_pretrained(run_dir(tmp_path / "run").model)


def test_the_student_comes_nearer_to_the_teacher(tmp_path, pair):
    student, teacher, tokenizer = pair
    result = taught(student, teacher, tokenizer, tmp_path / "run", max_steps=25)
    first, *_, last = figures(tmp_path / "run")
    for name in ("hidden_cosine", "attention_nats", "sft_nats"):
        assert last[f"train/{name}"] < 0.8 * first[f"train/{name}"], name
    own = first["train/sft_nats"]
    own += 0.5 * first["train/hidden_cosine"] + 2.0 * first["train/attention_nats"]
    assert first["train/loss_nats"] == pytest.approx(own, rel=1e-5)
    assert result.num_trainable == result.num_parameters


class Interrupted(Exception):
    """Ctrl-C, in a test."""


def test_an_interrupted_training_goes_on_with_the_same_projections(tmp_path, pair):
    student, teacher, tokenizer = pair
    taught(student, teacher, tokenizer, tmp_path / "whole", max_steps=5)

    def stop(done, _total, _figures):
        if done == 4:
            raise Interrupted

    again, _ = tiny_student(tmp_path / "again")
    settings = {
        "loss": BOTH, "train": quick(max_steps=5), "targets": None, "teacher": teacher,
        "out": run_dir(tmp_path / "cut"), "checkpoint_seconds": 0.0,
    }  # fmt: skip
    with pytest.raises(Interrupted):
        fine_tune_student(again, tokenizer, rows(tokenizer), [], on_progress=stop, **settings)
    checkpoint = latest_checkpoint(run_dir(tmp_path / "cut").checkpoints)
    assert "matching.projections.0-1.weight" in load_file(checkpoint / "weights.safetensors")
    fresh, _ = tiny_student(tmp_path / "fresh")
    result = fine_tune_student(fresh, tokenizer, rows(tokenizer), [], **settings)
    assert result.resumed_from == 3
    lines = [[line["train/loss_nats"] for line in figures(tmp_path / n)] for n in ("whole", "cut")]
    assert lines[0] == lines[1]


def test_a_checkpoint_of_another_teacher_is_refused(tmp_path, pair):
    student, teacher, tokenizer = pair

    def stop(done, _total, _figures):
        if done == 2:
            raise Interrupted

    settings = {"loss": BOTH, "train": quick(max_steps=5), "targets": None,
                "out": run_dir(tmp_path / "run"), "checkpoint_seconds": 0.0}  # fmt: skip
    with pytest.raises(Interrupted):
        fine_tune_student(
            student, tokenizer, rows(tokenizer), [], teacher=teacher, on_progress=stop, **settings
        )
    fresh, _ = tiny_student(tmp_path / "fresh")
    other, _ = tiny_student(tmp_path / "other", layers=4, hidden=48, seed=2)
    with pytest.raises(DataError, match="written by another training"):
        fine_tune_student(fresh, tokenizer, rows(tokenizer), [], teacher=other, **settings)


@pytest.mark.parametrize("kind", ["cosine", "mse"])
def test_a_projection_begins_as_the_best_fit(pair, kind):
    student, teacher, tokenizer = pair
    loss = LossConfig(hidden={"kind": kind, "layers": [[0, 2]]})
    many = rows(tokenizer) * 4
    matching = build_matching(student, teacher, loss, many)
    weight = matching.trainable()["matching.projections.0-2.weight"].detach().clone()
    row = many[0]
    batch = (torch.tensor([row.ids]), torch.tensor([row.loss_mask]), None, None)
    objective = MatchedObjective(Objective(student.train(), loss), matching)

    def distance(scale):
        matching.projections["0-2"].weight.data = weight + scale * torch.randn_like(weight).sign()
        return objective(*batch).matched[f"hidden_{kind}"].item()

    best = distance(0.0)
    assert best < 0.5 * distance(1.0)
    torch.manual_seed(0)
    assert all(best <= distance(0.05) for _ in range(5))


def test_only_what_is_asked_for_needs_a_teacher(pair):
    student, teacher, tokenizer = pair
    assert build_matching(student, None, LossConfig(), rows(tokenizer)) is None
    with pytest.raises(ConfigError, match=r"no teacher was given.*teacher=model"):
        build_matching(student, None, BOTH, rows(tokenizer))
    strange = [Rendered(ids=(3, 500, 4), loss_mask=(0, 1, 1))]
    with pytest.raises(VocabMismatch, match="token 500 and the teacher knows 421"):
        build_matching(student, teacher, BOTH, strange)


def test_batches_that_turn_positions_in_two_ways_are_refused(tmp_path):
    path = tiny_family(tmp_path / "m", "phi3.5")
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(path),
        AutoTokenizer.from_pretrained(path),
    )
    long = [Rendered(ids=(5,) * 300, loss_mask=(0,) + (1,) * 299), *rows(tokenizer)]
    loss = LossConfig(hidden="cosine")
    matching = build_matching(model, model, loss, rows(tokenizer))
    objective = MatchedObjective(Objective(model.train(), loss), matching)
    ids, mask = torch.tensor([long[0].ids]), torch.tensor([long[0].loss_mask])
    with pytest.raises(TrainError, match=r"beyond 256 tokens.*train.max_tokens to 256"):
        objective(ids, mask, None, None)

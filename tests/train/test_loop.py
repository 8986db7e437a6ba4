"""The loop: what it divides by, what it predicts, when it stops, what it leaves behind."""

import json

import pytest
import torch
from torch import nn
from training import ANSWERS, quick, rows, run_dir, tiny_student
from transformers import AutoModelForCausalLM, AutoTokenizer

from potstill.config import LossConfig
from potstill.data.render import Rendered, render_prompt
from potstill.errors import DataError, TrainError
from potstill.train.loop import Training, fine_tune_student
from potstill.train.objective import Objective, check_head
from potstill.train.student import prepare_student
from potstill.types import Message

SFT = LossConfig()


def fine_tune(model, tokenizer, train_rows, out, *, validation=(), loss=SFT, **changes):
    return fine_tune_student(
        model,
        tokenizer,
        train_rows,
        validation,
        loss=loss,
        train=quick(**changes),
        targets=None,
        out=run_dir(out),
    )


def figures(folder) -> list[dict]:
    return [json.loads(line) for line in run_dir(folder).metrics.read_text().splitlines()]


def test_the_mask_marks_labels_and_their_predecessors_predict_them(tmp_path):
    model, tokenizer = tiny_student(tmp_path / "m")
    row = rows(tokenizer)[0]
    ids, mask = torch.tensor([row.ids]), torch.tensor([row.loss_mask])
    found = Objective(model, SFT)(ids, mask, None, None).loss
    logprobs = model(ids).logits[0].log_softmax(-1)
    by_hand = -sum(
        logprobs[place - 1, row.ids[place]] for place in range(len(row.ids)) if row.loss_mask[place]
    )
    torch.testing.assert_close(found, by_hand)


WAYS = [
    {"packing": False, "micro_batch_size": 2},
    {"packing": False, "micro_batch_size": 1},
    {"packing": False, "micro_batch_tokens": 40},
    {"packing": True},
    {"packing": True, "micro_batch_size": 2},
    {"packing": True, "micro_batch_tokens": 40},
    {"packing": True, "gradient_checkpointing": True},
]
"""Of computing the same step."""


@pytest.mark.parametrize("adapter", [None, "lora"])
def test_the_gradient_does_not_depend_on_how_a_step_is_computed(tmp_path, adapter):
    def gradient(**way):
        model, tokenizer = tiny_student(tmp_path / "m")
        train = quick(max_grad_norm=1e9, adapter=adapter, **way)
        torch.manual_seed(0)
        student = prepare_student(model, train, torch.device("cpu"))
        training = Training(student, tokenizer, rows(tokenizer), [], SFT, train, None)
        found = {}
        training.optimizer.step = lambda: found.update(
            {name: p.grad.clone() for name, p in training.parameters.items()}
        )
        training.step()
        return found

    whole = gradient(packing=False)
    for way in WAYS:
        parts = gradient(**way)
        for name, value in whole.items():
            torch.testing.assert_close(parts[name], value, atol=1e-6, rtol=0)


def test_a_student_learns_four_answers_and_when_to_stop(tmp_path):
    model, tokenizer = tiny_student(tmp_path / "m")
    fine_tune(model, tokenizer, rows(tokenizer), tmp_path / "run", max_steps=90)
    folder = run_dir(tmp_path / "run").model
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for question, answer in ANSWERS.items():
        prompt = list(render_prompt(tokenizer, (Message(role="user", content=question),)))
        said = model.generate(torch.tensor([prompt]), max_new_tokens=60, do_sample=False)
        said = said[0, len(prompt) :].tolist()
        assert said[-1] == tokenizer.eos_token_id, "it talked on"
        assert tokenizer.decode(said[:-1]) == answer


def test_the_model_folder_says_which_tokens_end_an_answer(tmp_path):
    model, tokenizer = tiny_student(tmp_path / "m")
    fine_tune(model, tokenizer, rows(tokenizer), tmp_path / "run", max_steps=1)
    folder = run_dir(tmp_path / "run").model
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [tokenizer.eos_token_id]
    assert AutoTokenizer.from_pretrained(folder).chat_template == tokenizer.chat_template


def test_metrics_name_their_units(tmp_path):
    model, tokenizer = tiny_student(tmp_path / "m")
    result = fine_tune(
        model, tokenizer, rows(tokenizer), tmp_path / "run", validation=rows(tokenizer), max_steps=2
    )
    first = figures(tmp_path / "run")[0]
    assert first["step"] == 1
    assert first["train/num_loss_tokens"] == sum(sum(r.loss_mask) for r in rows(tokenizer))
    assert {
        "seconds",
        "train/loss_nats",
        "train/sft_nats",
        "train/grad_norm",
        "train/learning_rate",
        "speed/tokens_per_second",
        "speed/peak_memory_bytes",
        "validation/loss_nats",
    } <= first.keys()
    assert result.steps == 2


def test_training_stops_when_the_validation_loss_stands_still_and_keeps_the_best(tmp_path):
    model, tokenizer = tiny_student(tmp_path / "m")
    train_rows = rows(tokenizer)
    strange = rows(tokenizer, {"Where is my order?": "dog dog fox"})
    result = fine_tune(
        model,
        tokenizer,
        train_rows,
        tmp_path / "run",
        validation=strange,
        max_steps=200,
        eval_steps=5,
        patience=2,
        early_stopping=True,
    )
    losses = [
        line["validation/loss_nats"]
        for line in figures(tmp_path / "run")
        if "validation/loss_nats" in line
    ]
    assert result.stopped_early
    assert result.steps == result.best_step + 2 * 5
    assert result.best_validation_loss_nats == min(losses)
    saved = AutoModelForCausalLM.from_pretrained(run_dir(tmp_path / "run").model)
    row = strange[0]
    found = Objective(saved, SFT)(
        torch.tensor([row.ids]), torch.tensor([row.loss_mask]), None, None
    ).loss / sum(row.loss_mask)
    assert found.item() == pytest.approx(min(losses), rel=1e-4)


def test_a_student_that_learns_its_rows_by_heart_is_said_to_overfit(tmp_path, caplog):
    model, tokenizer = tiny_student(tmp_path / "m")
    known, strange = rows(tokenizer), rows(tokenizer, {"Where is my order?": "dog dog fox"})
    settings = {"max_steps": 40, "eval_steps": 10}
    result = fine_tune(model, tokenizer, known, tmp_path / "run", validation=strange, **settings)
    assert result.best_step < 40
    assert "the student overfits: its validation loss rose from" in result.warning
    assert result.warning in caplog.text
    model, tokenizer = tiny_student(tmp_path / "m")
    well = fine_tune(model, tokenizer, known, tmp_path / "well", validation=known, **settings)
    assert well.warning == ""


def test_a_loss_that_is_not_a_number_names_the_rows(tmp_path):
    model, tokenizer = tiny_student(tmp_path / "m")
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    train_rows = rows(tokenizer)
    student = prepare_student(model, quick(), torch.device("cpu"))
    training = Training(student, tokenizer, train_rows, [], SFT, quick(), None)
    with pytest.raises(TrainError, match=r"step 1: loss nan.*rows.*0.*train.learning_rate"):
        training.step()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (Rendered(ids=(3, 4, 5), loss_mask=(0, 0, 0)), "rows 4 carry no loss"),
        (Rendered(ids=(3, 4, 5), loss_mask=(1, 0, 0)), "rows 4 carry no loss"),
        (Rendered(ids=(3,) * 600, loss_mask=(1,) * 600), "rows 4 are longer than 512"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_refused(tmp_path, row, message):
    model, tokenizer = tiny_student(tmp_path / "m")
    with pytest.raises(DataError, match=message):
        fine_tune(model, tokenizer, [*rows(tokenizer), row], tmp_path / "run")


def test_a_loss_on_probabilities_needs_targets(tmp_path):
    model, tokenizer = tiny_student(tmp_path / "m")
    with pytest.raises(DataError, match="potstill score"):
        fine_tune(
            model, tokenizer, rows(tokenizer), tmp_path / "run", loss=LossConfig(kind="forward_kl")
        )


def test_lora_leaves_a_plain_model_that_has_learnt(tmp_path):
    model, tokenizer = tiny_student(tmp_path / "m")
    before = {name: p.clone() for name, p in model.state_dict().items()}
    result = fine_tune(
        model, tokenizer, rows(tokenizer), tmp_path / "run", adapter="lora", max_steps=8
    )
    saved = AutoModelForCausalLM.from_pretrained(run_dir(tmp_path / "run").model).state_dict()
    assert saved.keys() == before.keys()
    changed = {name for name in saved if not torch.equal(saved[name], before[name])}
    assert "model.layers.0.self_attn.q_proj.weight" in changed
    assert not any("embed" in name or "lm_head" in name for name in changed)
    assert result.num_trainable < result.num_parameters
    lines = figures(tmp_path / "run")
    assert lines[-1]["train/loss_nats"] < lines[0]["train/loss_nats"]


def test_frozen_embeddings_stay_as_they_are(tmp_path):
    model, tokenizer = tiny_student(tmp_path / "m")
    before = model.get_input_embeddings().weight.clone()
    fine_tune(model, tokenizer, rows(tokenizer), tmp_path / "run", freeze_embeddings=True)
    assert torch.equal(model.get_input_embeddings().weight, before)


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("bf16", torch.bfloat16), ("autocast", torch.bfloat16), ("fp32", torch.float32)],
)
def test_the_model_is_saved_in_the_format_of_its_arithmetic(tmp_path, precision, dtype):
    model, tokenizer = tiny_student(tmp_path / "m")
    result = fine_tune(
        model, tokenizer, rows(tokenizer), tmp_path / "run", precision=precision, max_steps=3
    )
    saved = AutoModelForCausalLM.from_pretrained(run_dir(tmp_path / "run").model, dtype="auto")
    assert result.precision == precision
    assert saved.dtype == dtype


def test_a_head_with_a_scale_or_a_soft_cap_is_followed(tmp_path):
    from transformers import CohereConfig, CohereForCausalLM, GraniteConfig, GraniteForCausalLM

    sizes = {
        "vocab_size": 97,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "pad_token_id": 0,
    }
    check_head(CohereForCausalLM(CohereConfig(**sizes, logit_scale=0.3)), [1, 2, 3])
    check_head(GraniteForCausalLM(GraniteConfig(**sizes, logits_scaling=7.0)), [1, 2, 3])


def test_a_head_that_is_not_known_is_refused(tmp_path):
    model, _ = tiny_student(tmp_path / "m")

    class Bent(nn.Linear):
        def forward(self, hidden):
            return super().forward(hidden) * 2

    model.set_output_embeddings(Bent(model.config.hidden_size, model.config.vocab_size))
    with pytest.raises(TrainError, match="changes its logits after the head"):
        check_head(model, [3, 4, 5])

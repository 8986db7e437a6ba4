"""The five claims hold what this run measured, and nothing that it did not."""

import random

import pytest
from examine.fake_models import sample

from potstill.examine.claims import Found, deployed_row, five_claims
from potstill.examine.measured import Claim, Load
from potstill.examine.metrics import accuracy
from potstill.types import Estimate, Evaluation

SECONDS = {"teacher": 0.8, "distilled": 0.4, "gguf:f16": 0.2, "gguf:q8_0": 0.1}
BYTES = {"teacher": 800, "distilled": 400, "gguf:f16": 380, "gguf:q8_0": 190}
SHARES = {"teacher": 90, "distilled": 81, "gguf:f16": 81, "gguf:q8_0": 80}


def evaluation(role, *, format=None, note=""):
    metrics = {
        "accuracy": Estimate(value=SHARES[role] / 100, n=100),
        "latency": Estimate(value=SECONDS[role], n=30, unit="seconds", note=note),
        "memory": Estimate(value=BYTES[role], n=1, unit="bytes"),
    }
    format = format or ("gguf" if ":" in role else "huggingface")
    return Evaluation(role=role, id=role, format=format, metrics=metrics)


def samples(role):
    return [sample(i, correct=float(i < SHARES[role])) for i in range(100)]


def seconds(role):
    """Times around the row's, whose median is the row's."""
    spread = random.Random(role).sample(range(-14, 15), 29)
    return tuple(SECONDS[role] * (1 + step / 100) for step in spread)


def load(users):
    carried = Estimate(value=users, low=users / 2, high=users, n=200, unit="users")
    return Load(model="m", objective={"share": 0.95}, levels=(), best=1, users=carried, ended="")


def claims(*roles, teacher=None, **found):
    roles = roles or tuple(SECONDS)
    models = {role: evaluation(role) for role in roles}
    if teacher:
        models["teacher"] = teacher
    said = five_claims(
        models,
        {role: samples(role) for role in roles},
        Found(seconds={role: seconds(role) for role in roles}, **found),
        metric=accuracy,
    )
    return {claim.name: claim for claim in said}


def test_the_quantised_export_is_what_users_get():
    assert deployed_row(list(SECONDS), "distilled") == "gguf:q8_0"
    assert deployed_row(["teacher", "distilled", "gguf:f16"], "distilled") == "gguf:f16"
    assert deployed_row(["teacher", "distilled"], "distilled") == "distilled"


def test_each_factor_is_the_product_of_its_parts():
    found = claims()
    for name, whole in (("response_time", 1 / 8), ("memory", 190 / 800), ("accuracy", 80 / 90)):
        claim = found[name]
        assert (claim.basis, claim.row) == ("measured", "gguf:q8_0")
        assert claim.factor.value == pytest.approx(whole)
        assert [part.what for part in claim.parts] == ["distillation", "engine", "quantisation"]
        product = 1.0
        for part in claim.parts:
            product *= part.factor.value
        assert product == pytest.approx(claim.factor.value)
    assert found["response_time"].parts[0].factor.value == pytest.approx(0.5)


def test_times_measured_in_turn_and_answers_to_the_same_records_have_intervals():
    found = claims()
    for name in ("response_time", "accuracy"):
        factor = found[name].factor
        assert factor.low < factor.value < factor.high
    assert found["memory"].factor.low is None


def test_without_a_wide_export_engine_and_quantisation_are_not_told_apart():
    found = claims("teacher", "distilled", "gguf:q8_0")["response_time"]
    assert [part.what for part in found.parts] == ["distillation", "engine and quantisation"]
    assert found.parts[1].factor.value == pytest.approx(0.25)
    assert "gguf:f16" in found.parts[1].note


def test_a_teacher_in_another_engine_is_no_pure_distillation():
    remote = evaluation("teacher", format="endpoint", note="includes_network: true")
    part = claims(teacher=remote)["response_time"].parts[0]
    assert part.what == "distillation, with another engine" and "network" in part.note
    other = claims(teacher=evaluation("teacher", format="gguf"))["response_time"].parts[0]
    assert "different engines" in other.note


def test_what_was_not_measured_is_not_claimed():
    found = claims()
    assert found["users"].basis == found["cost"].basis == "not measured"
    assert found["users"].factor is None and "evaluate.load" in found["users"].why
    assert "machine_price" in found["cost"].why


def test_a_price_makes_a_claim_assumed():
    prices = {"teacher": Estimate(value=4.0, low=3.0, high=5.0, n=9, note="prices read 2026-11"),
              "gguf:q8_0": Estimate(value=1.0, low=0.5, high=1.5, n=9)}  # fmt: skip
    found = claims(costs=prices)["cost"]
    assert found.basis == "assumed" and "prices read 2026-11" in found.why
    assert (found.factor.value, found.factor.low, found.factor.high) == (0.25, 0.1, 0.5)


def test_users_are_those_whom_a_machine_carries():
    found = claims(loads={"teacher": load(4), "gguf:q8_0": load(16)})["users"]
    assert found.basis == "measured" and found.factor.value == 4.0
    assert found.parts == (), "the rows between were not put under load"


def test_without_a_teacher_nothing_is_compared():
    found = claims("distilled", "gguf:q8_0")
    assert all(claim.basis == "not measured" for claim in found.values())
    assert found["memory"].why == "the teacher did not answer the test set"
    assert [part.what for part in found["memory"].parts] == ["engine and quantisation"]


def test_a_claim_survives_its_json():
    for claim in claims().values():
        assert Claim.model_validate_json(claim.model_dump_json()) == claim

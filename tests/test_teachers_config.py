"""A list of teachers is read as one is, and what cannot be meant by it is said."""

import pytest
import yaml

from potstill.config import asked_of_all, dump_config, load_config, parse_config
from potstill.errors import ConfigError

ROUTED = {"source": "big", "when": {"field": "topic", "equals": "law"}}
PRICE = {"input": 1, "output": 2}


def config(teachers, generation=None, **changes):
    tree = {"name": "x", "task": "qa", "student": "s", "train_data": "a.jsonl", **changes}
    return parse_config({**tree, "teacher": teachers, "generation": generation or {}})


def test_the_resolved_file_is_the_same_config():
    found = config(
        [ROUTED, {"source": "m", "when": {"not": {"field": "a", "at_least": 3}}}, "rest"]
    )
    assert [teacher.place for teacher in found.teachers] == ["big", "m", "rest"]
    assert parse_config(yaml.safe_load(dump_config(found))) == found


def test_a_list_of_one_is_one_teacher():
    assert config(["big"]) == config("big")
    assert config("big").teachers == (config("big").teacher,)


def test_overrides_and_places_reach_into_the_list(tmp_path):
    (tmp_path / "m").mkdir()
    tree = {"name": "x", "task": "qa", "student": "s", "train_data": "a.jsonl",
            "teacher": [ROUTED, "m"]}  # fmt: skip
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(tree))
    found = load_config(tmp_path / "c.yaml", ["teacher.0.price.output=2", "teacher.1.key=env:K"])
    assert found.teachers[0].price.output == 2
    assert (found.teachers[1].source, found.teachers[1].key) == (str(tmp_path / "m"), "env:K")
    assert found.teachers[0].when is not None
    for wrong in ("teacher.key=env:K", "teacher.2.key=env:K"):
        with pytest.raises(ConfigError, match=r"teacher is a list of 2 here; say which one"):
            load_config(tmp_path / "c.yaml", [wrong])
    assert load_config(tmp_path / "c.yaml", ["teacher=m"]).teachers[0].source


def test_where_teachers_vote_each_is_a_sample():
    voting = config(["a", "b", "c"], {"teachers": "vote"})
    assert asked_of_all(voting.generation, 3).num_responses == 3
    assert asked_of_all(config([ROUTED, "b"]).generation, 2).num_responses == 1


VOTE, FALLBACK = {"teachers": "vote"}, {"teachers": "fallback"}


@pytest.mark.parametrize(
    ("teachers", "generation", "changes", "message"),
    [
        ([], {}, {}, "teacher: the list of teachers is empty"),
        (["a", "b"], {}, {}, r"teacher\.0 would take every prompt .* fallback or vote"),
        (["a", {"source": "b", "keey": "x"}], VOTE, {}, r"teacher\.1\.keey: no such key"),
        ([ROUTED, "b"], VOTE, {}, r"teacher\.when is for generation\.teachers: route"),
        (ROUTED, {}, {}, r"teacher\.when chooses among several"),
        ("a", FALLBACK, {}, "fallback is for several teachers, and only one is named"),
        (["a", {"url": "http://b/v1", "batch": True}], FALLBACK, {}, r"teacher\.batch is for one"),
        (["a", "b"], FALLBACK, {"data": {"logged_answers": "reuse"}}, "name one teacher"),
        (["a", "b"], FALLBACK, {"loss": {"kind": "forward_kl"}}, r"use loss\.kind: sft, or one"),
        (["a", "b"], FALLBACK, {"loss": {"hidden": "cosine"}}, "layers, and several are named"),
        (["a", "b"], {**FALLBACK, "max_cost": 1}, {}, r"teacher\.0\.price and teacher\.1\.price"),
        ("a", {"max_cost": 1}, {}, r"max_cost needs teacher\.price"),
        (["a", "b"], {**VOTE, "min_agreement": 3}, {}, "= 3 cannot be met by 2 teachers"),
        (["a", "b"], VOTE, {"task": "summarization"}, "vote is not for task: summarization"),
        (["a", "b"], {**VOTE, "num_responses": 2}, {}, r"num_responses does not go with .*vote"),
        (["a", "b"], {**VOTE, "num_accepted": 9}, {}, r"num_accepted does not go with .*vote"),
        ([ROUTED, ROUTED], {}, {"data_generation": {}}, "add a last teacher without a rule"),
        (
            ["a", "b"],
            {**FALLBACK, "fallback_checks": ["task"]},
            {"task": "math"},
            "task is not for task: math",
        ),
    ],
)
def test_what_cannot_be_meant_is_said(teachers, generation, changes, message):
    with pytest.raises(ConfigError, match=message):
        config(teachers, generation, **changes)


def test_weights_of_this_machine_need_no_price():
    teachers = [
        {"url": "http://a/v1", "price": PRICE},
        {"source": "b", "price": {}},
        {"launch": "vllm", "model": "c"},
    ]
    assert config(teachers, {**FALLBACK, "max_cost": 1}).teachers[1].price.output == 0

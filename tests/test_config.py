"""The config is a public surface: every key is documented, every mistake is explained."""

import pytest
import yaml

from potstill.config import (
    LossConfig,
    config_keys,
    dump_config,
    json_schema,
    load_config,
    parse_config,
)
from potstill.errors import ConfigError

MINIMAL = """
name: faq-student
task: conversation
teacher: qwen3-8b
student: qwen3-0.6b
train_data: faq.jsonl
"""


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "distill.yaml"
    path.write_text(MINIMAL)
    return path


def test_five_keys_are_enough(config_file):
    config = load_config(config_file)
    assert config.name == "faq-student"
    assert config.teacher.source == "qwen3-8b"
    assert config.loss.kind == "sft"


@pytest.mark.parametrize("date", ["2026-11", "2026-11-22", "'2026-11-22'"])
def test_a_price_has_a_date_however_yaml_reads_it(config_file, date):
    config_file.write_text(f"{MINIMAL}evaluate: {{cost: {{machine_price: 0.1, as_of: {date}}}}}\n")
    assert load_config(config_file).evaluate.cost.as_of == date.strip("'")


def test_no_load_and_the_default_load_are_two_things(config_file):
    assert load_config(config_file).evaluate.load is None
    assert load_config(config_file, ["evaluate.load={}"]).evaluate.load.e2e_seconds == 5.0


def test_files_are_looked_for_beside_the_config(config_file):
    assert load_config(config_file).train_data == (config_file.parent / "faq.jsonl",)


def test_overrides_win_over_the_file(config_file):
    config = load_config(config_file, ["train.learning_rate=1e-4", "loss.kind=forward_kl"])
    assert config.train.learning_rate == 1e-4
    assert config.loss.kind == "forward_kl"


def test_an_override_reaches_into_a_short_form(config_file):
    config = load_config(config_file, ["teacher.key=env:KEY"])
    assert (config.teacher.source, config.teacher.key) == ("qwen3-8b", "env:KEY")


def test_the_resolved_file_is_the_same_config(config_file):
    config = load_config(config_file, ["student={prune: {from: big, layers: 4}}"])
    assert parse_config(yaml.safe_load(dump_config(config))) == config


@pytest.mark.parametrize(("key", "help_text"), list(config_keys()))
def test_every_key_is_explained(key, help_text):
    assert help_text.endswith(".") or key in SECTIONS, f"{key} needs whole sentences"


SECTIONS = {"data", "generation", "loss", "train", "evaluate"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "train.learning_rat=1e-4",
            "train.learning_rat: no such key; did you mean train.learning_rate?",
        ),
        ("learning_rate=1", "learning_rate: no such key; did you mean train.learning_rate?"),
        ("loss.temperature=0", "loss.temperature: Input should be greater than 0, got 0"),
        ("learning_rate", "'learning_rate' is not an override; write section.key=value"),
        ("task=sumarization", "did you mean summarization?"),
        ("loss.kind=forward_lk", "did you mean forward_kl?"),
        ("loss.beta=0.2", "loss.beta = 0.2 has no effect with loss.kind: sft; it belongs to jsd"),
        ("teacher.key=sk-123", "env:NAME or file:PATH"),
        ("generation.num_responses=3", "is not an override"),
    ],
)
def test_a_mistake_is_named_and_a_way_out_given(config_file, override, message):
    overrides = [override]
    if override == "generation.num_responses=3":
        overrides, message = (
            [override, "generation.temperature=0"],
            "greedy answers are all the same",
        )
    with pytest.raises(ConfigError) as caught:
        load_config(config_file, overrides)
    assert message in str(caught.value)


def test_all_problems_are_reported_at_once(config_file):
    with pytest.raises(ConfigError) as caught:
        load_config(config_file, ["loss.temperature=0", "train.seeed=1", "name=Big Name"])
    text = str(caught.value)
    assert str(config_file) in text
    assert all(key in text for key in ("loss.temperature", "train.seeed", "name"))


def test_a_key_in_clear_never_reaches_a_message(config_file):
    with pytest.raises(ConfigError) as caught:
        load_config(config_file, ["teacher={url: 'http://x/v1', key: sk-canary-42}"])
    assert "sk-canary-42" not in str(caught.value)


def test_a_missing_file_says_how_to_get_one(tmp_path):
    with pytest.raises(ConfigError, match="potstill init"):
        load_config(tmp_path / "nope.yaml")


def test_the_schema_accepts_what_the_config_accepts():
    jsonschema = pytest.importorskip("jsonschema")
    schema = json_schema()
    tree = yaml.safe_load(MINIMAL)
    jsonschema.validate(tree, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**tree, "teecher": 1}, schema)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "reverse_kl", "alpha": 0.3}, "loss.alpha = 0.3 has no effect"),
        ({"kind": "skew_reverse_kl", "normalized": False}, "loss.normalized = False has no effect"),
        ({"kind": "jsd", "beta": 1.5}, "less than or equal to 1"),
        ({"kind": "skew_forward_kl", "alpha": 1}, "less than 1"),
    ],
)
def test_a_knob_of_another_loss_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        LossConfig(**fields)


def test_a_resolved_loss_is_read_again_as_it_was():
    loss = LossConfig(kind="jsd", beta=0.2, normalized=False)
    assert LossConfig(**loss.model_dump()) == loss

"""Production logs are read as they are exported; rules choose rows, and answers can be kept."""

import json

import pytest
import yaml

from potstill.config import DataConfig, Where, dump_config, parse_config
from potstill.config.file import explain
from potstill.data.load import load_dataset
from potstill.data.select import Selection, holds
from potstill.errors import ConfigError, DataError

HINDI = "मेरा ऑर्डर कहाँ है?"


def write(path, *rows):
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


def user(content):
    return {"role": "user", "content": content}


def choices(text, finish="stop", **message):
    message = {"role": "assistant", "content": text, **message}
    return [{"index": 0, "message": message, "finish_reason": finish}]


def stored(number=1, text="On its way.", **changes):
    row = {"id": f"chatcmpl-{number}", "object": "chat.completion", "created": 1_760_000_000,
           "model": "gpt-4o", "messages": [user(HINDI)], "choices": choices(text),
           "usage": {"total_tokens": 9}, "metadata": {"team": "shop", "rating": "4"}}  # fmt: skip
    return {**row, **changes}


def asked(key, content="Hi"):
    return {"custom_id": key, "method": "POST", "url": "/v1/chat/completions",
            "body": {"model": "m", "messages": [user(content)]}}  # fmt: skip


def answered(key, text="Hello", status=200, error=None):
    body = {"model": "m-2026", "choices": choices(text)} if status == 200 else {"error": {}}
    return {"id": "b-1", "custom_id": key, "response": {"status_code": status, "body": body},
            "error": error}  # fmt: skip


def where(**rule):
    return Selection(where=Where.model_validate(rule))


def one(row, **options):
    (record,) = load_dataset([row], **options)
    return record


@pytest.mark.parametrize(
    "row",
    [
        stored(),
        {"request": {"model": "gpt-4o", "messages": [user(HINDI)]},
         "response": {"choices": choices("On its way.")}},
        {"input": [user(HINDI)], "output": [
            {"type": "reasoning", "summary": []},
            {"type": "message", "content": [{"type": "output_text", "text": "On its way."}]}],
         "model": "gpt-4o", "status": "completed"},
        {"input": HINDI, "output": [{"type": "message", "content": "On its way."}],
         "model": "gpt-4o"},
        {"messages": [user(HINDI), {"role": "assistant", "content": "On its way."}],
         "choices": choices("On its way."), "model": "gpt-4o"},
    ],
)  # fmt: skip
def test_every_form_of_a_stored_completion_gives_prompt_answer_and_model(row):
    record = one(row)
    assert [m.content for m in record.messages] == [HINDI]
    assert record.reference == "On its way."
    assert record.metadata["log"] == {
        "format": "stored_completion", "model": "gpt-4o", "finish_reason": "stop"}  # fmt: skip


def test_a_stored_completion_keeps_id_and_metadata_and_drops_the_protocol():
    record = one(stored())
    assert record.id == "chatcmpl-1"
    assert set(record.metadata) == {"log", "model", "team", "rating", "created"}


def test_instructions_are_the_system_turn():
    record = one({"instructions": "Be kind", "input": [user("a")], "output": [
        {"type": "message", "content": [{"type": "output_text", "text": "b"}]}]})  # fmt: skip
    assert [m.role for m in record.messages] == ["system", "user"]


@pytest.mark.parametrize(
    "row",
    [
        {"input": "a", "output": "b"},
        {"input": "Which?", "choices": ["red", "blue"], "answer": "red", "output": "red"},
        {"messages": [user("a"), {"role": "assistant", "content": "b"}]},
        {"body": "a plain column", "prompt": "x"},
    ],
)
def test_a_plain_row_is_no_log(row):
    assert "log" not in one(row).metadata


def test_the_format_can_be_said():
    row = {"messages": [user("a")], "output": "b"}
    assert one(row, selection=Selection(format="stored_completions")).reference == "b"
    with pytest.raises(DataError, match="a stored completion has messages or input"):
        load_dataset([{"prompt": "a"}], selection=Selection(format="stored_completions"))
    with pytest.raises(DataError, match='no "body" with the prompt'):
        load_dataset([{"prompt": "a"}], selection=Selection(format="batch"))
    assert "log" not in one(stored(), selection=Selection(format="rows")).metadata


def test_a_batch_is_joined_by_custom_id_in_whatever_order_its_files_are_named(tmp_path):
    prompts = write(tmp_path / "in.jsonl", asked("a", HINDI), asked("b"), asked("c"))
    answers = write(tmp_path / "out.jsonl", answered("b", "B"), answered("a", "अ"))
    errors = write(tmp_path / "err.jsonl", answered("c", status=500))
    for files in ([prompts, answers, errors], [errors, answers, prompts]):
        records = load_dataset(files)
        assert [(r.id, r.reference) for r in records] == [("a", "अ"), ("b", "B"), ("c", None)]
        assert records[0].metadata["log"]["model"] == "m-2026"


def test_an_answer_wins_over_an_earlier_failure_of_the_same_id(tmp_path):
    prompts = write(tmp_path / "in.jsonl", asked("a"))
    answers = write(tmp_path / "out.jsonl", answered("a", status=429), answered("a", "A"))
    assert load_dataset([prompts, answers])[0].reference == "A"


def test_a_batch_answer_without_its_prompt_and_two_answers_are_told_with_their_lines(tmp_path):
    prompts = write(tmp_path / "in.jsonl", asked("a"))
    rows = [answered("a", "A"), answered("x"), answered("a", "other")]
    answers = write(tmp_path / "out.jsonl", *rows)
    with pytest.raises(DataError) as caught:
        load_dataset([prompts, answers])
    message = str(caught.value)
    assert "out.jsonl:2: a batch answer without its prompt: no row has the custom_id 'x'" in message
    assert "out.jsonl:3: the custom_id 'a' has another answer, " in message


@pytest.mark.parametrize(
    ("row", "finding"),
    [
        (stored(choices=[{"index": 0}]), "choices.0..message.content is missing"),
        (stored(choices=choices(None, tool_calls=[{"id": "1"}])),
         r"calls a tool.*data\.where: \{not: \{field: choices\.0\.message\.tool_calls, exists"),
        ({"input": "a", "output": [{"type": "function_call", "name": "f"}]}, "calls a tool"),
        (stored(messages=[]), "list of turns"),
        (stored(messages=[user("a"), {"role": "assistant", "content": "other"}]),
         "not the logged answer"),
        (stored(messages=[user([{"type": "image_url"}])]), "not text"),
        ({"request": {"prompt": "x"}, "response": {}}, 'no "messages" or "input" in the request'),
        (asked("a", ""), "is empty"),
        (answered("a"), "a batch answer without its prompt"),
    ],
)  # fmt: skip
def test_a_bad_log_row_says_where_and_what(tmp_path, row, finding):
    path = write(tmp_path / "log.jsonl", stored(9), row)
    with pytest.raises(DataError, match=rf"log\.jsonl:2: .*{finding}"):
        load_dataset(path)


def test_a_filtered_answer_is_none_and_a_cut_one_says_so():
    assert one(stored(choices=choices(None, "content_filter"))).reference is None
    assert one(stored(choices=choices(None, refusal="I cannot"))).reference is None
    assert one(stored(choices=choices("Half", "length"))).metadata["log"]["finish_reason"] == (
        "length"
    )


ROW = stored(7, metadata={"team": "shop", "rating": "4", "tags": ["a", "b"], "a.b": 1, "ok": True})


@pytest.mark.parametrize(
    ("rule", "holding"),
    [
        ("{field: metadata.team, equals: shop}", True),
        ("{field: metadata.rating, equals: 4}", True),
        ("{field: metadata.rating, one_of: [1, 2]}", False),
        ("{field: metadata.rating, at_least: 4}", True),
        ("{field: metadata.rating, at_least: 1, at_most: 3}", False),
        ("{field: metadata.tags, contains: b}", True),
        ("{field: messages.0.content, contains: ऑर्डर}", True),
        ("{field: metadata.a.b, equals: 1}", True),
        ("{field: metadata.ok, equals: true}", True),
        ("{field: metadata.nothing, exists: false}", True),
        ("{field: metadata.nothing, equals: x}", False),
        ("{not: {field: metadata.nothing, equals: x}}", True),
        ("{all: [{field: model, equals: gpt-4o}, {field: metadata.team, equals: bank}]}", False),
        ("{any: [{field: model, equals: gpt-5}, {field: metadata.team, equals: shop}]}", True),
        ("{all: [{not: {any: [{field: model, contains: mini}]}}, {field: created, at_least: 1}]}",
         True),
    ],
)  # fmt: skip
def test_a_rule_holds_or_not(rule, holding):
    assert holds(Where.model_validate(yaml.safe_load(rule)), ROW) is holding


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("{field: model}", "where: field: model needs a test: equals, one_of"),
        ("{equals: x}", "where: equals needs a field"),
        (
            "{field: a, equals: b, not: {field: c, exists: true}}",
            "where: field and not in one rule",
        ),
        ("{all: [{field: a, equal: b}]}", "where.all.0.equal: no such key"),
        ("{}", "where: a rule needs field, all, any or not"),
    ],
)
def test_a_mistake_in_a_rule_names_its_key_and_the_way_out(rule, message):
    with pytest.raises(ValueError) as caught:
        DataConfig.model_validate({"where": yaml.safe_load(rule)})
    assert any(message in line for line in explain(caught.value)), explain(caught.value)


def test_feedback_without_reuse_is_a_mistake():
    with pytest.raises(ValueError, match="feedback chooses among logged answers"):
        DataConfig.model_validate({"feedback": {"field": "metadata.rating", "at_least": 4}})
    with pytest.raises(ValueError, match="feedback needs a field and a test"):
        DataConfig.model_validate({"feedback": {}, "logged_answers": "reuse"})


def test_rows_left_out_are_counted_and_need_not_be_readable(tmp_path):
    path = write(tmp_path / "log.jsonl", stored(1), stored(2, model="mini", messages="broken"))
    selection = where(**{"not": {"field": "model", "equals": "mini"}})
    assert [r.id for r in load_dataset(path, selection=selection)] == ["chatcmpl-1"]
    assert str(selection) == "1 by data.where"


def test_a_field_that_no_row_has_is_a_mistake_with_the_nearest_name():
    with pytest.raises(DataError, match=r"data\.where: no row has the field metadata\.raiting; "
                                        r"did you mean metadata\.rating\?"):  # fmt: skip
        load_dataset([stored()], selection=where(field="metadata.raiting", at_least=4))


def test_a_field_whose_absence_is_asked_may_be_absent_everywhere():
    assert load_dataset([stored()], selection=where(field="error", exists=False))


def test_a_value_that_is_no_number_is_told_with_its_line(tmp_path):
    path = write(tmp_path / "log.jsonl", stored(1), stored(2, metadata={"rating": "good"}))
    with pytest.raises(DataError, match=r"log\.jsonl:2: metadata\.rating is 'good', which is no"):
        load_dataset(path, selection=where(field="metadata.rating", at_least=4))


def test_when_nothing_is_left_the_reasons_are_told():
    with pytest.raises(DataError, match=r"no rows, 2 by data\.where left out"):
        load_dataset([stored(1), stored(2)], selection=where(field="model", equals="x"))


def test_reuse_leaves_out_rows_without_a_good_answer():
    config = DataConfig.model_validate(
        {"logged_answers": "reuse", "feedback": {"field": "metadata.rating", "at_least": 4}}
    )
    selection = Selection(feedback=config.feedback, needs_answer=True)
    rows = [stored(1), stored(2, metadata={"rating": "2"}), stored(3, metadata={}),
            stored(4, choices=choices(None)), stored(5, choices=choices("Half", "length")),
            stored(6, choices=choices("Part", "content_filter")),
            {"id": "plain", "prompt": "x", "metadata": {"rating": "5"}}]  # fmt: skip
    assert [r.id for r in load_dataset(rows, selection=selection)] == ["chatcmpl-1"]
    assert selection.left_out == {"feedback": 2, "no_answer": 3, "cut": 1}


CONFIG = {"name": "n", "task": "qa", "teacher": "t", "student": "s", "train_data": "log.jsonl"}


def test_a_config_with_rules_and_privacy_is_written_and_read_back_as_it_was(tmp_path):
    rule = {"all": [{"field": "a", "equals": 1}, {"not": {"field": "b", "exists": True}}]}
    data = {"where": rule, "privacy": {"mode": "redact", "names": "names.txt"}}
    config = parse_config({**CONFIG, "data": data}, base=tmp_path)
    assert config.data.privacy.names == tmp_path / "names.txt"
    assert parse_config(yaml.safe_load(dump_config(config))) == config


def test_off_without_quotes_is_off():
    tree = yaml.safe_load("{privacy: off}")
    assert DataConfig.model_validate(tree).privacy.mode == "off"
    assert DataConfig.model_validate({"privacy": {"mode": False}}).privacy.mode == "off"
    with pytest.raises(ValueError, match="'auto', 'off', 'pseudonymise' or 'redact'"):
        DataConfig.model_validate({"privacy": True})
    with pytest.raises(ValueError, match="two-letter country codes such as DE, got 'Germany'"):
        DataConfig.model_validate({"privacy": {"regions": ["Germany"]}})


@pytest.mark.parametrize(
    ("data", "generation", "message"),
    [
        ({"logged_answers": "reuse"}, {"num_responses": 2}, "generation.num_responses is what a"),
        ({"logged_answers": "reuse"}, {"prompting": "chain_of_thought"}, "generation.prompting is"),
        ({"privacy": "pseudonymise"}, {"logprobs": 5}, "generation.logprobs are of the text"),
    ],
)
def test_what_cannot_be_meant_together_is_refused(data, generation, message):
    with pytest.raises(ConfigError, match=message):
        parse_config({**CONFIG, "data": data, "generation": generation})
    parse_config({**CONFIG, "generation": generation})

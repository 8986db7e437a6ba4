import json

import pytest

from potstill.data.load import content_id, iter_records, load_dataset
from potstill.errors import DataError, MissingExtra, PotstillError
from potstill.types import Message, Record


def write(path, *rows):
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


def one(row, **options):
    (record,) = load_dataset([row], **options)
    return record


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


HINDI = "क्या मैं उपहार वापस कर सकता हूँ?"
MALAYALAM = "എനിക്ക് സമ്മാനം തിരികെ നൽകാമോ?"


def test_the_final_assistant_turn_becomes_the_reference_wherever_messages_stand(tmp_path):
    row = {
        "customer": 7,
        "messages": [user("Hi"), assistant("Hello"), user("Bye"), assistant("Ok")],
    }
    (record,) = load_dataset(write(tmp_path / "a.jsonl", row))
    assert [m.content for m in record.messages] == ["Hi", "Hello", "Bye"]
    assert record.reference == "Ok"
    assert record.metadata == {"customer": 7}


def test_a_row_that_ends_with_a_user_turn_is_a_prompt():
    record = one({"messages": [user(HINDI)]})
    assert record.reference is None
    assert record.messages == (Message(role="user", content=HINDI),)


@pytest.mark.parametrize(
    ("row", "prompt", "reference"),
    [
        ({"prompt": MALAYALAM, "completion": "അതെ"}, MALAYALAM, "അതെ"),
        ({"question": "2 + 2?", "answer": "4"}, "2 + 2?", "4"),
        ({"question": "Who?", "answers": ["Ann", "Anna"]}, "Who?", "Ann"),
        (
            {
                "question": "Who?",
                "context": "Ann came.",
                "answers": {"text": ["Ann"], "answer_start": [0]},
            },
            "Passage: Ann came.\n\nQuestion: Who?",
            "Ann",
        ),
        (
            {"question": "Which?", "choices": ["red", "blue"], "answer": 1},
            "Question: Which?\nOptions:\n(A) red\n(B) blue",
            "B",
        ),
        (
            {"question": "Which?", "options": {"A": "red", "B": "blue"}, "answer": "blue"},
            "Question: Which?\nOptions:\n(A) red\n(B) blue",
            "B",
        ),
        (
            {
                "question": "Which?",
                "choices": {"label": ["1", "2"], "text": ["x", "y"]},
                "answerKey": "2",
            },
            "Question: Which?\nOptions:\n(1) x\n(2) y",
            "2",
        ),
        (
            {"premise": "P", "hypothesis": "H", "label": "neutral"},
            "Premise: P\nHypothesis: H",
            "neutral",
        ),
        ({"text": "Win money", "label": "spam"}, "Win money", "spam"),
        ({"article": "Long.", "summary": "Short."}, "Long.", "Short."),
        ({"text": "Long.", "summary": "Short."}, "Long.", "Short."),
        ({"source": "Hello", "target": "नमस्ते"}, "Hello", "नमस्ते"),
        ({"translation": {"en": "Hello", "hi": "नमस्ते"}}, "Hello", "नमस्ते"),
        ({"input": "a", "output": "b"}, "a", "b"),
        ({"instruction": "Add.", "input": "1 2", "output": "3"}, "Add.\n\n1 2", "3"),
        ({"instruction": "Sing.", "input": "", "response": "La"}, "Sing.", "La"),
        ({"prompt": "only a prompt"}, "only a prompt", None),
        ({"text": "only a text"}, "only a text", None),
    ],
)
def test_every_usual_row_shape_is_understood(row, prompt, reference):
    record = one(row)
    assert record.messages[-1].content == prompt
    assert record.reference == reference


def test_sharegpt_conversations_are_read_with_their_system_turn():
    turns = [("system", "Be kind"), ("human", "Hi"), ("gpt", "Hello"), ("human", "?"), ("gpt", "!")]
    record = one({"conversations": [{"from": who, "value": text} for who, text in turns]})
    assert [m.role for m in record.messages] == ["system", "user", "assistant", "user"]
    assert record.reference == "!"


def test_a_system_column_opens_the_prompt():
    record = one({"system": "Be brief", "question": "Why?", "answer": "So"})
    assert [m.role for m in record.messages] == ["system", "user"]


def test_stored_completions_give_request_and_response():
    row = {
        "request": {"model": "gpt-4o", "messages": [user("Hi")]},
        "response": {"choices": [{"message": {"role": "assistant", "content": "Hello"}}]},
        "metadata": {"customer": "c1"},
    }
    record = one(row)
    assert (record.reference, record.metadata["customer"]) == ("Hello", "c1")


def test_openai_batch_input_files_keep_their_custom_id():
    row = {"custom_id": "r-1", "method": "POST", "url": "/v1/chat/completions",
           "body": {"model": "m", "messages": [user("Hi")]}}  # fmt: skip
    assert one(row).id == "r-1"


def test_columns_are_renamed(tmp_path):
    path = write(tmp_path / "a.jsonl", {"frage": HINDI, "antwort": "हाँ", "kunde": 3})
    (record,) = load_dataset(path, columns={"prompt": "frage", "completion": "antwort"})
    assert (record.messages[0].content, record.reference) == (HINDI, "हाँ")
    assert record.metadata == {"kunde": 3}


def test_a_column_that_no_row_has_is_an_error(tmp_path):
    path = write(tmp_path / "a.jsonl", {"frage": "x"}, {"frage": "y"})
    with pytest.raises(DataError, match="no row has a column called antwrt"):
        load_dataset(path, columns={"prompt": "frage", "completion": "antwrt"})


def test_a_misspelt_field_in_columns_names_the_nearest(tmp_path):
    path = write(tmp_path / "a.jsonl", {"frage": "x"})
    with pytest.raises(DataError, match="did you mean prompt"):
        load_dataset(path, columns={"promt": "frage"})


def test_ids_depend_on_content_and_not_on_position(tmp_path):
    first = load_dataset(write(tmp_path / "a.jsonl", {"prompt": "x"}, {"prompt": "y"}))
    second = load_dataset(write(tmp_path / "b.jsonl", {"prompt": "y"}, {"prompt": "x"}))
    assert [r.id for r in first] == [r.id for r in reversed(second)]
    assert first[0].id == content_id(first[0].messages, None)


def test_equal_rows_without_an_id_have_one_id_and_both_stay():
    records = load_dataset([{"prompt": "x"}, {"prompt": "x"}])
    assert len(records) == 2
    assert records[0].id == records[1].id


def test_one_id_for_two_contents_is_an_error_naming_both_lines(tmp_path):
    path = write(tmp_path / "a.jsonl", {"id": "q1", "prompt": "x"}, {"id": "q1", "prompt": "y"})
    with pytest.raises(DataError, match=r"a\.jsonl:2: the id 'q1'.*a\.jsonl:1"):
        load_dataset(path)


def test_numeric_labels_take_their_name_from_label_names():
    record = one({"text": "ok", "label": 1, "label_names": ["bad", "good"]})
    assert record.reference == "good"
    assert one({"text": "ok", "label": 1}).reference == "1"
    with pytest.raises(DataError, match="label_names"):
        load_dataset([{"premise": "a", "hypothesis": "b", "label": 1}])


def test_bare_label_rows_learn_which_labels_there_are():
    records = load_dataset([{"text": "a", "label": "x"}, {"text": "b", "label": "y"}])
    assert records[0].metadata["labels"] == ["x", "y"]


def test_all_problems_are_told_at_once_five_with_their_lines_and_the_total(tmp_path):
    path = write(tmp_path / "a.jsonl", {"prompt": "fine"}, *[{"txt": i} for i in range(8)])
    with pytest.raises(DataError) as caught:
        load_dataset(path)
    message = str(caught.value)
    assert "8 of 9 rows cannot be used" in message
    assert "a.jsonl:2:" in message and "a.jsonl:6:" in message and "a.jsonl:7:" not in message
    assert "and 3 more" in message


def test_wrong_columns_are_listed_with_the_way_out():
    with pytest.raises(DataError, match=r"it has: txt, lbl\..*data\.columns"):
        load_dataset([{"txt": "a", "lbl": "b"}])


@pytest.mark.parametrize(
    ("row", "finding"),
    [
        ({"messages": [assistant("Hi")]}, "no user turn"),
        ({"messages": [user("  ")]}, "is empty"),
        ({"messages": [user(None)]}, "no content"),
        ({"messages": [user("a"), assistant("b"), assistant("b")]}, "stands there twice"),
        ({"messages": [user("a"), assistant("b"), assistant("c")]}, "two assistant turns"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "role 'robot'"),
        ({"messages": [user("a"), {"role": "system", "content": "x"}]}, "put it first"),
        ({"messages": "hello"}, "list"),
        ({"messages": []}, "list of turns"),
        ({"messages": [user([{"type": "image_url"}])]}, "not text"),
        ({"prompt": ""}, "is empty"),
        ({"prompt": "x", "completion": " "}, "is empty"),
        ({"prompt": "a\ud800b"}, "surrogate"),
        ({"prompt": "a\0b"}, "NUL"),
        ({"prompt": "x", "id": True}, "the id must be"),
        ({"question": "q", "choices": ["a", "b"], "answer": "c"}, "none of the options"),
        ({"question": "q", "choices": ["a"], "answer": "a"}, "2 to 26"),
        ({"prompt": "Q: Why?\nAnswer: because", "completion": "Because"}, "end of the prompt"),
        ({"prompt": "प्रश्न?\nउत्तर: हाँ", "completion": "हाँ"}, "end of the prompt"),
        ({"custom_id": "1", "response": {"body": {}}}, "batch answer"),
        ([1, 2], "must be an object"),
    ],
)
def test_a_bad_row_says_what_is_wrong(tmp_path, row, finding):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "fine"}\n' + json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=rf"a\.jsonl:2: .*{finding}"):
        load_dataset(path)


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Who came?", "context": "It was Ann", "answer": "Ann"},
        {"prompt": "Translate: Paris", "completion": "Paris"},
        {"prompt": "Answer with one of: yes, no.", "completion": "no"},
        {"messages": [user("OK?"), assistant("OK"), user("Say OK"), assistant("OK")]},
        {"prompt": "Fill in. Answer:", "completion": "x"},
    ],
)
def test_an_answer_that_may_well_stand_in_the_prompt_is_no_fault(row):
    assert one(row).reference


def test_missing_empty_and_unknown_files_say_so(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"prompt": "x"}\n')
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "blank.jsonl").write_text("\n\n")
    (tmp_path / "a.xlsx").write_text("x")
    for name, finding in [
        ("trian.jsonl", "did you mean .*train.jsonl"),
        ("empty.jsonl", "is empty"),
        ("blank.jsonl", "no rows"),
        ("a.xlsx", "xlsx are not read"),
        (".", "is a folder"),
    ]:
        with pytest.raises(DataError, match=finding):
            load_dataset(tmp_path / name)


def test_broken_json_is_named_by_line_and_column(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "x"}\n' * 16 + '{"prompt": "x",}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:17: broken JSON: .* column"):
        load_dataset(path)


def test_bytes_that_are_not_utf8_are_named_by_line_and_byte(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"prompt": "x"}\n{"prompt": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: byte 16 of the line is 0xe9"):
        load_dataset(path)


def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path):
    for name, text in [("a.jsonl", '{"prompt": "x"}'), ("a.csv", "prompt\nx"), ("a.txt", "x"),
                       ("b.json", '[{"prompt": "x"}]')]:  # fmt: skip
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
        (record,) = load_dataset(tmp_path / name)
        assert record.messages[0].content == "x"


def test_a_line_separator_inside_a_string_breaks_no_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "one\u2028two"}\n', encoding="utf-8")
    (record,) = load_dataset(path)
    assert record.messages[0].content == "one\u2028two"


def test_a_line_of_ten_megabytes_and_control_characters_are_data(tmp_path):
    path, odd = tmp_path / "a.jsonl", "\x1b[2J\u202e\x85"
    rows = [{"prompt": "x" * 10**7}, {"prompt": f"odd {odd}"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    long, short = load_dataset(path)
    assert len(long.messages[0].content) == 10**7
    assert short.messages[0].content == f"odd {odd}"


def test_nan_is_no_json(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "x", "score": NaN}\n')
    with pytest.raises(DataError, match="NaN is not JSON"):
        load_dataset(path)


def test_json_arrays_are_read_with_the_line_of_each_row(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[\n {"prompt": "x"},\n {"promt": "y"}\n]\n')
    with pytest.raises(DataError, match=r"a\.json:3: "):
        load_dataset(path)
    path.write_text('[\n {"prompt": "x"},\n {"prompt": "y"}\n]\n')
    assert len(load_dataset(path)) == 2
    path.write_text('[\n {"prompt": "x"},\n {"prompt": \n]\n')
    with pytest.raises(DataError, match=r"a\.json:4: broken JSON"):
        load_dataset(path)
    path.write_text('{\n "data": [{"prompt": "x"}, {"prompt": "y"}]\n}\n')
    assert len(load_dataset(path)) == 2


def test_csv_with_quotes_line_breaks_and_semicolons(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(f'question,answer\n"a, b\nc",1\n{HINDI},हाँ\n', encoding="utf-8")
    assert [r.messages[0].content for r in load_dataset(path)] == ["a, b\nc", HINDI]
    path.write_text("question;answer\nwas?;ja, so\n")
    assert load_dataset(path)[0].reference == "ja, so"
    path.write_text('question,answer\n"a\nb",1\nonly one\n')
    with pytest.raises(DataError, match=r"a\.csv:4: 1 cells where the header has 2"):
        load_dataset(path)
    path.write_bytes(b"question,answer\nx,y\ncaf\xe9,y\n")
    with pytest.raises(DataError, match=r"a\.csv:3: byte 4"):
        load_dataset(path)


def test_plain_text_is_one_prompt_a_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(f"{HINDI}\n\n{MALAYALAM}\r\n", encoding="utf-8")
    assert [r.messages[0].content for r in load_dataset(path)] == [HINDI, MALAYALAM]


def test_parquet_is_read_and_a_cut_file_is_an_error(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    rows = [{"messages": [user(MALAYALAM), assistant("അതെ")], "n": 1}]
    parquet.write_table(arrow.Table.from_pylist(rows), path)
    (record,) = load_dataset(path)
    assert (record.reference, record.metadata) == ("അതെ", {"n": 1})
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match="not a whole Parquet file"):
        load_dataset(path)


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(MissingExtra, match=r"potstill\[data\]"):
        load_dataset(tmp_path / "a.parquet")


def test_several_files_are_one_dataset(tmp_path):
    a, b = (write(tmp_path / f"{n}.jsonl", {"prompt": n}) for n in "ab")
    assert len(load_dataset([a, str(b)])) == 2


def test_records_pass_through():
    record = Record(id="1", messages=(Message(role="user", content="x"),))
    assert load_dataset([record]) == [record]


def test_streaming_stops_giving_at_the_first_problem_and_raises_at_the_end(tmp_path):
    path = write(tmp_path / "a.jsonl", {"prompt": "x"}, {"no": 1}, {"prompt": "y"}, {"no": 2})
    stream = iter_records(path)
    assert next(stream).messages[0].content == "x"
    with pytest.raises(PotstillError, match="2 of 4 rows"):
        next(stream)

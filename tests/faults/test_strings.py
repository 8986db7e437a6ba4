"""Whatever a user, a model or a provider writes is asked, kept and read back as it was."""

import asyncio

from seeds import chance, sizes
from teach.fakes import FakeTeacher

from potstill.config import GenerationConfig
from potstill.errors import TeacherError
from potstill.models.failures import Failure, gave_up, reason_of
from potstill.tasks import get_task
from potstill.teach.generate import generate
from potstill.teach.ledger import Ledger
from potstill.types import Message, Record

ODD = [
    *("\0", "\x1b[2J", "\x1b]0;t\x07", "\ud800", "\udfff", "\ud83d", "\ufeff", "\ufffe"),
    *("\u2028", "\u2029", "\x85", "\r", "\n", "\r\n", "\x0b", "\t", "\x7f", "\u202e", "\u2066"),
    *("e\u0301\u0301\u0301", "\u200d", "\U0010ffff", "字", "ക്ഷ", "שלום", "👩‍👩‍👧", "'", '"', "\\"),
    *("{", "}", "[", "null", "NaN", ": ", "timeout: ", "</s>", "<|im_end|>", "%s", "\\u0000"),
]


def odd_text(random):
    """A few odd pieces, or characters of any plane; whole pairs of surrogates are one character."""
    if random.random() < 0.5:
        text = "".join(random.choices(ODD, k=random.randrange(12)))
    else:
        text = "".join(chr(random.randrange(0x110000)) for _ in range(random.randrange(20)))
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


@sizes(300, 10_000)
def test_any_text_is_asked_kept_and_read_back_as_it_was(num, tmp_path):
    random = chance("strings", num)
    records, said = [], {}
    for n in range(num):
        prompt = Message(role="user", content=f"{n}{odd_text(random)}")
        records.append(Record(id=f"{n}{odd_text(random)}", messages=(prompt,)))
        said[records[-1].id] = f"a{odd_text(random)}z"

    def say(record, sampling):
        text = said[record.id]
        if len(text) % 7 == 0:
            return TeacherError(text)
        return gave_up(Failure.TIMEOUT, text) if len(text) % 7 == 1 else text

    config, task = GenerationConfig(pilot=0, min_success_ratio=0), get_task("qa")
    teacher = FakeTeacher(say)
    asyncio.run(generate(teacher, records, tmp_path / "a", task=task, config=config))
    assert [r.messages for r in sorted(teacher.asked, key=lambda r: r.id)] == [
        r.messages for r in sorted(records, key=lambda r: r.id)
    ]
    with Ledger(tmp_path / "a") as ledger:
        rows = list(ledger.rows("train"))
        assert ledger.num_damaged == 0
    assert [row.record_id for row in rows] == [record.id for record in records]
    for row in rows:
        text = said[row.record_id]
        if row.finish_reason == "stop":
            assert row.text == text
        else:
            wanted = f"timeout: {text}" if len(text) % 7 == 1 else text
            assert (row.error, row.text) == (wanted, "")
            assert reason_of(row.error) == ("timeout" if len(text) % 7 == 1 else "other")
    again = FakeTeacher(say)
    asyncio.run(generate(again, records, tmp_path / "a", task=task, config=config))
    assert len(again.asked) == sum(row.finish_reason == "error" for row in rows)

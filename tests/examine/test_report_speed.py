"""What a report says of speed, memory, load and cost, and that nothing in it is markup."""

import pytest
from examine.fake_report import NASTY, fake_report
from examine.test_claims import claims
from examine.test_load import measure
from examine.test_report import Reader

from potstill.examine.measured import OneOff
from potstill.examine.report_html import render_html
from potstill.examine.report_markdown import metric_names, render_markdown
from potstill.examine.report_speed import DETAILS, claim_lines, speed_sections
from potstill.examine.times import Call, times
from potstill.types import Estimate, Report

PRICES = {
    "teacher": Estimate(value=4.0, low=3.0, high=5.0, n=9, note=f"prices read 2026-11 {NASTY}"),
    "gguf:q8_0": Estimate(value=0.25, low=0.2, high=0.3, n=9),
}


@pytest.fixture(scope="module")
def report() -> Report:
    """A report with all of it: times, memory, a load, costs, claims."""
    from examine.streaming import Speaking

    made = fake_report(60)
    calls = [Call(0.5 + n / 1000, 11, 0.1, 30) for n in range(40)]
    models = dict(made.models)
    setting = {
        "engine": "llama.cpp", "threads": 2, "processor": {"name": "A", "cores": 2},
        "prompt_tokens": {"least": 20, "median": 30, "most": 41}, "timed_calls": 40,
        "warm_up_calls": 3, "different_prompts": 40, "includes_network": False,
        "energy": "not measured",
    }  # fmt: skip
    for role in ("distilled", "gguf:q8_0"):
        told = {**models[role].metrics, **times(calls, seed=0)}
        token = Estimate(value=46080.0, n=1, unit="bytes", note="cache in float16")
        told["memory.cache_token"] = token
        models[role] = models[role].model_copy(
            update={"metrics": told, "setting": {**models[role].setting, "speed": setting}}
        )
    load = measure(Speaking(first=0.002), concurrency=(1, 2), num_requests=10, think_seconds=3)
    once = OneOff(parts={"teacher": 12.0, "machine": None}, note="not known: a price")
    cost = {
        "currency": "EUR",
        "per_thousand": {role: one.model_dump(mode="json") for role, one in PRICES.items()},
        "one_off": once.model_dump(mode="json"),
        "break_even": Estimate(value=3200.0, low=2500.0, n=9).model_dump(mode="json"),
        "row": "gguf:q8_0",
    }
    said = [claim.model_dump(mode="json") for claim in claims(costs=PRICES).values()]
    update = {"models": models, "load": {"gguf:q8_0": load.model_dump(mode="json")},
              "cost": cost, "claims": tuple(said)}  # fmt: skip
    return Report.model_validate(made.model_copy(update=update).model_dump())


def texts(report):
    """All sections, as one text with cells apart."""
    lines = []
    for title, tables in speed_sections(report):
        lines.append(title)
        for table in tables:
            lines += [table.title, "|".join(table.headings)]
            lines += ["|".join(row) for row in table.rows] + [table.caption, *table.notes]
    return "\n".join(lines)


def test_the_five_claims_stand_with_their_basis_and_their_parts(report):
    text = texts(report)
    assert (
        "Response time|0.80 s|0.10 s|0.12x" in text or "Response time|0.80 s|0.10 s|0.13x" in text
    )
    assert "|measured|distillation 0.50x" in text
    assert "Running cost of 1,000 requests|4 EUR|0.25 EUR|0.06x" in text and "|assumed|" in text
    assert "Users at once|not known|not known" in text and "|not measured|" in text
    assert "teacher: not put under load (evaluate.load)" in text


def test_times_have_their_definitions_beside_them(report):
    text = texts(report)
    assert "tpot: (e2e - ttft) / (answer tokens - 1)" in text
    assert "needs 100 calls, there are 40" in text
    assert "30 (20 to 41)|not counted|40 after 3 to warm up, 40 prompts|none" in text
    assert "energy: not measured" in text


def test_a_load_is_told_level_by_level_with_its_objective(report):
    text = texts(report)
    assert "users at once|n|answers/s|goodput" in text
    assert "objective: the whole answer within 5 s, for 95% of the requests" in text
    assert "users carried: 2" in text and "pauses for 3 s (assumed)" in text


def test_costs_and_the_break_even_say_what_is_not_known(report):
    text = texts(report)
    assert "machine|not known" in text and "all|not known" in text and "not known: a price" in text
    assert "paid back after|3,200 (2,500 to never)" in text


def test_both_pages_draw_it_and_neither_lets_markup_through(report):
    page, text = render_html(report), render_markdown(report)
    for title, _ in speed_sections(report):
        assert f"<h2>{title}</h2>" in page and f"## {title}" in text
    assert "<script" not in page and "\x1b" not in page
    reader = Reader()
    reader.feed(page)
    assert not reader.open
    again = Report.model_validate_json(report.model_dump_json())
    assert render_html(again) == page


def test_details_of_speed_do_not_widen_the_table_of_models(report):
    names = metric_names(report)
    assert {"latency", "memory"} <= set(names) and not set(DETAILS) & set(names)


def test_a_report_of_nothing_measured_has_no_such_part():
    bare = fake_report(60).model_dump()
    for model in bare["models"].values():
        model["metrics"] = {k: v for k, v in model["metrics"].items() if k == "accuracy"}
    found = Report.model_validate(bare)
    assert speed_sections(found) == [] and claim_lines(found) == []


def test_a_terminal_has_a_line_for_each_claim(report):
    lines = claim_lines(report)
    assert lines[0] == "" and len(lines) == 6
    assert "Users at once: not measured" in lines

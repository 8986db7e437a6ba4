"""A card says where a student comes from, as the hub reads it, and nothing of anybody's texts."""

import json

import pytest
import yaml
from examine.fake_report import fake_report
from tiny import tiny_llama

from potstill.config import load_config
from potstill.export.huggingface import export_huggingface
from potstill.export.manifest import read_manifest
from potstill.pipeline.cards import dataset_card, model_card, write_cards
from potstill.pipeline.context import Context, weights_key
from potstill.rundir import RunDir, write_text

SECRET = "my account number is 4711"


@pytest.fixture
def ctx(tmp_path):
    """A run that has got as far as a report, told by its marks."""
    (tmp_path / "train.jsonl").write_text("{}\n")
    tree = {
        "name": "faq",
        "task": "qa",
        "teacher": "llama-3.1-405b",
        "student": str(tiny_llama(tmp_path / "secret-place" / "small")),
        "train_data": "train.jsonl",
    }
    (tmp_path / "distill.yaml").write_text(yaml.safe_dump(tree))
    run = RunDir(tmp_path / "run")
    run.mark_done("teach", "x", requested=1200, answered=1190)
    run.mark_done(
        "check", "x", num_train=1000, num_validation=90, reasons={"length": 80, "<b>": 20}
    )
    run.mark_done("train", "x", text="140 steps")
    write_text(run.accepted, json.dumps({"id": "1", "text": SECRET}) + "\n")
    write_text(run.report_json, fake_report().model_dump_json())
    source = tiny_llama(run.model)
    export_huggingface(source, run.export("huggingface"))
    return Context(load_config(tmp_path / "distill.yaml"), run)


def parts(text: str):
    _, header, body = text.split("---\n", 2)
    return yaml.safe_load(header), body


def test_the_hub_reads_the_header_of_both_cards(ctx):
    hub = pytest.importorskip("huggingface_hub")
    write_cards(ctx)
    card = hub.ModelCard.load(ctx.run.export("huggingface") / "README.md")
    assert (card.data.pipeline_tag, card.data.library_name) == ("text-generation", "transformers")
    assert card.data.license == "unknown"
    data = hub.DatasetCard.load(ctx.run.dataset_card)
    assert data.data.size_categories == ["1K<n<10K"]
    assert data.data.configs[0]["data_files"][0]["path"] == ctx.run.accepted.name


def test_a_card_has_the_funnel_the_verdict_and_the_teachers_terms(ctx):
    _, body = parts(model_card(ctx, read_manifest(ctx.run.export("huggingface"))))
    for text in ("1,200", "1,190", "1,000 to learn from", "length 80", "**Warning:**",
                 "Llama 3.1 Community License", "prompts 0%", "SHA-256",
                 "gguf:q8\\_0"):  # fmt: skip
        assert text in body, text
    report = fake_report()
    assert report.verdict.split(".")[0][:40] in body.replace("\\", "")


def test_values_cannot_become_markup_and_no_text_or_place_gets_out(ctx, tmp_path):
    for text in (model_card(ctx, read_manifest(ctx.run.export("huggingface"))), dataset_card(ctx)):
        assert "<b>" not in text.replace("\\<b\\>", "")
        assert "<script" not in text.replace("\\<", "")
        assert SECRET not in text
        assert str(tmp_path) not in text
        assert "jade desk fan" not in text


def test_a_teacher_that_has_moved_since_is_named_and_no_more(ctx, tmp_path):
    teacher = ctx.config.teacher.model_copy(update={"source": str(tmp_path / "gone" / "tuned")})
    moved = Context(ctx.config.model_copy(update={"teacher": teacher}), ctx.run)
    card = model_card(moved, read_manifest(moved.run.export("huggingface")))
    assert "tuned" in card and "gone" not in card


def test_a_base_on_the_hub_is_named_with_its_licence(ctx):
    for place, base, licence in (
        ("maker/small-1b", "maker/small-1b", "unknown"),
        ("llama-3.2-1b", "meta-llama/Llama-3.2-1B-Instruct", "llama3.2"),
        ("deepseek-v3", "deepseek-ai/DeepSeek-V3", "other"),
    ):
        student = ctx.config.student.model_copy(update={"source": place})
        changed = ctx.config.model_copy(update={"student": student})
        again = Context(changed, ctx.run)
        header, _ = parts(model_card(again, read_manifest(ctx.run.export("huggingface"))))
        assert (header["base_model"], header["license"]) == (base, licence)
        assert header["base_model_relation"] == "finetune"


def test_a_folder_is_no_base_that_others_could_look_up(ctx):
    header, body = parts(model_card(ctx, read_manifest(ctx.run.export("huggingface"))))
    assert "base_model" not in header
    assert "base model: small" in body


def test_a_card_makes_no_other_model_of_its_folder(ctx):
    folder = ctx.run.export("huggingface")
    before = weights_key(folder)
    write_cards(ctx)
    assert weights_key(folder) == before


def test_a_card_is_no_part_of_what_the_manifest_hashes(ctx):
    (ctx.run.model / "README.md").write_text("of an earlier version")
    folder = export_huggingface(ctx.run.model, ctx.run.export("huggingface"))
    assert "README.md" not in {file.name for file in read_manifest(folder).files}
    write_cards(ctx)
    assert "earlier version" not in (folder / "README.md").read_text()

"""What the page on production logs shows is what happens."""

import yaml
from pages import PAGES, blocks

from potstill.config import DataConfig, parse_config
from potstill.data.load import load_dataset
from potstill.data.privacy import Privacy, describe
from potstill.data.select import Selection

PAGE = PAGES / "logs.md"


def test_the_pages_rows_are_chosen_and_hidden_as_it_says(tmp_path):
    found = blocks(PAGE)
    (tmp_path / "log.jsonl").write_text(found["jsonl"], encoding="utf-8")
    config = parse_config(yaml.safe_load(found["yaml"]))
    selection = Selection(where=config.data.where)
    records = load_dataset(tmp_path / "log.jsonl", selection=selection)
    assert [record.id for record in records] == ["chatcmpl-1", "chatcmpl-2"]
    privacy = Privacy(config.data.privacy, leaves=True)
    page = PAGE.read_text(encoding="utf-8")
    for record in records:
        sent = privacy.hide(record).record.messages[0].content
        assert f"| {sent} | {record.messages[0].content} |" in page
    assert f"hidden from the teacher: {describe(privacy.count(records))}`" in page


def test_the_pages_further_settings_are_valid():
    for name in ("yaml reuse", "yaml privacy"):
        DataConfig.model_validate(yaml.safe_load(blocks(PAGE)[name])["data"])

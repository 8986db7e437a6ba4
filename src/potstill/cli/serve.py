"""Commands that put a model to use: a server that speaks OpenAI's interface, and a conversation."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from potstill import console
from potstill.cli.bench import place_of
from potstill.cli.options import RUNS, Json, Offline, Runs, go_offline
from potstill.errors import ConfigError, MissingExtra

if TYPE_CHECKING:
    from potstill.config import TeacherConfig
    from potstill.serve.metrics import Metrics
    from potstill.serve.run import Server
    from potstill.serve.watching import Watcher

Model = Annotated[
    str, typer.Argument(help="A run, name, folder, file.gguf or URL.", metavar="MODEL")
]
Named = Annotated[str | None, typer.Option("--model", help="Name of the model at the endpoint.")]
Key = Annotated[str | None, typer.Option(help="Key of the endpoint: env:NAME or file:PATH.")]
Launch = Annotated[
    str | None,
    typer.Option(
        help="Engine to start: llama-server, ollama, vllm or none; else one that is installed."
    ),
]
Host = Annotated[str, typer.Option(help="Address to listen on; other machines need a key.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")]
ApiKey = Annotated[
    str | None, typer.Option(help="Key that clients must send: env:NAME or file:PATH.")
]
Called = Annotated[str | None, typer.Option("--name", help="What the model is called here.")]
Temperature = Annotated[float, typer.Option(min=0, max=2, help="Where a request names none.")]
Longest = Annotated[int, typer.Option(min=1, help="Longest answer where a request names none.")]
Most = Annotated[int | None, typer.Option(min=1, help="Most answers on their way; then 429.")]
Batch = Annotated[int, typer.Option(min=1, help="Prompts that transformers answer together.")]
Grace = Annotated[float, typer.Option(min=1, help="Seconds that open requests have at the end.")]
Log = Annotated[Path | None, typer.Option("--log", help="File for requests and answers.")]
LogShare = Annotated[float, typer.Option(min=0, max=1, help="Share of requests to log.")]
LogSize = Annotated[float, typer.Option(min=1, help="Size at which the file is changed, in MB.")]
Fallback = Annotated[str | None, typer.Option(help="Teacher that answers when the model doubts.")]
Below = Annotated[
    float, typer.Option(min=0, max=1, help="Mean probability of an answer that is a doubt.")
]
Shadow = Annotated[str | None, typer.Option(help="Teacher that is asked too, in the background.")]
Share = Annotated[float, typer.Option(min=0, max=1, help="Share of requests it is asked.")]
TaskName = Annotated[str | None, typer.Option("--task", help="Task that reads both answers.")]
Private = Annotated[
    bool,
    typer.Option("--privacy/--no-privacy", help="Hide personal data from log and endpoints."),
]


def add_to(app: typer.Typer) -> None:
    """Adds `serve`."""
    app.command("serve")(serve)


def serve(
    model: Model,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    api_key: ApiKey = None,
    name: Called = None,
    temperature: Temperature = 0.0,
    max_new_tokens: Longest = 1024,
    max_open: Most = None,
    batch_size: Batch = 8,
    grace: Grace = 30.0,
    launch: Launch = None,
    at_endpoint: Named = None,
    key: Key = None,
    log: Log = None,
    log_share: LogShare = 1.0,
    log_size: LogSize = 100.0,
    fallback: Fallback = None,
    below: Below = 0.5,
    shadow: Shadow = None,
    share: Share = 0.05,
    task: TaskName = None,
    privacy: Private = True,
    runs: Runs = RUNS,
    json: Json = False,
    offline: Offline = False,
) -> None:
    """Serve a model under OpenAI's interface, until Ctrl-C.

    Example: potstill serve runs/faq-student --fallback deepseek-v3 --below 0.8
    """
    go_offline(offline)
    _refuse_without_extra()
    from potstill.models.workspace import find_models
    from potstill.serve.asked import Defaults
    from potstill.serve.metrics import Metrics
    from potstill.serve.opening import open_served, open_teacher
    from potstill.serve.run import Server, Settings, open_door

    metrics, workspace = Metrics(), find_models()
    config, own_name = found_model(model, runs, at_endpoint, key, launch)
    door = open_door(host, port, api_key)
    teacher = open_teacher(fallback, workspace=workspace, hide=privacy) if fallback else None
    watchers = _watchers(metrics, log, (log_share, log_size), shadow, (share, task), privacy)
    opened = open_served(config, workspace=workspace, batch_size=batch_size)
    settings = Settings(
        name=name or own_name or opened.name,
        defaults=Defaults(temperature=temperature, max_new_tokens=max_new_tokens),
        most_open=max_open,
        grace_seconds=grace,
        below=below,
    )
    server = Server(opened, door, settings, metrics=metrics, fallback=teacher, watchers=watchers)
    _run(server, settings.name, json)


def found_model(
    place: str, runs: Path, model: str | None, key: str | None, launch: str | None
) -> tuple[TeacherConfig, str]:
    """The model to open, with the engine for it, and its name where it has one of its own.

    Raises:
        ConfigError: If it is not known, or is a run without a student.
    """
    from potstill.models.catalog import find_model
    from potstill.models.workspace import find_models
    from potstill.serve.opening import engine_for, student_of

    place, name = student_of(place, runs)
    ref = find_model(place, workspace=find_models())
    engine = engine_for(ref) if launch is None else None if launch == "none" else launch
    if engine is not None:
        console.print_note(f"{engine} answers for {ref.name}")
    return place_of(place, model, key, engine), name or model or ""


def _refuse_without_extra() -> None:
    needed = ("fastapi", "uvicorn", "prometheus_client")
    missing = [package for package in needed if importlib.util.find_spec(package) is None]
    if missing:
        raise MissingExtra('serving needs an extra: pip install "potstill[serve]"')


def _watchers(
    metrics: Metrics,
    log: Path | None,
    kept: tuple[float, float],
    shadow: str | None,
    asked: tuple[float, str | None],
    privacy: bool,
) -> list[Watcher]:
    from potstill.models.workspace import find_models
    from potstill.serve.opening import open_teacher
    from potstill.serve.requestlog import RequestLog
    from potstill.serve.shadow import Shadow
    from potstill.tasks import get_task

    found: list[Watcher] = []
    if log is not None:
        share, megabytes = kept
        found.append(
            RequestLog(
                log,
                share=share,
                redact=privacy,
                most_bytes=round(megabytes * 1e6),
                on_row=lambda outcome: metrics.log_rows.labels(outcome).inc(),
            )
        )
    if shadow is not None:
        share, task = asked
        found.append(
            Shadow(
                open_teacher(shadow, workspace=find_models(), hide=privacy),
                share=share,
                task=get_task(task) if task else None,
                on_outcome=lambda outcome: metrics.shadows.labels(outcome).inc(),
            )
        )
    elif asked[1]:
        raise ConfigError("--task reads the answers that --shadow compares; give both or none")
    return found


def _run(server: Server, name: str, json: bool) -> None:
    import asyncio

    def ready(url: str) -> None:
        if json:
            console.print_json({"model": name, "url": f"{url}/v1"})
        else:
            console.print_line(f"{name}: {url}/v1 (Ctrl-C ends it)")
        sys.stdout.flush()  # a pipe waits for it

    try:
        asyncio.run(server.run(ready))
    except KeyboardInterrupt:
        pass  # how a server is ended
    finally:  # SIGTERM has an exit code of its own
        for line in server.summary():
            console.print_story(line)

"""The command that talks with a model: in a terminal, or one prompt from a pipe."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from potstill import console
from potstill.cli.options import RUNS, Json, Offline, Runs, go_offline
from potstill.cli.serve import Key, Launch, Model, Named, found_model
from potstill.errors import ConfigError, PotstillError, TeacherError

if TYPE_CHECKING:
    from potstill.protocols import ChatModel
    from potstill.types import Message, Response, Sampling

HELP = "/reset forgets what was said, /exit ends; Ctrl-C breaks an answer off"
PROMPT = "> "

System = Annotated[str, typer.Option(help="What the model is told before everything else.")]
Temperature = Annotated[float, typer.Option(min=0, max=2, help="How much chance; 0 is none.")]
Longest = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]


def add_to(app: typer.Typer) -> None:
    """Adds `chat`."""
    app.command("chat")(chat)


def chat(
    model: Model,
    system: System = "",
    temperature: Temperature = 0.0,
    max_new_tokens: Longest = 1024,
    seed: Annotated[int, typer.Option(help="Random numbers of the answers.")] = 0,
    launch: Launch = None,
    at_endpoint: Named = None,
    key: Key = None,
    runs: Runs = RUNS,
    json: Json = False,
    offline: Offline = False,
) -> None:
    """Talk with a model, or ask it once what comes through a pipe.

    Example: potstill chat runs/faq-student
    """
    go_offline(offline)
    from potstill.models.workspace import find_models
    from potstill.serve.opening import open_served
    from potstill.types import Sampling

    is_live = sys.stdin.isatty() and not json
    asked = "" if is_live else _piped()
    if not is_live and not asked:
        raise ConfigError("nothing was asked: standard input is empty; pipe a prompt into it")
    config, name = found_model(model, runs, at_endpoint, key, launch)
    sampling = Sampling(temperature=temperature, max_new_tokens=max_new_tokens, seed=seed)
    with asyncio.Runner() as runner:
        opened = open_served(config, workspace=find_models(), batch_size=1)
        talk = Talk(opened, sampling, system, runner)
        try:
            if is_live:
                console.print_story(f"{name or opened.name}: {HELP}")
                _converse(talk)
            elif json:
                response = talk.ask(asked, lambda piece: None)
                console.print_json({"model": name or opened.name, **_facts(response)})
            else:
                talk.ask(asked, _show)
                print()
        finally:
            runner.run(opened.close())


def _piped() -> str:
    try:
        return sys.stdin.read().strip()
    except UnicodeDecodeError as error:
        raise ConfigError(f"byte {error.start + 1} of standard input is not UTF-8") from None


class Talk:
    """A conversation: what was said so far, and who answers."""

    def __init__(
        self, model: ChatModel, sampling: Sampling, system: str, runner: asyncio.Runner
    ) -> None:
        self._model, self._sampling, self._system = model, sampling, system
        self._runner = runner
        self._said: list[Message] = []

    def reset(self) -> None:
        """Forgets what was said."""
        self._said.clear()

    def ask(self, text: str, show: Callable[[str], None]) -> Response:
        """The answer to one more turn; `show` is called with its pieces as they come.

        A turn that was broken off or got no answer is forgotten.

        Raises:
            TeacherError: If no answer comes.
            KeyboardInterrupt: If the user breaks it off.
        """
        from potstill.rundir import content_hash
        from potstill.serve.answering import tells_text
        from potstill.types import Message, Record

        opening = [Message(role="system", content=self._system)] if self._system else []
        turn = Message(role="user", content=text)
        messages = (*opening, *self._said, turn)
        id_ = content_hash([message.model_dump() for message in messages])
        record = Record(id=id_, messages=messages)
        shown: list[str] = []

        def on_text(piece: str) -> None:
            shown.append(piece)
            show(piece)

        async def answer() -> Response:
            if (prepare := getattr(self._model, "prepare", None)) is not None:
                await prepare()
            if not tells_text(self._model):
                return await self._model.respond(record, self._sampling)
            found: Response = await self._model.stream(  # type: ignore[attr-defined]
                record, self._sampling, lambda: None, on_text=on_text
            )
            return found

        response = self._runner.run(answer())
        if response.finish_reason == "error":
            raise TeacherError(f"no answer came: {response.error}")
        told = "".join(shown)
        if response.text.startswith(told) and len(response.text) > len(told):
            show(response.text[len(told) :])
        self._said += [turn, Message(role="assistant", content=response.text)]
        return response


def _converse(talk: Talk) -> None:
    while True:
        try:
            text = input(PROMPT).strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if text == "/exit":
            return
        if text == "/reset":
            talk.reset()
            console.print_story("forgotten")
        elif text.startswith("/"):
            console.print_story(HELP)
        elif text:
            _answer(talk, text)


def _answer(talk: Talk, text: str) -> None:
    try:
        response = talk.ask(text, _show)
    except KeyboardInterrupt:
        print()
        console.print_story("broken off; it counts as not asked")
    except PotstillError as error:
        print()
        console.print_error(str(error))
    else:
        print()
        if response.finish_reason == "length":
            console.print_story(
                "cut: the answer reached --max-new-tokens, or the model's longest conversation"
            )


def _show(piece: str) -> None:
    print(console.clean(piece), end="", flush=True)


def _facts(response: Response) -> dict[str, object]:
    names = ("text", "reasoning", "finish_reason", "num_prompt_tokens", "num_new_tokens")
    return {name: getattr(response, name) for name in names}

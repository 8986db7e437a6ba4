"""The workers that ask the teacher: each outcome is kept, and every request is accounted for."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable

from potstill.config import GenerationConfig, PriceConfig
from potstill.errors import PotstillError, TeacherError
from potstill.models.batches import Postponed
from potstill.models.failures import Failure, named, num_unread_of, reason_of
from potstill.models.several import PassedOver, with_reserve
from potstill.protocols import ChatModel, Task
from potstill.teach.index import MOST_KEYS, State, Want
from potstill.teach.ledger import Ledger
from potstill.teach.outcomes import cancelled, failed, fault_of, state_of
from potstill.teach.progress import Asking, Meter
from potstill.teach.prompts import split_answer
from potstill.teach.purse import Purse
from potstill.teach.requests import Chain, Place, Request, Requests, Tried
from potstill.teach.tally import Tally
from potstill.teach.writer import MOST_TOGETHER
from potstill.types import Record, Response

DRAIN_SECONDS = 30.0
"""How long a run that is to stop waits for answers that are on their way."""

_NUM_EXAMPLES = 3
_TELL_SECONDS = 0.1
_TICK_SECONDS = 1.0
"""How often it is told how far the asking is while nothing comes."""


class Asker:
    """One call of `generate`: what it was given, and what it has counted so far."""

    def __init__(
        self,
        teacher: ChatModel,
        task: Task,
        config: GenerationConfig,
        ledger: Ledger,
        requested: int,
        required_logprobs: int,
        tell: Callable[[Asking], None],
        earlier: tuple[int, int] = (0, 0),
    ):
        self.teacher, self.config, self.ledger = teacher, config, ledger
        self.requested = requested
        self._earlier = earlier
        price = getattr(teacher, "price", None)
        self.purse = Purse(price, config.max_cost, spent=ledger.cost)
        self.tally = Tally()
        self._tell_them = tell
        top_logprobs = max(config.logprobs, required_logprobs)
        self._requests = Requests(teacher, task, config, top_logprobs)
        self._several = with_reserve(teacher)
        size = config.max_in_flight
        self._size = max(1, teacher.max_in_flight if size == "auto" else size)
        # Open requests and answers that are not on the disk yet: what a crash would ask again.
        self._unsaved = asyncio.Semaphore(self._size + MOST_TOGETHER)
        self._num_saving: Counter[asyncio.Future[None]] = Counter()
        self._turnstile = asyncio.Lock()
        self._workers: list[asyncio.Task[None]] = []
        self._error: BaseException | None = None
        self._meter = Meter()
        self._told_at = 0.0
        self._num_retries = getattr(teacher, "num_retries", 0)
        self._examples: list[str] = []
        self._pilot_faults: dict[str, str] | None = None

    def begin(self, part: str, source: str, first: Iterable[tuple[int, Record]]) -> None:
        """Begins or goes on with an input; what need not be looked at is counted at once."""
        keys = [self._requests.chain(number, record, 0).first.key for number, record in first]
        number, num_cut = self.ledger.begin(part, source, keys, self.config.num_responses)
        tally = self.tally
        tally.taken, tally.answered, tally.reused, tally.cut = number, number, number, num_cut

    async def ask_pilot(self, records: Iterable[tuple[int, Record]]) -> None:
        """Asks the first prompts, and stops before the full spend when they did not go well.

        Raises:
            TeacherError: If more than one failed, is empty or was cut.
        """
        pilots = list(records)
        self._pilot_faults = {}
        await self.ask_all(Place(number, record, 0) for number, record in pilots)
        faults, self._pilot_faults = self._pilot_faults, None
        if len(faults) > 1:
            examples = "; ".join(f"{key}: {fault}" for key, fault in list(faults.items())[:3])
            raise TeacherError(
                f"{len(faults)} of the first {len(pilots)} prompts went wrong, so the rest was "
                f"not asked: {examples}. What came is kept in {self.ledger.path}. Change the "
                f"prompt, generation.max_new_tokens (now {self.config.max_new_tokens}) or the "
                f"teacher; generation.pilot: 0 asks on regardless"
            )

    async def ask_all(self, places: Iterable[Place]) -> None:
        """Works through the places with a fixed number of requests open.

        Whatever ends it early, answers on their way are waited for, and all that came is saved.
        """
        chains = self._unanswered(places)
        self._workers = [asyncio.create_task(self._work(chains)) for _ in range(self._size)]
        while not all(worker.done() for worker in self._workers):
            try:
                await asyncio.wait(self._workers, timeout=_TICK_SECONDS)
                self._tell()
            except asyncio.CancelledError as error:
                is_second = isinstance(self._error, asyncio.CancelledError)
                self._stop(error, wait_seconds=0.0 if is_second else DRAIN_SECONDS)
        await chains.aclose()
        await self.ledger.flush()
        self.tally.reconcile(self.ledger.counts())
        self._tell(at_once=True)
        if self._error is not None:
            raise self._error

    def refuse_too_few(self) -> None:
        """Raises TeacherError as soon as min_success_ratio or max_failures is out of reach."""
        wanted = self.config.min_success_ratio
        most, failed = self._earlier[0] + self.requested, self._earlier[1] + self.tally.failed
        allowed = (1 - wanted) * most + 1e-9
        rule = f"generation.min_success_ratio = {wanted:g}"
        if self.config.max_failures is not None and self.config.max_failures < allowed:
            allowed = self.config.max_failures
            rule = f"generation.max_failures = {allowed}"
        if failed > allowed:
            raise TeacherError(
                f"{failed:,} of {most:,} answers did not come, and {rule} allows "
                f"{int(allowed):,}; {self.tally.answered:,} are kept in {self.ledger.path}, and "
                f"the same command asks for the rest. The failures: {'; '.join(self._examples)}"
            )

    def _stop(self, error: BaseException, wait_seconds: float = DRAIN_SECONDS) -> None:
        """Asks nothing more; what is open gets so long to end, and is cancelled then."""
        self._error = self._error or error
        workers = self._workers

        def cancel() -> None:
            for worker in workers:
                worker.cancel()

        asyncio.get_running_loop().call_later(wait_seconds, cancel)
        self._tell(at_once=True)

    async def _work(self, chains: AsyncGenerator[Chain, None]) -> None:
        try:
            while self._error is None:
                async with self._turnstile:
                    chain = await anext(chains, None)
                if chain is None:
                    return
                await self._ask_turns(chain)
        except Exception as error:
            self._stop(error)

    async def _unanswered(self, places: Iterable[Place]) -> AsyncGenerator[Chain, None]:
        """The places that are not answered yet; those of several turns are looked at later."""
        places = iter(places)
        while some := [self._requests.chain(*p) for p in itertools.islice(places, MOST_KEYS)]:
            found = self.ledger.find([chain.first.key for chain in some])
            missing, wants = [], []
            for chain in some:
                state = found.get(chain.first.key, State.DEAD)
                if state > State.CUT:
                    missing.append(chain)
                    continue
                is_looked_at = self._pilot_faults is not None or self._several is not None
                if len(chain.prompts) > 1 or is_looked_at:
                    missing.append(chain._replace(is_begun=True))
                    continue
                wants.append(Want(chain.number, chain.sample, 0, chain.first.key, state))
                self.tally.reused_as(state)
            self.ledger.want(wants)
            self._tell()
            for chain in missing:
                yield chain
            await asyncio.sleep(0)  # a long stretch of answered ones must not hold up the others

    async def _ask_turns(self, chain: Chain) -> None:
        """One conversation: its turns in order, each with the teacher's answers before it."""
        said: list[str] = []
        while len(said) < len(chain.prompts) and self._error is None:
            response = await self._answer(chain, said)
            if response is None:
                return
            self._note_fault(response)
            if response.finish_reason == "error":
                num_blocked = len(chain.prompts) - len(said) - 1
                self.tally.taken += num_blocked
                self.tally.blocked += num_blocked
                self._meter.failed(Failure.BLOCKED, num_blocked)
                self.refuse_too_few()
                return
            said.append(response.text)

    async def _answer(self, chain: Chain, said: list[str]) -> Response | None:
        """The outcome of a turn: of the first teacher whose answer will do, else of the last one.

        None where it was not asked: the run was stopped, or a batch will bring the answer.
        """
        requests = self._requests.next(chain, said)
        # What was just looked for in vain is not looked for again, one by one.
        new = None if chain.is_begun or said else chain.first
        known = (r.key for r in requests if r is not new)
        kept = {key: found for key in known if (found := self.ledger.answer(key))}
        prompt = chain.prompts[len(said)]
        good = [r for r in requests if r.key in kept and self._will_do(prompt, kept[r.key])]
        tried: list[Tried] = []
        try:
            for request in good[:1] or requests:
                if request.key in kept:
                    tried.append(Tried(request, kept[request.key], True))
                elif not await self._ask(chain, request, tried, is_last=request is requests[-1]):
                    break
                if tried and self._will_do(prompt, tried[-1].response):
                    break
            else:
                if not tried:  # all were passed over, and fewer are left now
                    return await self._answer(chain, said)
        finally:
            response = self._settle(chain, tried)
        return response

    def _will_do(self, prompt: Record, response: Response) -> bool:
        """Whether nobody else needs to be asked."""
        return self._several is None or self._several.will_do(prompt, response)

    def _settle(self, chain: Chain, tried: list[Tried]) -> Response | None:
        """Counts what a turn came to: the last answer, or the last failure where there is none."""
        if not tried:
            return None
        answers = [one for one in tried if one.response.finish_reason != "error"]
        request, response, is_reused = last = (answers or tried)[-1]
        if is_reused or last is not tried[-1]:
            where = (chain.number, chain.sample, request.turn, request.key)
            self.ledger.want([Want(*where, state_of(response))])
        self.tally.ended(response, is_reused=is_reused)
        self._tell()
        return response

    async def _ask(
        self, chain: Chain, request: Request, tried: list[Tried], *, is_last: bool
    ) -> bool:
        """Asks, and keeps the outcome in the ledger and in `tried`.

        False where the run was stopped before it could ask, or a batch will bring the answer.
        """
        price = request.teacher.price or PriceConfig()
        reserved = await self.purse.reserve(request.prompt, request.sampling, price)
        await self._unsaved.acquire()
        if self._error is not None:
            self.purse.settle(reserved, None)
            return False
        self.tally.taken += 1
        self.tally.open += 1
        response = None
        try:
            response = await self._respond(chain, request, is_last)
        except asyncio.CancelledError as error:
            stopped = failed(cancelled("the run ended before the answer came"))
            stopped = stopped.model_copy(update={"num_unread": num_unread_of(error)})
            tried.append(Tried(request, self._keep(chain, request, stopped)))
            raise
        except PassedOver:
            self._give_back()
            return True
        except Postponed:
            self._give_back()
            self.tally.postponed += len(chain.prompts) - request.turn
            return False
        except Exception as error:
            if type(error) is not TeacherError:
                # Refused: it will refuse every other prompt as well. Or a fault of ours.
                self._give_back()
                raise
            response = failed(named(error.reason, str(error)))
            response = response.model_copy(update={"num_unread": error.num_unread})
        finally:
            self.purse.settle(reserved, response)
        tried.append(Tried(request, self._keep(chain, request, response)))
        return True

    async def _respond(self, chain: Chain, request: Request, is_last: bool) -> Response:
        where: dict[str, int] = {"turn": request.turn, "sample": chain.sample}
        if self._several is None:
            model = request.teacher.model
            return await model.respond(request.prompt, request.sampling, **where)
        return await self._several.ask(
            request.teacher, request.prompt, request.sampling, **where, is_last=is_last
        )

    def _keep(self, chain: Chain, request: Request, response: Response) -> Response:
        """Hands an outcome to the ledger, under its own name."""
        reasoning, text = split_answer(response.text, self.config)
        update = {
            "record_id": chain.record_id,
            "turn": request.turn,
            "sample": chain.sample,
            "fingerprint": request.fingerprint,
            "model": response.model or request.teacher.model.name,
            "teacher": request.teacher.label,
            "text": text,
            "reasoning": "\n\n".join(part for part in (response.reasoning, reasoning) if part),
        }
        response = response.model_copy(update=update)
        try:
            saved = self.ledger.put(response, chain.number, request.key)
        except PotstillError:
            self._give_back()
            raise
        if saved not in self._num_saving:
            saved.add_done_callback(self._saved)
        self._num_saving[saved] += 1
        self.tally.taken -= 1  # and is taken up again at once, as what it came to
        self.tally.open -= 1
        self._count(response)
        return response

    def _give_back(self) -> None:
        """A request without an outcome counts as not asked yet."""
        self.tally.taken -= 1
        self.tally.open -= 1
        self._unsaved.release()

    def _saved(self, saved: asyncio.Future[None]) -> None:
        for _ in range(self._num_saving.pop(saved)):
            self._unsaved.release()
        if not saved.cancelled() and (error := saved.exception()) is not None:
            self._stop(error, wait_seconds=0.0)  # what comes now cannot be kept

    def _count(self, response: Response) -> None:
        """What an outcome was, whether or not another teacher is asked in its place."""
        state = self.tally.came(response)
        if state <= State.CUT:
            self._meter.answered(response.num_new_tokens)
        elif state == State.DEAD:
            self._meter.failed(reason_of(response.error))
            if len(self._examples) < _NUM_EXAMPLES:
                self._examples.append(f"{response.record_id}: {response.error}")

    def _note_fault(self, response: Response) -> None:
        fault = fault_of(response)
        if fault and self._pilot_faults is not None:
            self._pilot_faults.setdefault(response.record_id, fault)

    def _tell(self, *, at_once: bool = False) -> None:
        self.tally.reconcile()
        seconds = self._meter.seconds
        if not at_once and seconds - self._told_at < _TELL_SECONDS:
            return
        self._told_at = seconds
        self._tell_them(self._told(getattr(self.teacher, "state", "running")))

    def tell_waiting(self, state: str) -> None:
        """Says how far it was, and in a few words what is waited for now."""
        self._tell_them(self._told(state))

    def _told(self, state: str) -> Asking:
        seconds = self._meter.seconds
        tally, meter, purse = self.tally, self._meter, self.purse
        rate, tokens_per_second = meter.rates()
        left = self.requested - tally.answered - tally.failed
        cost = projected = None
        if purse.price is not None:
            cost = purse.spent_before + purse.spent_now
            each = purse.spent_now / meter.num_answers if meter.num_answers else None
            projected = None if each is None else cost + each * left
        return Asking(
            requested=self.requested,
            answered=tally.answered,
            reused=tally.reused,
            failed=tally.failed,
            reasons=dict(meter.reasons.most_common()),
            in_flight=getattr(self.teacher, "num_in_flight", tally.open),
            retries=getattr(self.teacher, "num_retries", 0) - self._num_retries,
            answers_per_second=rate,
            tokens_per_second=tokens_per_second,
            cost=cost,
            num_unused=tally.unused.num,
            num_unused_tokens=tally.unused.num_tokens,
            unused_cost=tally.unused.cost,
            num_unread=tally.num_unread,
            projected_cost=projected,
            seconds=seconds,
            seconds_left=left / rate if rate else None,
            state=state,
            is_stopping=self._error is not None,
        )

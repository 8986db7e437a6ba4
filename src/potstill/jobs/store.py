"""Jobs, models and events, as rows. Every change of state is one guarded statement."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from potstill.entities import OVER, RESUMABLE, Job, JobStatus, Model
from potstill.errors import ConfigError, JobError, JobNotFound
from potstill.jobs.workspace import check_name

SCHEMA_VERSION = 1

TABLES = sa.MetaData()
FACTS = sa.Table(
    "facts", TABLES, sa.Column("name", sa.String, primary_key=True), sa.Column("value", sa.String)
)
JOBS = sa.Table(
    "jobs",
    TABLES,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("status", sa.String(20), nullable=False),
    sa.Column("stage", sa.String, nullable=False, default=""),
    sa.Column("progress", sa.Float),
    sa.Column("config", sa.Text, nullable=False),
    sa.Column("workspace", sa.Text, nullable=False),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("run", sa.String, nullable=False),
    sa.Column("error", sa.Text, nullable=False, default=""),
    sa.Column("error_kind", sa.String, nullable=False, default=""),
    sa.Column("notes", sa.Text, nullable=False, default="[]"),
    sa.Column("model", sa.String, nullable=False, default=""),
    sa.Column("baseline", sa.String, nullable=False, default=""),
    sa.Column("wants_key", sa.Boolean, nullable=False, default=False),
    sa.Column("attempt", sa.Integer, nullable=False, default=0),
    sa.Column("process", sa.String, nullable=False, default=""),
    sa.Column("heartbeat", sa.Float),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("started_at", sa.Float),
    sa.Column("ended_at", sa.Float),
)
MODELS = sa.Table(
    "models",
    TABLES,
    sa.Column("name", sa.String(80), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("path", sa.String),
    sa.Column("kind", sa.String(20), nullable=False),
    sa.Column("made_by_job", sa.String(64), nullable=False),
    sa.Column("status", sa.String(10), nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
)
EVENTS = sa.Table(
    "events",
    TABLES,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("job", sa.String(64), nullable=False, index=True),
    sa.Column("time", sa.Float, nullable=False),
    sa.Column("stage", sa.String, nullable=False),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("done", sa.Integer),
    sa.Column("total", sa.Integer),
    sa.Column("text", sa.Text, nullable=False, default=""),
    sa.Column("seconds", sa.Float),
)
MIGRATIONS: dict[int, tuple[str, ...]] = {}
"""Version -> statements that make it of the one before."""


class Store:
    """The job store. Safe for several processes and threads at once.

    Args:
        place: Database file, or a URL that SQLAlchemy understands.

    Raises:
        JobError: If the database was written by a newer version of this package.
    """

    def __init__(self, place: Path | str):
        is_url = isinstance(place, str) and "://" in place
        url = place if is_url else f"sqlite:///{place}"
        self._engine = sa.create_engine(url)
        if self._engine.dialect.name == "sqlite":
            sa.event.listen(self._engine, "connect", _prepare_sqlite)
            sa.event.listen(self._engine, "begin", _begin_immediately)
        self._reader = self._engine.execution_options(reads=True)
        self._migrate()

    def close(self) -> None:
        """Closes its connections."""
        self._engine.dispose()

    def add_job(self, job: Job, *, workspace: dict, fingerprint: str, wants_key: bool) -> bool:
        """Adds a job and the models it promises; False if a job of that name is there.

        `job.model` and `job.baseline` are bare names; each gets the next version.
        """
        check_name(job.name)
        with self._begin() as connection:
            if connection.execute(_job_row(job.name)).first():
                return False
            versions = {
                kind: self._promise(connection, name, kind, job)
                for kind, name in (("distilled", job.model), ("untouched", job.baseline))
            }
            row = job.model_dump(mode="json", exclude={"attempt"})
            row |= {
                "config": json.dumps(job.config, ensure_ascii=False),
                "notes": json.dumps(job.notes, ensure_ascii=False),
                "workspace": json.dumps(workspace, ensure_ascii=False),
                "fingerprint": fingerprint,
                "wants_key": wants_key,
                "attempt": 0,
                "model": versions["distilled"],
                "baseline": versions["untouched"],
            }
            connection.execute(sa.insert(JOBS).values(**row))
            return True

    def _promise(self, connection: sa.Connection, name: str, kind: str, job: Job) -> str:
        check_name(name, "model")
        newest = connection.execute(
            sa.select(sa.func.max(MODELS.c.version)).where(MODELS.c.name == name)
        ).scalar()
        version = (newest or 0) + 1
        connection.execute(
            sa.insert(MODELS).values(
                name=name,
                version=version,
                kind=kind,
                made_by_job=job.name,
                status="pending",
                created_at=job.created_at,
            )
        )
        return f"{name}:{version}"

    def job(self, name: str) -> Job:
        """The job called `name`.

        Raises:
            JobNotFound: If there is none; the message has the last ones.
        """
        with self._reader.connect() as connection:
            row = connection.execute(_job_row(name)).first()
            if row is None:
                last = sa.select(JOBS.c.name).order_by(JOBS.c.created_at.desc()).limit(5)
                names = ", ".join(connection.execute(last).scalars()) or "none at all"
                raise JobNotFound(f"no job is called {name!r}; the last ones are: {names}")
        return _as_job(row)

    def facts(self, name: str) -> dict[str, Any]:
        """What the worker and the executor need to know beside the noun: process, heartbeat,
        workspace, fingerprint, wants_key."""
        self.job(name)
        names = ("process", "heartbeat", "workspace", "fingerprint", "wants_key")
        columns = [JOBS.c[column] for column in names]
        with self._reader.connect() as connection:
            row = connection.execute(sa.select(*columns).where(JOBS.c.name == name)).one()
        return {**row._mapping, "workspace": json.loads(row.workspace)}

    def jobs(self, limit: int = 200) -> list[Job]:
        """The newest jobs first."""
        query = sa.select(JOBS).order_by(JOBS.c.created_at.desc()).limit(limit)
        with self._reader.connect() as connection:
            return [_as_job(row) for row in connection.execute(query)]

    def move(self, name: str, to: JobStatus, *, out_of: Iterable[JobStatus], **facts: Any) -> bool:
        """Moves a job to a state if it is in one of `out_of`; False if it is not.

        Of several processes that try the same, one succeeds. Ending without success fails
        the models that the job promised; a new start promises them again.
        """
        now = time.time()
        if to is JobStatus.QUEUED:
            facts |= {"error": "", "error_kind": "", "ended_at": None, "heartbeat": now}
            facts |= {"process": "", "attempt": JOBS.c.attempt + 1, "started_at": None}
        if to in OVER:
            facts.setdefault("ended_at", now)
        query = (
            sa.update(JOBS)
            .where(JOBS.c.name == name, JOBS.c.status.in_([s.value for s in out_of]))
            .values(status=to.value, **facts)
        )
        with self._begin() as connection:
            if connection.execute(query).rowcount == 0:
                return False
            models = sa.update(MODELS).where(MODELS.c.made_by_job == name)
            if to in OVER and to is not JobStatus.COMPLETED:
                connection.execute(
                    models.where(MODELS.c.status == "pending").values(status="failed")
                )
            if to is JobStatus.QUEUED:
                connection.execute(models.values(status="pending", path=None))
        return True

    def publish(self, name: str, *, distilled: Path, untouched: Path) -> bool:
        """Completes a job and makes its models ready, together; False if it was cancelled."""
        done = {"status": JobStatus.COMPLETED.value, "ended_at": time.time(), "progress": 1.0}
        query = sa.update(JOBS).where(
            JOBS.c.name == name, JOBS.c.status == JobStatus.FINALIZING.value
        )
        with self._begin() as connection:
            if connection.execute(query.values(**done)).rowcount == 0:
                return False
            for kind, path in (("distilled", distilled), ("untouched", untouched)):
                connection.execute(
                    sa.update(MODELS)
                    .where(MODELS.c.made_by_job == name, MODELS.c.kind == kind)
                    .values(status="ready", path=str(path))
                )
        return True

    def beat(self, name: str, process: str) -> None:
        """The worker's sign of life; brings a job back that had been given up."""
        mine = sa.update(JOBS).where(JOBS.c.name == name, JOBS.c.process == process)
        lost = JOBS.c.status == JobStatus.NOT_RESPONDING.value
        with self._begin() as connection:
            connection.execute(mine.values(heartbeat=time.time()))
            back = {"status": JobStatus.RUNNING.value, "ended_at": None}
            if connection.execute(mine.where(lost).values(**back)).rowcount:
                connection.execute(
                    sa.update(MODELS).where(MODELS.c.made_by_job == name).values(status="pending")
                )

    def note_process(self, name: str, process: str) -> None:
        """Keeps which process is going to work on a Queued job."""
        queued = sa.update(JOBS).where(JOBS.c.name == name, JOBS.c.status == JobStatus.QUEUED.value)
        with self._begin() as connection:
            connection.execute(queued.values(process=process, heartbeat=time.time()))

    def add_event(self, name: str, progress: float | None, **event: Any) -> None:
        """Adds an event and shows it as the job's stage and progress."""
        query = sa.update(JOBS).where(JOBS.c.name == name)
        with self._begin() as connection:
            connection.execute(sa.insert(EVENTS).values(job=name, time=time.time(), **event))
            connection.execute(query.values(stage=event["stage"], progress=progress))

    def events(self, name: str, after: int = 0, limit: int = 1000) -> list[dict[str, Any]]:
        """Events of a job in their order, those with an id above `after`."""
        query = (
            sa.select(EVENTS)
            .where(EVENTS.c.job == name, EVENTS.c.id > after)
            .order_by(EVENTS.c.id)
            .limit(limit)
        )
        with self._reader.connect() as connection:
            return [dict(row._mapping) for row in connection.execute(query)]

    def models(self, name: str | None = None) -> list[Model]:
        """Models, the newest version first; of one name, or of all."""
        query = sa.select(MODELS).order_by(MODELS.c.name, MODELS.c.version.desc())
        if name is not None:
            query = query.where(MODELS.c.name == name)
        with self._reader.connect() as connection:
            return [Model.model_validate(dict(r._mapping)) for r in connection.execute(query)]

    @contextmanager
    def _begin(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except sa.exc.OperationalError as error:
            raise JobError(f"the job store cannot be written: {error.orig}") from None

    def _migrate(self) -> None:
        with self._begin() as connection:
            TABLES.create_all(connection)
            query = sa.select(FACTS.c.value).where(FACTS.c.name == "schema_version")
            found = connection.execute(query).scalar()
            version = int(found) if found else SCHEMA_VERSION
            if version > SCHEMA_VERSION:
                raise JobError(
                    f"the job store has version {version}, this package knows versions up to "
                    f"{SCHEMA_VERSION}; update potstill"
                )
            for number in range(version + 1, SCHEMA_VERSION + 1):
                for statement in MIGRATIONS[number]:
                    connection.exec_driver_sql(statement)
            if found is None:
                row = {"name": "schema_version", "value": str(SCHEMA_VERSION)}
                connection.execute(sa.insert(FACTS).values(**row))
            else:
                connection.execute(sa.update(FACTS).values(value=str(SCHEMA_VERSION)))


def resumable(job: Job) -> bool:
    """Whether the job can be started again where it stopped."""
    return job.status in RESUMABLE


def split_version(name: str) -> tuple[str, int | None]:
    """'phi-distilled:2' -> ('phi-distilled', 2).

    Raises:
        ConfigError: If what follows the colon is not a version.
    """
    bare, colon, version = name.partition(":")
    if colon and not version.isdigit():
        raise ConfigError(f"{name!r}: a version is a number, such as {bare}:1")
    return bare, int(version) if colon else None


def _job_row(name: str) -> sa.Select:
    return sa.select(JOBS).where(JOBS.c.name == name)


def _as_job(row: sa.Row) -> Job:
    values = {key: value for key, value in row._mapping.items() if key in Job.model_fields}
    values |= {"config": json.loads(row.config), "notes": tuple(json.loads(row.notes))}
    return Job.model_validate(values)


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # SQLAlchemy's own "begin" must be the one that counts, see below.
    connection.isolation_level = None
    for pragma in ("busy_timeout=30000", "journal_mode=WAL", "synchronous=NORMAL"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_immediately(connection: sa.Connection) -> None:
    # A transaction that reads before it writes must hold the lock from its start: two that
    # upgrade at once would each wait for the other, and SQLite fails one of them.
    reads = connection.get_execution_options().get("reads")
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

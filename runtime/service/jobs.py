"""Jobs in SQLite: what was asked, by whom, how far it is. A row is written before a request is answered.

The table is the queue. One connection writes, another reads, each behind a lock; every change of a status is one
statement that names the status it expects, so that a cancel and an end cannot both win.
"""

import json
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Status = Literal["queued", "in_progress", "completed", "failed"]
UNFINISHED = ("queued", "in_progress")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS sources (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, file_name TEXT NOT NULL, bytes INTEGER NOT NULL, sha256 TEXT NOT NULL,
    created_at REAL NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS jobs (
    place INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, source_id TEXT NOT NULL,
    status TEXT NOT NULL, priority INTEGER NOT NULL, prompt TEXT NOT NULL, asked TEXT NOT NULL, model TEXT NOT NULL,
    created_at REAL NOT NULL, started_at REAL, completed_at REAL, attempts INTEGER NOT NULL DEFAULT 0,
    error_code TEXT, error_message TEXT, remixed_from TEXT, idempotency TEXT, fingerprint TEXT NOT NULL,
    callback_url TEXT, callback_due REAL, callback_tries INTEGER NOT NULL DEFAULT 0, result TEXT,
    bytes INTEGER NOT NULL DEFAULT 0, preview INTEGER NOT NULL DEFAULT 0, UNIQUE (owner, idempotency)
) STRICT;
CREATE INDEX IF NOT EXISTS jobs_by_status ON jobs (status, priority, place);
CREATE INDEX IF NOT EXISTS jobs_by_owner ON jobs (owner, place);
CREATE TABLE IF NOT EXISTS turns (owner TEXT PRIMARY KEY, last REAL NOT NULL) STRICT;
"""


@dataclass(frozen=True, slots=True)
class StoredSource:
    """An uploaded video. `file_name` is for display and never part of a path."""

    id: str
    owner: str
    file_name: str
    bytes: int
    sha256: str
    created_at: float


@dataclass(frozen=True, slots=True)
class Job:
    """One edit.

    Attributes:
        place: grows with every job; the order of lists.
        asked: everything beside the prompt as it was given: parameters, container, quality, comparison.
        result: what is known of the finished video: frames, size, seconds, hash, notes, report.
        fingerprint: of owner, source's hash, prompt and `asked`; tells a client's repetition.
        callback_due: when the webhook is to be sent (again); None = not, or done.
    """

    place: int
    id: str
    owner: str
    source_id: str
    status: Status
    priority: int
    prompt: str
    model: str
    created_at: float
    fingerprint: str
    asked: dict[str, Any] = field(default_factory=dict)
    started_at: float | None = None
    completed_at: float | None = None
    attempts: int = 0
    error_code: str | None = None
    error_message: str | None = None
    remixed_from: str | None = None
    idempotency: str | None = None
    callback_url: str | None = None
    callback_due: float | None = None
    callback_tries: int = 0
    result: dict[str, Any] | None = None
    bytes: int = 0
    preview: bool = False


class KeyReused(Exception):
    """An idempotency key was used for something else."""


class SourceGone(Exception):
    """The upload was deleted meanwhile."""


class JobStore:
    """The rows of one folder. All methods may be called from any thread."""

    def __init__(self, path: Path, on_full: Callable[[], None] = lambda: None) -> None:
        """`on_full` is called where the disk has no room for a change, and may make some."""
        self._on_full = on_full
        self._writer = _connect(path)
        self._writer.executescript(_SCHEMA)
        self._reader = _connect(path)
        self._write_lock, self._read_lock = threading.Lock(), threading.Lock()

    def close(self) -> None:
        """Give the file back."""
        with self._write_lock, self._read_lock:
            self._writer.close()
            self._reader.close()

    # Sources

    def add_source(self, source: StoredSource) -> None:
        """Note an upload whose bytes are on the disk."""
        with self._writing() as db:
            values = (source.id, source.owner, source.file_name, source.bytes, source.sha256, source.created_at)
            db.execute("INSERT INTO sources VALUES (?, ?, ?, ?, ?, ?)", values)

    def source(self, source_id: str) -> StoredSource | None:
        """The upload of that id."""
        rows = self._read("SELECT * FROM sources WHERE id = ?", source_id)
        return StoredSource(**rows[0]) if rows else None

    def unused_sources(self, before: float) -> list[str]:
        """Uploads from before that time that no job needs."""
        rows = self._read(
            "SELECT id FROM sources WHERE created_at < ? AND id NOT IN (SELECT source_id FROM jobs)", before
        )
        return [row["id"] for row in rows]

    def forget_source(self, source_id: str) -> bool:
        """Remove the row of an upload unless a job needs it by now."""
        with self._writing() as db:
            return (
                db.execute(
                    "DELETE FROM sources WHERE id = ? AND id NOT IN (SELECT source_id FROM jobs)", (source_id,)
                ).rowcount
                == 1
            )

    def known_sources(self) -> set[str]:
        """Ids of all uploads."""
        return {row["id"] for row in self._read("SELECT id FROM sources")}

    # Jobs

    def add(self, job: Job, *, most_waiting: int, most_of_owner: int) -> Job | None:
        """Put a job into the queue; None where that is full. A known idempotency key gives the job it made."""
        added = self.add_all([job], most_waiting=most_waiting, most_of_owner=most_of_owner)
        return added[0] if added else None

    def add_all(self, jobs: Sequence[Job], *, most_waiting: int, most_of_owner: int) -> list[Job]:
        """Put jobs of one owner into the queue, all or (an empty list) none; known idempotency keys as in `add`."""
        with self._writing() as db:
            owner, added = jobs[0].owner, []
            waiting, own = db.execute(
                "SELECT COUNT(*), COALESCE(SUM(owner = ?), 0) FROM jobs WHERE status = 'queued'", (owner,)
            ).fetchone()
            known = {job.id: _made_by_key(db, job) for job in jobs}
            new = sum(found is None for found in known.values())
            if 0 < new < len(jobs) or any(
                f and f.fingerprint != job.fingerprint for job, f in zip(jobs, known.values(), strict=True)
            ):
                raise KeyReused
            if db.execute("SELECT 1 FROM sources WHERE id = ?", (jobs[0].source_id,)).fetchone() is None and new:
                raise SourceGone
            if new and (waiting + new > most_waiting or own + new > most_of_owner):
                return []
            for job in jobs:
                found = known[job.id]
                added.append(_insert(db, job) if found is None else found)
            return added

    def get(self, job_id: str) -> Job | None:
        """The job of that id."""
        rows = self._read("SELECT * FROM jobs WHERE id = ?", job_id)
        return _job(rows[0]) if rows else None

    def repeated(self, owner: str, fingerprint: str, since: float) -> Job | None:
        """The same request of the same owner since that time, which a client's retry would make again."""
        rows = self._read(
            "SELECT * FROM jobs WHERE owner = ? AND fingerprint = ? AND created_at >= ? ORDER BY place DESC LIMIT 1",
            owner, fingerprint, since,
        )  # fmt: skip
        return _job(rows[0]) if rows else None

    def page(self, owner: str | None, *, limit: int, after: int | None, newest_first: bool) -> list[Job]:
        """At most `limit` jobs beyond that place, of one owner or (None) of all."""
        compare, order = ("<", "DESC") if newest_first else (">", "ASC")
        rows = self._read(
            f"SELECT * FROM jobs WHERE (?1 IS NULL OR owner = ?1) AND (?2 IS NULL OR place {compare} ?2) "
            f"ORDER BY place {order} LIMIT ?3",
            owner, after, limit,
        )  # fmt: skip
        return [_job(row) for row in rows]

    def unfinished(self, owner: str | None = None) -> list[Job]:
        """Those that wait or run, oldest first."""
        rows = self._read(
            "SELECT * FROM jobs WHERE status IN ('queued', 'in_progress') AND (?1 IS NULL OR owner = ?1) "
            "ORDER BY place",
            owner,
        )
        return [_job(row) for row in rows]

    def queue(self) -> list[str]:
        """Ids of the waiting jobs in the order in which they would be taken if no other came."""
        rows = self._read(
            "SELECT j.id, j.owner, j.priority, j.place, COALESCE(t.last, 0) AS last FROM jobs j "
            "LEFT JOIN turns t ON t.owner = j.owner WHERE j.status = 'queued' ORDER BY j.priority DESC, j.place"
        )
        waiting: dict[str, deque[sqlite3.Row]] = {}
        for row in rows:
            waiting.setdefault(row["owner"], deque()).append(row)
        last = {owner: float(own[0]["last"]) for owner, own in waiting.items()}
        now, order = max(last.values(), default=0.0), []
        while waiting:
            owner = min(waiting, key=lambda o: (-waiting[o][0]["priority"], last[o], waiting[o][0]["place"]))
            order.append(str(waiting[owner].popleft()["id"]))
            last[owner] = now = now + 1
            if not waiting[owner]:
                del waiting[owner]
        return order

    def claim(self) -> Job | None:
        """Take the next job: highest priority first, then whose owner's turn is longest ago, then the oldest."""
        with self._writing() as db:
            row = db.execute(
                "SELECT j.* FROM jobs j LEFT JOIN turns t ON t.owner = j.owner WHERE j.status = 'queued' "
                "ORDER BY j.priority DESC, COALESCE(t.last, 0), j.place LIMIT 1"
            ).fetchone()
            if row is None:
                return None
            now = time.time()
            db.execute(
                "UPDATE jobs SET status = 'in_progress', started_at = COALESCE(started_at, ?), attempts = attempts + 1 "
                "WHERE id = ?",
                (now, row["id"]),
            )
            db.execute(
                "INSERT INTO turns VALUES (?1, ?2) ON CONFLICT (owner) DO UPDATE SET last = ?2", (row["owner"], now)
            )
            return _job(db.execute("SELECT * FROM jobs WHERE id = ?", (row["id"],)).fetchone())

    def put_back(self, job_id: str) -> None:
        """A job whose editor was lost waits again, in its old place."""
        with self._writing() as db:
            db.execute("UPDATE jobs SET status = 'queued' WHERE id = ? AND status = 'in_progress'", (job_id,))

    def put_all_back(self) -> int:
        """Whatever ran when the service ended waits again; that was no attempt."""
        with self._writing() as db:
            return db.execute(
                "UPDATE jobs SET status = 'queued', attempts = MAX(attempts - 1, 0) WHERE status = 'in_progress'"
            ).rowcount

    def note_preview(self, job_id: str) -> None:
        """The edited anchors can be looked at."""
        with self._writing() as db:
            db.execute("UPDATE jobs SET preview = 1 WHERE id = ?", (job_id,))

    def complete(self, job_id: str, result: dict[str, Any], size_bytes: int) -> bool:
        """The job's files are in place; False where it was cancelled or deleted meanwhile."""
        with self._writing() as db:
            now = time.time()
            return (
                db.execute(
                    "UPDATE jobs SET status = 'completed', completed_at = ?1, result = ?2, bytes = ?3, "
                    "callback_due = CASE WHEN callback_url IS NULL THEN NULL ELSE ?1 END "
                    "WHERE id = ?4 AND status = 'in_progress'",
                    (now, json.dumps(result), size_bytes, job_id),
                ).rowcount
                == 1
            )

    def fail(self, job_id: str, code: str, message: str, *, expected: Sequence[str] = UNFINISHED) -> bool:
        """The job ended without a video; False where it had ended before."""
        with self._writing() as db:
            now, marks = time.time(), ", ".join("?" * len(expected))
            return (
                db.execute(
                    "UPDATE jobs SET status = 'failed', completed_at = ?, error_code = ?, error_message = ?, "
                    "callback_due = CASE WHEN callback_url IS NULL THEN NULL ELSE ? END "
                    f"WHERE id = ? AND status IN ({marks})",
                    (now, code, message, now, job_id, *expected),
                ).rowcount
                == 1
            )

    def delete(self, job_id: str) -> bool:
        """Forget a job."""
        with self._writing() as db:
            return db.execute("DELETE FROM jobs WHERE id = ?", (job_id,)).rowcount == 1

    def finished_before(self, moment: float) -> list[Job]:
        """Jobs that ended before that time, oldest first."""
        rows = self._read(
            "SELECT * FROM jobs WHERE status IN ('completed', 'failed') AND completed_at < ? ORDER BY completed_at",
            moment,
        )
        return [_job(row) for row in rows]

    def has_key(self, owner: str, idempotency: str) -> bool:
        """Whether a job was made with that key."""
        return bool(self._read("SELECT 1 FROM jobs WHERE owner = ? AND idempotency = ?", owner, idempotency))

    def callbacks_due(self, moment: float) -> list[Job]:
        """Jobs whose webhook is to be sent by then."""
        rows = self._read("SELECT * FROM jobs WHERE callback_due <= ? ORDER BY callback_due LIMIT 20", moment)
        return [_job(row) for row in rows]

    def note_callback(self, job_id: str, *, due: float | None) -> None:
        """A webhook was sent (None), or is to be sent again then."""
        with self._writing() as db:
            db.execute(
                "UPDATE jobs SET callback_due = ?, callback_tries = callback_tries + 1 WHERE id = ?", (due, job_id)
            )

    def counts(self) -> dict[str, int]:
        """How many jobs have each status."""
        rows = self._read("SELECT status, COUNT(*) AS n FROM jobs GROUP BY status")
        return {row["status"]: int(row["n"]) for row in rows}

    def longest_waiting_since(self) -> float | None:
        """When the oldest waiting job came."""
        rows = self._read("SELECT MIN(created_at) AS first FROM jobs WHERE status = 'queued'")
        return None if rows[0]["first"] is None else float(rows[0]["first"])

    def known(self) -> set[str]:
        """Ids of all jobs."""
        return {row["id"] for row in self._read("SELECT id FROM jobs")}

    def is_writable(self) -> bool:
        """Whether the disk takes a change."""
        try:
            with self._writing() as db:
                db.execute("INSERT INTO turns VALUES ('', 0) ON CONFLICT (owner) DO UPDATE SET last = last")
        except sqlite3.Error:
            return False
        return True

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, on the disk when it ends."""
        with self._write_lock:
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException as error:
                if self._writer.in_transaction:  # SQLite ends it by itself where the disk is full
                    self._writer.execute("ROLLBACK")
                if isinstance(error, sqlite3.OperationalError) and "full" in str(error):
                    self._on_full()
                raise

    def _read(self, statement: str, *values: Any) -> list[sqlite3.Row]:
        with self._read_lock:
            return self._reader.execute(statement, values).fetchall()


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
    db.row_factory = sqlite3.Row
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    return db


def _made_by_key(db: sqlite3.Connection, job: Job) -> Job | None:
    if job.idempotency is None:
        return None
    found = db.execute("SELECT * FROM jobs WHERE owner = ? AND idempotency = ?", (job.owner, job.idempotency))
    row = found.fetchone()
    return None if row is None else _job(row)


def _insert(db: sqlite3.Connection, job: Job) -> Job:
    names = (
        "id", "owner", "source_id", "status", "priority", "prompt", "model", "created_at", "fingerprint",
        "remixed_from", "idempotency", "callback_url",
    )  # fmt: skip
    values = [getattr(job, name) for name in names] + [json.dumps(job.asked)]
    marks = ", ".join("?" * len(values))
    db.execute(f"INSERT INTO jobs ({', '.join(names)}, asked) VALUES ({marks})", values)
    return _job(db.execute("SELECT * FROM jobs WHERE id = ?", (job.id,)).fetchone())


def _job(row: sqlite3.Row) -> Job:
    values = dict(row)
    values["asked"] = json.loads(values["asked"])
    values["result"] = None if values["result"] is None else json.loads(values["result"])
    values["preview"] = bool(values["preview"])
    return Job(**values)

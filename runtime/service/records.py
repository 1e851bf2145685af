"""How a job looks to clients: the Video of the API, and how far a running one is."""

import time
from dataclasses import dataclass, field
from typing import Any

from fairy.runtime.service.jobs import Job, StoredSource

_SHARES = {"probe": (0, 5), "shots": (5, 10), "anchors": (10, 25), "frames": (25, 99)}
"""From which to which percent of the work a stage is taken to go."""


@dataclass(slots=True)
class Live:
    """How far a running job is; kept in memory alone, for it is worth nothing after a restart."""

    stage: str | None = None
    done: int = 0
    total: int = 0
    _began: dict[str, tuple[float, int]] = field(default_factory=dict)

    def note(self, stage: str, done: int, total: int) -> None:
        """A step forward."""
        if stage not in self._began:
            self._began[stage] = (time.monotonic(), done)
        self.stage, self.done, self.total = stage, done, total

    @property
    def percent(self) -> int:
        """Whole percent, never 100 before the end."""
        if self.stage is None:
            return 0
        low, high = _SHARES[self.stage]
        share = min(self.done / self.total, 1.0) if self.total else 0.0
        return int(low + share * (high - low))

    @property
    def eta_s(self) -> float | None:
        """Seconds to the end, by how fast the frames went so far; None before there is anything to go by."""
        if self.stage != "frames" or not self.total:
            return None
        began, first = self._began["frames"]
        steps = self.done - first
        if steps <= 0:
            return None
        return round((time.monotonic() - began) / steps * (self.total - self.done), 1)


def video_of(
    job: Job, *, source: StoredSource | None, live: Live | None, place: int | None, keep_s: float
) -> dict[str, Any]:
    """The record of a job as clients get it."""
    result = job.result or {}
    running = live if job.status == "in_progress" else None
    error = None if job.error_code is None else {"code": job.error_code, "message": job.error_message}
    return {
        "id": job.id,
        "object": "video",
        "status": job.status,
        "progress": 100 if job.status == "completed" else running.percent if running else 0,
        "created_at": int(job.created_at),
        "started_at": None if job.started_at is None else int(job.started_at),
        "completed_at": None if job.completed_at is None else int(job.completed_at),
        "expires_at": None if job.completed_at is None else int(job.completed_at + keep_s),
        "model": job.model,
        "prompt": job.prompt,
        "seconds": result.get("seconds"),
        "size": f"{result['width']}x{result['height']}" if result else None,
        "remixed_from_video_id": job.remixed_from,
        "error": error,
        "queue_position": place if job.status == "queued" else None,
        "stage": running.stage if running else None,
        "stage_done": running.done if running else None,
        "stage_total": running.total if running else None,
        "eta_s": running.eta_s if running else None,
        "preview_ready": job.preview,
        "has_compare": bool(result) and bool(job.asked["compare"]),
        "file_name": source.file_name if source else None,
        "params": job.asked["params"],
        "container": job.asked["container"],
        "priority": job.priority,
        "num_frames": result.get("num_frames"),
        "frames_sha256": result.get("frames_sha256"),
        "notes": result.get("notes", []),
    }


def public_report(report: dict[str, Any], file_name: str, model: str) -> dict[str, Any]:
    """A report without paths of this machine."""
    source = {name: value for name, value in report["source"].items() if name != "path"}
    return report | {"source": source | {"path": file_name}, "model": model}

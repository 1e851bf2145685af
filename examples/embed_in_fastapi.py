"""An `Editor` in an application of one's own: ``uvicorn examples.embed_in_fastapi:app``.

One thread edits, so that the event loop never waits for it; what is asked meanwhile waits in the thread's queue. Jobs
are lost with the process and nobody is asked for a key: `fairy serve` is the answer to that.
"""

import secrets
import tempfile
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import FileResponse

from fairy.runtime import Editor, EditParams, EditReport, InputError, Progress

_FOLDER = Path(tempfile.gettempdir()) / f"fairy-example-{secrets.token_hex(4)}"
_MOST_BYTES = 500_000_000


@dataclass
class Job:
    """One edit; `last` is its latest progress."""

    out: Path
    cancel: threading.Event = field(default_factory=threading.Event)
    last: Progress | None = None
    future: Future[EditReport] | None = None

    def note(self, progress: Progress) -> None:
        """What the editor calls at every step, from its own thread."""
        self.last = progress


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """The model is loaded once and stays warm."""
    _FOLDER.mkdir(mode=0o700)
    with Editor.from_pretrained() as editor, ThreadPoolExecutor(1) as thread:
        app.state.editor, app.state.thread, app.state.jobs = editor, thread, {}
        yield
        for job in app.state.jobs.values():
            job.cancel.set()


app = FastAPI(lifespan=_lifespan)


@app.post("/edits")
async def start(request: Request, prompt: str, seed: int = 0, steps: int = 10) -> dict[str, str]:
    """Edit the video in the body."""
    try:
        params = EditParams(prompt, seed=seed, num_inference_steps=steps)
    except InputError as error:
        raise HTTPException(400, str(error)) from error
    name, size = secrets.token_hex(16), 0
    source, job = _FOLDER / f"{name}.source", Job(_FOLDER / f"{name}.mp4")
    with source.open("wb") as file:
        async for chunk in request.stream():
            size += len(chunk)
            if size > _MOST_BYTES:
                source.unlink()
                raise HTTPException(413, "The video is too large.")
            file.write(chunk)
    more = {"on_progress": job.note, "cancel": job.cancel}
    job.future = app.state.thread.submit(app.state.editor.edit_file, source, job.out, params, **more)
    app.state.jobs[name] = job
    return {"id": name}


@app.get("/edits/{name}")
def status(name: str) -> dict[str, object]:
    """How it stands."""
    job = _job(name)
    assert job.future is not None
    if not job.future.done():
        return {"status": "running", "stage": job.last and job.last.stage, "done": job.last and job.last.done}
    error = job.future.exception()
    return {"status": "done"} if error is None else {"status": "failed", "why": str(error)}


@app.delete("/edits/{name}")
def stop(name: str) -> dict[str, str]:
    """Stop it at its next step."""
    _job(name).cancel.set()
    return {"status": "stopping"}


@app.get("/edits/{name}/video")
def video(name: str) -> FileResponse:
    """The result."""
    job = _job(name)
    if not job.out.is_file():
        raise HTTPException(404, "There is no video yet.")
    return FileResponse(job.out, media_type="video/mp4")


def _job(name: str) -> Job:
    if name not in app.state.jobs:
        raise HTTPException(404, "There is no such edit.")
    found: Job = app.state.jobs[name]
    return found

"""What is run on a GPU, in which order and for how long at most.

A GPU is lent for 900 s, starting of machines included, in calls of at most 600 s. The first call says whether we are
right and how fast a whole edit is; the second measures what defaults are chosen from, and edits again with them.
Within a call the order is by value: whenever the machine is taken away, what was written by then is worth the most.
"""

import sys
from dataclasses import dataclass
from importlib.util import find_spec

from fairy.kernels.gains import OPS

FIGURES = "{figures}"  # stands for the file that the part writes its JSON to, again and again
OUT = "{out}"  # stands for the folder of all results
START_S = 45.0  # until a machine runs our command, each call; 37 s were seen
SETUP_S = 15.0  # unpacking wheels, each call
LENT_S = 900.0
CALLS = (1, 2)

_PYTHON = (sys.executable, "-P", "-m")
_PYTEST = (*_PYTHON, "pytest", "-p", "no:cacheprovider", "-q", "--import-mode=importlib")
_BENCH = (*_PYTEST, "--benchmark-quiet", f"--figures={FIGURES}")
_CLIMB = ("fairy.runtime.cli.main", "bench", "ladder", "--repeats", "2", "--micro-batch", "3", "--without", "inductor")
_LADDER = (*_PYTHON, *_CLIMB, f"--out={FIGURES}")
# Sizes of an edit's micro-batches; the others are there to see how ops scale, and take most of the time.
_ELEMENTWISE = (*(f"benchmarks/bench_{op}.py" for op in OPS), "-k", "not 180 and not 360")
_LARGE = (
    "benchmarks/bench_anchor_attention.py",
    "benchmarks/bench_temporal_attention.py",
    "benchmarks/bench_fp8_linear.py",
    "-k",
    "not 180 and not 360",
)
# Nothing that torch.compile makes: compiling takes longer than there is time.
_RUNGS = "a,d,one-batch,channels-last,anchor-attention,geglu,shared-first-step,folded-upsampling,cuda-graphs"


@dataclass(frozen=True, slots=True)
class Part:
    """One thing to run, a process of its own.

    Attributes:
        call: in which call.
        name: what the row and its files are called.
        command: program and arguments; `FIGURES` and `OUT` among them are replaced.
        limit_s: seconds after which it is stopped.
        small: what is run instead where there is no GPU; None = the same with "--small".
    """

    call: int
    name: str
    command: tuple[str, ...]
    limit_s: float
    small: tuple[str, ...] | None = None

    @property
    def slug(self) -> str:
        """The name as files have it."""
        return self.name.replace(" ", "-").translate({ord(mark): None for mark in ",."})

    def small_command(self) -> tuple[str, ...]:
        """What a rehearsal runs."""
        return (*self.command, "--small") if self.small is None else self.small


def _ours(name: str, *arguments: str) -> tuple[str, ...]:
    return (*_PYTHON, "fairy.benchmarks.gpu.parts", name, "--figures", FIGURES, *arguments)


def _tests() -> tuple[str, ...]:
    """The kernels' tests, by many processes where that is possible."""
    spread = ("-n", "14") if find_spec("xdist") is not None else ()
    return (*_PYTEST, *spread, "tests/kernels", "-m", "not slow", "--tb=short", f"--junit-xml={OUT}/kernels.xml")


def parts() -> tuple[Part, ...]:
    """All parts, in their order."""
    tune = (*_PYTHON, "fairy.kernels.tune", "--used")
    decide = (*_PYTHON, "fairy.benchmarks.gpu.results", OUT, "--gains", "kernels/configs")
    return (
        Part(1, "ceilings", _ours("ceilings"), 20),
        Part(1, "edit", _ours("edit", "--times", "2"), 80),
        Part(1, "kernels", _tests(), 110, _tests()),
        Part(1, "embedded model", _ours("embedded"), 30),
        Part(1, "banks and graphs", _ours("ways"), 45),
        Part(1, "DreamLite", _ours("family", "--model", "dreamlite-mobile", "--times", "2"), 40),
        Part(1, "FLUX.2 klein", _ours("family", "--model", "klein-4b", "--frames", "24", "--times", "2"), 50),
        Part(
            2,
            "tuning",
            (*tune, "--processes", "14", "--out", f"{OUT}/configs", "--also", "kernels/configs"),
            100,
            (*tune, "--list"),
        ),
        Part(2, "elementwise ops", (*_BENCH, *_ELEMENTWISE), 60, (*_BENCH, *_ELEMENTWISE)),
        Part(2, "kernels that are on", decide, 10, ()),
        Part(2, "micro-batches", _ours("micro-batches"), 60),
        Part(2, "micro-batch that is chosen", decide, 10, ()),
        Part(2, "edit with defaults", _ours("edit", "--times", "2"), 60),
        Part(2, "profile", _ours("profile", "--trace", f"{OUT}/trace.json.gz"), 30),
        Part(2, "attention and linears", (*_BENCH, *_LARGE), 40, (*_BENCH, *_LARGE)),
        Part(2, "ladder", (*_LADDER, "--rungs", _RUNGS), 35, (*_LADDER, "--small", "--rungs", "a,d,guidance-step")),
    )  # fmt: skip


def total_s() -> float:
    """The longest that both calls can take, starts of the machine included."""
    return len(CALLS) * (START_S + SETUP_S) + sum(part.limit_s for part in parts())

"""Cells: one measurement each, in a fresh process under limits, kept as one JSON file so that a run can resume."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import peers
from benchmarks.grid.systems import SYSTEMS
from utils.errors import UserError
from utils.files import read_json, write_json

ROOT = Path(__file__).resolve().parents[2]
PROTOCOL = 1  # of measuring; a new number makes every stored cell stale
POLL_S = 0.02
FINAL = ("ok", "over memory", "over time")  # outcomes that are not tried again
Cell = dict[str, Any]
Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of one cell: GiB of resident memory, CPU seconds of one pass, wall seconds in all."""

    gib: float = 16.0
    pass_s: float = 120.0
    cell_s: float = 900.0


def name_of(cell: Cell) -> str:
    """A file name: the cell's values in order."""
    values = {key: value for key, value in cell.items() if key != "section"}
    return "-".join(value if isinstance(value, str) else f"{key}={value}" for key, value in values.items())


class Store:
    """A folder with one JSON file for each cell."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, cell: Cell) -> Path:
        return self.folder / cell["section"] / f"{name_of(cell)}.json"

    def load(self, cell: Cell) -> Record | None:
        path = self.path(cell)
        return read_json(path) if path.exists() else None

    def save(self, record: Record) -> None:
        write_json(self.path(record["cell"]), record)

    def records(self, section: str) -> list[Record]:
        return [read_json(path) for path in sorted((self.folder / section).glob("*.json"))]


def version_of(cell: Cell, folder: Path | None) -> str | None:
    """Inputs that the results of a cell depend on besides the cell: None where the peer is missing."""
    system = SYSTEMS.get(cell["system"])
    own = None if system is None else system.source
    version = peers.version(folder, own) if own else source_hash()
    malloc = peers.hash_of([ROOT / "utils" / "device.py"]) if cell["malloc"] == "training" else cell["malloc"]
    torch = importlib.metadata.version("torch")
    return version and f"{version}, torch {torch}, malloc {malloc}, protocol {PROTOCOL}"


def source_hash() -> str:
    """Hash of all sources of our mixers."""
    engine = sorted(path for path in (ROOT / "models" / "engine").rglob("*") if path.suffix in (".py", ".cpp", ".hpp"))
    own = (ROOT / "models" / name for name in ("mamba.py", "padding.py", "stack.py"))
    return peers.hash_of([*engine, *own])


def measure(cell: Cell, store: Store, folder: Path | None, limits: Limits, budget: float) -> Record:
    """The stored record of a cell if it still holds, else a new one, stored.

    budget: CPU seconds that the repeats of a figure may take together, unless three of them take longer.
    """
    version = version_of(cell, folder)
    stored = store.load(cell)
    if version is None:
        return stored or _keep(store, {"cell": cell, "status": "missing", "why": "not in the folder of peers"})
    mark = {"version": version, "limits": dataclasses.asdict(limits)}
    if stored and _holds(stored, mark):
        return stored
    smaller = _exceeded_when_smaller(cell, store, mark)
    if smaller:
        why = f"{smaller['why']} already at {_shape(smaller['cell'])}"
        return _keep(store, {"cell": cell, **mark, "status": smaller["status"], "why": why})
    return _keep(store, {"cell": cell, **mark, **run(cell, folder, limits, budget)})


def _holds(record: Record, mark: dict[str, Any]) -> bool:
    """True if a record still holds: results hold under any limits, an exceeded limit holds for the same limits."""
    if record["status"] not in FINAL or record.get("version") != mark["version"]:
        return False
    return record["status"] == "ok" or record["limits"] == mark["limits"]


def _keep(store: Store, record: Record) -> Record:
    store.save(record)
    return record


def _shape(cell: Cell) -> str:
    return f"d_model {cell['d_model']}, L {cell['length']}"


def _exceeded_when_smaller(cell: Cell, store: Store, mark: dict[str, Any]) -> Record | None:
    """A record of the same system and setting that went over its limits at a shape that is nowhere larger."""
    if cell["section"] != "mixers":
        return None
    for record in store.records("mixers"):
        other = record["cell"]
        same = other != cell and all(other[key] == cell[key] for key in ("system", "batch", "malloc"))
        smaller = other["d_model"] <= cell["d_model"] and other["length"] <= cell["length"]
        if same and smaller and record["status"].startswith("over") and _holds(record, mark):
            return record
    return None


def run(cell: Cell, folder: Path | None, limits: Limits, budget: float) -> Record:
    """Measures a cell in a process of its own, and the other load of the machine during that time."""
    peers_folder = folder and str(folder.resolve())
    order = {"cell": cell, "peers": peers_folder, "limit_s": limits.pass_s, "budget_s": budget}
    command = [sys.executable, "-m", "benchmarks.grid.child", json.dumps(order)]
    threads = str(cell.get("threads", 1))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    load, busy, own, start = os.getloadavg()[0], _busy_seconds(), _children_seconds(), time.monotonic()
    outcome = watch(command, environment, limits)
    wall = time.monotonic() - start
    others = (_busy_seconds() - busy - (_children_seconds() - own)) / wall
    conditions = {"load": load, "others": round(max(0.0, others), 2), "wall_s": round(wall, 1)}
    return {**outcome, **conditions, "machine": machine(), "command": shown_command()}


def machine() -> str:
    """The processor, and how many cores of it there are."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def shown_command() -> str:
    """This process's command without the folders of this machine above the working one."""
    words = [os.path.relpath(word) if os.path.isabs(word) else word for word in sys.argv]
    return " ".join(["python", *words])


def watch(command: list[str], environment: dict[str, str], limits: Limits) -> Record:
    """Runs a command that prints JSON, and ends it if it exceeds the limits: status, reason, results, largest RSS."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=errors)
        start, largest, status = time.monotonic(), 0, "ok"
        try:
            while process.poll() is None:
                largest = max(largest, _resident_bytes(process.pid))
                if largest > limits.gib * 2**30:
                    status = "over memory"
                elif time.monotonic() - start > limits.cell_s:
                    status = "over time"
                if status != "ok":
                    process.kill()
                time.sleep(POLL_S)
        finally:
            process.kill()
            process.wait()
        output.seek(0)
        errors.seek(0)
        return {"rss": largest, **_outcome(status, process.returncode, output.read(), errors.read(), limits)}


def _outcome(status: str, code: int, output: str, errors: str, limits: Limits) -> Record:
    if status == "over memory":
        return {"status": status, "why": f"over {limits.gib:g} GiB"}
    if status == "over time":
        return {"status": status, "why": f"over {limits.cell_s:g} s in all"}
    if code == -signal.SIGPROF:
        return {"status": "over time", "why": f"over {limits.pass_s:g} s a pass"}
    if code:
        last = errors.strip().splitlines()[-1] if errors.strip() else f"ended with {code}"
        return {"status": "failed", "why": last}
    return {"status": "ok", "why": "", "figures": json.loads(output.strip().splitlines()[-1])}


def _resident_bytes(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (FileNotFoundError, ProcessLookupError, IndexError):  # it has just ended
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _busy_seconds() -> float:
    """CPU seconds that all cores of this machine have worked since it started."""
    fields = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq = map(int, fields[:7])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _children_seconds() -> float:
    times = os.times()
    return times.children_user + times.children_system


def require_linux() -> None:
    """The watcher reads /proc."""
    if not Path("/proc/self/statm").exists():
        raise UserError("the benchmark of mixers watches memory through /proc, which only Linux has")

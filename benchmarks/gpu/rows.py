"""Results on disk: one JSON line as soon as it is measured, and a Markdown report of all lines.

A row belongs to a section and has a key in it, and it belongs to a *state*: the card, the versions
and the source. A row of the same state is not measured again.
"""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path
from typing import Any

from src import files

ROOT = Path(__file__).resolve().parents[2]
ROWS, REPORT, MACHINE = "rows.jsonl", "gpu.md", "machine.json"
PACKAGES = ("torch", "triton", "lightning", "timm", "deformops")
SOURCES = (".py", ".so", ".cpp", ".cu", ".cuh", ".h")
_HIDDEN = ("section", "key", "state", "started")


def machine(device: str) -> dict[str, str]:
    """Card, versions and source; `state` is a short name of them all."""
    import torch  # here, because the processes that only pass rows on start without it

    from src.environment import package_version, revision
    from src.ops import backends

    facts = {"device": device_name(device), "python": platform.python_version()}
    facts |= {name: package_version(name) for name in PACKAGES}
    facts |= {"cuda": str(torch.version.cuda)}
    facts |= {name: backends(name)[device] for name in ("dcnv3", "dcnv4", "ms_deform_attn")}
    facts |= {"source": f"{revision()}, {fingerprint(ROOT / 'src')}"}
    return {"state": hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:8], **facts}


def device_name(device: str) -> str:
    import torch

    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()})"


def fingerprint(folder: Path) -> str:
    """A short hash of all sources and libraries of a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in SOURCES:
            digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()[:8]


class Rows:
    """The rows of a folder. Processes may write one after another, each with its own `Rows`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        facts = folder / MACHINE
        self.machine = json.loads(facts.read_text()) if facts.exists() else {"state": "unknown"}
        self.state = self.machine["state"]

    def read(self) -> list[dict[str, Any]]:
        """All rows, also of other states; a line that a kill has cut short does not count."""
        path = self.folder / ROWS
        rows = []
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return rows

    def find(self, section: str, key: str) -> dict[str, Any] | None:
        """The last result of a key in this state."""
        found = [row for row in self._own(section, key) if "started" not in row]
        return found[-1] if found else None

    def attempts(self, section: str, key: str) -> int:
        """How often a key was started without a result."""
        count = 0
        for row in self._own(section, key):
            count = count + 1 if "started" in row else 0
        return count

    def start(self, section: str, key: str) -> None:
        """Record that a measurement starts, so that a crash can be attributed to it."""
        self._append({"section": section, "key": key, "started": True})

    def add(self, section: str, key: str, **values: Any) -> None:
        """Write a row and the report."""
        self._append({"section": section, "key": key, **values})
        files.write_text(self.folder / REPORT, report(self.read(), self._machines()))

    def describe(self, facts: dict[str, str]) -> None:
        """Make `facts` the machine of the rows to come."""
        files.write_text(self.folder / MACHINE, json.dumps(facts, indent=1) + "\n")
        self.machine, self.state = facts, facts["state"]
        self.add("machine", facts["state"], **facts)

    def _own(self, section: str, key: str) -> list[dict[str, Any]]:
        wanted = (section, key, self.state)
        return [r for r in self.read() if (r["section"], r["key"], r["state"]) == wanted]

    def _append(self, row: dict[str, Any]) -> None:
        text = json.dumps({**row, "state": self.state}, default=str)
        path = self.folder / ROWS
        with path.open("a+b") as file:
            if file.tell():
                file.seek(-1, 2)
                if file.read(1) != b"\n":  # the rest of a line that a kill has cut short
                    text = "\n" + text
            file.write(text.encode() + b"\n")

    def _machines(self) -> dict[str, dict[str, Any]]:
        return {r["state"]: r for r in self.read() if r["section"] == "machine"}


def report(rows: list[dict[str, Any]], machines: dict[str, dict[str, Any]]) -> str:
    """Markdown: for each state its machine, then a table for each section."""
    parts = ["# On a GPU", "", "Written by `python -m benchmarks.gpu`, row by row."]
    for state, facts in machines.items():
        own = [row for row in rows if row["state"] == state and row["section"] != "machine"]
        parts += ["", f"## {facts['device']}, state {state}", ""]
        parts += [f"- {name}: {facts[name]}" for name in facts if name not in (*_HIDDEN, "device")]
        for section in dict.fromkeys(row["section"] for row in own):
            latest = {r["key"]: r for r in own if r["section"] == section and "started" not in r}
            parts += ["", f"### {section}", "", *_section(list(latest.values()))]
    return "\n".join(parts) + "\n"


def _section(rows: list[dict[str, Any]]) -> list[str]:
    """Tests are counted, and only those that did not pass are listed."""
    if not any("test" in row for row in rows):
        return table(rows)
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["test"]] = counts.get(row["test"], 0) + 1
    lines = [", ".join(f"{count} {outcome}" for outcome, count in counts.items())]
    failed = [row for row in rows if row["test"] == "failed"]
    return lines + (["", *table(failed)] if failed else [])


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of a Markdown table; the values of a dictionary get columns of their own."""
    flat = [_flat({k: v for k, v in row.items() if k not in _HIDDEN}) for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row))
    groups = list(dict.fromkeys(name.split(": ")[0] for name in names))
    names.sort(key=lambda name: groups.index(name.split(": ")[0]))  # stable
    lines = ["| " + " | ".join(["", *names]) + " |", "| --- " * (len(names) + 1) + "|"]
    for row, cells in zip(rows, flat, strict=True):
        values = [_text(cells.get(name, "")) for name in names]
        lines.append("| " + " | ".join([str(row["key"]), *values]) + " |")
    return lines


def _flat(row: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        nested = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{name}: ") if nested else {prefix + name: value}
    return flat


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "/").replace("\n", " ")

"""A comparison as one page that needs nothing else: pictures are in it, and it loads nothing."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from reproduce.compare_jobs import Entry
from reproduce.compare_report import Group, Line, Report, group_title, header, legend, row, verdict
from reproduce.settings import relative

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1500px; margin: 2rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13.5px; margin: .6rem 0; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th { border-bottom: 2px solid #222; }
th:nth-child(2), td:nth-child(2), th:last-child, td:last-child { text-align: left; }
td:last-child { white-space: normal; color: #555; min-width: 16rem; overflow-wrap: anywhere; }
tr.first td { font-weight: 600; } tr.out td { color: #888; }
table.plain th, table.plain td { text-align: left; white-space: normal; overflow-wrap: anywhere; vertical-align: top; }
.scroll { overflow-x: auto; } figure { margin: 1.2rem 0; } img { max-width: 100%; height: auto; }
figcaption, .small { color: #555; font-size: 13.5px; } details { margin: .4rem 0; } summary { cursor: pointer; }
.stale { color: #D55E00; } pre { background: #f6f6f6; padding: .6rem; overflow-x: auto; font-size: 12.5px; }
"""


def page(report: Report, pictures: Sequence[tuple[Path, str]], shared: Iterable[str]) -> str:
    """The page.

    Args:
        pictures: PNG files with their captions.
        shared: arguments that the terms set: what else differs between methods is listed.
    """
    parts = [
        f"<h1>{escape(report.title)}</h1>",
        _table(["what is equal", ""], [[name, value] for name, value in report.terms.items()], "plain"),
    ]
    for group in report.groups:
        parts += [f"<h2>{escape(group_title(group))}</h2>", _group(report, group)]
        parts.append(f"<p>{escape(verdict(group))}</p>")
    parts += [f'<p class="small">{escape(sentence)}</p>' for sentence in legend(report)]
    parts += [_picture(path, caption) for path, caption in pictures if path.is_file()]
    parts.append(_provenance(report, set(shared)))
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(report.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _group(report: Report, group: Group) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in header(report.costs))
    rows = []
    for line in group.lines:
        kind = "first" if line.rank == 1 else "" if line.rank else "out"
        cells = "".join(f"<td>{escape(text)}</td>" for text in row(line))
        rows.append(f'<tr class="{kind}">{cells}</tr>')
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    first = "".join(f"<th>{escape(text)}</th>" for text in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in cells) + "</tr>" for cells in rows)
    return f'<table class="{kind}"><thead><tr>{first}</tr></thead><tbody>{body}</tbody></table>'


def _picture(path: Path, caption: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    image = f'<img alt="{escape(caption, quote=True)}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


# -- provenance -------------------------------------------------------------------------------------------------------


def _provenance(report: Report, shared: set[str]) -> str:
    with_record = [(line, entry) for line in report.lines for entry in line.entries if entry.record is not None]
    parts = ["<h2>Provenance</h2>"]
    if not with_record:
        return "\n".join([*parts, "<p>There is no record yet.</p>"])
    head = ["run", "seed", "epochs", "start weights", "data", "commit", "torch", "device", "finished", "record"]
    rows = [_run_facts(line, entry) for line, entry in with_record]
    parts.append(f'<div class="scroll">{_table(head, rows, "plain")}</div>')
    stale = [f"{line.label} {line.size.label}: {line.notes}" for line in report.lines if line.notes]
    parts += [f'<p class="stale">{escape(text)}</p>' for text in stale]
    parts.append("<h3>What differs beyond the shared terms</h3>")
    parts.append(_table(["method", "settings of its own", "shared terms that it has no argument for"],
                        differences([(line, entry) for line, entry in with_record], shared), "plain"))  # fmt: skip
    parts.append("<h3>All settings</h3>")
    seen: set[tuple[str, str]] = set()
    for line, entry in with_record:
        if (line.label, line.size.label) in seen:
            continue
        seen.add((line.label, line.size.label))
        settings = json.dumps((entry.record or {}).get("settings"), indent=1)
        title = f"{line.label} {line.size.label}"
        parts.append(f"<details><summary>{escape(title)}</summary><pre>{escape(settings)}</pre></details>")
    return "\n".join(parts)


def _run_facts(line: Line, entry: Entry) -> list[str]:
    record = entry.record or {}
    data = record.get("data") or {}
    commit = str(record.get("commit") or "-")[:12] + (" with local changes" if record.get("dirty") else "")
    return [
        f"{line.label} {line.size.label}",
        str(entry.seed),
        f"{record.get('epochs_done') or 0:.3g}",
        str(record.get("start_weights")),
        f"{data.get('name')} {data.get('fingerprint')}, {data.get('test_images')} test images",
        commit,
        str((record.get("versions") or {}).get("torch")),
        str(record.get("device")),
        str(record.get("finished")),
        "-" if entry.path is None else relative(entry.path),
    ]


def differences(entries: Iterable[tuple[Line, Entry]], shared: set[str]) -> list[list[str]]:
    """(method, its own settings, shared terms that it has no argument for), a line a method."""
    settings: dict[str, dict[str, Any]] = {}
    for line, entry in entries:
        settings.setdefault(line.label, (entry.record or {})["settings"]["model"])
    usual = {name for model in settings.values() for name in model if name in shared}
    lines = []
    for label, model in settings.items():
        own = [f"{name}: {json.dumps(value)}" for name, value in model.items() if name not in shared]
        missing = sorted(usual - set(model))
        lines.append([label, ", ".join(own) or "-", ", ".join(missing) or "-"])
    return lines

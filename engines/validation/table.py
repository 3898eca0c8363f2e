"""A result as people read it: latencies, then every other figure with its budget, then what to know about them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engines.report.tables import bytes_text, ms_text, percent_text


def show(result: Mapping[str, Any], console: Any = None) -> None:
    """Print to `console`, a rich Console (None: stdout)."""
    from rich.console import Console

    console = console or Console()
    console.print(heading(result), highlight=False, markup=False, soft_wrap=True)
    console.print(_latencies(result["latency"]))
    console.print(_figures(result))
    for line in lines(result):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def heading(result: Mapping[str, Any]) -> str:
    """What was measured, on what and when."""
    machine = result["machine"]
    where = ", ".join(filter(None, [machine["accelerator"], machine["cpu"], f"{machine['cores']} cores"]))
    return (
        f"{result['name']}, preset {result['preset']} on {result['backend']} ({result['mode']}), {machine['date']}\n"
        f"{where}, load {machine['load_1min']}"
    )


def _latencies(timed: Mapping[str, Any]) -> Any:
    """A row for image, step, every component, and what trtexec measured."""
    from rich.table import Table

    table = Table(title="Latency in ms", title_justify="left")
    table.add_column("")
    for name in ("calls", "p50", "p90", "p99", "95 % interval"):
        table.add_column(name, justify="right")
    rows = {"image": timed["image"], "step": timed["step"], **timed["components"]}
    rows |= {f"{name} (trtexec)": t for name, t in timed["trtexec"].items()}
    for name, row in rows.items():
        percentiles = (ms_text(row[f"p{p}_ms"]) for p in (50, 90, 99))
        calls = str(row["calls"]) if "calls" in row else ""
        table.add_row(name, calls, *percentiles, _interval(row["interval"]))
    return table


def _interval(interval: Mapping[str, float] | None) -> str:
    if interval is None:
        return "too few images"
    return f"{ms_text(interval['low_ms'])} to {ms_text(interval['high_ms'])} ({percent_text(interval['relative'])})"


def _figures(result: Mapping[str, Any]) -> Any:
    """A row for each figure; those under a budget with limit and verdict."""
    from rich.table import Table

    table = Table(title="Figures and budgets", title_justify="left")
    for name in ("", "measured", "budget", ""):
        table.add_column(name, justify="right" if name else "left")
    judged = {row["option"]: row for row in result["budgets"]}
    for title, text, option in figures(result):
        row = judged.get(option)
        verdict = "" if row is None else "[green]held[/green]" if row["held"] else "[bold red]BROKEN[/bold red]"
        limit = "" if row is None else f"{'≤' if option.startswith('--max') else '≥'} {row['limit']:.10g} {row['unit']}"
        table.add_row(title, text, limit.strip(), verdict)
    return table


def figures(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(title, text, the option that bounds it) of every figure that this run has."""
    timed, memory, fidelity, score = (result[k] for k in ("latency", "memory", "fidelity", "prompt_score"))
    psnr, ssim, cosine = fidelity["psnr_db"], fidelity["ssim"], fidelity["latent_cosine"]
    speed = "" if timed["steps_per_second"] is None else f", {timed['steps_per_second']:.3g} steps/s"
    rows = [
        ("image, p50", f"{ms_text(timed['image']['p50_ms'])} ms", "--max-latency-ms"),
        ("step, p50", f"{ms_text(timed['step']['p50_ms'])} ms{speed}", "--max-step-ms"),
        (f"peak memory ({memory['probe']})", bytes_text(memory["peak_bytes"]), "--max-vram-mb"),
        ("disk", bytes_text(result["disk"]["total_bytes"]), "--max-disk-mb"),
        ("PSNR, mean (least)", f"{psnr['mean']:.2f} dB ({psnr['min']:.2f})", "--min-psnr"),
        ("SSIM, mean (least)", f"{ssim['mean']:.4f} ({ssim['min']:.4f})", "--min-ssim"),
        (
            "latent cosine, worst step",
            f"{min(cosine):.6f} (step {cosine.index(min(cosine)) + 1})",
            "--min-latent-cosine",
        ),
    ]
    if score is not None:
        rows.append(("prompt score", f"{percent_text(score['right'])} of {score['of']}", "--min-prompt-score"))
    return rows


def lines(result: Mapping[str, Any]) -> list[str]:
    """What was compared with what, how well the timing is known, the last comparable run, notes, the verdict."""
    timed, fidelity, budgets = result["latency"], result["fidelity"], result["budgets"]
    said = [f"compared with {fidelity['compared']}"]
    if timed["narrow"]:
        said.append(f"timed {timed['images']} images in {timed['seconds']:.1f} s until both intervals were under 5 %")
    said += [f"note: {note}" for note in result["notes"]]
    said += _regression(result["regression"])
    if budgets:
        held = sum(row["held"] for row in budgets)
        said.append(f"{held} of {len(budgets)} budgets held")
    else:
        said.append("no budget was given")
    return said


def _regression(found: Mapping[str, Any] | None) -> list[str]:
    if found is None:
        return ["history: the first run of its kind"]
    changed = [f["line"] for f in found["figures"] if f["verdict"] != "same"]
    image = next((f for f in found["figures"] if f["name"] == "image"), None)
    ratio = "" if image is None or image["ratio"] is None else f" (image × {image['ratio']:.3f})"
    return [f"history: {line}" for line in changed] or [
        f"history: no certain change since the run of {found['date']}{ratio}"
    ]

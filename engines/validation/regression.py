"""This run against the last comparable one: a line for every figure that is worse, or better, by more than noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Path = tuple[str, ...]

# What must be equal for two runs to be comparable at all. Versions may differ: they are what a regression comes from.
SAME: tuple[Path, ...] = (
    ("preset",),
    ("backend",),
    ("machine", "cpu"),
    ("machine", "cores"),
    ("machine", "memory_bytes"),
    ("machine", "accelerator"),
    ("settings", "threads"),
    ("mode",),
    ("generation",),
)
_SAME_IMAGES: tuple[Path, ...] = (("fidelity", "compared"), ("settings", "prompts_sha256"))
_SAME_PROBE: tuple[Path, ...] = (("memory", "probe"),)


@dataclass(frozen=True)
class Watched:
    """A figure at `path` of the result. `lower`: less is better.

    A change counts beyond `share` of the earlier value, or beyond `amount` where that is given; with `interval` (where
    the figure's confidence interval is) only if the two intervals do not overlap either. `same`: see SAME.
    """

    title: str
    path: Path
    lower: bool
    share: float = 0.05
    amount: float | None = None
    interval: Path | None = None
    same: tuple[Path, ...] = ()


WATCHED = (
    Watched("image", ("latency", "image", "p50_ms"), True, interval=("latency", "image", "interval")),
    Watched("step", ("latency", "step", "p50_ms"), True, interval=("latency", "step", "interval")),
    Watched("peak memory", ("memory", "peak_bytes"), True, same=_SAME_PROBE),
    Watched("disk", ("disk", "total_bytes"), True, share=0.01),
    Watched("mean PSNR", ("fidelity", "psnr_db", "mean"), False, amount=0.5, same=_SAME_IMAGES),
    Watched("mean SSIM", ("fidelity", "ssim", "mean"), False, amount=0.01, same=_SAME_IMAGES),
    Watched("prompt score", ("prompt_score", "right"), False, amount=0.0, same=_SAME_IMAGES),
)


def at(result: Any, path: Path) -> Any:
    """The value at a path of keys; None where the path ends early."""
    for key in path:
        result = result.get(key) if isinstance(result, Mapping) else None
    return result


def last_comparable(runs: Sequence[Mapping[str, Any]], result: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The latest of `runs` (the oldest first) that was measured as `result` was."""
    return next((r for r in reversed(runs) if all(at(r, p) == at(result, p) for p in SAME)), None)


def compare(earlier: Mapping[str, Any], result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for every figure of WATCHED that both runs have: `name`, `before`, `now`, `ratio`, `verdict`, `line`.

    `verdict` is "worse", "better" or "same"; `ratio` is now / before, None where that was 0.
    """
    rows = []
    for watched in WATCHED:
        before, now = at(earlier, watched.path), at(result, watched.path)
        comparable = all(at(earlier, p) == at(result, p) for p in watched.same)
        if not comparable or not all(isinstance(v, int | float) for v in (before, now)):
            continue
        verdict = _verdict(watched, earlier, result)
        ratio = now / before if before else None
        rows.append(
            {
                "name": watched.title,
                "before": before,
                "now": now,
                "ratio": ratio,
                "verdict": verdict,
                "line": _line(watched, before, now, ratio, verdict, at(earlier, ("machine", "date"))),
            }
        )
    return rows


def _verdict(watched: Watched, earlier: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    before, now = at(earlier, watched.path), at(result, watched.path)
    least = watched.share * abs(before) if watched.amount is None else watched.amount
    if abs(now - before) <= least or (watched.interval and _overlap(watched.interval, earlier, result)):
        return "same"
    return "worse" if (now > before) == watched.lower else "better"


def _overlap(path: Path, earlier: Mapping[str, Any], result: Mapping[str, Any]) -> bool:
    """Whether the two intervals overlap, or one is not known: then no difference can be claimed."""
    ends = [at(r, (*path, end)) for r in (earlier, result) for end in ("low_ms", "high_ms")]
    if not all(isinstance(e, int | float) for e in ends):
        return True
    return bool(ends[0] <= ends[3] and ends[2] <= ends[1])


def _line(watched: Watched, before: float, now: float, ratio: float | None, verdict: str, date: Any) -> str:
    said = f"{watched.title} is {verdict}" if verdict != "same" else f"{watched.title} is as it was"
    figures = f"{before:.4g} → {now:.4g}" + (f", × {ratio:.3f}" if ratio is not None else "")
    return f"{said} ({figures}) against the run of {date}"

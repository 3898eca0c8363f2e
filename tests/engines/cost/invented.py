"""Ceilings of a machine that does not exist."""

from __future__ import annotations

from engines.cost.ceilings import Ceilings
from engines.cost.probes import BETWEEN, CALL, COLD, COPY, GAP, HOT, LAUNCH, MOVED, OTHERS, READ, WAKE


def always(known: Ceilings, launch: float = 1e-6) -> Ceilings:
    """What every prediction asks for: a launch costs three times as much where much was moved, 1e-10 s a byte beyond
    1 MiB and a quarter of it below; reading half of that."""
    known.seconds[LAUNCH] = {(b,): launch if b <= BETWEEN[1] else 3 * launch for b in BETWEEN}
    known.seconds[CALL] = {HOT: 1e-5, COLD: 5e-5}
    known.seconds[COPY] = {(n,): n * (1e-10 if n < 1 << 21 else 4e-10) for n in MOVED}
    known.seconds[READ] = {p: s / 2 for p, s in known.seconds[COPY].items()}
    known.seconds[WAKE] = {(n,): n * 1e-6 for n in OTHERS}  # a product loses a tenth of the time before it
    known.seconds[GAP] = {(n,): n * 1e-5 for n in OTHERS}
    return known

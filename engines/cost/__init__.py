"""What a graph costs: operations and bytes, memory by liveness, time from a target's row or measured ceilings."""

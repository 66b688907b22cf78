"""How many users there are from one second to the next: pure functions of time, which locust's shapes ask.

at(Steps(users=40, seconds=60), 15.0) → 20
"""

from dataclasses import dataclass

STEPS = 4
SPIKE_FROM, SPIKE_TO = 0.4, 0.6
"""The part of a run that a spike lasts; before and after it there is a tenth of the users."""
RAMP = 0.05
"""The part of a soak in which the users come."""


@dataclass(frozen=True)
class Load:
    kind: str
    """constant, steps, spike or soak."""
    users: int
    """At the most."""
    seconds: float


KINDS = ("constant", "steps", "spike", "soak")


def users_at(load: Load, second: float) -> int | None:
    """None once the run is over."""
    if second >= load.seconds:
        return None
    part = second / load.seconds
    match load.kind:
        case "steps":
            return max(1, load.users * (int(part * STEPS) + 1) // STEPS)
        case "spike":
            return load.users if SPIKE_FROM <= part < SPIKE_TO else max(1, load.users // 10)
        case "soak":
            return max(1, round(load.users * min(1.0, part / RAMP)))
    return load.users

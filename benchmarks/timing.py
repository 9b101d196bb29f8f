"""Times things against each other: in turns, so that what disturbs one disturbs all."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

WARM_UP = 3


def in_turns(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, by contender; every round runs each once."""
    for run in contenders.values():
        for _ in range(WARM_UP):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def median_ms(seconds: Sequence[float]) -> float:
    """Median in milliseconds."""
    return statistics.median(seconds) * 1000


def ratio(seconds: Sequence[float], reference: Sequence[float]) -> float:
    """Median over rounds of how many times as long as the reference's turn in the same round."""
    return statistics.median(mine / its for mine, its in zip(seconds, reference, strict=True))


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)

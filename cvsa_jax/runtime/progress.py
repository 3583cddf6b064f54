"""Progress of what takes long, as a line with the remaining time."""

import sys
import time

PLAIN_INTERVAL = 12  # seconds between progress lines where the output is not a terminal
QUICK = 3  # seconds


class Progress:
    """A line with share done, rate and remaining time: rewritten in place on a terminal, else printed now and then.

    The first update only starts the clock, so that compilation does not count; what takes less than QUICK seconds
    leaves no line.
    """

    def __init__(self, label: str, total: int, *, unit: str = "images", per_count: int = 1):
        """`per_count`: units (for the rate) per count of `update`."""
        self.label, self.total, self.unit, self.per_count = label, total, unit, per_count
        self.began = self.shown = time.monotonic()
        self.first: tuple[int, float] | None = None

    def update(self, done: int, note: str = "") -> None:
        now = time.monotonic()
        live, last = sys.stdout.isatty(), done >= self.total
        start, clock = self.first = self.first or (done, now)
        due = now - self.shown >= (0.2 if live else PLAIN_INTERVAL)
        if last and now - self.began < QUICK:
            print("\r\x1b[K" if live else "", end="", flush=True)
            return
        if not last and (not due or done == start):
            return
        self.shown = now
        rate = (done - start) / max(now - clock, 1e-9)
        speed = f"  {rate * self.per_count:.{0 if rate * self.per_count >= 10 else 1}f} {self.unit}/s" if rate else ""
        left = f"{_clock(now - self.began)} in all" if last else f"{_clock((self.total - done) / rate)} left"
        line = f"{self.label} {done}/{self.total}{speed}  {left}  {note}".rstrip()
        print(f"\r\x1b[K{line}" if live else line, end="\n" if last or not live else "", flush=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"

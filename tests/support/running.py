"""A stand-in for a compiled step, and what a run has logged."""

from cvsa_jax.training.log import read_metrics


class Step:
    """A Python function in the place of a jitted step."""

    def __init__(self, function):
        self.function = function

    def __call__(self, state, batch):
        return self.function(state, batch)

    def lower(self, state, batch):
        return self

    def compile(self):
        return self

    def cost_analysis(self):
        return None

    memory_analysis = cost_analysis


def logged(workdir) -> list[dict]:
    """The rows of a run's metrics without those of its speed, which two equal runs do not share."""
    return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in read_metrics(workdir)]

"""Which deployment of a language model serves a workload within budget, at the lowest price."""

__version__ = "0.1.0"

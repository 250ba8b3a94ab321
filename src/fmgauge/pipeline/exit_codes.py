"""The exit codes of a command. Knows their numbers; not what leads to them.

0 is none of them: done, and a candidate met the budgets.
"""

STEP_FAILED = 1
"""A step failed, or not one stage could be measured."""
BAD_INPUT = 2
"""Bad usage, config or data."""
NO_CANDIDATE = 3
"""Measured, but no candidate met the budgets."""
SIGNAL = 128
"""Plus the signal's number, as shells have it: 130 after Ctrl-C."""

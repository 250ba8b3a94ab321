"""The notebooks in order, with progress, resume, and clean-up whatever happens.

Knows which notebook comes when and how one is executed; knows no formulas and no formats.
Its modules are imported one by one, so that `fmgauge check` does not wait for what `run` needs.
"""

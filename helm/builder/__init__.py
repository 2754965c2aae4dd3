"""What the chart carries but nobody writes by hand, built from code.

`dashboards` and `alerts` say what is shown and when somebody is told; `schema` makes the chart's
values strict; `pages` writes its README and docs/metrics.md. ``python -m helm.builder`` writes the
files, ``--check`` only compares them.
"""

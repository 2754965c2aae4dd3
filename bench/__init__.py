"""Benchmarks on real streams and against peers: ``python -m bench NAME [--quick]``.

Each module of this package is one benchmark, with a function ``rows(quick)`` that measures and
yields its rows. A full run is written to ``results/NAME.json``; a quick one, under a minute, only
printed. Ratios are taken within one run, figures are medians of several.
"""

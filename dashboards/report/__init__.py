"""The report: a static site from a store. `python -m dashboards.report --help`."""

"""Several settings on one pipeline, measured against plain: the choices, the run, the table, the chart, the verdict.

Above `pipelines/`, because it runs whole jobs; below `nodes/` and `commands/`, which both show what it finds.
"""

"""Work that goes on after an interruption: training runs, extractions and benchmarks all rest on this.

A job is what its description says, and a folder belongs to one job. One process at a time works in it. What is done
is written at once, whole or not at all, so whatever ends a process, the same call goes on from there.
"""

"""Resumable jobs, on which training runs, extractions and benchmarks are built.

A job is defined by its description, and a folder belongs to one job. One process at a time works in it. Every result is
written at once, atomically, so that the same call resumes the job however the process ended.
"""

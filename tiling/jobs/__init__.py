"""What every command stands on: command line, loop over slides, workers, terminal, whole files, locks, provenance.

Imports nothing of the project.
"""

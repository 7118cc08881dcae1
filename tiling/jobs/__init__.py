"""What every command stands on: command line, loop over slides, worker processes, whole files, locks, provenance.

Imports nothing of the project.
"""

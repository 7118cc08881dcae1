"""Numbers about predictions, with intervals over patients: arrays in, figures out. Imports nothing of mil."""

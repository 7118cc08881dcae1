"""diagnose-cohort: why validation accuracy is stuck. May import training and below.

In here each may import what stands to its right: display → diagnose → catalogue, page → findings → slide_pictures →
inputs → numbers → finding.
"""

"""CONTRACT run directory, and what a finished run can do: its models as one, who taught them.

May import heads and below.
"""

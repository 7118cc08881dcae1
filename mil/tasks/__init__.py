"""What a kind of target is: what it reads, how it is split, learned, predicted, judged and called.

A kind is one file with a `Task`, and one line in `mil.tasks.registry`. May import metrics and pages.
"""

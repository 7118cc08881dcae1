"""How the head needle finds the few patches by which slides differ: first guesses, and one direction learned of them.

S slides, D features, Q learners (each learns from its own slides), C candidates (a guess, a number of best patches, and
whether a direction was refined).
"""

"""How the head needle finds the few patches by which slides differ: first guesses, and directions learned of them.

S slides, D features, Q learners (each learns from its own slides), C candidates (a guess, a number of best patches, and
whether there is one direction, refined or not, or one of each kind).
"""

"""Slides to tissue-masked patches. Imports neither `features` nor `mil`, and never torch."""

"""Versions of the rules that decide what a store holds, kept in each store and part of its provenance.

Whoever changes what a rule gives for any slide raises its number: a run then refuses to add to stores that were made
by other rules, instead of mixing the two in one study. `tests/tiling/test_rules.py` holds each rule to its output.
"""

RULES = {
    "scale": 1,  # the level that is read, and the side of a patch (tiling.grid.scale)
    "grid": 2,  # where patches lie, and their shares of each mask (tiling.grid.fit, tiling.grid.corners)
    "pixels": 1,  # of a patch, and its sharpness (tiling.grid.resample, tiling.tissue.sharpness)
    "tissue": 2,  # tissue, dark borders and glass on the thumbnail, and the thumbnail (tiling.tissue)
    "pen": 2,  # pen on the thumbnail (tiling.tissue.pen)
}

"""Feature files of CLAM, TRIDENT and STAMP: read in place by `train-mil`, converted both ways by `convert-features`.

One module a layout (`clam`, `trident`, `stamp`, `stamp_1`, and `native` for our own), each with the layout in prose
first. What each of them says of a slide besides features and coordinates:

             slide size  patch size  patch size  overlap  encoder  µm/px of   µm/px of
                         in px       in level 0                    level 0    the patch
  slidemil   yes         yes         yes         yes      yes      yes        yes
  TRIDENT    yes         yes         yes         yes      name     no         no
  STAMP      no          yes         in µm       no       name     no         yes
  STAMP 1    no          no          no          0         name     no         no
  CLAM       no          no          no          no       no       no         no

What a file does not say is asked for and never guessed. A file that was converted from ours says everything: it
carries our attributes as JSON in one more attribute, `slidemil`, of the file, which the other tools pass over.
"""

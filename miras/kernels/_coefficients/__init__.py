"""What decay and momentum of a tile make of its tokens; `ops` is the operator.

`gates` finds everything in one launch; `vectors` and `products` do with less where sums of logs suffice (`compact`), and `formed` is
their result where it is used.
"""

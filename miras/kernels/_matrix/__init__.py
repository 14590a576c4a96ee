"""Memories of one matrix: scans forward and back, gradients of all tiles at once, and the operators of these.

`scan`, `reverse` and `pull` are Triton, `launches` starts them. `ops` is the plain memory; `bounded`, `linked`, `normed` and `split` (with
`carry`) are what it may be besides: steps under a bound, weights behind a link or a norm, segments of a long sequence.
"""

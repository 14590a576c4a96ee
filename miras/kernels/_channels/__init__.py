"""Matrices whose channels decay each at its own rate.

Of keys `pairs`, `chain` and the operators in `ops`, of values `value_mix`, `value_chain` and `value_ops`.
"""

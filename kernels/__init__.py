"""Operators behind the rewrites: schemas, fakes, reference, CPU and GPU implementations, cost model."""

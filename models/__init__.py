"""World models to compile, written as their authors would, and the protocol by which the rest uses any of them.

A model's own files know nothing of how it is compiled.
"""

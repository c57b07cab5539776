"""The ways in which ranks exchange tokens for heads; options name them, and nothing is imported for that."""

COLLECTIVES, COPIES = EXCHANGES = ("collectives", "copies")
"""By the backend of the process group, as few transfers as can be; or by copies between GPUs, each as soon as it can go
(:mod:`lightint_compile.kernels.exchange`).
"""

"""``lightint bench all``: kernels, rollouts, cold starts and the evaluation by one command, and a page of them.

The parts are data (:mod:`~lightint_compile.bench.parts.listed`). Each is a command of ``lightint`` that a person may
call as well, and runs in a process of its own.
"""

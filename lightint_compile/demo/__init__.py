"""The main job ``lightint demo``: one small world model, three ways to run it, one table."""

from lightint_compile.demo.job import run_demo

__all__ = ["run_demo"]

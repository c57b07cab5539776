"""The main job ``lightint demo``: a film where the truth is known, else three ways to run the model side by side."""

from lightint_compile.demo.asked import run_demo

__all__ = ["run_demo"]

"""What a user may ask for.

``torch.compile(model, backend="lightint", options={"preset": "sparse", "density": 0.25})`` reaches
:meth:`LightintOptions.from_mapping`. Equal options compare equal, so Dynamo does not compile a second time for them.
"""

from lightint_compile.options.values import DEFAULT_PRESET, LightintOptions

__all__ = ["DEFAULT_PRESET", "LightintOptions"]

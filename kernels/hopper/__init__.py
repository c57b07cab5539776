"""Kernels written for one chip family, compute capability 9.0 (Hopper: H100, H200, GH200).

Importing this package needs a Triton with Gluon; :mod:`lightint_compile.kernels.dispatch` treats any failure to import
it as "use the portable kernels".
"""

from .launch import BoundAttention, attend, expressible, supported

__all__ = ["BoundAttention", "attend", "expressible", "supported"]

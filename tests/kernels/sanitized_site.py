"""One small ragged site with prefix, context, empty lists and a tile that needs the exact pass; run by sanitize.sh."""

from __future__ import annotations

import torch

from lightint_compile.kernels import hopper, reference
from lightint_compile.kernels.spans import Spans
from lightint_compile.kernels.tiles import Layout


def main() -> None:
    torch.manual_seed(0)
    layout = Layout((3, 4), 11, 7, (4, 8, 4), 150)

    def tokens(count: int) -> torch.Tensor:
        return torch.randn(1, count, 2, 128, device="cuda", dtype=torch.bfloat16).transpose(1, 2)

    counts = (layout.prefix, layout.context_tokens, layout.current_tokens)
    keys, values = (Spans(*(tokens(n) for n in counts)) for _ in range(2))
    grown = Spans(keys.prefix, keys.context, keys.current * 40)
    query = tokens(layout.current_tokens)
    rows = (1, 2, layout.query_tiles)
    index = torch.arange(layout.key_blocks, device="cuda", dtype=torch.int32).expand(*rows, -1).contiguous()
    count = (torch.arange(2 * layout.query_tiles, device="cuda", dtype=torch.int32) % 5).view(rows)
    for key in (keys, grown):
        arguments = (index, count, layout, 128**-0.5)
        out = hopper.attend(query, key, values, *arguments)
        torch.cuda.synchronize()
        ref = reference.attend(query.cpu(), *(Spans(*(s.cpu() for s in t)) for t in (key, values)),
                               index.cpu(), count.cpu(), *arguments[2:])  # fmt: skip
        error = (out.cpu().float() - ref.float()).norm() / ref.float().norm()
        assert error < 1e-2, error
    print("finished")


if __name__ == "__main__":
    main()

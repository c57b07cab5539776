"""The operators' names, schemas and fakes: what a graph, an archive or another kernel may rely on.

Meaning of the arguments, shared by every operator and every implementation:

*Keys in order.* The key axis is ``prefix | context frames | current frames``: ``prefix`` text tokens first, then the
visual tokens of ``key_grid = (frames, height, width)``, frame-major, then row, then column. The query axis is
``query_grid``, the **last** frames of ``key_grid``: equal to it in a prefill, its tail (the current chunk) in a
denoising step. Height and width of the two grids are the same. Segment lists hold the same axis cut into non-empty
pieces, in order.

*Tiles.* ``tile = (t, h, w)`` tokens. Context frames (``key_grid`` minus ``query_grid``, possibly none) and current
frames are tiled **separately**, each from its own first frame, so that query tile ``(r, y, x)`` covers exactly the
tokens of key tile ``(context_rows + r, y, x)`` with ``context_rows = ceil(context_frames / t)``. The last tile of an
axis may be ragged; its empty slots do not exist: they join neither means nor softmax. Slots inside a tile run
t-major, then h, then w.

*Key block number.* 0-based over visual key tiles only: context tiles first, then current tiles, each t-major, then h,
then w: ``block = (row * blocks_high + y) * blocks_wide + x`` with ``row`` in ``[0, context_rows + current_rows)``.
Prefix tokens carry no number: they are attended by every query and **never listed**. Query tile numbers are ``(r *
blocks_high + y) * blocks_wide + x``.

*Lists.* ``index`` int32 ``[batch, query_heads, query_tiles, width]`` and ``count`` int32 ``[batch, query_heads,
query_tiles]``, both contiguous. Row ``i`` attends to blocks ``index[..., i, :count]``; entries past ``count`` may
hold anything. Selection writes ascending lists without duplicates; attention takes any order, and a block listed n
times weighs n times. A row with ``count == 0`` and ``prefix == 0`` gives zeros.

*Heads.* ``query_heads`` is a multiple of ``key_heads``; query head ``i`` reads key head ``i // (query_heads //
key_heads)``.

*Output.* ``[batch, query_heads, query_tokens, head_dim]`` in token order, the query's dtype. Its memory is that of a
contiguous tensor, or of a contiguous ``[batch, tokens, heads, head_dim]`` when the query's head stride is smaller
than its token stride (the layout of a projection that was only viewed and transposed).
"""

"""The graph: its normal form, facts about it, rewrites of it, and the pipeline that runs them."""

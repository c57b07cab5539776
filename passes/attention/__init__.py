"""Recognising attention: axes as names, spellings as patterns, a proof by algebra and by numbers before any rewrite."""

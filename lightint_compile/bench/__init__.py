"""Measurements that anyone can repeat: ``lightint bench ...``."""

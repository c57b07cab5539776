"""Dynamo's traces on disk, beside the programs that they call; see ``keeping``."""

"""Remarks turned into something a person or a program reads."""

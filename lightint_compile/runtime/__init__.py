"""What a compiled program does between graphs: camera statistics, decisions, guards and state."""

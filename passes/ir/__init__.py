"""The program that passes read and write: nodes, sizes, memory, decision points; how to match and to rewrite them."""

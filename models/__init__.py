"""World models to compile, written as their authors would; nothing here knows that lightint exists."""

"""A world with truth: textured mazes that can be rendered from every pose, and a small world model trained in them.

The model is HY-WorldPlay's architecture at small size; frames pass through a codec of its own.
"""

from .codec import CodecConfig as CodecConfig
from .codec import MazeCodec as MazeCodec
from .paths import MazePath as MazePath
from .paths import novel as novel
from .paths import protocol as protocol
from .paths import recorded as recorded
from .paths import there_and_back as there_and_back
from .render import render as render
from .world import Maze as Maze
from .world_model import MazeWorld as MazeWorld

"""``lightint play``: a world model in the browser, steered with the keyboard, with acceleration on and off."""

from lightint_compile.play.serving import play as play

"""What a capsule knows, made visible: functions that return data, and functions that draw it."""

import logging

_logger = logging.getLogger("matplotlib")
_level = _logger.level
_logger.setLevel(logging.ERROR)  # where it may not write into the user's home it says so in two lines, and does without
import matplotlib.font_manager  # noqa: E402, F401

_logger.setLevel(_level)

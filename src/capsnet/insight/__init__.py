"""What a capsule knows, made visible: functions that return data, and functions that draw it."""

"""The web page: see what a capsule knows, without writing code. Nothing leaves the computer that it runs on."""

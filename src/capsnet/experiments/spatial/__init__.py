"""The claim of capsule networks, tested on faces and on transformed digits, beside a CNN of the same size."""

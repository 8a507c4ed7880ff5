"""Speed and memory, beside a textbook implementation in the same run."""

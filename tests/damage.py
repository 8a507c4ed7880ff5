"""Files as accidents leave them, and what must be said of them."""

import numpy as np

import capsnet


def random(*shape, seed=0, high=256):
    return np.random.default_rng(seed).integers(0, high, shape, dtype=np.uint8)


def damaged(content, seed, header):
    """A file as an accident leaves it: cut, with wrong bytes (half of them in the header), or with more behind."""
    rng = np.random.default_rng(seed)
    content = bytearray(content)
    kind = rng.integers(3)
    if kind == 0:
        return bytes(content[: rng.integers(len(content))])
    if kind == 1:
        for _ in range(rng.integers(1, 4)):
            content[rng.integers(min(len(content), rng.choice([header, len(content)])))] = rng.integers(256)
        return bytes(content)
    return bytes(content) + rng.bytes(rng.integers(1, 40))


def told(path, *, by):
    """What is said of a file that cannot be used: one line with its name. None if it was read."""
    try:
        by(path)
    except capsnet.InputError as error:
        answer = str(error)
    else:
        return None
    assert path.name in answer
    assert "\n" not in answer
    return answer


def check_damage(path, read, header, cases=300):
    """Whatever happens to a file, it is read or refused; if its length is wrong it is refused."""
    whole = path.read_bytes()
    refused = 0
    for seed in range(cases):
        content = damaged(whole, seed, header)
        path.write_bytes(content)
        answer = told(path, by=read)
        refused += answer is not None
        if len(content) != len(whole):
            assert answer is not None, f"case {seed}"
    path.write_bytes(whole)
    assert told(path, by=read) is None
    assert refused > cases / 2

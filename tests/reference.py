"""The paper's Procedure 1 and equations 1 to 4 in plain NumPy float64 loops, written from the paper alone.

Slow and obvious on purpose: every fast path of the package is compared with this.
"""

import numpy as np


def squash(s):
    norm = np.sqrt(sum(x * x for x in s))
    if norm == 0:
        return np.zeros_like(s)
    return (norm**2 / (1 + norm**2)) * (s / norm)


def softmax(b):
    e = np.exp(b - b.max())
    return e / e.sum()


def route(u, W, iterations, leaky=False):
    """u (B, I, d), W (J, I, d, D) → v (B, J, D) and the couplings of each iteration (r, B, I, J)."""
    u, W = np.asarray(u, np.float64), np.asarray(W, np.float64)
    batch, I, _ = u.shape
    J, _, _, D = W.shape
    outputs = np.zeros((batch, J, D))
    history = np.zeros((iterations, batch, I, J))
    for n in range(batch):
        votes = np.zeros((I, J, D))
        for i in range(I):
            for j in range(J):
                votes[i, j] = u[n, i] @ W[j, i]
        b = np.zeros((I, J))
        for r in range(iterations):
            c = np.zeros((I, J))
            for i in range(I):
                c[i] = softmax(np.append(b[i], 0.0))[:J] if leaky else softmax(b[i])
            history[r, n] = c
            v = np.zeros((J, D))
            for j in range(J):
                s = np.zeros(D)
                for i in range(I):
                    s += c[i, j] * votes[i, j]
                v[j] = squash(s)
            for i in range(I):
                for j in range(J):
                    b[i, j] += votes[i, j] @ v[j]
        outputs[n] = v
    return outputs, history


def conv_route(u, W, kernel_size, stride, iterations, leaky=False):
    """u (B, H, W, T, d), W (J, k·k·T, d, D) → v (B, H', W', J, D): Procedure 1 at each position."""
    u = np.asarray(u, np.float64)
    batch, height, width, types, _ = u.shape
    rows, columns = (height - kernel_size) // stride + 1, (width - kernel_size) // stride + 1
    v = np.zeros((batch, rows, columns, W.shape[0], W.shape[3]))
    for n in range(batch):
        for y in range(rows):
            for x in range(columns):
                seen = []
                for down in range(kernel_size):
                    for right in range(kernel_size):
                        for t in range(types):
                            seen.append(u[n, y * stride + down, x * stride + right, t])
                outputs, _ = route(np.stack(seen)[None], W, iterations, leaky)
                v[n, y, x] = outputs[0]
    return v


def margin_loss(lengths, multi_hot):
    total = 0.0
    for row, present in zip(lengths, multi_hot, strict=True):
        for length, t in zip(row, present, strict=True):
            total += t * max(0.0, 0.9 - length) ** 2 + 0.5 * (1 - t) * max(0.0, length - 0.1) ** 2
    return total / len(lengths)

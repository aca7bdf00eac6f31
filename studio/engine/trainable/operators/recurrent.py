"""RNN, GRU and LSTM. Source: ONNX operators, the equations of each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from studio.engine.trainable.operators.registry import Call, Operator, operator

_PLAIN: dict[str, Operator] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "softsign": F.softsign,
    "softplus": F.softplus,
}


def _function(name: str, alpha: float | None = None, beta: float | None = None) -> Operator:
    name = name.lower()
    if name in _PLAIN:
        return _PLAIN[name]
    if name == "leakyrelu":
        return lambda x: F.leaky_relu(x, 0.01 if alpha is None else alpha)
    if name == "thresholdedrelu":
        return lambda x: F.threshold(x, 1.0 if alpha is None else alpha, 0.0)
    if name == "elu":
        return lambda x: F.elu(x, 1.0 if alpha is None else alpha)
    if name == "hardsigmoid":
        a, b = 0.2 if alpha is None else alpha, 0.5 if beta is None else beta
        return lambda x: torch.clamp(a * x + b, 0, 1)
    scale, offset = 1.0 if alpha is None else alpha, 1.0 if beta is None else beta
    if name == "scaledtanh":
        return lambda x: scale * torch.tanh(offset * x)
    return lambda x: scale * x + (0.0 if beta is None else beta)  # Affine


def _functions(call: Call, default: list[str], directions: int) -> list[Operator]:
    names = call.get("activations") or default * directions
    alphas, betas = list(call.get("activation_alpha") or []), list(call.get("activation_beta") or [])
    takes_alpha = ("leakyrelu", "thresholdedrelu", "elu", "hardsigmoid", "scaledtanh", "affine")
    functions = []
    for name in names:
        alpha = alphas.pop(0) if alphas and name.lower() in takes_alpha else None
        beta = betas.pop(0) if betas and name.lower() in ("hardsigmoid", "scaledtanh", "affine") else None
        functions.append(_function(name, alpha, beta))
    return functions


@operator("RNN", "GRU", "LSTM")
def recurrent(
    call: Call,
    x: Tensor,
    weight: Tensor,
    recurrence: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    hidden: Tensor | None = None,
    cell: Tensor | None = None,
    peephole: Tensor | None = None,
) -> Any:
    """X (T, N, C) or, with `layout` 1, (N, T, C); weight (directions, gates·H, C)."""
    batch_first = bool(call.get("layout", 0))
    if batch_first:
        x = x.transpose(0, 1)
        hidden = None if hidden is None else hidden.transpose(0, 1)
        cell = None if cell is None else cell.transpose(0, 1)
    directions, size = weight.shape[0], recurrence.shape[2]
    start = torch.zeros(directions, x.shape[1], size, dtype=x.dtype)
    hidden = start if hidden is None else hidden
    cell = start if cell is None else cell
    default = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}[call.op]
    functions = _functions(call, default, directions)
    outputs, last_hidden, last_cell = [], [], []
    for d in range(directions):
        backwards = call.get("direction", "forward") == "reverse" or d == 1
        step = _cell(call, functions[d * len(default) : (d + 1) * len(default)], weight[d], recurrence[d])
        y, h, c = _run(
            step, x, None if bias is None else bias[d], lengths, hidden[d], cell[d],
            None if peephole is None else peephole[d], backwards,
        )  # fmt: skip
        outputs.append(y)
        last_hidden.append(h)
        last_cell.append(c)
    y, h, c = (
        torch.stack(outputs, 1),
        torch.stack(last_hidden),
        torch.stack(last_cell),
    )  # y (T, directions, N, H)
    if batch_first:
        y, h, c = y.permute(2, 0, 1, 3), h.transpose(0, 1), c.transpose(0, 1)
    return (y, h, c)[: max(call.outputs, 1)] if call.op == "LSTM" else (y, h)[: max(call.outputs, 1)]


def _run(
    step: Operator,
    x: Tensor,
    bias: Tensor | None,
    lengths: Tensor | None,
    h: Tensor,
    c: Tensor,
    peephole: Tensor | None,
    backwards: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    steps = x.shape[0]
    outputs: list[Tensor] = [h] * steps
    for t in reversed(range(steps)) if backwards else range(steps):
        new_h, new_c = step(x[t], h, c, bias, peephole)
        if lengths is None:
            h, c = new_h, new_c
            outputs[t] = h
        else:  # rows that have ended keep their state and give zeros
            alive = (t < lengths).unsqueeze(1)
            h, c = torch.where(alive, new_h, h), torch.where(alive, new_c, c)
            outputs[t] = torch.where(alive, new_h, torch.zeros_like(new_h))
    return (torch.stack(outputs) if steps else x.new_zeros(0, *h.shape)), h, c


def _cell(call: Call, f: list[Operator], weight: Tensor, recurrence: Tensor) -> Operator:
    size = recurrence.shape[1]
    limit = call.get("clip")

    def clipped(v: Tensor) -> Tensor:
        return v if limit is None else v.clamp(-limit, limit)

    def biases(bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        half = recurrence.shape[0]
        return (None, None) if bias is None else (bias[:half], bias[half:])

    def rnn(x: Tensor, h: Tensor, c: Tensor, bias: Tensor | None, _p: Tensor | None) -> tuple[Tensor, Tensor]:
        b_x, b_h = biases(bias)
        return f[0](clipped(F.linear(x, weight, b_x) + F.linear(h, recurrence, b_h))), c

    def gru(x: Tensor, h: Tensor, c: Tensor, bias: Tensor | None, _p: Tensor | None) -> tuple[Tensor, Tensor]:
        b_x, b_h = biases(bias)
        from_x = F.linear(x, weight, b_x)
        gates = from_x[:, : 2 * size] + F.linear(
            h, recurrence[: 2 * size], None if b_h is None else b_h[: 2 * size]
        )
        z, r = f[0](clipped(gates)).chunk(2, 1)
        tail = None if b_h is None else b_h[2 * size :]
        if call.get("linear_before_reset", 0):
            candidate = from_x[:, 2 * size :] + r * F.linear(h, recurrence[2 * size :], tail)
        else:
            candidate = from_x[:, 2 * size :] + F.linear(r * h, recurrence[2 * size :], tail)
        return (1 - z) * f[1](clipped(candidate)) + z * h, c

    def lstm(x: Tensor, h: Tensor, c: Tensor, bias: Tensor | None, p: Tensor | None) -> tuple[Tensor, Tensor]:
        b_x, b_h = biases(bias)
        i, o, g, k = (F.linear(x, weight, b_x) + F.linear(h, recurrence, b_h)).chunk(4, 1)  # gates i, o, f, c
        if p is not None:
            p_i, p_o, p_f = p.chunk(3)
            i, g = i + p_i * c, g + p_f * c
        i = f[0](clipped(i))
        g = 1 - i if call.get("input_forget", 0) else f[0](clipped(g))
        c = g * c + i * f[1](clipped(k))
        if p is not None:
            o = o + p_o * c
        return f[0](clipped(o)) * f[2](c), c

    return {"RNN": rnn, "GRU": gru, "LSTM": lstm}[call.op]

"""The classical Runge-Kutta method of fourth order, for points and for what they gather on their way."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Derivative = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def runge_kutta_step(derivative: Derivative, x: Tensor, lam: Tensor, lam_next: Tensor) -> tuple[Tensor, Tensor]:
    """One step of an ordinary differential equation in the log SNR, in either direction.

    Parameters
    ----------
    derivative
        From points and log SNR to their velocity, of the shape of `x`, and to a rate that is integrated along.
    x
        Points.
    lam, lam_next
        Log SNRs, scalars.

    Returns
    -------
    The points at `lam_next`, and the integral of the rate.
    """
    h, middle = lam_next - lam, 0.5 * (lam + lam_next)
    step = h.to(x)
    v1, g1 = derivative(x, lam)
    v2, g2 = derivative(x + 0.5 * step * v1, middle)
    v3, g3 = derivative(x + 0.5 * step * v2, middle)
    v4, g4 = derivative(x + step * v3, lam_next)
    return x + step / 6 * (v1 + 2 * v2 + 2 * v3 + v4), h / 6 * (g1 + 2 * g2 + 2 * g3 + g4)

"""Vectors of 16 real or 8 complex numbers in Numba kernels, for sums that must stay in registers.

Numba's own loops keep a running row of sums in memory, and test at every start of a short loop
whether its arrays overlap: for the rows of a head (32 to 64 numbers) that took 1.5 times as long.
Loops over complex numbers it leaves to one number at a time.
"""

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model
from torch import Tensor
from torch.nn.functional import pad

LANES = 16
"""Real numbers in a vector: one AVX-512 register of float32; elsewhere the compiler makes several
registers of it. A complex number takes two, its real part first, as in memory."""


def whole(size: int) -> int:
    """The next multiple of LANES."""
    return -(-size // LANES) * LANES


def filled(x: Tensor, dtype: torch.dtype) -> np.ndarray:
    """x as an array, with zeros up to a whole number of real vectors in its last place."""
    short = whole(x.shape[-1]) - x.shape[-1]
    if short:  # a padding of nothing would still copy
        x = pad(x, (0, short))
    return x.to(dtype).contiguous().numpy()


class Lanes(types.Type):
    """Type of a vector of float32, float64, complex64 or complex128."""

    def __init__(self, dtype: types.Float | types.Complex) -> None:
        self.dtype = dtype
        self.is_complex = isinstance(dtype, types.Complex)
        self.part = dtype.underlying_float if isinstance(dtype, types.Complex) else dtype
        super().__init__(name=f"Lanes({dtype})")


@register_model(Lanes)
class _Vector(models.PrimitiveModel):
    def __init__(self, manager: Any, lanes: Lanes) -> None:
        element = ir.FloatType() if lanes.part == types.float32 else ir.DoubleType()
        super().__init__(manager, lanes, ir.VectorType(element, LANES))


@intrinsic
def per_vector(typing_context: Any, array: Any) -> Any:
    """How many numbers of `array` a vector holds."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        count = LANES // 2 if Lanes(signature.args[0].dtype).is_complex else LANES
        return context.get_constant(types.intp, count)

    return types.intp(array), generate


def _place(context: Any, builder: Any, array: Any, value: Any, index: Any) -> Any:
    """Pointer to the vector that begins at array[index]."""
    data = context.make_array(array)(context, builder, value).data
    vector = context.get_value_type(Lanes(array.dtype))
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


def _row(array: Any, index: Any) -> bool:
    """Whether numbers beside each other in `array` lie beside each other in memory."""
    whole = isinstance(array, types.Array) and isinstance(index, types.Integer)
    return whole and array.ndim == 1 and array.layout == "C"


@intrinsic
def load(typing_context: Any, array: Any, index: Any) -> Any:
    """array[index : index + per_vector(array)]."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _place(context, builder, signature.args[0], *arguments)
        return builder.load(place, align=signature.return_type.part.bitwidth // 8)

    return (Lanes(array.dtype)(array, types.intp), generate) if _row(array, index) else None


@intrinsic
def store(typing_context: Any, array: Any, index: Any, x: Any) -> Any:
    """array[index : index + per_vector(array)] = x."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _place(context, builder, signature.args[0], *arguments[:2])
        builder.store(arguments[2], place, align=signature.args[2].part.bitwidth // 8)
        return context.get_dummy_value()

    fits = _row(array, index) and x == Lanes(array.dtype)
    return (types.void(array, types.intp, x), generate) if fits else None


@intrinsic
def splat(typing_context: Any, x: Any) -> Any:
    """The real number x in every lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = context.get_value_type(signature.return_type)
        first = builder.insert_element(
            ir.Constant(vector, ir.Undefined), arguments[0], ir.Constant(ir.IntType(32), 0)
        )
        return _shuffled(builder, first, [0] * LANES)

    return (Lanes(x)(x), generate) if isinstance(x, types.Float) else None


@intrinsic
def zeros(typing_context: Any, array: Any) -> Any:
    """0 in every lane, of the numbers of `array`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return ir.Constant(context.get_value_type(signature.return_type), None)

    return Lanes(array.dtype)(array), generate


@intrinsic
def add(typing_context: Any, x: Any, y: Any) -> Any:
    """x + y."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fadd(*arguments)

    return x(x, y), generate


@intrinsic
def multiply(typing_context: Any, x: Any, y: Any) -> Any:
    """x * y."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if signature.return_type.is_complex:
            return _complex_product(builder, *arguments)
        return builder.fmul(*arguments, flags=("contract",))

    return x(x, y), generate


@intrinsic
def multiply_add(typing_context: Any, x: Any, y: Any, z: Any) -> Any:
    """x * y + z, in one step where the machine has one."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, y, z = arguments
        if signature.return_type.is_complex:
            return _complex_product(builder, x, y, z)
        return builder.fadd(builder.fmul(x, y, flags=("contract",)), z, flags=("contract",))

    return x(x, y, z), generate


@intrinsic
def conjugate(typing_context: Any, x: Any) -> Any:
    """The conjugates of complex numbers; real numbers as they are."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (x,) = arguments
        if not signature.return_type.is_complex:
            return x
        return builder.fmul(x, ir.Constant(x.type, [1.0, -1.0] * (LANES // 2)))

    return x(x), generate


# 2^r for |r| <= 1/2 to 2e-7 of itself, 1 at r = 0: a least greatest error, fitted here.
_EXP2 = [0.0013264727, 0.009671513, 0.055507336, 0.24022242, 0.693147, 1.0]
_ROUND = 1.5 * 2**23  # adding it leaves a whole number in the last bits


@intrinsic
def exp2(typing_context: Any, x: Any, rest: Any) -> Any:
    """2^(x + rest) of real numbers, `rest` being what rounding took from x: to 3e-7 of itself in
    float32, where it ends at 2^-125 and 2^127; exact in float64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, rest = arguments
        if signature.return_type.part == types.float64:
            x = builder.fadd(x, rest)
            one = builder.module.declare_intrinsic("llvm.exp2", [ir.DoubleType()])
            for lane in range(LANES):
                place = ir.Constant(ir.IntType(32), lane)
                power = builder.call(one, [builder.extract_element(x, place)])
                x = builder.insert_element(x, power, place)
            return x
        whole_numbers = ir.VectorType(ir.IntType(32), LANES)

        def constant(value: float, kind: Any = x.type) -> ir.Constant:
            return ir.Constant(kind, [value] * LANES)

        # Written so that a NaN passes both comparisons and comes out again.
        for beyond, end in (("<", -125.0), (">", 127.0)):
            outside = builder.fcmp_ordered(beyond, x, constant(end))
            x = builder.select(outside, constant(end), x)
            rest = builder.select(outside, constant(0.0), rest)
        shifted = builder.fadd(x, constant(_ROUND))
        r = builder.fsub(x, builder.fsub(shifted, constant(_ROUND)))
        r = builder.fadd(r, rest, flags=("contract",))
        power = constant(_EXP2[0])
        for coefficient in _EXP2[1:]:
            power = builder.fmul(power, r, flags=("contract",))
            power = builder.fadd(power, constant(coefficient), flags=("contract",))
        exponent = builder.shl(builder.bitcast(shifted, whole_numbers), constant(23, whole_numbers))
        scale = builder.add(exponent, constant(127 << 23, whole_numbers))
        return builder.fmul(power, builder.bitcast(scale, x.type))

    return None if x.is_complex else (x(x, rest), generate)


def _complex_product(builder: Any, x: Any, y: Any, z: Any = None) -> Any:
    """x y + z, or x y: Re x (Re y, Im y) + Im x (-Im y, Re y)."""
    pairs = range(0, LANES, 2)
    real = _shuffled(builder, x, [place for pair in pairs for place in (pair, pair)])
    imaginary = _shuffled(builder, x, [place for pair in pairs for place in (pair + 1, pair + 1)])
    turned = _shuffled(builder, y, [place for pair in pairs for place in (pair + 1, pair)])
    turned = builder.fmul(turned, ir.Constant(y.type, [-1.0, 1.0] * (LANES // 2)))
    product = builder.fmul(real, y, flags=("contract",))
    if z is not None:
        product = builder.fadd(product, z, flags=("contract",))
    return builder.fadd(
        builder.fmul(imaginary, turned, flags=("contract",)), product, flags=("contract",)
    )


def _shuffled(builder: Any, x: Any, places: list[int]) -> Any:
    """The lanes of x at `places`."""
    order = ir.Constant(ir.VectorType(ir.IntType(32), len(places)), places)
    return builder.shuffle_vector(x, x, order)


@intrinsic
def total(typing_context: Any, x: Any) -> Any:
    """Sum of real lanes: halves added to each other, always in the same order."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (x,) = arguments
        width = LANES
        while width > 1:
            width //= 2
            halves = [list(range(width)), list(range(width, 2 * width))]
            x = builder.fadd(*(_shuffled(builder, x, half) for half in halves))
        return builder.extract_element(x, ir.Constant(ir.IntType(32), 0))

    return None if x.is_complex else (x.dtype(x), generate)

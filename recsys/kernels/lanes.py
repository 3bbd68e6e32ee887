"""Vectors of 16 numbers in Numba kernels, for sums that must stay in registers.

Numba's own loops keep a running row of sums in memory, and test at every start of a short loop
whether its arrays overlap: for the rows of a head (32 to 64 numbers) that took 1.5 times as long.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model

LANES = 16
"""One AVX-512 register of float32; elsewhere the compiler makes several registers of it."""


class Lanes(types.Type):
    """Type of a vector."""

    def __init__(self, dtype: types.Float) -> None:
        self.dtype = dtype
        super().__init__(name=f"Lanes({dtype})")


@register_model(Lanes)
class _Vector(models.PrimitiveModel):
    def __init__(self, manager: Any, lanes: Lanes) -> None:
        element = ir.FloatType() if lanes.dtype == types.float32 else ir.DoubleType()
        super().__init__(manager, lanes, ir.VectorType(element, LANES))


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
    """array[index : index + LANES]."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _place(context, builder, signature.args[0], *arguments)
        return builder.load(place, align=signature.args[0].dtype.bitwidth // 8)

    return (Lanes(array.dtype)(array, types.intp), generate) if _row(array, index) else None


@intrinsic
def store(typing_context: Any, array: Any, index: Any, x: Any) -> Any:
    """array[index : index + LANES] = x."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _place(context, builder, signature.args[0], *arguments[:2])
        builder.store(arguments[2], place, align=signature.args[0].dtype.bitwidth // 8)
        return context.get_dummy_value()

    fits = _row(array, index) and x == Lanes(array.dtype)
    return (types.void(array, types.intp, x), generate) if fits else None


@intrinsic
def splat(typing_context: Any, x: Any) -> Any:
    """The number x in every lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = context.get_value_type(signature.return_type)
        first = builder.insert_element(
            ir.Constant(vector, ir.Undefined), arguments[0], ir.Constant(ir.IntType(32), 0)
        )
        same = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), same)

    return Lanes(x)(x), generate


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
        return builder.fmul(*arguments, flags=("contract",))

    return x(x, y), generate


@intrinsic
def multiply_add(typing_context: Any, x: Any, y: Any, z: Any) -> Any:
    """x * y + z, in one step where the machine has one."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, y, z = arguments
        return builder.fadd(builder.fmul(x, y, flags=("contract",)), z, flags=("contract",))

    return x(x, y, z), generate


@intrinsic
def total(typing_context: Any, x: Any) -> Any:
    """Sum of the lanes: halves added to each other, always in the same order."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (x,) = arguments
        width = LANES
        while width > 1:
            width //= 2
            parts = [
                builder.shuffle_vector(
                    x,
                    x,
                    ir.Constant(
                        ir.VectorType(ir.IntType(32), width), list(range(start, start + width))
                    ),
                )
                for start in (0, width)
            ]
            x = builder.fadd(*parts)
        return builder.extract_element(x, ir.Constant(ir.IntType(32), 0))

    return x.dtype(x), generate

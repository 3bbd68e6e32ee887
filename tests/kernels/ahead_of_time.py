"""Compile the Triton kernels of an operation for GPUs that are not there, and print what they take.

    python tests/kernels/ahead_of_time.py linear_scan     (without TRITON_INTERPRET)

Launches are caught: the operation runs on CPU tensors up to each kernel, which is compiled for
sm_80 and sm_90 with the types and constants of the launch instead of being run. One JSON line each.
"""

import importlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

TYPES = {
    "torch.float32": "*fp32",
    "torch.bfloat16": "*bf16",
    "torch.float16": "*fp16",
    "torch.int64": "*i64",
    "torch.int32": "*i32",
    "torch.bool": "*i1",
    "torch.uint8": "*u8",
}
ARCHITECTURES = (80, 90)
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


def signature(function: JITFunction, values: dict) -> tuple[dict, dict, dict]:
    """(types, constants, divisibility by 16) of one launch, as Triton itself specialises it."""
    types, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(function.params):
        value = values[parameter.name]
        one = isinstance(value, int) and value == 1 and not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or one:
            types[parameter.name], constants[parameter.name] = "constexpr", value
        elif hasattr(value, "data_ptr"):
            types[parameter.name] = TYPES[str(value.dtype)]
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            types[parameter.name] = "fp32"
        else:
            types[parameter.name] = "i32" if abs(value) < 2**31 else "i64"
            if value % 16 == 0 and not parameter.do_not_specialize:
                attributes[(index,)] = [["tt.divisibility", 16]]
    return types, constants, attributes


def compile_instead(self, *args, grid, warmup, **kwargs) -> None:
    """What `kernel[grid](…)` does here: compile for every architecture, print, launch nothing."""
    options = {key: kwargs.pop(key) for key in OPTIONS if key in kwargs}
    values = dict(zip(self.arg_names, args, strict=False)) | kwargs
    values |= {p.name: p.default for p in self.params if p.name not in values}
    types, constants, attributes = signature(self, values)
    key = (self.__name__, str(types), str(constants))
    if key in seen:
        return
    seen.add(key)
    for architecture in ARCHITECTURES:
        source = ASTSource(fn=self, signature=types, constexprs=constants, attrs=attributes)
        target = GPUTarget("cuda", architecture, 32)
        compiled = triton.compile(source, target=target, options=options)
        print(
            json.dumps(
                {
                    "kernel": f"{self.__module__.rpartition('kernels.')[2]}.{self.__name__}",
                    "types": sorted({kind for kind in types.values() if kind[0] == "*"}),
                    "constants": {k: v for k, v in constants.items() if v is not None},
                    "sm": architecture,
                    "shared": compiled.metadata.shared,
                    **resources(compiled.asm["cubin"]),
                }
            )
        )


def resources(cubin: bytes) -> dict[str, int]:
    """Registers, stack and local memory of one thread, as the assembler reports them."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: int(n) for name, n in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return {"registers": found["REG"], "stack": found["STACK"], "local": found["LOCAL"]}


seen: set = set()

if __name__ == "__main__":
    JITFunction.run = compile_instead
    sys.path.insert(0, str(Path(__file__).parent))
    for name in sys.argv[1:]:
        getattr(importlib.import_module(f"launches_{name}"), name)()

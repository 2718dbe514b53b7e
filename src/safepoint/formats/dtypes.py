"""The dtypes of tensors in files, by the names that torch gives them: how wide their elements are. Knows no torch."""

from __future__ import annotations

BITS = {
    "float64": 64, "float32": 32, "float16": 16, "bfloat16": 16,
    "float8_e4m3fn": 8, "float8_e5m2": 8, "float8_e4m3fnuz": 8, "float8_e5m2fnuz": 8, "float8_e8m0fnu": 8,
    "float4_e2m1fn_x2": 8,
    "int64": 64, "int32": 32, "int16": 16, "int8": 8, "uint64": 64, "uint32": 32, "uint16": 16, "uint8": 8, "bool": 8,
    "complex128": 128, "complex64": 64, "complex32": 32,
    "qint32": 32, "qint8": 8, "quint8": 8, "quint4x2": 4, "quint2x4": 2,
    "bits16": 16, "bits8": 8, "bits4x2": 8, "bits2x4": 8, "bits1x8": 8,
    **{f"{kind}{bits}": 8 for kind in ("int", "uint") for bits in range(1, 8)},
}  # fmt: skip
"""How wide an element is: of dtypes of less than a byte, as many as go into one."""

_STORAGES = {
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64", "Int": "int32",
    "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool", "ComplexFloat": "complex64",
    "ComplexDouble": "complex128", "QInt8": "qint8", "QUInt8": "quint8", "QInt32": "qint32", "QUInt4x2": "quint4x2",
    "QUInt2x4": "quint2x4",
}  # fmt: skip

STORAGES = {
    **{f"torch.{kind}Storage": dtype for kind, dtype in _STORAGES.items()},
    **{f"torch.cuda.{kind}Storage": dtype for kind, dtype in _STORAGES.items() if not kind.startswith("Q")},
    "torch.storage.UntypedStorage": "uint8",
}
"""The dtype that the class of a storage stands for, by its full name: an untyped storage is one of bytes."""
